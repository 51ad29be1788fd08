"""Heads: from features to scores. Another one is another file, with the decorator `head`, listed here."""

from hwnas.spaces.heads.aspp import ASPPHead
from hwnas.spaces.heads.classifier import ClassifierHead
from hwnas.spaces.heads.context import ContextHead
from hwnas.spaces.heads.decoder import DecoderHead
from hwnas.spaces.heads.multiscale import MultiScaleHead, multiscale_ops
from hwnas.spaces.registry import head, registered_heads

__all__ = [
    "ASPPHead",
    "ClassifierHead",
    "ContextHead",
    "DecoderHead",
    "MultiScaleHead",
    "head",
    "multiscale_ops",
    "registered_heads",
]
