"""The trellis of Auto-DeepLab: which cell, and at which strides the cells sit (Liu et al. 2019).

Layer l of a network is a cell at one of four strides; those of neighbouring layers differ by a factor of 2 at most. All
cells share their architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from typing import Literal as Literal_

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.ops.mixed import NONE
from hwnas.ops.registry import active_tracer
from hwnas.problem import Answers, Architecture, Decision, Group, Problem, Rule, choice
from hwnas.problem.rules.one_path import (
    DOWN,
    LEAST,
    LEVELS,
    SAME,
    STEPS,
    UP,
    Boundary,
    OnePath,
    Path,
    any_walk,
    arrow,
    existing,
    leading_to,
    sources,
    stride_of,
    walks_into,
)
from hwnas.problem.walks import Walk
from hwnas.spaces.base import Form, Scale, check
from hwnas.spaces.cell import INPUTS, Cell, cell_edges, cell_group, cell_rules, cell_twins, edge_name
from hwnas.spaces.deeplab import DeepLabHead
from hwnas.spaces.picture import draw_cell, kept_edges

STEM = (64, 128)  # channels of H^{-2} at stride 2 and of H^{-1} at stride 4
# The order is that of the alpha matrix of the public re-implementation, genotypes.py; `none` is the paper's zero.
TRELLIS_OPS = (
    NONE,
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "atrous_conv_3x3",
    "atrous_conv_5x5",
)

Block = tuple[tuple[str, int], ...]
Weighting = Literal_["step", "path"]
# The published architecture (Cityscapes): levels of the layers; for each block (op, state), where state 0 is H^{l-2}
# and state 1 is H^{l-1}. tensorflow/models, research/deeplab/core/nas_network.py.
PUBLISHED_PATH: Path = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)
PUBLISHED_CELL = (
    (("atrous_conv_5x5", 0), ("sep_conv_3x3", 1)),
    (("sep_conv_3x3", 0), ("atrous_conv_3x3", 1)),
    (("sep_conv_3x3", 3), ("sep_conv_3x3", 0)),
    (("sep_conv_5x5", 4), ("sep_conv_5x5", 2)),
    (("sep_conv_5x5", 3), ("atrous_conv_5x5", 5)),
)


@dataclass(frozen=True)
class Trellis:
    """An architecture for people: strides of the layers, and for each block of the cell its kept edges (op, state)."""

    strides: tuple[int, ...]
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return f"Trellis(strides={list(self.strides)}, blocks={[list(b) for b in self.blocks]})"


@dataclass(frozen=True)
class TrellisSpace:
    """Networks of one cell, repeated along a path through strides 4 to 32.

    Attributes:
        scale: `channels` is F, the filters of an op at stride 4; `cells` is the number of layers.
        classes: Number of classes.
        ops: Options of every edge; `none` is a dropped edge.
        nodes: Blocks in a cell.
        keep: Incoming edges a block keeps.
        head_channels: Of the ASPP and the decoder of networks that ship.
        boundary: How betas are normalised at strides 4 and 32, where two steps exist: over these two
            (``"existing"``, the paper's reading), or to a sum of 2/3, as all three would be if all were equally
            probable (``"two-thirds"``, the public re-implementation). The former draws paths to the boundary.
        weighting: What multiplies a cell of the supernet. ``"step"``: beta of the step into it (equation 6). The
            BatchNorms that read the sum take away by how much it was weighted, so that betas count only against those
            of other steps into the same place: the first ones, and most of a sampled path, have next to no gradient.
            ``"path"``: how probable it is that a path passes the place and takes the step, and the scores of each
            stride count by how probable it is that the path ends there; what no sampled path passes is not computed.
    """

    scale: Scale
    classes: int
    ops: tuple[str, ...] = TRELLIS_OPS
    nodes: int = 5
    keep: int = 2
    head_channels: int = 256
    boundary: Boundary = "existing"
    weighting: Weighting = "step"
    name: str = "trellis"

    @property
    def head(self) -> Literal_["segmentation"]:
        """Networks give a class for every pixel."""
        return "segmentation"

    @property
    def groups(self) -> tuple[Group, ...]:
        """The cell, and the path: at each place it may pass, where it goes on to; `none` where it does not pass."""
        places = [(layer, level) for layer in range(self.scale.cells) for level in sources(layer)]
        options = (NONE, *STEPS)
        path = tuple(Decision(arrow(k, v), options, frozenset(options) - set(existing(v))) for k, v in places)
        return cell_group("cell", self.nodes, self.ops), Group("path", path)

    def rules(self) -> list[Rule]:
        """Each block keeps `keep` incoming edges, and there is one path."""
        return [*cell_rules(self.groups[0], self.nodes, self.keep), OnePath(self.scale.cells, self.boundary)]

    @property
    def problem(self) -> Problem:
        """What a search of the space decides."""
        return Problem(self.name, self.groups, tuple(self.rules()))

    def twins(self) -> tuple[Answers, ...]:
        """Return which answers make two blocks compute the same wherever the path does not halve the size."""
        return cell_twins(self.groups[0], self.nodes, self.keep)

    def at(self, scale: Scale) -> TrellisSpace:
        """Return the same decisions at another scale.

        Raises:
            HwnasError: If it has another number of layers: the path is decided layer by layer.
        """
        if scale.cells != self.scale.cells:
            raise HwnasError(f"a path of {self.scale.cells} layers says nothing of one of {scale.cells}")
        return replace(self, scale=scale)

    def architecture(self, path: Path, cell: tuple[Block, ...]) -> Architecture:
        """Return the architecture of a path and a cell.

        Args:
            path: Level of each layer: 0 is stride 4, 3 is stride 32.
            cell: For each block its kept edges, as pairs (op, state).

        Raises:
            HwnasError: If they do not fit this space.
        """
        answers = {edge_name("cell", e): NONE for e in cell_edges(self.nodes)}
        answers |= {edge_name("cell", (j, i)): op for i, block in enumerate(cell, start=2) for op, j in block}
        answers |= {d.name: NONE for d in self.groups[1].decisions}
        names = {step: name for name, step in STEPS.items()}
        before = 0
        for layer, level in enumerate(path):
            if level - before not in names or not 0 <= level < LEVELS:
                raise HwnasError(f"a path goes from level to level by at most one, 0 to {LEVELS - 1}; got {path}")
            answers[arrow(layer, before)] = names[level - before]
            before = level
        arch = Architecture.of(self.name, answers)
        check(self, arch)
        return arch

    def published(self) -> Architecture:
        """Return the published architecture (Cityscapes; figure 3 of the paper).

        Raises:
            HwnasError: If networks of this space have another number of layers or blocks.
        """
        layers_and_blocks = len(PUBLISHED_PATH), len(PUBLISHED_CELL)
        if (self.scale.cells, self.nodes) != layers_and_blocks:
            raise HwnasError(
                f"the published network has {layers_and_blocks[0]} layers and {layers_and_blocks[1]} blocks in a cell, "
                f"networks of this space {self.scale.cells} and {self.nodes}"
            )
        return self.architecture(PUBLISHED_PATH, PUBLISHED_CELL)

    def path(self, arch: Architecture) -> Path:
        """Return the level of each layer of an architecture whose path is decided."""
        out: list[int] = []
        level = 0
        for layer in range(self.scale.cells):
            step = arch.get(arrow(layer, level))
            assert step in STEPS, "the path is decided"
            level += STEPS[step]
            out.append(level)
        return tuple(out)

    def genotype(self, arch: Architecture) -> Trellis:
        """Return a complete architecture as its strides and its blocks."""
        blocks: list[Block] = []
        for i in range(INPUTS, INPUTS + self.nodes):
            kept = ((str(arch.get(edge_name("cell", (j, i)))), j) for j in range(i))
            blocks.append(tuple((op, j) for op, j in kept if op != NONE))
        return Trellis(tuple(stride_of(level) for level in self.path(arch)), tuple(blocks))

    def dot(self, arch: Architecture) -> str:
        """Return a drawing for Graphviz: the cell, and the trellis with its path."""
        lines = ["digraph trellis {", "  rankdir=LR;", '  subgraph "cluster_cell" {', '    label="cell";']
        for i, block in enumerate(self.genotype(arch).blocks, start=INPUTS):
            lines += [f'    "cell {j}" -> "cell {i}" [label="{op}"];' for op, j in block]
        lines += ["  }", '  subgraph "cluster_path" {', '    label="path";', "    node [shape=circle];"]
        taken = {(k, v) for k, v in enumerate((0, *self.path(arch)))}
        for layer in range(self.scale.cells + 1):
            places = [0] if layer == 0 else sources(layer)
            lines += [
                f'    "{layer} {v}" [label="{stride_of(v)}"{", style=filled" if (layer, v) in taken else ""}];'
                for v in places
            ]
            lines.append("    { rank=same; " + "; ".join(f'"{layer} {v}"' for v in places) + "; }")
        for layer in range(self.scale.cells):
            for v in sources(layer):
                for step in existing(v):
                    style = "penwidth=3" if arch.get(arrow(layer, v)) == step else "style=dotted"
                    lines.append(f'    "{layer} {v}" -> "{layer + 1} {v + STEPS[step]}" [{style}];')
        return "\n".join([*lines, "  }", "}"]) + "\n"

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the cell, and the trellis: beta at every step, the path, and its share of the latency at each place.

        See `SearchSpace.draw`.
        """
        cells = self.scale.cells
        figure.set_size_inches(3 + cells, 8)
        above, below = figure.subplots(2)
        draw_cell(above, "cell", self.nodes, kept_edges(self.groups[0], self.nodes, arch), self.ops)
        places = [(layer, level) for layer in range(cells) for level in sources(layer)]
        for (layer, level), row in zip(places, probs["path"], strict=True):
            beta = dict(zip(self.groups[1].options, row, strict=True))
            for step in existing(level):
                p = float(beta[step]) / max(LEAST, sum(float(beta[s]) for s in existing(level)))
                taken = arch.get(arrow(layer, level)) == step
                style = {"arrowstyle": "-|>", "lw": 0.5 + 4 * p, "color": "C1" if taken else "0.6", "shrinkA": 12}
                to = (layer + 1, level + STEPS[step])
                below.annotate("", to, (layer, level), arrowprops=style | {"shrinkB": 12, "zorder": 1 + taken})
                x, y = layer + 0.38, level + 0.38 * STEPS[step]
                below.text(x, y, f"{p:.2f}", fontsize=6, ha="center", va="bottom", color="C1" if taken else "0.4")
        passed, total_ms = (0, *self.path(arch)), max(LEAST, sum(ms.values()))
        for layer in range(cells + 1):
            for level in sources(layer):
                on = passed[layer] == level
                below.plot(layer, level, "o", ms=22, color="#ffd9b3" if on else "white", mec="black", zorder=3)
                cost = "stem" if layer == 0 else f"{ms.get(f'cells.{layer - 1}', 0.0) / total_ms:.0%}" if on else ""
                below.text(layer, level, cost, fontsize=7, ha="center", va="center", zorder=4)
        strides = [str(stride_of(v)) for v in range(LEVELS)]
        below.set(title="path: probabilities, and shares of the latency", xlabel="layer", ylabel="stride")
        below.set(yticks=range(LEVELS), yticklabels=strides, xticks=range(cells + 1), ylim=(LEVELS - 0.5, -0.5))

    def build(self, arch: Architecture | None = None, form: Form = "search", labels: bool = False) -> nn.Module:
        """Build a network; see `SearchSpace.build`."""
        arch = arch or Architecture.of(self.name, {})
        check(self, arch, partial=True)
        if form == "search":
            return SearchNet(self, arch, labels)
        if any(arch.get(d.name) is None for g in self.groups for d in g.decisions):
            return OpenDeployNet(self, arch, labels)
        return DeployNet(self, arch, labels)


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


def level_sizes(x: Tensor) -> list[tuple[int, int]]:
    """Return (height, width) of the maps of each level, given one of level 0: halved, rounded up.

    Doubling goes back to these sizes, so that 129 becomes 257 and not 258: the rule of sizes 4k + 1 (2d - 1), and for
    even sizes 2d.
    """
    sizes = [(x.shape[2], x.shape[3])]
    while len(sizes) < LEVELS:
        h, w = sizes[-1]
        sizes.append((-(-h // 2), -(-w // 2)))
    return sizes


class SearchNet(nn.Module):
    """The supernet: a cell at every stride of every layer, mixed over what leads to it (Auto-DeepLab, equation 6).

    H^l at stride s is the sum over the steps into it of beta times the cell of (H^{l-1} where the step comes from,
    brought to stride s; H^{l-2} at stride s). The three computations of a cell share its weights, and each has its own
    batch statistics. Where there is no H^{l-2} at stride s yet, in the first layers, it adds nothing. At the end each
    stride has a small ASPP (4.2), and their scores are summed at full size.
    """

    def __init__(self, space: TrellisSpace, arch: Architecture, labels: bool) -> None:
        """Build it; use `TrellisSpace.build`."""
        super().__init__()
        self.space, self.arch = space, arch
        self.stem = Stem()
        n, f = space.nodes, space.scale.channels
        self.cells = nn.ModuleDict()
        widths: dict[tuple[int, int], int] = {(-1, 0): STEM[1]}
        widths |= {(k, v): n * f * 2**v for k in range(space.scale.cells) for v in sources(k + 1)}
        for layer in range(space.scale.cells):
            for level in sources(layer + 1):
                into = {s: widths[layer - 1, level - by] for s, by in STEPS.items() if level - by in sources(layer)}
                older = widths.get((layer - 2, level))
                self.cells[f"{layer}-{level}"] = _SearchCell(space, arch, f * 2**level, older, into)
        self.heads = nn.ModuleList(_SearchHead(space, level) for level in range(LEVELS))
        self.argmax = layers.ArgMax() if labels else nn.Identity()
        place = {d.name: row for row, d in enumerate(space.groups[1].decisions)}
        self._rows = {(k, v): place[arrow(k, v)] for k in range(space.scale.cells) for v in sources(k)}

    def forward(self, image: Tensor, probs: Mapping[str, Tensor] | None = None, sampled: bool = False) -> Tensor:
        """Compute class scores.

        Args:
            image: (N, 3, H, W).
            probs: ``{"cell": (20, options), "path": (places, 4)}`` where decisions are open.
            sampled: Whether options and steps of probability 0 are not to be computed.

        Returns:
            (N, classes, H, W), or with `labels` (N, H, W) of uint8.
        """
        probs = probs or {}
        path, alphas = probs.get("path"), probs.get("cell")
        _, last = self.stem(image)
        sizes = level_sizes(last)
        older: dict[int, Tensor] = {}
        old = {0: last}
        by_path, every = self.space.weighting == "path", not (sampled or path is None)
        passed = {0: last.new_ones(())}  # by level: how probable it is that the path passes, of "path"
        for layer in range(self.space.scale.cells):
            into: dict[int, list[tuple[str, Tensor, Tensor]]] = {}  # by level: steps, their inputs and weights
            for level, h1 in old.items():
                for step, beta in self._betas(layer, level, path, image).items():
                    to = level + STEPS[step]
                    weight = passed[level] * beta if by_path else beta
                    if every or weight.item() != 0:
                        h = layers.resized(h1, sizes[to]) if step == UP else h1
                        into.setdefault(to, []).append((step, h, weight))
            made: dict[int, Tensor] = {
                to: self.cells[f"{layer}-{to}"](older.get(to), terms, alphas, sampled) for to, terms in into.items()
            }
            for level in sources(layer + 1):
                if level not in made:  # no path comes here
                    shape = (len(image), self.space.nodes * self.space.scale.channels * 2**level, *sizes[level])
                    made[level] = last.new_zeros(shape)
            older, old = old, dict(sorted(made.items()))
            if by_path:
                passed = {to: last.new_zeros(()) + sum(w for _, _, w in into.get(to, ())) for to in old}
        if by_path:
            ends = {level: w for level, w in passed.items() if every or w.item() != 0}
            scores = [w * self.heads[level](old[level], image) for level, w in ends.items()]
        else:
            scores = [self.heads[level](h, image) for level, h in old.items()]
        out: Tensor = self.argmax(torch.stack(scores).sum(0))
        return out

    def _betas(self, layer: int, level: int, path: Tensor | None, like: Tensor) -> dict[str, Tensor]:
        """Return what multiplies each step from a place that exists."""
        steps = existing(level)
        answer = self.arch.get(arrow(layer, level))
        if answer is not None:
            return {s: like.new_tensor(float(s == answer)) for s in steps}
        assert path is not None, "the path is open and was given no probabilities"
        row = path[self._rows[layer, level]]
        p = torch.stack([row[1 + list(STEPS).index(s)] for s in steps])
        p = p / p.sum().clamp_min(torch.finfo(p.dtype).tiny)
        if self.space.boundary == "two-thirds" and len(steps) == 2:
            p = p * (2 / 3)
        return dict(zip(steps, p.unbind(), strict=True))


class _SearchCell(nn.Module):
    """A cell of the supernet, and what brings its inputs to it, for each step into it."""

    def __init__(
        self, space: TrellisSpace, arch: Architecture, c: int, older: int | None, into: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.relu = layers.ReLU()
        self.before = None if older is None else layers.ConvBN(older, c, affine=False)
        self.steps = nn.ModuleDict(
            {
                s: layers.ConvBN(width, c, 3 if s == DOWN else 1, 2 if s == DOWN else 1, affine=False)
                for s, width in into.items()
            }
        )
        self.cell = Cell(space.groups[0], arch, space.nodes, space.keep, (c, c, c), (False, False), True)
        self.cell.preprocess0, self.cell.preprocess1 = nn.Sequential(), nn.Sequential()

    def forward(
        self, h2: Tensor | None, into: Sequence[tuple[str, Tensor, Tensor]], alphas: Tensor | None, sampled: bool
    ) -> Tensor:
        """Return the sum over steps (name, H^{l-1} at the size of the result or twice that, weight)."""
        s0 = None if self.before is None or h2 is None else self.before(self.relu(h2))
        s1 = [self.steps[step](self.relu(h1)) for step, h1, _ in into]
        terms = [w * h for (_, _, w), h in zip(into, self.cell.join_each(s0, s1, alphas, sampled), strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class _SearchHead(nn.Module):
    """ASPP with three branches, each as wide as an op's output times the blocks, and a classifier (section 4.2)."""

    def __init__(self, space: TrellisSpace, level: int) -> None:
        super().__init__()
        c = space.nodes * space.scale.channels * 2**level
        self.relu = layers.ReLU()
        self.point = layers.ConvBN(c, c, relu=True)
        self.atrous = layers.AtrousConv(c, c, 3, 96 // stride_of(level), relu=True)
        self.pooling = layers.ImagePooling(c, c)
        self.concat = layers.Concat()
        self.classifier = layers.Classifier(3 * c, space.classes)

    def forward(self, h: Tensor, image: Tensor) -> Tensor:
        h = self.relu(h)
        scores = self.classifier(self.concat(self.point(h), self.atrous(h), self.pooling(h)))
        return layers.resize(scores, image)


def made_cell(space: TrellisSpace, arch: Architecture, before: int, last: int, level: int, down: bool) -> Cell:
    """Return a cell as it ships, for inputs of `before` and `last` channels."""
    widths = (before, last, space.scale.channels * 2**level)
    return Cell(space.groups[0], arch, space.nodes, space.keep, widths, (False, down), False)


class DeployNet(nn.Module):
    """A network of a `TrellisSpace` as it ships: stride-2 ops where the stride doubles, a head of DeepLabv3+.

    H^{l-2} is brought to the size of H^{l-1}, which is doubled first where the stride halves (nas_network.py of
    tensorflow/models; sizes there are 4k + 1, here any).
    """

    def __init__(self, space: TrellisSpace, arch: Architecture, labels: bool) -> None:
        """Build it; use `TrellisSpace.build`."""
        super().__init__()
        self.stem = Stem()
        self.path = space.path(arch)
        widths = [*STEM, *(space.nodes * space.scale.channels * 2**level for level in self.path)]
        self.cells = nn.ModuleList(
            made_cell(space, arch, older, last, level, level > before)
            for older, last, before, level in zip(widths, widths[1:], (0, *self.path), self.path, strict=False)
        )
        # The last cell before the path first leaves stride 4 gives the low-level map, else the stem.
        self.low = next((i for i, level in enumerate(self.path) if level), len(self.path))
        self.relu = layers.ReLU()
        ends = (widths[-1], widths[self.low + 1])
        self.head = DeepLabHead(*ends, space.classes, stride_of(self.path[-1]), labels, space.head_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Compute class scores of the size of the image, (N, classes, H, W), or labels (N, H, W)."""
        _, low, high = self.states(image)
        scores: Tensor = self.head(image, low, high)
        return scores

    def states(self, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the outputs of all cells, the low-level map, and the last after its ReLU."""
        states = list(self.stem(image))
        sizes = level_sizes(states[1])
        for before, level, cell in zip((0, *self.path), self.path, self.cells, strict=False):
            inputs = (layers.resized(h, sizes[min(before, level)]) for h in states[-2:])
            states.append(cell(*inputs, None))
        return states[2:], states[self.low + 1], self.relu(states[-1])


class OpenDeployNet(nn.Module):
    """All networks of a space at once, to be traced: each alternative under the gate of the walk it lies on.

    It has weights for each kind of cell and not for each layer, because a trace reads none; it computes nothing.
    """

    def __init__(self, space: TrellisSpace, arch: Architecture, labels: bool) -> None:
        """Build it; use `TrellisSpace.build`."""
        super().__init__()
        assert all(arch.get(d.name) is None for d in space.groups[1].decisions), "the path is open altogether"
        self.space, self.arch, self.labels = space, arch, labels
        self.stem = Stem()
        self.relu = layers.ReLU()
        self.heads = [self._head(space.nodes * space.scale.channels, level) for level in range(LEVELS)]
        self.stem_head = self._head(STEM[1], 0)

    def _head(self, low: int, level: int) -> DeepLabHead:
        space = self.space
        c = space.nodes * space.scale.channels * 2**level
        return DeepLabHead(c, low, space.classes, stride_of(level), self.labels, space.head_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Write down all alternatives; return what stands for the result."""
        tracer = active_tracer.get()
        assert tracer is not None, (
            "an open network of a trellis is for tracing; decide its path, or build its search form"
        )
        before, last = self.stem(image)
        sizes = level_sizes(last)
        older, old = {0: before}, {0: last}
        width = self.space.nodes * self.space.scale.channels
        # What is the same in every layer is written down once, and counted: by level, and whether the size is halved,
        # the projections of both inputs by their channels too. Only resizes and ReLUs are shared between layers.
        inputs: dict[tuple[int, bool, int, int], dict[Walk, Tensor]] = {}
        for layer in range(self.space.scale.cells):
            for walk, (a, b, c) in walks_into(layer):
                for which, h, steps in ((0, older[a], walk), (1, old[b], walk[-1:])):
                    found = inputs.setdefault((c, c > b, which, h.shape[1]), {})
                    if steps not in found:  # H^{l-1} is read once, wherever H^{l-2} was
                        with tracer.gated(any_walk([steps])):
                            found[steps] = self.relu(layers.resized(h, sizes[min(b, c)]))
            reached = sorted({c for _, (_, _, c) in walks_into(layer)})
            older, old = old, {c: tracer.value((1, width * 2**c, *sizes[c]), f"h{layer}-{c}") for c in reached}
            if layer == 0:
                low = self._low(last, old[0])
        states: dict[tuple[int, bool], dict[Walk, Tensor]] = {}
        for (c, down, which, wide), found in inputs.items():
            with tracer.gated(any_walk(found)):
                out = layers.ConvBN(wide, self.space.scale.channels * 2**c)(next(iter(found.values())))
            if which == 1:
                states.setdefault((c, down), {}).update(dict.fromkeys(found, out))
        for (c, down), found in states.items():
            s1 = tracer.join(next(iter(found.values())))
            with tracer.gated(any_walk(found)):
                made_cell(self.space, self.arch, 1, 1, c, down).join(tracer.join(s1), s1, None)
        for level, h in old.items():
            with tracer.gated(any_walk([(step,) for step in leading_to(self.space.scale.cells - 1, level)])):
                high = layers.resized(self.heads[level].aspp(self.relu(h)), sizes[0])
        return self.heads[0].decode(image, low, tracer.join(high))

    def _low(self, stem: Tensor, first: Tensor) -> Tensor:
        """Write down what projects the low-level map: from the stem where the path leaves stride 4 at once."""
        tracer = active_tracer.get()
        assert tracer is not None
        with tracer.gated(choice(arrow(0, 0), DOWN)):
            self.stem_head.low(stem)
        with tracer.gated(choice(arrow(0, 0), SAME)):
            out = self.heads[0].low(first)
        return tracer.join(out)
