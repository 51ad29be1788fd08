"""STDC (Fan et al. 2021): modules that concatenate what shorter and longer stacks of convolutions give.

Table 2 of the paper; MichaelFan01/STDC-Seg, nets/stdcnet.py, STDCNet813 and STDCNet1446.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hwnas.errors import check_ranges
from hwnas.ops.general import Conv, Pool
from hwnas.ops.layers import Concat
from hwnas.spaces.encoders.fixed import FixedEncoder, repeated, scaled
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled, Scale
from hwnas.spaces.registry import encoder

PUBLISHED = (32, 2)  # channels of the first convolution, modules at each of strides 8, 16 and 32 of STDC1
STDC2 = (2, 3, 1)  # that it has more


@encoder("stdc")
@dataclass(frozen=True)
class STDC(FixedEncoder):
    """Features are those at strides 4, 8, 16 and 32.

    Attributes:
        scale: `channels` is 32 as published; `cells` the modules at each of strides 8, 16 and 32, 2 in STDC1.
        deeper: Modules there are more at each of these strides: `STDC2` with 2 cells is STDC2.
    """

    scale: Scale
    deeper: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "deeper", tuple(self.deeper))
        good = len(self.deeper) == 3 and min(self.deeper) >= 0
        check_ranges("an encoder of STDC modules", ("a number for each of three strides, 0 or more", self.deeper, good))

    def width(self, published: int) -> int:
        """Return the channels here of what has so many at the published width."""
        return scaled(published, self.scale.channels, PUBLISHED[0])

    def given(self) -> tuple[Feature, ...]:
        """Return the features."""
        return tuple(Feature(self.width(c), s, activated=True) for c, s in ((64, 4), (256, 8), (512, 16), (1024, 32)))

    def network(self) -> EncoderNet:
        """Build the network."""
        return _STDCNet(self)


class Module(nn.Module):
    """A short-term dense concatenate module of four convolutions: 1/2, 1/4, 1/8 and 1/8 of the channels (figure 3)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        """Build with `c_in` to `c_out` channels."""
        super().__init__()
        half, quarter, eighth = c_out // 2, c_out // 4, c_out // 8
        self.first = Conv(c_in, half)
        self.down = Conv(half, half, 3, stride, groups=half, act="none") if stride > 1 else nn.Identity()
        self.skip = Pool(3, stride) if stride > 1 else nn.Identity()
        self.convs = nn.ModuleList(Conv(a, b, 3) for a, b in ((half, quarter), (quarter, eighth), (eighth, eighth)))
        self.concat = Concat()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        x = self.first(x)
        parts, x = [self.skip(x)], self.down(x)
        for conv in self.convs:
            x = conv(x)
            parts.append(x)
        out: Tensor = self.concat(*parts)
        return out


class _STDCNet(EncoderNet):
    def __init__(self, own: STDC) -> None:
        super().__init__()
        c = own.width(64)
        self.stem = nn.Sequential(Conv(3, own.width(32), 3, 2), Conv(own.width(32), c, 3, 2))
        stages = []
        for width, more in zip((256, 512, 1024), own.deeper, strict=True):
            stages.append(nn.Sequential(*repeated(Module, c, own.width(width), own.scale.cells + more)))
            c = own.width(width)
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        maps = [self.stem(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return Maps(tuple((Map(x),) for x in maps), maps[-2])
