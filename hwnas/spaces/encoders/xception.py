"""Xception: the encoder that Auto-DeepLab is compared with (Chen et al. 2018; Chollet 2017).

That of tensorflow/models, research/deeplab/core/xception.py: deeper than Chollet's, without pooling, and with a
BatchNorm between the two halves of each separable convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.encoders.fixed import FixedEncoder, check_stride, dot_chain
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled, Scale
from hwnas.spaces.registry import encoder

PUBLISHED = (32, 16)  # channels of the first convolution, blocks of the middle flow
Entry = tuple[tuple[int, int], ...]  # channels and stride of each block of the entry flow, at the published width
# 71 has two blocks more than 65, before the stride goes to 8 and to 16.
ENTRY_65: Entry = ((128, 2), (256, 2), (728, 2))
ENTRY_71: Entry = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
_MIDDLE = 728
_EXIT = ((728, 1024, 1024), (1536, 1536, 2048))


class Block(NamedTuple):
    """Three separable convolutions and what is added to them.

    Attributes:
        widths: Channels of each convolution.
        stride: Of the last one.
        dilation: Of all.
        shortcut: A 1x1 convolution, the input itself, or nothing.
    """

    widths: tuple[int, ...]
    stride: int
    dilation: int
    shortcut: Literal["conv", "sum", "none"]


@encoder("xception")
@dataclass(frozen=True)
class Xception(FixedEncoder):
    """One network: it has no decisions. Features are the low-level map at stride 4, and the last.

    Attributes:
        scale: `channels` is that of the first convolution, 32 as published, and all others follow it; `cells` is the
            number of blocks in the middle flow, 16 as published.
        entry: The entry flow: `ENTRY_65`, or `ENTRY_71`, which Auto-DeepLab is compared with.
        stride: Of the output, in pixels of the image; where it is reached, convolutions are atrous instead.
    """

    scale: Scale
    entry: Entry = ENTRY_65
    stride: int = 16

    def __post_init__(self) -> None:
        check_stride(self.stride)

    def width(self, published: int) -> int:
        """Return the channels here of what has so many at the published width."""
        return published * self.scale.channels // PUBLISHED[0]

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks after the two convolutions of the stem, which have a stride of 2 together."""
        nominal = [Block((c, c, c), s, 1, "conv") for c, s in self.entry]
        nominal += [Block((_MIDDLE,) * 3, 1, 1, "sum")] * self.scale.cells
        nominal += [Block(_EXIT[0], 2, 1, "conv"), Block(_EXIT[1], 1, 1, "none")]
        out, stride, dilation = [], 2, 1
        for widths, step, _, shortcut in nominal:
            reached = stride == self.stride
            out.append(Block(tuple(map(self.width, widths)), 1 if reached else step, dilation, shortcut))
            if reached:
                dilation *= step  # of what comes after: the strided convolution itself sees what it saw
            else:
                stride *= step
        return tuple(out)

    def low(self) -> int:
        """Return the position of the block whose second convolution gives the low-level map.

        The second block that halves the size goes from stride 4 to 8: entry_flow/block2 of 65, block3 of 71
        (feature_extractor.py of tensorflow/models).
        """
        return [i for i, block in enumerate(self.blocks()) if block.stride > 1][1]

    def given(self) -> tuple[Feature, ...]:
        """Return the features: no ReLU follows the low-level map."""
        blocks = self.blocks()
        low, high = blocks[self.low()].widths[1], blocks[-1].widths[-1]
        return Feature(low, 4), Feature(high, self.stride, activated=True)

    def genotype(self, arch: Architecture) -> tuple[Block, ...]:
        """Return the blocks."""
        return self.blocks()

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing for Graphviz: one block after the other, with the strides of what they give."""
        return dot_chain(2, (("-".join(map(str, b.widths)), b.stride) for b in self.blocks()))

    def network(self) -> EncoderNet:
        """Build the network."""
        return XceptionNet(self)


class XceptionBlock(nn.Module):
    """A block; without a shortcut ReLUs come after the convolutions and their halves, else before each."""

    def __init__(self, c_in: int, block: Block) -> None:
        """Build it for `c_in` channels."""
        super().__init__()
        within = block.shortcut == "none"
        self.relu = nn.Identity() if within else layers.ReLU()
        self.convs = nn.ModuleList(
            layers.SeparableConv(c, width, 3, stride, block.dilation, relu=within)
            for c, width, stride in zip((c_in, *block.widths), block.widths, (1, 1, block.stride), strict=False)
        )
        conv = block.shortcut == "conv"
        self.shortcut = layers.ConvBN(c_in, block.widths[-1], stride=block.stride) if conv else nn.Identity()
        self.add = None if within else layers.Add(after_conv=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the result, and what the second convolution gives on the way.

        Args:
            x: (N, c_in, H, W).

        Returns:
            (N, widths[2], ceil(H/stride), ceil(W/stride)) and (N, widths[1], H, W).
        """
        first, second, third = self.convs
        low: Tensor = second(self.relu(first(self.relu(x))))
        out: Tensor = third(self.relu(low))
        return (out if self.add is None else self.add(out, self.shortcut(x))), low


class XceptionNet(EncoderNet):
    """The network of an `Xception`."""

    def __init__(self, xception: Xception) -> None:
        """Build it; use `Xception.network`."""
        super().__init__()
        c, blocks = xception.scale.channels, xception.blocks()
        self.stem = nn.Sequential(
            layers.ConvBN(3, c, 3, 2, relu=True),
            layers.ConvBN(c, 2 * c, 3, relu=True),
        )
        widths = [2 * c, *(b.widths[-1] for b in blocks)]
        self.blocks = nn.ModuleList(XceptionBlock(w, b) for w, b in zip(widths, blocks, strict=False))
        self.low = xception.low()

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        states, low = self.states(image)
        return Maps(((Map(low),), (Map(states[-1]),)), low)

    def states(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of all blocks, and the low-level map, which no ReLU follows."""
        x = self.stem(image)
        states: list[Tensor] = []
        lows: list[Tensor] = []
        for block in self.blocks:
            x, low = block(x)
            states.append(x)
            lows.append(low)
        return states, lows[self.low]
