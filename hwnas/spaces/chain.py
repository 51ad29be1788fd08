"""Chains of cells: a stem, cells in sequence, a head (DARTS; with other ops and heads CAS and GAS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.ops.mixed import NONE
from hwnas.problem import Answers, Architecture, Group, Problem, TopK
from hwnas.spaces.base import Form, Scale, check
from hwnas.spaces.cell import Cell, cell_edges, cell_group, cell_rules, cell_twins
from hwnas.spaces.genotype import Genotype, genotype
from hwnas.spaces.picture import draw_cell, kept_edges

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
_HALVINGS: Mapping[Stem, int] = {"cifar": 0, "segmentation": 2, "imagenet": 3}  # of the size before the cells


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

    @property
    def problem(self) -> Problem:
        """What a search of the space decides."""
        return Problem(self.name, self.groups, tuple(self.rules()))

    def twins(self) -> tuple[Answers, ...]:
        """Return which answers make two nodes of a cell compute the same."""
        normal, reduce = self.groups
        return cell_twins(normal, self.nodes, self.keep) + cell_twins(reduce, self.nodes, self.keep, stride=2)

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

    def build_auxiliary(self) -> AuxiliaryHead:
        """Build the head that is trained on the second reduction cell beside a network, and never ships."""
        return AuxiliaryHead(self)

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

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the cells; see `SearchSpace.draw`."""
        figure.set_size_inches(4 + self.nodes, 3.5 * len(self.groups))
        for axes, g in zip(figure.subplots(len(self.groups), squeeze=False)[:, 0], self.groups, strict=True):
            draw_cell(axes, g.name, self.nodes, kept_edges(g, self.nodes, arch), self.ops)


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
        self.low = reductions[1]  # the position of the last reduction
        self.head: nn.Module = (
            _ClassificationHead(last, space.classes, labels)
            if space.head == "classification"
            else _SegmentationHead(widths[self.low], last, space, labels)
        )

    def forward(self, image: Tensor, probs: Mapping[str, Tensor] | None = None, sampled: bool = False) -> Tensor:
        """Compute class scores.

        Args:
            image: (N, 3, H, W).
            probs: ``{group: (decisions, options)}`` where decisions are open.
            sampled: Whether options of probability 0 are not to be computed: memory is that of the others.

        Returns:
            (N, classes), or (N, classes, H, W); with `labels` (N,) or (N, H, W) of uint8.
        """
        return self.with_tap(image, probs, sampled)[0]

    def with_tap(
        self, image: Tensor, probs: Mapping[str, Tensor] | None = None, sampled: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the map after the second reduction cell, which an `AuxiliaryHead` reads."""
        s0 = self.stem0(image)
        s1 = low = tap = self.stem1(s0)
        for k, (kind, cell) in enumerate(zip(self.kinds, self.cells, strict=True)):
            if k == self.low:
                low = s1
            s0, s1 = s1, cell(s0, s1, None if probs is None else probs[kind], sampled)
            if k == self.low:
                tap = s1
        return self.head(image, low, s1), tap


def _stem(stem: Stem, c: int) -> tuple[nn.Module, nn.Module, int, int]:
    """Return both stems and the channels of c_{-2} and c_{-1}; BatchNorm of stems is affine in supernets too."""
    if stem == "cifar":
        return layers.ConvBN(3, 3 * c, 3), nn.Identity(), 3 * c, 3 * c
    strided = nn.Sequential(layers.ConvBN(3, c // 2, 3, 2, relu=True), layers.ConvBN(c // 2, c, 3, 2))
    if stem == "segmentation":
        return strided, nn.Identity(), c, c
    return strided, nn.Sequential(layers.ReLU(), layers.ConvBN(c, c, 3, 2)), c, c


class _ClassificationHead(nn.Module):
    def __init__(self, channels: int, classes: int, labels: bool) -> None:
        super().__init__()
        self.pool = layers.GlobalPool()
        self.linear = layers.Linear(channels, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def forward(self, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        out: Tensor = self.argmax(self.linear(self.pool(high)))
        return out


class _SegmentationHead(nn.Module):
    """Global context from the last cell, detail from before the last reduction, scores brought to full size."""

    def __init__(self, low: int, high: int, space: ChainSpace, labels: bool) -> None:
        super().__init__()
        self.relu = layers.ReLU()
        self.context = layers.Context(high, space.head_channels)
        self.score_high = layers.Classifier(space.head_channels, space.classes)
        self.score_low = layers.Classifier(low, space.classes)
        self.add = layers.Add(after_conv=True)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def forward(self, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        coarse = self.score_high(layers.resize(self.context(self.relu(high)), low))
        scores = self.add(coarse, self.score_low(self.relu(low)))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle of a network: its loss reaches early cells, and it is thrown away.

    Classification: that of the public DARTS code, model.py. Segmentation: a small FCN head (Long et al. 2015), its
    scores brought to full size, as real-time networks are trained (BiSeNet, section 3.4).
    """

    def __init__(self, space: ChainSpace) -> None:
        """Build it; use `ChainSpace.build_auxiliary`.

        Raises:
            HwnasError: If the maps it is to read are too small for its pooling.
        """
        super().__init__()
        first, second = space.reductions()
        doublings = len({first, second})  # of channels, and halvings of the size: a short chain may have one reduction
        channels = space.nodes * space.scale.channels * 2**doublings
        self.segments = space.head == "segmentation"
        if self.segments:
            self.layers = nn.Sequential(
                layers.ConvBN(channels, space.head_channels, 3, relu=True),
                layers.Classifier(space.head_channels, space.classes),
            )
            return
        # Maps are 8x8 on CIFAR and 7x7 on ImageNet, so that either pooling gives 2x2.
        stride = 3 if space.stem == "cifar" else 2
        side = min(space.scale.size)
        for _ in range(_HALVINGS[space.stem] + doublings):
            side = (side + 1) // 2
        if side < 5 + stride:
            raise HwnasError(
                f"an auxiliary head reads maps of at least {5 + stride}x{5 + stride}, here they are {side} high or "
                "wide; take larger images, or train without it (aux_weight=0)"
            )
        bn = [] if space.stem == "imagenet" else [nn.BatchNorm2d(768)]  # left out there by mistake, and kept
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *bn,
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # larger images leave more than one pixel
            nn.Flatten(),
            nn.Linear(768, space.classes),
        )

    def forward(self, image: Tensor, tap: Tensor) -> Tensor:
        """Compute class scores.

        Args:
            image: (N, 3, H, W), for its size.
            tap: What `ChainNet.with_tap` gives.

        Returns:
            (N, classes), or (N, classes, H, W).
        """
        scores: Tensor = self.layers(tap)
        if self.segments:
            scores = F.interpolate(scores, size=image.shape[2:], mode="bilinear", align_corners=False)
        return scores
