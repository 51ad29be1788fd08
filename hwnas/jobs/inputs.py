"""What several jobs take in: latency tables, networks to measure beside, splits of data, budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hwnas.data import SegmentationData
from hwnas.data.drawn import Drawn
from hwnas.derived import TableBudget
from hwnas.errors import HwnasError
from hwnas.latency.table import LatencyTable
from hwnas.profile import plan_again
from hwnas.progress import Reporter
from hwnas.run import Run
from hwnas.runtime.engines import provenance_here
from hwnas.validate import REFERENCES, Reference, references


def open_table(run: Run, path: Path | None, foreign: bool) -> LatencyTable:
    """Open a table for a run and refuse one of another device unless asked for.

    Raises:
        ProvenanceError: If it is of another device.
    """
    table = LatencyTable.load(path or run.require("table.json", "profile"))
    if not foreign:
        table.require_device(provenance_here(table.where))
    return table


def refuse_second_table(run: Run, table: LatencyTable) -> None:
    """Refuse a table for a run that has another one: prediction and validation must be by the same.

    Raises:
        HwnasError: If the run has another table.
    """
    own = run.folder / "table.json"
    if own.exists() and LatencyTable.load(own) != replace(table, path=own):
        raise HwnasError(f"the run {run.name!r} has another latency table; give another name with {run.flag}")


def keep_table(run: Run, table: LatencyTable) -> None:
    """Give a run its own copy of the table it was derived with, unless it has it: later verbs measure by it."""
    own = run.folder / "table.json"
    if not own.exists():
        replace(table).save(own)


def references_for(run: Run, table: LatencyTable, report: Reporter) -> list[Reference]:
    """Return networks of a run's table to measure beside its own, which tell how fast the machine is today.

    They are taken from the plan the table was made of, in the run or beside the table's file. Where there is none, as
    with a table that was handed on, the recipe draws them again.
    """
    assert table.path is not None, "the table was not read from a file"
    again = run.folder / "references"
    for plan in (run.folder / "plan", table.path.parent / "plan", again):
        if beside := references(plan, table):
            return beside
    recipe = run.recipe
    with report.bar("plan networks of the table again", None) as update:
        plan_again(table, recipe.space, recipe.scales(), recipe.calibration, REFERENCES, again, update)
    return references(again, table)


def settle_data(run: Run, report: Reporter, read: bool = True) -> None:
    """Keep where the data of a run that is there lie now, and what tells them from others.

    Args:
        run: Locked.
        report: Told where nothing tells whether data that moved are those of the run.
        read: Whether the verb reads the data, so that they can be identified for the first time.

    Raises:
        DataError: If the data cannot be used.
    """
    if run.unproven:
        report.note(
            f"warning: the run {run.name} was made before it kept what tells its data from others, and they are gone "
            f"from their old place; {run.settings.data} is taken for them",
            warning=True,
        )
        run.unproven = False
    if read:
        run.identify()
    if (read or run.has_moved) and run.uncommitted:
        run.commit()


def settle_source(run: Run, report: Reporter) -> None:
    """Keep where the data of a run lie now, if they have moved, for a verb that writes into another run."""
    if run.has_moved:
        with run.locked():
            settle_data(run, report, read=False)


def read_all(data: SegmentationData, report: Reporter) -> SegmentationData:
    """Read all of a split once, so that a file that cannot be used is found before anything is written.

    The samples stay in the dataset's cache, as far as they fit.
    """
    if isinstance(data, Drawn):
        return data  # it is drawn, not read
    with report.bar(f"read {data.name}", len(data)) as update:
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
    for rate in fps:
        if not (math.isfinite(rate) and rate > 0):
            raise HwnasError(f"--fps must be a positive number of frames per second, got {rate}")
    budgets = [1000 / rate for rate in fps]
    return budgets * tables if len(budgets) == 1 else budgets


def other_budgets(tables: Sequence[Path], budgets_ms: Sequence[float]) -> tuple[TableBudget, ...]:
    """Return the tables after the first, each with its budget."""
    return tuple(TableBudget(str(path), ms) for path, ms in zip(tables[1:], budgets_ms[1:], strict=True))
