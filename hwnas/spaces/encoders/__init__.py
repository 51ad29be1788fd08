"""Encoders: from an image to features. Another one is another file, with the decorator `encoder`, listed here."""

from hwnas.spaces.encoders.bisenetv2 import BiSeNetV2
from hwnas.spaces.encoders.chain import Chain
from hwnas.spaces.encoders.ddrnet import DDRNet
from hwnas.spaces.encoders.fast_scnn import FastSCNN
from hwnas.spaces.encoders.independent import Independent
from hwnas.spaces.encoders.lite import Lite
from hwnas.spaces.encoders.lmffnet import LMFFNet
from hwnas.spaces.encoders.mobilenetv2 import MobileNetV2
from hwnas.spaces.encoders.pidnet import PIDNet
from hwnas.spaces.encoders.resnet import ResNet
from hwnas.spaces.encoders.stdc import STDC
from hwnas.spaces.encoders.trellis import Trellis
from hwnas.spaces.encoders.xception import Xception
from hwnas.spaces.registry import encoder, registered_encoders

__all__ = [
    "STDC",
    "BiSeNetV2",
    "Chain",
    "DDRNet",
    "FastSCNN",
    "Independent",
    "LMFFNet",
    "Lite",
    "MobileNetV2",
    "PIDNet",
    "ResNet",
    "Trellis",
    "Xception",
    "encoder",
    "registered_encoders",
]
