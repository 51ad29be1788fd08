"""Fast-SCNN (Poudel et al. 2019): learning to downsample, and a global feature extractor on its result.

Table 1 of the paper; Tramac/Fast-SCNN-pytorch, models/fast_scnn.py, for what that leaves open. There the first
convolution has no padding; here it has, so that sizes are ``ceil(size / 2)``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hwnas.ops.general import Conv
from hwnas.ops.layers import Add, Concat, ConvBN, GridPool, ImagePooling, SeparableConv, resize
from hwnas.spaces.encoders.fixed import FixedEncoder, repeated, scaled
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled, Scale
from hwnas.spaces.registry import encoder

PUBLISHED = (32, 3)  # channels of the first convolution, bottlenecks of each of the three stages
EXPANSION = 6
GRIDS = (2, 3, 6)  # beside the mean of the whole map (PSPNet, section 3.2)


@encoder("fast-scnn")
@dataclass(frozen=True)
class FastSCNN(FixedEncoder):
    """Features are the result of learning to downsample, at stride 8, and the last one, at stride 32.

    Attributes:
        scale: `channels` is 32 as published, `cells` the bottlenecks of each stage, 3 as published.
    """

    scale: Scale

    def width(self, published: int) -> int:
        """Return the channels here of what has so many at the published width."""
        return scaled(published, self.scale.channels, PUBLISHED[0])

    def given(self) -> tuple[Feature, ...]:
        """Return the features."""
        return Feature(self.width(64), 8, activated=True), Feature(self.width(128), 32, activated=True)

    def network(self) -> EncoderNet:
        """Build the network."""
        return _FastSCNNNet(self)


class Bottleneck(nn.Module):
    """Inverted residual with a linear end (MobileNetV2)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        """Build with `c_in` to `c_out` channels."""
        super().__init__()
        within = EXPANSION * c_in
        self.expand = Conv(c_in, within)
        self.depthwise = Conv(within, within, 3, stride, groups=within)
        self.project = Conv(within, c_out, act="none")
        self.add = Add(after_conv=True) if stride == 1 and c_in == c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y if self.add is None else self.add(y, x)


class PyramidPooling(nn.Module):
    """The map beside its means over grids, each projected to a quarter of its channels (PSPNet, section 3.2)."""

    def __init__(self, c: int) -> None:
        """Build for `c` channels, which the result has too."""
        super().__init__()
        self.whole = ImagePooling(c, c // 4)
        self.grids = nn.ModuleList(ConvBN(c, c // 4, relu=True) for _ in GRIDS)
        self.concat = Concat()
        self.project = Conv(c + 4 * (c // 4), c)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        parts = [x, self.whole(x)]
        for grid, conv in zip(GRIDS, self.grids, strict=True):
            parts.append(resize(conv(GridPool(x.shape[2], x.shape[3], grid)(x)), x))
        out: Tensor = self.project(self.concat(*parts))
        return out


class _FastSCNNNet(EncoderNet):
    def __init__(self, own: FastSCNN) -> None:
        super().__init__()
        first, second, c = (own.width(w) for w in (32, 48, 64))
        self.downsample = nn.Sequential(
            Conv(3, first, 3, 2),
            SeparableConv(first, second, stride=2, relu=True),
            SeparableConv(second, c, stride=2, relu=True),
        )
        stages = list[nn.Module]()
        for width, stride in ((64, 2), (96, 2), (128, 1)):
            stages += repeated(Bottleneck, c, own.width(width), own.scale.cells, stride)
            c = own.width(width)
        self.bottlenecks = nn.Sequential(*stages)
        self.pyramid = PyramidPooling(c)

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        fine = self.downsample(image)
        return Maps(((Map(fine),), (Map(self.pyramid(self.bottlenecks(fine))),)), fine)
