"""Heads: from features to scores. Another one is another file, with the decorator `head`, listed here."""

from hwnas.spaces.heads.aspp import ASPPHead
from hwnas.spaces.heads.classifier import Classifier
from hwnas.spaces.heads.context import Context
from hwnas.spaces.heads.decoder import Decoder
from hwnas.spaces.registry import head, registered_heads

__all__ = ["ASPPHead", "Classifier", "Context", "Decoder", "head", "registered_heads"]
