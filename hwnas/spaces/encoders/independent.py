"""Chains of cells that are searched each for itself (GAS, Lin et al. 2020, section 3): any edges may be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.ops.registry import active_tracer
from hwnas.problem import Architecture
from hwnas.spaces.cell import Block, Cell, CellSpec, preprocessing
from hwnas.spaces.encoders.chain import CAS_OPS
from hwnas.spaces.encoders.stack import Stack, StackNet, Stem, reductions
from hwnas.spaces.parts import Encoder, EncoderNet, Feature, Features, Form, OpenEncoderNet, Scale
from hwnas.spaces.picture import draw_cell, set_size
from hwnas.spaces.registry import encoder

COLUMNS = 5  # of a drawing


@dataclass(frozen=True)
class CellsGenotype:
    """An architecture for people: for each cell, the kept edges (op, state) of each node."""

    cells: tuple[tuple[str, tuple[Block, ...]], ...]

    def __str__(self) -> str:
        return f"Cells({', '.join(f'{name}={[list(b) for b in blocks]}' for name, blocks in self.cells)})"


@encoder("independent")
@dataclass(frozen=True)
class Independent(Encoder):
    """Networks that stack cells of which each has decisions of its own, or all of one kind where they are `shared`.

    Reduction cells sit at one and at two thirds of the depth and double the channels. Features are the last maps of
    each stride; an auxiliary head reads what the second reduction cell gives.

    A node that keeps no edge is left out of a network that ships: of the concatenation, and so of the 1x1 convolutions
    that read it. Its channels would be zeros, so the function is the same without them, and what ships is smaller. In
    supernets they stay zeros, so that weights fit whatever is kept. What reads a cell is therefore priced for each
    number of nodes that the cell may have, under the gate of "exactly so many". The input from the cell before that
    before is brought to size only where an edge reads it.

    Attributes:
        scale: Channels, cells and input size.
        stem: See `Stack`; the paper's is not known but for its stride-2 3x3 convolutions.
        ops: Options of every edge; `none` is a dropped edge.
        nodes: Nodes in a cell.
        keep: Incoming edges a node keeps; None for any number, also none.
        shared: Whether cells of one kind share their decisions, as in DARTS.
    """

    scale: Scale
    stem: Stem = "segmentation"
    ops: tuple[str, ...] = CAS_OPS
    nodes: int = 2
    keep: int | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        if self.scale.channels < 2:  # strided stems begin with half of them
            raise HwnasError(f"a network needs 2 channels or more, got {self.scale.channels}")
        check_ranges("a chain", *not_below(self, ("nodes",) if self.keep is None else ("nodes", "keep"), 1))

    @property
    def stack(self) -> Stack:
        """The stem and the cells in sequence."""
        return Stack(self.stem, self.scale.channels, tuple(self._cell(k) for k in range(self.scale.cells)))

    def _cell(self, k: int) -> CellSpec:
        stride = 2 if k in reductions(self.scale.cells) else 1
        name = f"cell{k}" if not self.shared else "reduction-cells" if stride == 2 else "normal-cells"
        return CellSpec(name, self.ops, self.nodes, self.keep, stride=stride)

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """One for each cell, in sequence, or for each kind: each has one matrix."""
        return tuple(dict.fromkeys(self.stack.cells))

    def at(self, scale: Scale) -> Independent:
        """Return the same decisions at another scale.

        Raises:
            HwnasError: If it has another number of cells, and each has decisions of its own.
        """
        if scale.cells != self.scale.cells and not self.shared:
            raise HwnasError(f"decisions on {self.scale.cells} cells say nothing of {scale.cells}")
        return replace(self, scale=scale)

    def _answered(self, arch: Architecture) -> bool:
        return all(arch.get(d.name) is not None for g in self.groups for d in g.decisions)

    def _open(self, arch: Architecture, form: Form) -> bool:
        """Tell whether it depends on open decisions how many nodes a cell has in what ships."""
        return form == "deploy" and len(self.cells[0].counts) > 1 and not self._answered(arch)

    def _nodes(self, arch: Architecture, form: Form) -> list[int] | None:
        """Return how many nodes each cell has in what ships, where any number may; None for all."""
        if form == "search" or self.keep is not None or not self._answered(arch):
            return None
        return [spec.alive(arch) for spec in self.stack.cells]

    def features(self, arch: Architecture, form: Form) -> Features:
        """Return what it gives; see `Encoder.features`."""
        stack, nodes = self.stack, self._nodes(arch, form)
        if self._open(arch, form):
            return tuple(tuple(stack.alternatives(i)) for i in stack.last_of_stride())
        states = stack.states(nodes)
        return tuple((states[i],) for i in stack.last_of_stride())

    def auxiliary(self, arch: Architecture, form: Form) -> Feature:
        """Return what an auxiliary head reads."""
        return self.stack.states(self._nodes(arch, form))[self.stack.auxiliary()]

    def build(self, arch: Architecture, form: Form) -> EncoderNet | OpenEncoderNet:
        """Build a network; see `Encoder.build`."""
        if self._open(arch, form):
            return OpenStackNet(self.stack, arch)
        return StackNet(self.stack, arch, form == "search", self._nodes(arch, form))

    def genotype(self, arch: Architecture) -> CellsGenotype:
        """Return a complete architecture as the blocks of its cells."""
        return CellsGenotype(tuple((spec.name, spec.blocks(arch)) for spec in self.cells))

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing of the cells for Graphviz: one cluster per group, an arrow per kept edge."""
        return [line for spec in self.cells for line in spec.dot(arch)]

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the cells, row by row; edges that are not as in the cell before are drawn bold."""
        cells = self.cells
        rows = -(-len(cells) // COLUMNS)
        set_size(figure, 3.2 * min(COLUMNS, len(cells)), 2.8 * rows)
        panels = figure.subplots(rows, min(COLUMNS, len(cells)), squeeze=False).flatten()
        before: set[tuple[int, int, str]] | None = None
        for axes, spec in zip(panels, cells, strict=False):
            kept = set(spec.kept(arch))
            draw_cell(axes, spec, arch, bold={(j, i) for j, i, _ in kept - (kept if before is None else before)})
            before = kept
        for axes in panels[len(cells) :]:
            axes.axis("off")


class OpenStackNet(OpenEncoderNet):
    """All networks of a `Stack` at once, to be traced: what reads a cell is there for each number of its nodes."""

    def __init__(self, stack: Stack, arch: Architecture) -> None:
        """Build it.

        Args:
            stack: What it consists of.
            arch: Answers to some of the decisions of its cells.
        """
        super().__init__()
        self.stem0, self.stem1 = stack.stems()
        self.states = [stack.alternatives(i) for i in range(2 + len(stack.cells))]
        self.taken = stack.last_of_stride()
        self.cells = nn.ModuleList()
        for k, (spec, c) in enumerate(zip(stack.cells, stack.widths(), strict=True)):
            halves = (stack.halves(k), False)
            inputs = [
                nn.ModuleList(preprocessing(f.channels, c, search=False, halve=halve) for f in self.states[k + n])
                for n, halve in enumerate(halves)
            ]
            self.cells.append(Cell(spec, arch, inputs, c, search=False))

    def forward(self, image: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Write down all alternatives; see `OpenEncoderNet.forward`."""
        first = self.stem0(image)
        values = [[first], [self.stem1(first)]]
        yield from self._features(0, values[0])
        yield from self._features(1, values[1])
        for k, cell in enumerate(self.cells, start=2):
            assert isinstance(cell, Cell)
            inputs = [self._preprocessed(cell, n, k - 2 + n, values[k - 2 + n]) for n in range(2)]
            values.append(list(cell.alternatives(inputs).values()))
            yield from self._features(k, values[k])

    def _features(self, state: int, values: list[Tensor]) -> Iterator[tuple[int, int, Tensor]]:
        if state in self.taken:
            yield from ((self.taken.index(state), a, value) for a, value in enumerate(values))

    def _preprocessed(self, cell: Cell, which: int, state: int, values: list[Tensor]) -> Tensor:
        """Write down what brings each alternative of a state to the channels of a cell; return what stands for it."""
        tracer = active_tracer.get()
        assert tracer is not None, "cells whose nodes are not known are for tracing"
        each = cell.get_submodule(f"preprocess{which}")
        assert isinstance(each, nn.ModuleList)
        several = len(values) > 1
        for feature, module, value in zip(self.states[state], each, values, strict=True):
            with cell.reading(which, feature.gate):
                out: Tensor = module(value)
        return tracer.join(out) if several else out
