"""How the cells of a trellis are wired, said once: the supernet, one network and all of them for a trace follow it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.problem.rules.one_path import LEVELS, STEPS, Path, arrow, existing, leading_to, sources, walks_into
from hwnas.problem.walks import Walk
from hwnas.spaces.cell import Cell, CellSpec, preprocessing

STEM = (64, 128)  # channels of H^{-2} at stride 2 and of H^{-1} at stride 4
Sizes = list[tuple[int, int]]  # (height, width) of the maps of each level


@dataclass(frozen=True)
class Step:
    """A step of a path into a layer, and what the cell that it leads to reads.

    The cell reads H^{l-1}, where the step starts, and H^{l-2}. What goes to half the stride is doubled before; what
    goes to twice the stride is halved by the cell (nas_network.py of tensorflow/models; sizes there are 4k + 1, here
    any), or on the way to it in a supernet.

    Attributes:
        layer: Into which.
        start: The level of H^{l-1}.
        name: Of the step.
    """

    layer: int
    start: int
    name: str

    @property
    def end(self) -> int:
        """The level of the cell's result."""
        return self.start + STEPS[self.name]

    @property
    def down(self) -> bool:
        """Whether it goes to twice the stride."""
        return self.end > self.start

    @property
    def place(self) -> str:
        """The decision of which it is an answer."""
        return arrow(self.layer, self.start)

    def brought(self, h: Tensor, sizes: Sizes) -> Tensor:
        """Return an input of the cell at the finer of both levels, where the cell begins."""
        return layers.resized(h, sizes[min(self.start, self.end)])


@dataclass(frozen=True)
class Wiring:
    """Which cells there are, how wide, and which steps lead to them.

    Attributes:
        spec: The one cell.
        filters: Channels of its ops at stride 4; they double with the stride.
        layers: How many.
    """

    spec: CellSpec
    filters: int
    layers: int

    def channels(self, level: int) -> int:
        """Return the channels of the ops at a level."""
        return self.filters << level

    def width(self, layer: int, level: int) -> int:
        """Return the channels of H at a layer; -1 is the end of the stem."""
        return STEM[1] if layer < 0 else self.spec.nodes * self.channels(level)

    def levels(self, layer: int) -> range:
        """Return the levels at which there is an H of a layer: none before the end of the stem."""
        return sources(layer + 1) if layer >= -1 else range(0)

    def steps(self, layer: int) -> list[Step]:
        """Return all steps into a layer, by where they start."""
        return [Step(layer, level, s) for level in sources(layer) for s in existing(level)]

    def into(self, layer: int, level: int) -> list[Step]:
        """Return the steps into a level at a layer, in the order of `STEPS`."""
        return [Step(layer, level - STEPS[s], s) for _, s in leading_to(layer, level)]

    def taken(self, path: Path) -> list[Step]:
        """Return the steps of a path."""
        names = {by: s for s, by in STEPS.items()}
        return [Step(k, b, names[v - b]) for k, (b, v) in enumerate(zip((0, *path), path, strict=False))]

    def walks(self, layer: int) -> list[tuple[Walk, int, Step]]:
        """Return the steps into a layer after those into the one before, each with the level of H^{l-2}."""
        return [(walk, a, Step(layer, b, walk[-1][1])) for walk, (a, b, _) in walks_into(layer)]

    def cell(self, level: int, down: bool, arch: Architecture, before: int, last: int) -> Cell:
        """Return the cell at a level as it ships, for inputs of `before` and `last` channels.

        Where a step goes down to it, its ops halve the size.
        """
        c = self.channels(level)
        inputs = [preprocessing(before, c, search=False), preprocessing(last, c, search=False)]
        return Cell(replace(self.spec, stride=2 if down else 1), arch, inputs, c, search=False)


class Stem(nn.Module):
    """Three 3x3 convolutions to stride 4; gives H^{-2} at stride 2 and H^{-1} at stride 4, both before their ReLU."""

    def __init__(self) -> None:
        """Build it."""
        super().__init__()
        self.first = layers.ConvBN(3, STEM[0], 3, 2, relu=True)
        self.second = layers.ConvBN(STEM[0], STEM[0], 3)
        self.relu = layers.ReLU()
        self.third = layers.ConvBN(STEM[0], STEM[1], 3, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> (N, 64, H/2, W/2) and (N, 128, H/4, W/4), sizes rounded up."""
        before = self.second(self.first(image))
        return before, self.third(self.relu(before))


def level_sizes(x: Tensor) -> Sizes:
    """Return (height, width) of the maps of each level, given one of level 0: halved, rounded up.

    Doubling goes back to these sizes, so that 129 becomes 257 and not 258: the rule of sizes 4k + 1 (2d - 1), and for
    even sizes 2d.
    """
    sizes = [(x.shape[2], x.shape[3])]
    while len(sizes) < LEVELS:
        h, w = sizes[-1]
        sizes.append((-(-h // 2), -(-w // 2)))
    return sizes


def left_at(path: Path) -> int:
    """Return the layer at which a path leaves stride 4: the cell before it, else the stem, gives the low-level map."""
    return next((i for i, level in enumerate(path) if level), len(path))
