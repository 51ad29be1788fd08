"""Chains of cells: a stem, then cells in sequence (DARTS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture
from hwnas.spaces.cell import Cell, CellSpec, preprocessing
from hwnas.spaces.genotype import Genotype, genotype
from hwnas.spaces.parts import Encoder, EncoderNet, Feature, Features, Form, Map, Maps, Probs, Sampled, Scale
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
# (GAS has the same); its text was not at hand.
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
Stem = Literal["cifar", "imagenet", "segmentation"]


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

    def reductions(self) -> tuple[int, int]:
        """Positions of the reduction cells, at one and two thirds of the depth (DARTS 3.1)."""
        return self.scale.cells // 3, 2 * self.scale.cells // 3

    def kinds(self) -> list[CellSpec]:
        """Return what each cell is, in sequence."""
        normal, reduce = self.cells
        return [reduce if k in self.reductions() else normal for k in range(self.scale.cells)]

    def states(self) -> list[Feature]:
        """Return the maps in sequence: after both parts of the stem, then after each cell."""
        c = self.scale.channels
        strides, width = {"cifar": (1, 1), "segmentation": (4, 4), "imagenet": (4, 8)}[self.stem], c
        out = [Feature(3 * c if self.stem == "cifar" else c, s) for s in strides]
        for spec in self.kinds():
            width *= spec.stride
            out.append(Feature(self.nodes * width, out[-1].stride * spec.stride))
        return out

    def last_of_stride(self) -> list[int]:
        """Return which of the states are features, fine to coarse: the last of each stride."""
        return sorted({state.stride: i for i, state in enumerate(self.states())}.values())

    def features(self, arch: Architecture, form: Form) -> Features:
        """Return what it gives; see `Encoder.features`."""
        states = self.states()
        return tuple((states[i],) for i in self.last_of_stride())

    def auxiliary(self, arch: Architecture, form: Form) -> Feature:
        """Return what an auxiliary head reads."""
        return self.states()[2 + self.reductions()[1]]

    def build(self, arch: Architecture, form: Form) -> EncoderNet:
        """Build a network; see `Encoder.build`."""
        return ChainNet(self, arch, search=form == "search")

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


class ChainNet(EncoderNet):
    """The network of a `Chain`."""

    def __init__(self, chain: Chain, arch: Architecture, search: bool) -> None:
        """Build it; use `Chain.build`."""
        super().__init__()
        c = chain.scale.channels
        self.stem0, self.stem1 = _stem(chain.stem, c)
        self.kinds = chain.kinds()
        states = chain.states()
        self.cells = nn.ModuleList()
        for k, spec in enumerate(self.kinds):
            c *= spec.stride
            before, last = states[k], states[k + 1]
            inputs = [
                preprocessing(before.channels, c, search, halve=last.stride > before.stride),
                preprocessing(last.channels, c, search),
            ]
            self.cells.append(Cell(spec, arch, inputs, c, search))
        self.taken = chain.last_of_stride()
        self.tap = 2 + chain.reductions()[1]

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


def _stem(stem: Stem, c: int) -> tuple[nn.Module, nn.Module]:
    """Return both parts of a stem; their BatchNorm is affine in supernets too."""
    if stem == "cifar":
        return layers.ConvBN(3, 3 * c, 3), nn.Identity()
    strided = nn.Sequential(layers.ConvBN(3, c // 2, 3, 2, relu=True), layers.ConvBN(c // 2, c, 3, 2))
    if stem == "segmentation":
        return strided, nn.Identity()
    return strided, nn.Sequential(layers.ReLU(), layers.ConvBN(c, c, 3, 2))
