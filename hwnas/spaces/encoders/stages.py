"""Encoders of one network: stages of blocks, each of which keeps its resolution after its first block."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.problem import Architecture
from hwnas.spaces.encoders.fixed import FixedEncoder, check_stride, dot_chain
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled
from hwnas.spaces.sources import Source

FINEST = 4  # stride of the first feature


class Block(NamedTuple):
    """What a stage repeats.

    Attributes:
        channels: Of its result.
        kernel: Of its depthwise convolution, or of both of its convolutions.
        expand: By how much it is wider inside.
        stride: Of its first spatial convolution.
        dilation: Of that one.
        after: Dilation of the next one, if it has two.
    """

    channels: int
    kernel: int = 3
    expand: int = 1
    stride: int = 1
    dilation: int = 1
    after: int = 1


class Row(NamedTuple):
    """A stage as papers list it: so many times a block, the first of them with a stride."""

    times: int
    channels: int
    stride: int
    kernel: int = 3
    expand: int = 1


@dataclass(frozen=True)
class Listing:
    """The blocks of all stages, for people as papers list them: how many of how many channels, at which stride."""

    first: int
    stages: tuple[tuple[Block, ...], ...]

    def __str__(self) -> str:
        stride, out = self.first, []
        for blocks in self.stages:
            stride *= math.prod(b.stride for b in blocks)
            out.append(f"{len(blocks)} x {blocks[-1].channels} at {stride}")
        return f"Stages({', '.join(out)})"


def rounded(channels: float) -> int:
    """Return the multiple of 8 next to a width, but never less than 90 % of it (MobileNetV2, ``_make_divisible``)."""
    out = max(8, int(channels + 4) // 8 * 8)
    return out + 8 * (out < 0.9 * channels)


class Staged(FixedEncoder):
    """Networks without decisions. Features are the last maps at strides 4, 8, 16 and 32, as far as it goes.

    Subclasses have the fields `scale` and `stride`. Where that stride of the output is reached, convolutions are atrous
    instead: the one that was strided sees what it saw, and what comes after it is dilated (DeepLabv3, section 3.2).
    """

    # Not a property at run time: a dataclass would take it for the default of its field.
    if TYPE_CHECKING:

        @property
        def stride(self) -> int:
            """Stride of the output, in pixels of the image."""

    @property
    @abstractmethod
    def rows(self) -> tuple[Row, ...]:
        """All stages as published, at the width of the scale."""

    @property
    @abstractmethod
    def stem(self) -> tuple[int, int]:
        """Channels and stride of what the first block reads."""

    @property
    @abstractmethod
    def activated(self) -> bool:
        """Whether a block ends in a ReLU."""

    def stages(self, whole: bool = False) -> tuple[tuple[Block, ...], ...]:
        """Return the blocks of each stage that the scale has, or of all that were published.

        Raises:
            HwnasError: If it has more stages than were published, or ends before stride 8, or its stride is refused.
        """
        check_stride(self.stride)
        out: list[tuple[Block, ...]] = []
        stride, dilation = self.stem[1], 1
        for row in self.rows[: None if whole else self.scale.cells]:
            blocks = []
            for i in range(row.times):
                step = row.stride if i == 0 else 1
                reached = step > 1 and stride >= self.stride
                after = dilation * step if reached else dilation
                blocks.append(Block(row.channels, row.kernel, row.expand, 1 if reached else step, dilation, after))
                stride, dilation = stride if reached else stride * step, after
            out.append(tuple(blocks))
        if self.scale.cells > len(self.rows) or stride <= FINEST:
            raise HwnasError(
                f"an encoder {self.name!r} has {len(self.rows)} stages, or so many of them that it comes to stride 8; "
                f"got cells={self.scale.cells}"
            )
        return tuple(out)

    def last(self) -> tuple[tuple[int, int, int], ...]:
        """Return stage, channels and stride of the last map of each stride from 4 on."""
        stride, out = self.stem[1], dict[int, tuple[int, int, int]]()
        for i, blocks in enumerate(self.stages()):
            stride *= math.prod(b.stride for b in blocks)
            if stride >= FINEST:
                out[stride] = (i, blocks[-1].channels, stride)
        return tuple(out.values())

    def cut(self, source: Source) -> Source:
        """Return a source of the whole encoder as one of this, which leaves out what later stages have."""
        later = {own: name for own, name in source.names.items() if _stage(own) >= self.scale.cells}
        names = {own: name for own, name in source.names.items() if own not in later}
        return replace(source, names=names, ignored=(*source.ignored, *(f"{name}." for name in later.values())))

    def given(self) -> tuple[Feature, ...]:
        """Return the features."""
        return tuple(Feature(c, stride, activated=self.activated) for _, c, stride in self.last())

    def genotype(self, arch: Architecture) -> Listing:
        """Return the blocks."""
        return Listing(self.stem[1], self.stages())

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing for Graphviz: one stage after the other, with the strides of what they give."""
        stages = (
            (f"{len(blocks)} x {blocks[-1].channels}", math.prod(b.stride for b in blocks)) for blocks in self.stages()
        )
        return dot_chain(self.stem[1], stages)


def _stage(name: str) -> int:
    """Return the stage that a part is of, by its name; -1 for what precedes them."""
    first, *rest = name.split(".")
    return int(rest[0]) if first == "stages" else -1


class StagedNet(EncoderNet):
    """The network of a `Staged` encoder; its stages are ``stages.0`` and so on, their blocks ``stages.0.0``."""

    def __init__(
        self, encoder: Staged, stem: Mapping[str, nn.Module], build: Callable[[int, Block], nn.Module]
    ) -> None:
        """Put it together.

        Args:
            encoder: Whose network it is.
            stem: The parts before the first block, by name and in order.
            build: Builds a block for the channels that it reads.
        """
        super().__init__()
        self._before = tuple(stem)
        for name, part in stem.items():
            self.add_module(name, part)
        self.stages, c_in = nn.ModuleList(), encoder.stem[0]
        for blocks in encoder.stages():
            stage = nn.Sequential()
            for block in blocks:
                stage.append(build(c_in, block))
                c_in = block.channels
            self.stages.append(stage)
        self._taken = tuple(i for i, _, _ in encoder.last())

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        x = image
        for name in self._before:
            x = self.get_submodule(name)(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        taken = [maps[i] for i in self._taken]
        return Maps(tuple((Map(x),) for x in taken), taken[-2])
