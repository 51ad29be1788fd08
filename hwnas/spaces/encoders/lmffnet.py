"""LMFFNet-3-8 (Shi et al. 2022): split-extract-merge bottlenecks, joined with the image and what came before them.

Section III of the paper; Greak-1124/LMFFNet, model/LMFFNet.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hwnas.errors import check_ranges
from hwnas.ops.general import ChannelSlice, Conv, NormAct, PartitionAttention, Pool
from hwnas.ops.layers import Add, Concat
from hwnas.spaces.encoders.fixed import FixedEncoder
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled, Scale
from hwnas.spaces.registry import encoder

PUBLISHED = (32, 8)  # channels of the first convolution, bottlenecks at stride 8
FIRST = (2, 2, 2)  # dilations at stride 4
SECOND = (4, 4, 8, 8, 16, 16, 32, 32)  # at stride 8
IMAGE = 3  # channels of the image, which is pooled and injected


@encoder("lmffnet")
@dataclass(frozen=True)
class LMFFNet(FixedEncoder):
    """Features are the two results of the second kind of feature fusion, at strides 4 and 8.

    Attributes:
        scale: `channels` is 32 as published, a multiple of 2; `cells` the bottlenecks at stride 8, 8 at most.
    """

    scale: Scale

    def __post_init__(self) -> None:
        cells, channels = self.scale.cells, self.scale.channels
        check_ranges(
            "an LMFFNet",
            (f"cells from 1 to {len(SECOND)}", cells, cells <= len(SECOND)),
            ("an even number of channels", channels, channels % 2 == 0),
        )

    def given(self) -> tuple[Feature, ...]:
        """Return the features: no ReLU follows either."""
        return Feature(4 * self.scale.channels + IMAGE, 4), Feature(8 * self.scale.channels + IMAGE, 8)

    def network(self) -> EncoderNet:
        """Build the network."""
        return _LMFFNetNet(self)


class SplitExtractMerge(nn.Module):
    """SEM-B: half of the channels in two depthwise convolutions, one of them dilated (section III-A)."""

    def __init__(self, c: int, dilation: int) -> None:
        """Build for `c` channels."""
        super().__init__()
        half, quarter = c // 2, c // 4
        self.extract = Conv(c, half, 3, act="prelu")
        self.left = ChannelSlice(0, quarter)
        self.right = ChannelSlice(quarter, half)
        self.near = Conv(quarter, quarter, 3, groups=quarter, act="prelu")
        self.far = Conv(quarter, quarter, 3, dilation=dilation, groups=quarter, act="prelu")
        self.concat = Concat()
        self.merge = nn.Sequential(Conv(half, half, 3, act="prelu"), Conv(half, c, norm=False, act="none"))
        self.add = Add(after_conv=True)
        self.norm = NormAct(c, act="prelu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        y = self.extract(x)
        y = self.merge(self.concat(self.near(self.left(y)), self.far(self.right(y))))
        out: Tensor = self.norm(self.add(y, x))
        return out


class Downsampling(nn.Module):
    """A strided convolution beside a maximum."""

    def __init__(self, c_in: int, c_out: int) -> None:
        """Build with `c_in` to `c_out` channels."""
        super().__init__()
        wider = c_out > c_in
        self.conv = Conv(c_in, c_out - c_in if wider else c_out, 3, 2, norm=False, act="none")
        self.pool = Pool(2, 2, "max") if wider else None
        self.concat = Concat()
        self.norm = NormAct(c_out, act="prelu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2))."""
        y = self.conv(x)
        out: Tensor = self.norm(y if self.pool is None else self.concat(y, self.pool(x)))
        return out


class Fusion(nn.Module):
    """Maps side by side, normalised and mixed by a 1x1 convolution (FFM-A and FFM-B, section III-B)."""

    def __init__(self, c: int) -> None:
        """Build for `c` channels in all."""
        super().__init__()
        self.concat = Concat()
        self.norm = NormAct(c, act="prelu")
        self.conv = Conv(c, c, norm=False, act="none")

    def forward(self, *maps: Tensor) -> Tensor:
        """Several (N, c_i, H, W) -> (N, c, H, W)."""
        out: Tensor = self.conv(self.norm(self.concat(*maps)))
        return out


class Stage(nn.Module):
    """Downsampling, bottlenecks, and the fusion of both with the image."""

    def __init__(self, c_in: int, c: int, dilations: tuple[int, ...]) -> None:
        """Build with `c_in` channels to ``2 c`` and those of the image."""
        super().__init__()
        self.down = Downsampling(c_in, c)
        self.blocks = nn.Sequential(*(SplitExtractMerge(c, dilation) for dilation in dilations))
        self.attention = PartitionAttention(c)
        self.fusion = Fusion(2 * c + IMAGE)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(N, c_in, H, W) and the image of half its size -> (N, 2 c + 3, ceil(H/2), ceil(W/2))."""
        x = self.down(x)
        out: Tensor = self.fusion(self.blocks(x), self.attention(x), image)
        return out


class _LMFFNetNet(EncoderNet):
    def __init__(self, own: LMFFNet) -> None:
        super().__init__()
        c = own.scale.channels
        self.stem = nn.Sequential(Conv(3, c, 3, 2, act="prelu"), Conv(c, c, 3, act="prelu"), Conv(c, c, 3, act="prelu"))
        self.injection = Pool(3, 2)
        self.fusion = Fusion(c + IMAGE)
        self.stage1 = Stage(c + IMAGE, 2 * c, FIRST)
        self.stage2 = Stage(4 * c + IMAGE, 4 * c, SECOND[: own.scale.cells])

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        half = self.injection(image)
        quarter = self.injection(half)
        fine = self.stage1(self.fusion(self.stem(image), half), quarter)
        coarse = self.stage2(fine, self.injection(quarter))
        return Maps(((Map(fine),), (Map(coarse),)), fine)
