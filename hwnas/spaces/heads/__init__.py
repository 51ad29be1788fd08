"""Heads: from features to scores. Another one is another file, with the decorator `head`, listed here."""

from hwnas.spaces.heads.aspp import ASPPHead
from hwnas.spaces.heads.boundary import BoundaryHead
from hwnas.spaces.heads.classifier import ClassifierHead
from hwnas.spaces.heads.context import ContextHead
from hwnas.spaces.heads.decoder import DecoderHead
from hwnas.spaces.heads.dpc import DPCGenotype, DPCHead
from hwnas.spaces.heads.dual import DualHead
from hwnas.spaces.heads.fastnas import FastNASHead
from hwnas.spaces.heads.fpn import FPNHead
from hwnas.spaces.heads.fusion import FusionHead
from hwnas.spaces.heads.guided import GuidedHead
from hwnas.spaces.heads.multiattention import MultiAttentionHead
from hwnas.spaces.heads.multiscale import MultiScaleHead, multiscale_ops
from hwnas.spaces.heads.refinement import RefinementHead
from hwnas.spaces.registry import head, registered_heads

__all__ = [
    "ASPPHead",
    "BoundaryHead",
    "ClassifierHead",
    "ContextHead",
    "DPCGenotype",
    "DPCHead",
    "DecoderHead",
    "DualHead",
    "FPNHead",
    "FastNASHead",
    "FusionHead",
    "GuidedHead",
    "MultiAttentionHead",
    "MultiScaleHead",
    "RefinementHead",
    "head",
    "multiscale_ops",
    "registered_heads",
]
