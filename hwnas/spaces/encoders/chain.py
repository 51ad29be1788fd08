"""Chains of cells: a stem, then cells in sequence (DARTS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture
from hwnas.spaces.cell import CellSpec
from hwnas.spaces.encoders.stack import Stack, StackNet, Stem, reductions
from hwnas.spaces.genotype import Genotype, genotype
from hwnas.spaces.parts import Encoder, EncoderNet, Feature, Features, Form, Scale
from hwnas.spaces.picture import draw_cell, set_size
from hwnas.spaces.registry import encoder

# The order is that of the alpha matrices of the public DARTS code, genotypes.py.
DARTS_OPS = (
    NONE,
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
# Zero, identity, pooling, convolution, separable and dilated separable ones: those of CAS as later papers quote them
# (GAS has the same); their texts were not at hand.
CAS_OPS = (
    NONE,
    "skip_connect",
    "max_pool_3x3",
    "conv_3x3",
    "sep_conv_3x3",
    "dil_sep_conv_3x3_r2",
    "dil_sep_conv_3x3_r4",
    "dil_sep_conv_3x3_r8",
)


@encoder("chain")
@dataclass(frozen=True)
class Chain(Encoder):
    """Networks that stack cells; cells of one kind share their architecture, not their weights.

    Reduction cells sit at one and at two thirds of the depth and double the channels. Features are the last maps of
    each stride; an auxiliary head reads what the second reduction cell gives.

    Attributes:
        scale: Channels, cells and input size.
        stem: ``"cifar"`` (stride 1), ``"imagenet"`` (stride 8 into the second cell), ``"segmentation"`` (stride 4).
        ops: Options of every edge; `none` is a dropped edge.
        nodes: Nodes in a cell.
        keep: Incoming edges a node keeps.
    """

    scale: Scale
    stem: Stem = "segmentation"
    ops: tuple[str, ...] = DARTS_OPS
    nodes: int = 4
    keep: int = 2

    def __post_init__(self) -> None:
        if self.scale.channels < 2:  # strided stems begin with half of them
            raise HwnasError(f"a network needs 2 channels or more, got {self.scale.channels}")
        check_ranges("a chain", *not_below(self, ("nodes", "keep"), 1))

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """One for normal cells and one for reduction cells: each has one matrix."""
        return (
            CellSpec("normal", self.ops, self.nodes, self.keep),
            CellSpec("reduce", self.ops, self.nodes, self.keep, stride=2),
        )

    @property
    def stack(self) -> Stack:
        """The stem and the cells in sequence."""
        normal, reduce = self.cells
        kinds = tuple(reduce if k in reductions(self.scale.cells) else normal for k in range(self.scale.cells))
        return Stack(self.stem, self.scale.channels, kinds)

    def features(self, arch: Architecture, form: Form) -> Features:
        """Return what it gives; see `Encoder.features`."""
        states = self.stack.states()
        return tuple((states[i],) for i in self.stack.last_of_stride())

    def auxiliary(self, arch: Architecture, form: Form) -> Feature:
        """Return what an auxiliary head reads."""
        return self.stack.states()[self.stack.auxiliary()]

    def build(self, arch: Architecture, form: Form) -> EncoderNet:
        """Build a network; see `Encoder.build`."""
        return StackNet(self.stack, arch, search=form == "search")

    def genotype(self, arch: Architecture) -> Genotype:
        """Return a complete architecture in DARTS notation."""
        return genotype(arch, self.cells)

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing of the cells for Graphviz: one cluster per group, an arrow per kept edge."""
        return [line for spec in self.cells for line in spec.dot(arch)]

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the cells."""
        set_size(figure, 4 + self.nodes, 3.5 * len(self.cells))
        for axes, spec in zip(figure.subplots(len(self.cells), squeeze=False)[:, 0], self.cells, strict=True):
            draw_cell(axes, spec, arch)
