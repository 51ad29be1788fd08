"""Encoders: from an image to features. Another one is another file, with the decorator `encoder`, listed here."""

from hwnas.spaces.encoders.chain import Chain
from hwnas.spaces.encoders.independent import Independent
from hwnas.spaces.encoders.trellis import Trellis
from hwnas.spaces.encoders.xception import Xception
from hwnas.spaces.registry import encoder, registered_encoders

__all__ = ["Chain", "Independent", "Trellis", "Xception", "encoder", "registered_encoders"]
