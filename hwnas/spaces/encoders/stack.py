"""Cells in sequence after a stem: their sizes as data, and the network of them, for all encoders that stack cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.cell import Cell, CellSpec, preprocessing
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled

Stem = Literal["cifar", "imagenet", "segmentation"]


def reductions(cells: int) -> tuple[int, int]:
    """Return the positions of the reduction cells, at one and two thirds of the depth (DARTS 3.1)."""
    return cells // 3, 2 * cells // 3


@dataclass(frozen=True)
class Stack:
    """A stem and cells, each of which reads the two maps before it; reduction cells double the channels.

    Attributes:
        stem: ``"cifar"`` (stride 1), ``"imagenet"`` (stride 8 into the second cell), ``"segmentation"`` (stride 4).
        channels: Of the ops of the first cells.
        cells: What each of them is, in sequence.
    """

    stem: Stem
    channels: int
    cells: tuple[CellSpec, ...]

    def widths(self) -> list[int]:
        """Return the channels of the ops of each cell, which are those of a node."""
        out, width = [], self.channels
        for spec in self.cells:
            width *= spec.stride
            out.append(width)
        return out

    def states(self, nodes: Sequence[int] | None = None) -> list[Feature]:
        """Return the maps in sequence: after both parts of the stem, then after each cell.

        Args:
            nodes: How many each cell has; None for all that it may have.
        """
        c = self.channels
        strides = {"cifar": (1, 1), "segmentation": (4, 4), "imagenet": (4, 8)}[self.stem]
        out = [Feature(3 * c if self.stem == "cifar" else c, s) for s in strides]
        counts = [spec.nodes for spec in self.cells] if nodes is None else nodes
        for spec, width, count in zip(self.cells, self.widths(), counts, strict=True):
            out.append(Feature(count * width, out[-1].stride * spec.stride))
        return out

    def last_of_stride(self) -> list[int]:
        """Return which of the states are features, fine to coarse: the last of each stride."""
        return sorted({state.stride: i for i, state in enumerate(self.states())}.values())

    def alternatives(self, state: int) -> list[Feature]:
        """Return what a state may be: one for each number of nodes that its cell may have, under its gate."""
        feature = self.states()[state]
        if state < 2:
            return [feature]
        spec, width = self.cells[state - 2], self.widths()[state - 2]
        return [replace(feature, channels=n * width, gate=spec.counted(n)) for n in spec.counts]

    def auxiliary(self) -> int:
        """Return which state an auxiliary head reads: what the last reduction cell gives."""
        return 2 + max(k for k, spec in enumerate(self.cells) if spec.stride > 1)

    def halves(self, cell: int) -> bool:
        """Tell whether the older input of a cell is twice as large as the other one."""
        before, last = self.states()[cell : cell + 2]
        return last.stride > before.stride

    def stems(self) -> tuple[nn.Module, nn.Module]:
        """Return both parts of a stem; their BatchNorm is affine in supernets too."""
        c = self.channels
        if self.stem == "cifar":
            return layers.ConvBN(3, 3 * c, 3), nn.Identity()
        strided = nn.Sequential(layers.ConvBN(3, c // 2, 3, 2, relu=True), layers.ConvBN(c // 2, c, 3, 2))
        if self.stem == "segmentation":
            return strided, nn.Identity()
        return strided, nn.Sequential(layers.ReLU(), layers.ConvBN(c, c, 3, 2))


class StackNet(EncoderNet):
    """The network of a `Stack`; features are the last maps of each stride."""

    def __init__(self, stack: Stack, arch: Architecture, search: bool, nodes: Sequence[int] | None = None) -> None:
        """Build it.

        Args:
            stack: What it consists of.
            arch: Answers to some or all decisions of its cells.
            search: Whether for a supernet.
            nodes: How many each cell has; None for all that it may have.
        """
        super().__init__()
        self.stem0, self.stem1 = stack.stems()
        self.kinds = stack.cells
        states = stack.states(nodes)
        self.cells = nn.ModuleList()
        for k, (spec, c) in enumerate(zip(self.kinds, stack.widths(), strict=True)):
            inputs: list[nn.Module] = [
                preprocessing(states[k].channels, c, search, halve=stack.halves(k)),
                preprocessing(states[k + 1].channels, c, search),
            ]
            if nodes is not None:  # it ships, and what nothing reads is no part of it
                read = {j for j, _, _ in spec.kept(arch)}
                inputs = [module if n in read else nn.Identity() for n, module in enumerate(inputs)]
            self.cells.append(Cell(spec, arch, inputs, c, search))
        self.taken = stack.last_of_stride()
        self.tap = stack.auxiliary()

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        s0 = self.stem0(image)
        s1 = self.stem1(s0)
        taken = {i: s for i, s in enumerate((s0, s1)) if i in self.taken}
        for i, (spec, cell) in enumerate(zip(self.kinds, self.cells, strict=True), start=2):
            weights, on = (None if of is None else of[spec.name] for of in (probs, sampled))
            s0, s1 = s1, cell((s0, s1), weights, on)
            if i in self.taken or i == self.tap:
                taken[i] = s1
        return Maps(tuple((Map(taken[i]),) for i in self.taken), taken[self.tap])
