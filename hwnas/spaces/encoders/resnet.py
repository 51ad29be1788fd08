"""ResNet-18 and 34 (He et al. 2016), Table 1: two 3x3 convolutions and a sum in each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hwnas.data.base import IMAGENET_MEAN, IMAGENET_STD
from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.spaces.encoders.stages import Block, Row, Staged, StagedNet
from hwnas.spaces.parts import Scale
from hwnas.spaces.registry import encoder
from hwnas.spaces.sources import Source

Depth = Literal[18, 34]
TIMES: dict[Depth, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # blocks of each stage


@encoder("resnet")
@dataclass(frozen=True)
class ResNet(Staged):
    """ResNet of basic blocks.

    Attributes:
        scale: `channels` is that of the stem, 64 as published, and doubles with the stride; `cells` is the number of
            stages, 4 as published: with fewer it ends earlier.
        depth: 18 or 34 layers, the stem and a classifier among them.
        stride: Of the output, in pixels of the image; where it is reached, convolutions are atrous instead.
    """

    scale: Scale
    depth: Depth = 18
    stride: int = 32

    def __post_init__(self) -> None:
        if self.depth not in TIMES:
            raise HwnasError(f"a depth of {' or '.join(map(str, TIMES))} was expected, got {self.depth}")
        self.stages()  # raises

    @property
    def rows(self) -> tuple[Row, ...]:
        """All stages."""
        c = self.scale.channels
        return tuple(Row(times, c << i, 1 if i == 0 else 2) for i, times in enumerate(TIMES[self.depth]))

    @property
    def stem(self) -> tuple[int, int]:
        """Channels and stride of the stem, its pooling included."""
        return self.scale.channels, 4

    @property
    def activated(self) -> bool:
        """Whether a block ends in a ReLU."""
        return True

    def network(self) -> StagedNet:
        """Build the network."""
        stem = {"stem": layers.ConvBN(3, self.scale.channels, 7, 2, relu=True), "pool": layers.MaxPool(2)}
        return StagedNet(self, stem, BasicBlock)

    def sources(self) -> tuple[Source, ...]:
        """Return how torchvision, models/resnet.py, names its weights; timm's models/resnet.py has the same names."""
        names, c_in = {"stem.conv": "conv1", "stem.bn": "bn1"}, self.scale.channels
        for s, blocks in enumerate(self.stages(whole=True)):
            for b, block in enumerate(blocks):
                own, there = f"stages.{s}.{b}", f"layer{s + 1}.{b}"
                parts = {"first.conv": "conv1", "first.bn": "bn1", "second.conv": "conv2", "second.bn": "bn2"}
                if projects(c_in, block):
                    parts |= {"shortcut.conv": "downsample.0", "shortcut.bn": "downsample.1"}
                names |= {f"{own}.{part}": f"{there}.{name}" for part, name in parts.items()}
                c_in = block.channels
        title = f"torchvision's or timm's resnet{self.depth}"
        return (self.cut(Source(title, names, ("fc.",), IMAGENET_MEAN, IMAGENET_STD)),)


def projects(c_in: int, block: Block) -> bool:
    """Tell whether the shortcut of a block is a 1x1 convolution: where channels change, which is where strides do."""
    return c_in != block.channels or block.stride > 1


def conv3x3(c_in: int, c_out: int, stride: int, dilation: int, relu: bool) -> nn.Module:
    """Return a 3x3 convolution with BatchNorm."""
    if dilation == 1:
        return layers.ConvBN(c_in, c_out, 3, stride, relu)
    assert stride == 1, "what is dilated keeps its resolution"
    return layers.AtrousConv(c_in, c_out, 3, dilation, relu)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to what they read, or to a 1x1 convolution of that; a ReLU."""

    def __init__(self, c_in: int, block: Block) -> None:
        """Build it for `c_in` channels."""
        super().__init__()
        c = block.channels
        self.first = conv3x3(c_in, c, block.stride, block.dilation, relu=True)
        self.second = conv3x3(c, c, 1, block.after, relu=False)
        self.shortcut = layers.ConvBN(c_in, c, 1, block.stride) if projects(c_in, block) else nn.Identity()
        self.add = layers.Add(after_conv=True)
        self.relu = layers.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, channels, ceil(H/stride), ceil(W/stride))."""
        out: Tensor = self.relu(self.add(self.second(self.first(x)), self.shortcut(x)))
        return out
