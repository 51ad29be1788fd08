"""DeepLabv3+ on Xception: what Auto-DeepLab is compared with (Chen et al. 2018; Chollet 2017).

The backbone is that of tensorflow/models, research/deeplab/core/xception.py: deeper than Chollet's, without pooling,
and with a BatchNorm between the two halves of each separable convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.problem import Answers, Architecture, Group, Problem, Rule
from hwnas.spaces.base import Form, Scale, check
from hwnas.spaces.deeplab import DeepLabHead

PUBLISHED = (32, 16)  # channels of the first convolution, blocks of the middle flow
STRIDES = (8, 16, 32)  # that the output can have
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


@dataclass(frozen=True)
class XceptionSpace:
    """DeepLabv3+ on Xception, as a space of one network: it has no decisions.

    Attributes:
        scale: `channels` is that of the first convolution, 32 as published, and all others follow it; `cells` is the
            number of blocks in the middle flow, 16 as published.
        classes: Number of classes.
        entry: The entry flow: `ENTRY_65`, or `ENTRY_71`, which Auto-DeepLab is compared with.
        stride: Of the output, in pixels of the image; where it is reached, convolutions are atrous instead.
        head_channels: Of the ASPP and the decoder.
    """

    scale: Scale
    classes: int
    entry: Entry = ENTRY_65
    stride: int = 16
    head_channels: int = 256
    name: str = "xception"

    def __post_init__(self) -> None:
        if self.stride not in STRIDES:
            raise HwnasError(f"an output stride of {', '.join(map(str, STRIDES))} was expected, got {self.stride}")

    @property
    def head(self) -> Literal["segmentation"]:
        """Networks give a class for every pixel."""
        return "segmentation"

    @property
    def groups(self) -> tuple[Group, ...]:
        """Nothing is to be decided."""
        return ()

    def rules(self) -> Sequence[Rule]:
        """Nothing is to be obeyed."""
        return []

    @property
    def problem(self) -> Problem:
        """What a search of the space decides."""
        return Problem(self.name, self.groups, tuple(self.rules()))

    def twins(self) -> tuple[Answers, ...]:
        """Nothing is decided."""
        return ()

    def at(self, scale: Scale) -> XceptionSpace:
        """Return the same network at another scale."""
        return replace(self, scale=scale)

    def architecture(self) -> Architecture:
        """Return the one architecture, which answers nothing."""
        return Architecture.of(self.name, {})

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

    def genotype(self, arch: Architecture) -> tuple[Block, ...]:
        """Return the blocks."""
        check(self, arch)
        return self.blocks()

    def dot(self, arch: Architecture) -> str:
        """Return a drawing for Graphviz: one block after the other, with the strides of what they give."""
        lines, stride, before = ["digraph xception {", "  rankdir=LR;"], 2, "stem"
        for i, block in enumerate(self.genotype(arch)):
            stride *= block.stride
            name = f"{i}: {'-'.join(map(str, block.widths))}"
            lines.append(f'  "{before}" -> "{name}" [label="{stride}"];')
            before = name
        return "\n".join([*lines, "}"]) + "\n"

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the milliseconds of each part; see `SearchSpace.draw`."""
        figure.set_size_inches(4 + 0.3 * len(ms), 4)
        axes = figure.subplots()
        axes.bar(range(len(ms)), list(ms.values()))
        axes.set_xticks(range(len(ms)), list(ms), rotation=90)
        axes.set(ylabel="ms", title=self.name)

    def build(self, arch: Architecture | None = None, form: Form = "search", labels: bool = False) -> nn.Module:
        """Build the network, which is the same in both forms; see `SearchSpace.build`."""
        check(self, arch or self.architecture())
        return XceptionNet(self, labels)


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


class XceptionNet(nn.Module):
    """The network of an `XceptionSpace`, with the head of DeepLabv3+ whose 3x3 convolutions are separable."""

    def __init__(self, space: XceptionSpace, labels: bool) -> None:
        """Build it; use `XceptionSpace.build`."""
        super().__init__()
        c, blocks = space.scale.channels, space.blocks()
        self.stem = nn.Sequential(
            layers.ConvBN(3, c, 3, 2, relu=True),
            layers.ConvBN(c, 2 * c, 3, relu=True),
        )
        widths = [2 * c, *(b.widths[-1] for b in blocks)]
        self.blocks = nn.ModuleList(XceptionBlock(w, b) for w, b in zip(widths, blocks, strict=False))
        # The second block that halves the size goes from stride 4 to 8: entry_flow/block2 of 65, block3 of 71. What its
        # second convolution gives is the low-level map (feature_extractor.py of tensorflow/models).
        self.low = [i for i, b in enumerate(blocks) if b.stride > 1][1]
        self.head = DeepLabHead(
            widths[-1], blocks[self.low].widths[1], space.classes, space.stride, labels, space.head_channels, True
        )

    def forward(self, image: Tensor, probs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute class scores of the size of the image, (N, classes, H, W), or labels (N, H, W).

        Args:
            image: (N, 3, H, W).
            probs: Of no decisions: empty, or None.
        """
        assert not probs, "there is nothing to decide"
        states, low = self.states(image)
        scores: Tensor = self.head(image, low, states[-1])
        return scores

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
