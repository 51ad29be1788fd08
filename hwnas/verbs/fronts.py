"""`hwnas derive --pareto`: what one search has for every budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, write_atomic
from hwnas.run import Run
from hwnas.search.front import Point, pareto_front
from hwnas.ui import bar, console, summary, table
from hwnas.verbs.common import open_table, picture
from hwnas.verbs.deriving import Wishes, open_contest

SCHEMA = 1


def pareto(source: Run, n: int, table_path: Path | None, foreign: bool, wishes: Wishes) -> None:
    """Derive at n budgets; write ``pareto.json`` and ``pareto.svg`` into the run.

    Args:
        source: A run that was searched.
        n: Number of budgets.
        table_path: Of the latency table; None for the run's own.
        foreign: Whether a table of another device will do.
        wishes: What else the networks must be; neither candidates nor a rerank, which are for one budget.
    """
    if wishes.candidates is not None or wishes.rerank is not None:
        raise HwnasError("--candidates and --rerank are for one budget, not for --pareto")
    latency = open_table(source, table_path, foreign)
    with source.locked():
        contest = open_contest(source, latency, wishes)
        with bar("front", n) as update:
            points = pareto_front(contest, n, update)
        flags = ("" if table_path is None else f" --table {table_path}") + (" --foreign-table" if foreign else "")
        flags += wishes.flags()
        made = [{**_point(p), "command": c} for p, c in zip(points, _commands(source.name, points, flags), strict=True)]
        content = {"schema": SCHEMA, "asked": n, "table": latency.name, "wishes": wishes.asked(), "points": made}
        path = source.folder / "pareto.json"
        text = canonical_json(content) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise HwnasError(f"{path} holds another front; remove it to make this one")
        write_atomic(path, text)
        drawn = _draw(source.folder / "pareto.svg", points, f"{source.name}, {latency.name}")
    _show(points, made)
    facts = {"front": f"{path}: {len(points)} networks of {n} budgets", "drawing": drawn}
    summary(facts, str(made[-1]["command"]))


def _point(point: Point) -> dict[str, Any]:
    """Return a JSON object of a point."""
    c = point.candidate
    assert c.arch is not None
    return {
        "fps": float(point.fps),
        "budget_ms": point.budget_ms,
        "predicted_ms": c.latency_ms,
        "interval_ms": c.interval_ms,
        "score": c.score,
        "utility": c.utility,
        "scale": c.scale.to_json(),
        "architecture": c.arch.to_json(),
    }


def _commands(name: str, points: Sequence[Point], flags: str) -> list[str]:
    """Return the commands that derive the points, each into a run of another name."""
    short = [f"{1000 / p.budget_ms:.0f}" for p in points]
    to = ["" if short.count(s) == 1 else f" --to {name}-{p.fps}fps" for s, p in zip(short, points, strict=True)]
    return [f"hwnas derive {name} --fps {p.fps}{flags}{t}" for p, t in zip(points, to, strict=True)]


def _show(points: Sequence[Point], made: Sequence[dict[str, Any]]) -> None:
    rows = []
    for p in points:
        c = p.candidate
        interval = "" if c.interval_ms is None else "{:.4g} to {:.4g}".format(*c.interval_ms)
        size = [str(c.scale.channels), str(c.scale.cells)]
        figures = [f"{c.latency_ms:.4g}", interval, f"{c.score:.3f}", f"{c.utility:.3f}"]
        rows.append([f"{1000 / c.latency_ms:.1f}", *size, *figures])
    header = ("fps", "channels", "cells", "predicted ms", "95 % interval", "score", "utility")
    table("front, fastest first", header, rows, numbers=True)
    console.print("derived by", style="bold")
    for m in made:
        console.print(f"  {m['command']}", markup=False)


def _draw(path: Path, points: Sequence[Point], title: str) -> str:
    """Draw latency against utility; return what there is to say about the file."""

    def draw(figure: Any) -> None:
        figure.set_size_inches(7, 4.5)
        axes = figure.add_subplot(xlabel="predicted latency, ms (95 % interval)", ylabel="utility", title=title)
        for scale in dict.fromkeys(p.candidate.scale for p in points):
            own = [p.candidate for p in points if p.candidate.scale == scale]
            x = [c.latency_ms for c in own]
            ends = [c.interval_ms or (c.latency_ms, c.latency_ms) for c in own]
            errors = [[v - low for v, (low, _) in zip(x, ends, strict=True)]]
            errors.append([high - v for v, (_, high) in zip(x, ends, strict=True)])
            label = f"{scale.channels} channels, {scale.cells} cells"
            axes.errorbar(x, [c.utility for c in own], xerr=errors, marker="o", capsize=2, label=label)
        axes.legend()
        axes.grid(alpha=0.3)

    return picture(path, draw)
