"""What encoders of inverted residuals share: their blocks, their stem, and how others name their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.spaces.encoders.stages import Block, Staged, StagedNet, rounded

Names = dict[str, str]


class InvertedBlock(nn.Module):
    """An inverted residual, added to what it reads where that has its shape."""

    def __init__(self, c_in: int, block: Block, same: bool) -> None:
        """Build it for `c_in` channels; `same` is for padding as in TensorFlow."""
        super().__init__()
        channels, kernel, expand, stride, dilation, _ = block
        self.body = layers.InvertedResidual(c_in, channels, kernel, stride, expand, dilation, same)
        # Where it was strided as published, it has no sum either, whatever the output stride.
        self.add = layers.Add(after_conv=True) if c_in == channels and dilation == block.after and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, channels, ceil(H/stride), ceil(W/stride))."""
        out: Tensor = self.body(x)
        return out if self.add is None else self.add(out, x)


class Inverted(Staged):
    """Stages of inverted residuals, after a 3x3 convolution of stride 2.

    Attributes:
        same: Whether strided convolutions are padded as in TensorFlow.
    """

    same: ClassVar[bool] = False

    @property
    def stem(self) -> tuple[int, int]:
        """Channels and stride of the stem."""
        return rounded(self.scale.channels), 2

    @property
    def activated(self) -> bool:
        """Whether a block ends in a ReLU: inverted residuals do not."""
        return False

    def network(self) -> StagedNet:
        """Build the network."""
        stem = {"stem": layers.ConvBNReLU6(3, self.stem[0], 3, 2, self.same)}
        return StagedNet(self, stem, lambda c_in, block: InvertedBlock(c_in, block, self.same))


def bodies(stages: Sequence[Sequence[Block]]) -> Iterator[tuple[str, int, int, int, Block]]:
    """Yield our name of each inverted residual, its number, those of its stage and within that, and its block."""
    number = 0
    for s, blocks in enumerate(stages):
        for b, block in enumerate(blocks):
            yield f"stages.{s}.{b}.body", number, s, b, block
            number += 1


def timm_names(stages: Sequence[Sequence[Block]]) -> Names:
    """Return the names of timm, models/_efficientnet_blocks.py: a block without expansion is a depthwise-separable one.

    They are those of ``mobilenetv2_100`` and its like.
    """
    out = {"stem.conv": "conv_stem", "stem.bn": "bn1"}
    for own, _, s, b, block in bodies(stages):
        there = f"blocks.{s}.{b}"
        if block.expand == 1:
            parts = {"depthwise": "conv_dw", "bn2": "bn1", "project": "conv_pw", "bn3": "bn2"}
        else:
            parts = {"expand": "conv_pw", "bn1": "bn1", "depthwise": "conv_dw", "bn2": "bn2"}
            parts |= {"project": "conv_pwl", "bn3": "bn3"}
        out |= {f"{own}.{part}": f"{there}.{name}" for part, name in parts.items()}
    return out
