"""MobileNetV2 (Sandler et al. 2018), Table 2; its head of 1280 channels is for classifying and left out."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.data.base import IMAGENET_MEAN, IMAGENET_STD
from hwnas.spaces.encoders.inverted import Inverted, bodies, timm_names
from hwnas.spaces.encoders.stages import Row, rounded
from hwnas.spaces.parts import Scale
from hwnas.spaces.registry import encoder
from hwnas.spaces.sources import Source

ROWS = (
    Row(1, 16, 1, 3, 1),
    Row(2, 24, 2, 3, 6),
    Row(3, 32, 2, 3, 6),
    Row(4, 64, 2, 3, 6),
    Row(3, 96, 1, 3, 6),
    Row(3, 160, 2, 3, 6),
    Row(1, 320, 1, 3, 6),
)
STEM = 32


@encoder("mobilenetv2")
@dataclass(frozen=True)
class MobileNetV2(Inverted):
    """MobileNetV2 of any width.

    Attributes:
        scale: `channels` is that of the stem before rounding: 32 times the width multiplier, so 45 for a multiplier of
            1.4. All widths follow it, rounded to multiples of 8. `cells` is the number of stages, 7 as published: with
            fewer it ends earlier.
        stride: Of the output, in pixels of the image; where it is reached, convolutions are atrous instead (section
            6.3).
    """

    scale: Scale
    stride: int = 32

    def __post_init__(self) -> None:
        self.stages()  # raises

    @property
    def rows(self) -> tuple[Row, ...]:
        """All stages."""
        return tuple(row._replace(channels=rounded(row.channels * self.scale.channels / STEM)) for row in ROWS)

    def sources(self) -> tuple[Source, ...]:
        """Return how torchvision, models/mobilenetv2.py, and timm name its weights."""
        names = {"stem.conv": "features.0.0", "stem.bn": "features.0.1"}
        for own, number, _, _, block in bodies(self.stages(whole=True)):
            first = 0 if block.expand == 1 else 1  # place of the depthwise convolution
            parts = {} if block.expand == 1 else {"expand": "0.0", "bn1": "0.1"}
            parts |= {"depthwise": f"{first}.0", "bn2": f"{first}.1", "project": f"{first + 1}", "bn3": f"{first + 2}"}
            names |= {f"{own}.{part}": f"features.{number + 1}.conv.{name}" for part, name in parts.items()}
        seen, rest = (IMAGENET_MEAN, IMAGENET_STD), ("conv_head.", "bn2.", "classifier.")
        return (
            self.cut(Source("torchvision's mobilenet_v2", names, ("features.18.", "classifier."), *seen)),
            self.cut(Source("timm's mobilenetv2", timm_names(self.stages(whole=True)), rest, *seen)),
        )
