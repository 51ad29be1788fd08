"""Chains of cells: a stem, cells in sequence, a head (DARTS; with other ops and heads CAS and GAS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from hwnas.arch import Architecture, Group
from hwnas.errors import HwnasError
from hwnas.gates import TopK
from hwnas.ops import layers
from hwnas.ops.mixed import NONE
from hwnas.spaces.base import Form, Scale, check
from hwnas.spaces.cell import Cell, cell_edges, cell_group, cell_rules
from hwnas.spaces.genotype import Genotype, genotype

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
Stem = Literal["cifar", "imagenet", "segmentation"]
Head = Literal["classification", "segmentation"]


@dataclass(frozen=True)
class ChainSpace:
    """Networks that stack cells; cells of one kind share their architecture, not their weights.

    Reduction cells sit at one and at two thirds of the depth and double the channels.

    Attributes:
        scale: Channels, cells and input size.
        classes: Number of classes.
        stem: ``"cifar"`` (stride 1), ``"imagenet"`` (stride 8 into the second cell), ``"segmentation"`` (stride 4).
        head: ``"classification"``, or ``"segmentation"`` with scores at full size.
        ops: Options of every edge; `none` is a dropped edge.
        nodes: Nodes in a cell.
        keep: Incoming edges a node keeps.
        head_channels: Width of the segmentation head.
    """

    scale: Scale
    classes: int
    stem: Stem = "segmentation"
    head: Head = "segmentation"
    ops: tuple[str, ...] = DARTS_OPS
    nodes: int = 4
    keep: int = 2
    head_channels: int = 64
    name: str = "chain"

    def __post_init__(self) -> None:
        if self.scale.channels < 2:  # strided stems begin with half of them
            raise HwnasError(f"a network needs 2 channels or more, got {self.scale.channels}")

    @property
    def groups(self) -> tuple[Group, ...]:
        """One matrix for normal cells and one for reduction cells."""
        return tuple(cell_group(kind, self.nodes, self.ops) for kind in ("normal", "reduce"))

    def rules(self) -> list[TopK]:
        """Each node keeps `keep` incoming edges."""
        return [rule for group in self.groups for rule in cell_rules(group, self.nodes, self.keep)]

    def at(self, scale: Scale) -> ChainSpace:
        """Return the same decisions at another scale."""
        return replace(self, scale=scale)

    def reductions(self) -> tuple[int, int]:
        """Positions of the reduction cells, at one and two thirds of the depth (DARTS 3.1)."""
        return self.scale.cells // 3, 2 * self.scale.cells // 3

    def build(self, arch: Architecture | None = None, form: Form = "search", labels: bool = False) -> ChainNet:
        """Build a network; see `SearchSpace.build`."""
        arch = arch or Architecture.of(self.name, {})
        check(self, arch, partial=True)
        return ChainNet(self, arch, search=form == "search", labels=labels)

    def genotype(self, arch: Architecture) -> Genotype:
        """Return a complete architecture in DARTS notation."""
        return genotype(arch, self.nodes)

    def architecture(self, genotype: Genotype) -> Architecture:
        """Return the architecture of a genotype.

        Raises:
            HwnasError: If it does not fit the cells of this space, or names an op it has not.
        """
        arch = genotype.architecture(self.name, self.nodes, self.keep)
        check(self, arch)
        return arch

    def dot(self, arch: Architecture) -> str:
        """Return a drawing of the cells for Graphviz: one cluster per group, an arrow per kept edge."""
        lines = ["digraph cells {", "  rankdir=LR;"]
        for g in self.groups:
            lines += [f'  subgraph "cluster_{g.name}" {{', f'    label="{g.name}";']
            for decision, (j, i) in zip(g.decisions, cell_edges(self.nodes), strict=True):
                if arch.get(decision.name) not in (NONE, None):
                    lines.append(f'    "{g.name} {j}" -> "{g.name} {i}" [label="{arch.get(decision.name)}"];')
            lines.append("  }")
        return "\n".join([*lines, "}"]) + "\n"


class ChainNet(nn.Module):
    """The network of a `ChainSpace`."""

    def __init__(self, space: ChainSpace, arch: Architecture, search: bool, labels: bool) -> None:
        """Build it; use `ChainSpace.build`."""
        super().__init__()
        c, reductions = space.scale.channels, space.reductions()
        self.stem0, self.stem1, before, last = _stem(space.stem, c)
        reduced = space.stem == "imagenet"
        self.kinds = ["reduce" if k in reductions else "normal" for k in range(space.scale.cells)]
        groups = {g.name: g for g in space.groups}
        cells: list[nn.Module] = []
        widths = [last]
        for kind in self.kinds:
            reduction = kind == "reduce"
            c = 2 * c if reduction else c
            ends = (reduced, reduction)
            cells.append(Cell(groups[kind], arch, space.nodes, space.keep, (before, last, c), ends, search))
            before, last, reduced = last, space.nodes * c, reduction
            widths.append(last)
        self.cells = nn.ModuleList(cells)
        self.low = max(k for k in (0, *reductions) if k < space.scale.cells)  # what enters the last reduction
        self.head: nn.Module = (
            _ClassificationHead(last, space.classes)
            if space.head == "classification"
            else _SegmentationHead(widths[self.low], last, space, labels)
        )

    def forward(self, image: Tensor, probs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute class scores.

        Args:
            image: (N, 3, H, W).
            probs: ``{group: (decisions, options)}`` where decisions are open.

        Returns:
            (N, classes), or (N, classes, H, W), or with `labels` (N, H, W) of uint8.
        """
        s0 = self.stem0(image)
        s1 = low = self.stem1(s0)
        for k, (kind, cell) in enumerate(zip(self.kinds, self.cells, strict=True)):
            if k == self.low:
                low = s1
            s0, s1 = s1, cell(s0, s1, None if probs is None else probs[kind])
        out: Tensor = self.head(image, low, s1)
        return out


def _stem(stem: Stem, c: int) -> tuple[nn.Module, nn.Module, int, int]:
    """Return both stems and the channels of c_{-2} and c_{-1}; BatchNorm of stems is affine in supernets too."""
    if stem == "cifar":
        return layers.ConvBN(3, 3 * c, 3), nn.Identity(), 3 * c, 3 * c
    strided = nn.Sequential(layers.ConvBN(3, c // 2, 3, 2, relu=True), layers.ConvBN(c // 2, c, 3, 2))
    if stem == "segmentation":
        return strided, nn.Identity(), c, c
    return strided, nn.Sequential(layers.ReLU(), layers.ConvBN(c, c, 3, 2)), c, c


class _ClassificationHead(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = layers.GlobalPool()
        self.linear = layers.Linear(channels, classes)

    def forward(self, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        out: Tensor = self.linear(self.pool(high))
        return out


class _SegmentationHead(nn.Module):
    """Global context from the last cell, detail from before the last reduction, scores brought to full size."""

    def __init__(self, low: int, high: int, space: ChainSpace, labels: bool) -> None:
        super().__init__()
        self.relu = layers.ReLU()
        self.context = layers.Context(high, space.head_channels)
        self.score_high = layers.Classifier(space.head_channels, space.classes)
        self.score_low = layers.Classifier(low, space.classes)
        self.add = layers.Add()
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def forward(self, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        coarse = self.score_high(layers.resize(self.context(self.relu(high)), low))
        scores = self.add(coarse, self.score_low(self.relu(low)))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out
