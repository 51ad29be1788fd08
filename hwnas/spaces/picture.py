"""Drawing of cells with matplotlib; what else a space draws is up to its encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture
from hwnas.spaces.cell import CellSpec


def set_size(figure: Any, width: float, height: float) -> None:
    """Set the size of a figure in inches; a part of one is as large as it is."""
    if hasattr(figure, "set_size_inches"):
        figure.set_size_inches(width, height)


def draw_times(figure: Any, title: str, ms: Mapping[str, float]) -> None:
    """Draw the milliseconds of each part of a network, which is all there is to see where nothing is decided."""
    set_size(figure, 4 + 0.3 * len(ms), 4)
    axes = figure.subplots()
    axes.bar(range(len(ms)), list(ms.values()))
    axes.set_xticks(range(len(ms)), list(ms), rotation=90)
    axes.set(ylabel="ms", title=title)


def draw_cell(axes: Any, spec: CellSpec, arch: Architecture, bold: Collection[tuple[int, int]] = ()) -> None:
    """Draw a cell: states in a row, inputs first, an arc for each kept edge, coloured by its op.

    Args:
        axes: Of matplotlib, empty.
        spec: The cell.
        arch: Has its answers.
        bold: Edges (from, to) to be drawn so.
    """
    edges = spec.kept(arch)
    colours = {op: f"C{k}" for k, op in enumerate(o for o in spec.ops if o != NONE)}
    states = [f"in {j}" for j in range(spec.inputs)] + [str(i) for i in range(spec.nodes)]
    sides = {1: 0, -1: 0}
    for j, i, op in edges:
        side = 1 if sides[1] <= sides[-1] else -1  # above and below in turns, so that arcs do not cover each other
        sides[side] += 1
        bend = f"arc3,rad={-0.5 * side}"
        width = 4.0 if (j, i) in bold else 1.8
        style = {"arrowstyle": "-|>", "color": colours[op], "lw": width, "shrinkA": 11, "shrinkB": 11}
        axes.annotate("", (i, 0), (j, 0), arrowprops=style | {"connectionstyle": bend})
    for x, name in enumerate(states):
        axes.plot(x, 0, "o", ms=20, color="white", mec="black", zorder=3)
        axes.text(x, 0, name, ha="center", va="center", fontsize=8, zorder=4)
    for op in dict.fromkeys(op for _, _, op in edges):
        axes.plot([], [], color=colours[op], label=op)
    if edges:
        axes.legend(fontsize=7, loc="upper left", frameon=False)
    reach = max((i - j for j, i, _ in edges), default=1)
    axes.set(title=spec.name, xlim=(-0.6, len(states) - 0.4), ylim=(-0.35 * reach - 0.3, 0.35 * reach + 0.3))
    axes.axis("off")


def draw_graph(axes: Any, title: str, labels: Sequence[str], reads: Mapping[int, Sequence[int]]) -> None:
    """Draw a graph in columns by how far a node is from where it begins.

    Args:
        axes: Of matplotlib, empty.
        title: Of the drawing.
        labels: Of the nodes, each after those it reads.
        reads: By node, which others it reads; none for those that the graph begins with.
    """
    column: dict[int, int] = {}
    place: dict[int, tuple[int, int]] = {}
    for i in range(len(labels)):
        column[i] = 1 + max((column[j] for j in reads.get(i, ())), default=-1)
        place[i] = (column[i], -sum(column[j] == column[i] for j in range(i)))
    for i, label in enumerate(labels):
        for j in dict.fromkeys(reads.get(i, ())):
            bend = "arc3,rad=0.15" if column[i] > column[j] + 1 else "arc3"  # around what lies between
            style = {"arrowstyle": "-|>", "shrinkA": 32, "shrinkB": 32, "connectionstyle": bend}
            axes.annotate("", place[i], place[j], arrowprops=style)
        axes.text(*place[i], label, ha="center", va="center", fontsize=8, bbox=_BOX)
    rows = [row for _, row in place.values()]
    axes.set(title=title, xlim=(-0.5, max(column.values()) + 0.5), ylim=(min(rows) - 0.7, 0.7))
    axes.axis("off")


_BOX = {"boxstyle": "round", "facecolor": "white"}
