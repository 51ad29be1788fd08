"""BiSeNetV2 (Yu et al. 2021): a detail branch and a semantic branch of gather-and-expansion layers.

Table 1 of the paper; CoinCheung/BiSeNet, lib/models/bisenetv2.py, for what that leaves open: ReLUs after the expanding
convolutions, and BatchNorm and ReLU after the last convolution of the context embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hwnas.ops.general import Conv, MeanConv
from hwnas.ops.layers import Add, Concat, MaxPool, ReLU, SeparableConv
from hwnas.spaces.encoders.fixed import FixedEncoder, repeated, scaled
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled, Scale
from hwnas.spaces.registry import encoder

PUBLISHED = (64, 4)  # channels of the first convolution of the detail branch, layers of the last semantic stage
EXPANSION = 6


@encoder("bisenetv2")
@dataclass(frozen=True)
class BiSeNetV2(FixedEncoder):
    """Features are that of the detail branch, at stride 8, and that of the semantic branch, at stride 32.

    Attributes:
        scale: `channels` is 64 as published; `cells` the layers of the last semantic stage, 4 as published.
    """

    scale: Scale

    def width(self, published: int) -> int:
        """Return the channels here of what has so many at the published width."""
        return scaled(published, self.scale.channels, PUBLISHED[0])

    def given(self) -> tuple[Feature, ...]:
        """Return the features."""
        return Feature(self.width(128), 8, activated=True), Feature(self.width(128), 32, activated=True)

    def auxiliary(self, arch: object, form: object) -> Feature:
        """Return the semantic branch at stride 16, one of the four that the paper trains booster heads on."""
        return Feature(self.width(64), 16, activated=True)

    def network(self) -> EncoderNet:
        """Build the network."""
        return _BiSeNetV2Net(self)


class Stem(nn.Module):
    """A strided convolution and a maximum side by side (figure 5 a)."""

    def __init__(self, c: int) -> None:
        """Build with `c` channels."""
        super().__init__()
        self.first = Conv(3, c, 3, 2)
        within = max(1, c // 2)
        self.left = nn.Sequential(Conv(c, within), Conv(within, c, 3, 2))
        self.right = MaxPool(2)
        self.concat = Concat()
        self.fuse = Conv(2 * c, c, 3)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, c, ceil(H/4), ceil(W/4))."""
        x = self.first(image)
        out: Tensor = self.fuse(self.concat(self.left(x), self.right(x)))
        return out


class GatherExpand(nn.Module):
    """A gather-and-expansion layer (figure 5 c and d): the depthwise convolution expands, twice if strided."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        """Build with `c_in` to `c_out` channels."""
        super().__init__()
        within = EXPANSION * c_in
        self.gather = Conv(c_in, c_in, 3)
        expand = [Conv(c_in, within, 3, stride, groups=c_in, act="relu" if stride == 1 else "none")]
        expand += [] if stride == 1 else [Conv(within, within, 3, groups=within)]
        self.expand = nn.Sequential(*expand)
        self.project = Conv(within, c_out, act="none")
        self.shortcut = nn.Identity() if stride == 1 else SeparableConv(c_in, c_out, stride=stride)
        self.add = Add(after_conv=True)
        self.relu = ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        y = self.project(self.expand(self.gather(x)))
        out: Tensor = self.relu(self.add(y, self.shortcut(x)))
        return out


class ContextEmbedding(nn.Module):
    """The mean over the map, projected and added at every place (figure 5 b)."""

    def __init__(self, c: int) -> None:
        """Build for `c` channels."""
        super().__init__()
        self.mean = MeanConv(c, c, before="bn")
        self.add = Add(after_conv=False)
        self.conv = Conv(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        out: Tensor = self.conv(self.add(x, self.mean(x)))
        return out


class _BiSeNetV2Net(EncoderNet):
    def __init__(self, own: BiSeNetV2) -> None:
        super().__init__()
        detail, c = list[nn.Module](), 3
        for width, layers in ((64, 2), (64, 3), (128, 3)):
            detail += repeated(lambda a, b, stride: Conv(a, b, 3, stride), c, own.width(width), layers)
            c = own.width(width)
        self.detail = nn.Sequential(*detail)
        c = own.width(16)
        self.stem = Stem(c)
        stages = []
        for width, layers in ((32, 2), (64, 2), (128, own.scale.cells)):
            stages.append(nn.Sequential(*repeated(GatherExpand, c, own.width(width), layers)))
            c = own.width(width)
        self.semantic = nn.ModuleList(stages)
        self.context = ContextEmbedding(c)

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        fine = self.detail(image)
        third, fourth, fifth = self.semantic
        middle = fourth(third(self.stem(image)))
        return Maps(((Map(fine),), (Map(self.context(fifth(middle))),)), middle)
