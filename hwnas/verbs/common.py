"""What several verbs share."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwnas.data import SegmentationData, Synthetic
from hwnas.errors import HwnasError, MissingExtra
from hwnas.files import write_atomic
from hwnas.latency.table import LatencyTable
from hwnas.optional import require
from hwnas.profile import plan_again
from hwnas.run import Run
from hwnas.runtime.engines import provenance_here
from hwnas.ui import bar
from hwnas.validate import REFERENCES, Reference, references


def open_table(run: Run, path: Path | None, foreign: bool) -> LatencyTable:
    """Open a table for a run and refuse one of another device unless asked for.

    Raises:
        ProvenanceError: If it is of another device.
    """
    made = LatencyTable.load(path or run.require("table.json", "profile"))
    if not foreign:
        made.require_device(provenance_here(made.where))
    return made


def check_table(run: Run, latency: LatencyTable) -> None:
    """Refuse a table for a run that has another one: prediction and validation must be by the same.

    Raises:
        HwnasError: If the run has another table.
    """
    own = run.folder / "table.json"
    if own.exists() and LatencyTable.load(own) != replace(latency, path=own):
        raise HwnasError(f"the run {run.name!r} has another latency table; give another name with --run or --to")


def keep_table(run: Run, latency: LatencyTable) -> None:
    """Give a run its own copy of the table it was derived with, unless it has it: later verbs measure by it."""
    own = run.folder / "table.json"
    if not own.exists():
        replace(latency).save(own)


def references_for(run: Run, latency: LatencyTable) -> list[Reference]:
    """Return networks of a run's table to measure beside its own, which tell how fast the machine is today.

    They are taken from the plan the table was made of, in the run or beside the table's file. Where there is none, as
    with a table that was handed on, the recipe draws them again.
    """
    assert latency.path is not None, "the table was not read from a file"
    again = run.folder / "references"
    for plan in (run.folder / "plan", latency.path.parent / "plan", again):
        if found := references(plan, latency):
            return found
    recipe = run.recipe
    with bar("plan networks of the table again", None) as update:
        plan_again(latency, recipe.space, recipe.scales(), recipe.calibration, REFERENCES, again, update)
    return references(again, latency)


def read_split(run: Run, split: str, size: tuple[int, int] | None = None) -> SegmentationData:
    """Open a split and read all of it once, so that a file that cannot be used is found before anything is written.

    At the deployment size, or at `size`.

    The samples stay in the dataset's cache, as far as they fit.
    """
    data = run.data(split, size)
    if isinstance(data, Synthetic):
        return data  # it is drawn, not read
    with bar(f"read {data.name}", len(data)) as update:
        for i in range(len(data)):
            _ = data[i]
            update(i + 1)
    return data


def budgets_ms_of(fps: Sequence[float], tables: int) -> list[float]:
    """Return the budget in milliseconds of each table, none if no --fps was given.

    Args:
        fps: One for each table in their order, or one for all.
        tables: How many there are; the run's own counts where none was named.

    Raises:
        HwnasError: If they do not go together, or one is no speed.
    """
    tables = max(1, tables)
    if len(fps) not in (0, 1, tables):
        raise HwnasError(f"{tables} --table need one --fps for all or one each, in their order; got {len(fps)}")
    budgets = [budget_ms_of(f) for f in fps]
    return budgets * tables if len(budgets) == 1 else budgets


def further(tables: Sequence[Path], budgets_ms: Sequence[float]) -> list[dict[str, Any]]:
    """Return what a run's settings say of the tables after the first, and their budgets."""
    return [{"table": str(path), "budget_ms": ms} for path, ms in zip(tables[1:], budgets_ms[1:], strict=True)]


def budget_ms_of(fps: float) -> float:
    """Return the budget in milliseconds of a budget in frames per second."""
    if not (math.isfinite(fps) and fps > 0):
        raise HwnasError(f"--fps must be a positive number of frames per second, got {fps}")
    return 1000 / fps


def picture(path: Path, draw: Callable[[Any], None]) -> str:
    """Write what `draw` draws into a figure of matplotlib, as SVG; return what there is to say about the file."""
    try:
        figure_of = require("matplotlib.figure", "report").Figure
        matplotlib = require("matplotlib", "report")
    except MissingExtra as e:
        return f"none: {e}"
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hwnas"}):  # else the same picture is another file each time
        figure = figure_of(layout="constrained")
        draw(figure)
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_atomic(path, content.getvalue())
    return str(path)
