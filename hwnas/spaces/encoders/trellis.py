"""The trellis of Auto-DeepLab: which cell, and at which strides the cells sit (Liu et al. 2019).

Layer l of a network is a cell at one of four strides; those of neighbouring layers differ by a factor of 2 at most. All
cells share their architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from typing import Literal as Literal_

import numpy as np

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture, Group, Rule, choice
from hwnas.problem.rules.one_path import (
    DOWN,
    LEAST,
    LEVELS,
    SAME,
    STEPS,
    Boundary,
    OnePath,
    Path,
    any_walk,
    arrow,
    existing,
    leading_to,
    path_answers,
    path_group,
    path_of,
    sources,
    stride_of,
)
from hwnas.spaces.cell import Block, CellSpec
from hwnas.spaces.encoders.trellis_nets import OpenTrellisNet, TrellisNet, TrellisSupernet
from hwnas.spaces.encoders.trellis_wiring import STEM, Wiring, left_at
from hwnas.spaces.parts import Encoder, EncoderNet, Feature, Features, Form, OpenEncoderNet, Scale
from hwnas.spaces.picture import draw_cell, set_size
from hwnas.spaces.registry import encoder

if TYPE_CHECKING:
    from hwnas.spaces.space import Space

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

Weighting = Literal_["step", "path"]


@dataclass(frozen=True)
class TrellisGenotype:
    """An architecture for people: strides of the layers, and for each block of the cell its kept edges (op, state)."""

    strides: tuple[int, ...]
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return f"Trellis(strides={list(self.strides)}, blocks={[list(b) for b in self.blocks]})"


@encoder("trellis")
@dataclass(frozen=True)
class Trellis(Encoder):
    """Networks of one cell, repeated along a path through strides 4 to 32.

    Features are the low-level map, the last at stride 4 before the path leaves it for the first time, and the last map.
    In a supernet the former is that of the stem, and the latter one at each stride.

    Attributes:
        scale: `channels` is F, the filters of an op at stride 4; `cells` is the number of layers.
        ops: Options of every edge; `none` is a dropped edge.
        nodes: Blocks in a cell.
        keep: Incoming edges a block keeps.
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
    ops: tuple[str, ...] = TRELLIS_OPS
    nodes: int = 5
    keep: int = 2
    boundary: Boundary = "existing"
    weighting: Weighting = "step"

    def __post_init__(self) -> None:
        check_ranges("a trellis", *not_below(self, ("nodes", "keep"), 1))

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """The one cell; its edges from the inputs have stride 2 where the path halves the size."""
        return (CellSpec("cell", self.ops, self.nodes, self.keep),)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The cell, and the path: at each place it may pass, where it goes on to; `none` where it does not pass."""
        return self.cells[0].group, path_group(self.scale.cells)

    @property
    def wiring(self) -> Wiring:
        """Which cells there are, and what they read."""
        return Wiring(self.cells[0], self.scale.channels, self.scale.cells)

    def rules(self) -> list[Rule]:
        """Each block keeps `keep` incoming edges, and there is one path."""
        return [*super().rules(), OnePath(self.scale.cells, self.boundary)]

    def at(self, scale: Scale) -> Trellis:
        """Return the same decisions at another scale.

        Raises:
            HwnasError: If it has another number of layers: the path is decided layer by layer.
        """
        if scale.cells != self.scale.cells:
            raise HwnasError(f"a path of {self.scale.cells} layers says nothing of one of {scale.cells}")
        return replace(self, scale=scale)

    def path(self, arch: Architecture) -> Path:
        """Return the level of each layer of an architecture whose path is decided."""
        path = path_of(arch, self.scale.cells)
        assert path is not None, "the path is decided"
        return path

    def features(self, arch: Architecture, form: Form) -> Features:
        """Return what it gives; see `Encoder.features`."""
        wiring, last = self.wiring, self.scale.cells - 1
        stem = Feature(STEM[1], stride_of(0))
        ends = [Feature(wiring.width(last, v), stride_of(v), activated=True) for v in wiring.levels(last)]
        if form == "search":
            return (stem,), tuple(replace(f, weighted=True) for f in ends)
        first = Feature(wiring.width(0, 0), stride_of(0))
        path = path_of(arch, self.scale.cells)
        if path is not None:
            return (first if left_at(path) else stem,), (ends[path[-1]],)
        # What else reads these two does so on steps from there.
        after = [((arrow(1, 0), s),) for s in existing(0)] if last else [((arrow(0, 0), SAME),)]
        low = [
            replace(f, gate=choice(arrow(0, 0), step), active_gate=any_walk(walks))
            for f, step, walks in ((stem, DOWN, [((arrow(0, 0), DOWN),)]), (first, SAME, after))
        ]
        gates = [any_walk([(step,) for step in leading_to(last, v)]) for v in wiring.levels(last)]
        return tuple(low), tuple(replace(f, gate=gate) for f, gate in zip(ends, gates, strict=True))

    def build(self, arch: Architecture, form: Form) -> EncoderNet | OpenEncoderNet:
        """Build a network; see `Encoder.build`."""
        if form == "search":
            return TrellisSupernet(self, arch)
        path = path_of(arch, self.scale.cells)
        return OpenTrellisNet(self, arch) if path is None else TrellisNet(self.wiring, arch, path)

    def genotype(self, arch: Architecture) -> TrellisGenotype:
        """Return a complete architecture as its strides and its blocks."""
        return TrellisGenotype(tuple(stride_of(level) for level in self.path(arch)), self.cells[0].blocks(arch))

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing for Graphviz: the cell, and the trellis with its path."""
        lines = [*self.cells[0].dot(arch), '  subgraph "cluster_path" {', '    label="path";']
        lines.append("    node [shape=circle];")
        taken = {(k, v) for k, v in enumerate((0, *self.path(arch)))}
        for layer in range(self.scale.cells + 1):
            places = [0] if layer == 0 else sources(layer)
            lines += [
                f'    "{layer} {v}" [label="{stride_of(v)}"{", style=filled" if (layer, v) in taken else ""}];'
                for v in places
            ]
            lines.append("    { rank=same; " + "; ".join(f'"{layer} {v}"' for v in places) + "; }")
        for step in (step for layer in range(self.scale.cells) for step in self.wiring.steps(layer)):
            style = "penwidth=3" if arch.get(step.place) == step.name else "style=dotted"
            lines.append(f'    "{step.layer} {step.start}" -> "{step.layer + 1} {step.end}" [{style}];')
        return [*lines, "  }"]

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the cell, and the trellis: beta at every step, the path, and its share of the latency at each place."""
        cells = self.scale.cells
        set_size(figure, 3 + cells, 8)
        above, below = figure.subplots(2)
        draw_cell(above, self.cells[0], arch)
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


def trellis_architecture(space: Space, path: Path, blocks: tuple[Block, ...]) -> Architecture:
    """Return the architecture of a path and a cell.

    Args:
        space: Whose encoder is a trellis.
        path: Level of each layer: 0 is stride 4, 3 is stride 32.
        blocks: For each block of the cell its kept edges, as pairs (op, state): state 0 is H^{l-2}, state 1 H^{l-1}.

    Raises:
        HwnasError: If they do not fit the space.
    """
    (spec,) = space.encoder.cells
    answers = dict.fromkeys((d.name for g in space.encoder.groups for d in g.decisions), NONE)
    answers |= {spec.edge_name((j, i)): op for i, block in zip(spec.states, blocks, strict=False) for op, j in block}
    arch = Architecture.of(space.name, answers | path_answers(path))
    space.problem.check(arch)
    return arch
