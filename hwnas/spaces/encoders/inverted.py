"""What encoders of inverted residuals share: their blocks, their network, and how others name their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.spaces.encoders.stages import Block, Staged, StagedNet

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


def network(encoder: Staged, same: bool) -> StagedNet:
    """Return the network of an encoder of inverted residuals, after a 3x3 convolution of stride 2."""
    c_in = encoder.stem[0]
    stem = {"stem": layers.ConvBNReLU6(3, c_in, 3, 2, same)}
    stages: list[list[nn.Module]] = []
    for blocks in encoder.stages():
        stages.append([])
        for block in blocks:
            stages[-1].append(InvertedBlock(c_in, block, same))
            c_in = block.channels
    return StagedNet(encoder, stem, stages)


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
