"""How the probabilities of a search went, and what its logits have to show, as one picture for each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.problem import Architecture, Decision, Group, Problem

# A panel for each decision while one can find a decision among them; else heat maps, a row for each.
MOST_LINES, MOST_GROUPS = 20, 8  # decisions of a group, groups of a stage
PANELS, MAPS = 7, 5  # in a row
GROUPS = 2  # in a row, as heat maps
DROPPED = "0.6"  # grey
CMAP = "viridis"


@dataclass(frozen=True)
class History:
    """What a step log says of probabilities.

    Attributes:
        steps: At which they are known, in order.
        probabilities: By group, (steps, decisions, options).
        drawings: `hwnas.search.logits.HeatMap`, as the log has them; none where the logits have nothing to show.
    """

    steps: tuple[int, ...]
    probabilities: Mapping[str, NDArray[np.float64]]
    drawings: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> History | None:
        """Return that of the lines of a step log; None if they have no probabilities."""
        known = [line for line in lines if "probabilities" in line]
        if not known:
            return None
        by_group = {name: np.array([k["probabilities"][name] for k in known]) for name in known[0]["probabilities"]}
        return cls(tuple(k["step"] for k in known), by_group, tuple(lines[-1].get("drawings", ())))


@dataclass(frozen=True)
class Answered:
    """A group, how its probabilities went, and what was derived.

    Attributes:
        group: The decisions.
        p: (steps, decisions, options).
        answers: For each decision, which option was derived; None where that drops it, which no probability decides.
    """

    group: Group
    p: NDArray[np.float64]
    answers: tuple[int | None, ...]

    @property
    def decided(self) -> dict[int, int]:
        """The answers, but for those that are dropped, by row."""
        return {row: answer for row, answer in enumerate(self.answers) if answer is not None}

    def label(self, row: int) -> str:
        """Return a decision without its group, and its answer."""
        decision, answer = self.group.decisions[row], self.answers[row]
        name = decision.name.removeprefix(f"{self.group.name}/")
        return f"{name}: {'dropped' if answer is None else decision.options[answer]}"


def _answered(history: History, problem: Problem, groups: Sequence[str], arch: Architecture) -> list[Answered]:
    """Return the groups that are known, with what was derived."""
    uniform = problem.uniform()
    counted = {literal for rule in problem.open_rules for literal in rule.score(uniform)}

    def answer(decision: Decision) -> int | None:
        option = arch.get(decision.name)
        assert option is not None, f"{decision.name} is open in what was derived"
        dropped = problem.is_dropped(decision.name, option) and (decision.name, option) not in counted
        return None if dropped else decision.options.index(option)

    return [
        Answered(g, history.probabilities[g.name], tuple(map(answer, g.decisions)))
        for g in problem.groups
        if g.name in groups and g.name in history.probabilities
    ]


def draw_search(figure: Any, history: History, problem: Problem, groups: Sequence[str], arch: Architecture) -> None:
    """Draw how the probabilities of a search went, group by group, and what its logits have to show.

    Groups of few decisions are drawn as lines, one panel for each decision; others as two heat maps: how probable each
    option was in the mean over decisions, and how probable the derived answer of each decision was.

    Args:
        figure: Of matplotlib.
        history: Of a stage.
        problem: Whose decisions these are.
        groups: Which of them the stage decided.
        arch: The network that was derived in the end.
    """
    parts = _answered(history, problem, groups, arch)
    lines = [p for p in parts if len(p.group.decisions) <= MOST_LINES and len(parts) <= MOST_GROUPS]
    maps = [p for p in parts if p not in lines]
    heights = [0.45 + 1.15 * -(-len(p.answers) // PANELS) for p in lines]
    heights += [0.7 + 0.15 * max(_rows(p) for p in some) for some in _rows_of(maps, GROUPS)]
    heights += [0.5 + 0.36 * max(len(d["rows"]) for d in some) for some in _rows_of(history.drawings, MAPS)]
    figure.set_size_inches(13.0, sum(heights))
    rows = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for part in lines:
        _draw_lines(next(rows), part, history.steps)
    for some in _rows_of(maps, GROUPS):
        for cell, part in zip(next(rows).subfigures(1, GROUPS, squeeze=False)[0], some, strict=False):
            _draw_maps(cell, part, history.steps)
    for drawings in _rows_of(history.drawings, MAPS):
        for axes, drawing in zip(next(rows).subplots(1, MAPS, squeeze=False)[0], _filled(drawings), strict=True):
            axes.axis("off") if drawing is None else _draw_matrix(axes, drawing)


def _rows_of(things: Sequence[Any], columns: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(things), columns):
        yield things[first : first + columns]


def _filled(drawings: Sequence[Any]) -> list[Any]:
    return [*drawings, *[None] * (MAPS - len(drawings))]


def _rows(part: Answered) -> int:
    return max(len(part.group.options), len(part.decided))


def _draw_lines(figure: Any, part: Answered, steps: Sequence[int]) -> None:
    """Draw a panel for each decision with a line for each option, the derived answer's bold."""
    options, count = part.group.options, len(part.answers)
    columns = min(PANELS, count)
    panels = figure.subplots(-(-count // columns), columns, sharex=True, sharey=True, squeeze=False).flatten()
    top = min(1.0, 1.05 * float(part.p.max()))
    for row, axes in enumerate(panels[:count]):
        answer = part.answers[row]
        for k in range(len(options)):
            style = {"lw": 2.2, "zorder": 3} if k == answer else {"lw": 0.8, "alpha": 0.4 if answer is None else 0.8}
            axes.plot(steps, part.p[:, row, k], color=f"C{k % 10}", ls="-" if k < 10 else "--", **style)
        colour = DROPPED if answer is None else f"C{answer % 10}"
        axes.set_title(part.label(row), fontsize=7, pad=2, color=colour)
        axes.set_ylim(0, top)
        axes.tick_params(labelsize=6, length=2, pad=1)
        if row + columns >= count:  # the lowest of its column
            axes.tick_params(labelbottom=True)
    for axes in panels[count:]:
        axes.axis("off")
    handles = [panels[0].plot([], [], color=f"C{k % 10}", ls="-" if k < 10 else "--")[0] for k in range(len(options))]
    figure.legend(handles, options, loc="outside right upper", fontsize=7, frameon=False)
    figure.suptitle(f"{part.group.name}: probability of each option over steps; bold: derived", fontsize=9)


def _draw_maps(figure: Any, part: Answered, steps: Sequence[int]) -> None:
    """Draw the mean probability of each option, and the probability of each decision's answer."""
    left, right = figure.subplots(1, 2)
    options, decided = part.group.options, part.decided
    counts = [sum(answer == k for answer in decided.values()) for k in range(len(options))]
    names = [f"{o} ({n})" if n else o for o, n in zip(options, counts, strict=True)]
    labels = [part.label(row) for row in decided]
    of_answers = np.array([part.p[:, row, answer] for row, answer in decided.items()]).reshape(-1, len(steps))
    dropped = len(part.answers) - len(decided)
    title = "derived answers" + (f"; {dropped} decisions are dropped" if dropped else "")
    means = part.p.mean(axis=1).T
    shown = [(left, means, names, "mean of all decisions (derived)", None), (right, of_answers, labels, title, 1)]
    # Each cell of the maps ends where the next step that is known begins.
    edges = [*steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
    for axes, values, texts, title, top in shown:
        rows = np.arange(len(texts) + 1)
        mesh = axes.pcolormesh(edges, rows, values, cmap=CMAP, vmin=0, vmax=top, rasterized=True)
        axes.set_yticks(rows[:-1] + 0.5, texts, fontsize=6)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=6)
        axes.set_title(title, fontsize=7, pad=2)
        figure.colorbar(mesh, ax=axes, pad=0.01, aspect=15).ax.tick_params(labelsize=6)
    figure.suptitle(f"{part.group.name}: probability over steps", fontsize=9)


def _draw_matrix(axes: Any, drawing: Mapping[str, Any]) -> None:
    """Draw a matrix with its numbers."""
    values = np.array(drawing["values"])
    axes.imshow(values, cmap=CMAP, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(drawing["columns"])), drawing["columns"], fontsize=7)
    axes.set_yticks(range(len(drawing["rows"])), drawing["rows"], fontsize=7)
    axes.set_title(drawing["title"], fontsize=8, pad=3)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color="w" if value < 0.6 else "k")
