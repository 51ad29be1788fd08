"""Drawing of cells with matplotlib; what a space draws of an architecture is its own `draw`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture, Group
from hwnas.spaces.cell import INPUTS, cell_edges

Edge = tuple[int, int, str]  # from a state, to a state, by an op


def kept_edges(group: Group, nodes: int, arch: Architecture) -> list[Edge]:
    """Return the kept edges of a cell."""
    pairs = zip(cell_edges(nodes), group.decisions, strict=True)
    return [(j, i, op) for (j, i), d in pairs if (op := arch.get(d.name)) not in (NONE, None)]


def draw_cell(axes: Any, title: str, nodes: int, edges: Sequence[Edge], options: Sequence[str]) -> None:
    """Draw a cell: states in a row, inputs first, an arc for each kept edge, coloured by its op."""
    colours = {op: f"C{k}" for k, op in enumerate(o for o in options if o != NONE)}
    states = [f"in {j}" for j in range(INPUTS)] + [str(i) for i in range(nodes)]
    sides = {1: 0, -1: 0}
    for j, i, op in edges:
        side = 1 if sides[1] <= sides[-1] else -1  # above and below in turns, so that arcs do not cover each other
        sides[side] += 1
        bend = f"arc3,rad={-0.5 * side}"
        style = {"arrowstyle": "-|>", "color": colours[op], "lw": 1.8, "shrinkA": 11, "shrinkB": 11}
        axes.annotate("", (i, 0), (j, 0), arrowprops=style | {"connectionstyle": bend})
    for x, name in enumerate(states):
        axes.plot(x, 0, "o", ms=20, color="white", mec="black", zorder=3)
        axes.text(x, 0, name, ha="center", va="center", fontsize=8, zorder=4)
    for op in dict.fromkeys(op for _, _, op in edges):
        axes.plot([], [], color=colours[op], label=op)
    if edges:
        axes.legend(fontsize=7, loc="upper left", frameon=False)
    reach = max((i - j for j, i, _ in edges), default=1)
    axes.set(title=title, xlim=(-0.6, len(states) - 0.4), ylim=(-0.35 * reach - 0.3, 0.35 * reach + 0.3))
    axes.axis("off")
