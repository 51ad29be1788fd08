"""What latency tables say: finding them, comparing two, and checking whether one still holds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hwnas import recipes
from hwnas.errors import HwnasError, ProvenanceError, unknown
from hwnas.files import canonical_json, may_be_file
from hwnas.latency.diff import Change, RowDiff, TableDiff, changes, median_ratio
from hwnas.latency.diff import diff_tables as diff
from hwnas.latency.table import UNMEASURED, LatencyTable
from hwnas.ops.trace import Trace
from hwnas.profile import PlanWriter, build_table, contexts, likely
from hwnas.progress import SILENT, Reporter
from hwnas.recipes import Recipe
from hwnas.resources import profiles_dir
from hwnas.run import FILE, RUNS, Run, Settings
from hwnas.runtime.engines import provenance_here
from hwnas.runtime.measuring.device import device_name, same_device, with_cpus
from hwnas.runtime.measuring.supervise import supervise
from hwnas.spaces import trace_space

MOVED = 0.05  # the median of ops measured again may differ by so much: as far apart as quiet and slow on one machine


def find_table(name: str) -> LatencyTable:
    """Load a table.

    Args:
        name: A path, the name of a run, or that of a table that ships with hwnas, without ``.json``.

    Raises:
        HwnasError: If there is none of this name, or it cannot be read.
    """
    path = Path(name)
    if may_be_file(name) or path.suffix == ".json":
        return LatencyTable.load(path)
    if may_be_file(str(RUNS / name / "run.json")):
        return LatencyTable.load(Run(name).require("table.json", "profile"))
    folder = profiles_dir()
    shipped = {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.json"))}
    if name not in shipped:
        raise unknown("latency table", name, [*shipped, *(p.parent.name for p in RUNS.glob("*/table.json"))])
    return LatencyTable.load(shipped[name])


def recipe_beside(path: Path) -> Recipe | None:
    """Return the recipe of the run that a file is in; None if it is in no run."""
    settings = path.parent / "run.json"
    return FILE.load(settings, Settings).recipe_settings if settings.is_file() else None


def conditions_here(table: LatencyTable) -> Mapping[str, Any]:
    """Return the provenance that the table's engine has on this machine, as JSON values.

    Raises:
        HwnasError: If the engine cannot be opened here.
    """
    here: Mapping[str, Any] = json.loads(canonical_json(with_cpus(provenance_here(table.where))))
    return here


def require_here(table: LatencyTable) -> None:
    """Refuse a table that does not speak for this machine.

    Raises:
        ProvenanceError: If it is of another device, or its engine cannot be opened here.
    """
    try:
        here = conditions_here(table)
    except HwnasError as e:
        raise ProvenanceError(
            f"the table {table.path or table.name} is of an engine that cannot be opened here ({e}); "
            "to use it all the same, say --foreign-table"
        ) from e
    table.require_device(here)


@dataclass(frozen=True)
class DiffResult:
    """Two tables and how they compare."""

    a: LatencyTable
    b: LatencyTable
    diff: TableDiff


def diff_tables(name_a: str, name_b: str) -> DiffResult:
    """Compare the second of two tables with the first; see `find_table` for their names."""
    a, b = find_table(name_a), find_table(name_b)
    return DiffResult(a, b, diff(a, b))


@dataclass(frozen=True)
class Coverage:
    """Which ops of a recipe, at all its widths, a table cannot price."""

    recipe: Recipe
    ops: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Again:
    """Ops that were measured again.

    Attributes:
        rows: As they are in the table, and now.
        ratio: Median of what they take now over what the table says.
    """

    rows: tuple[RowDiff, ...]
    ratio: float

    @property
    def moved(self) -> bool:
        """Whether the device is another than it was."""
        return abs(self.ratio - 1) > MOVED


@dataclass(frozen=True)
class CheckResult:
    """Whether a table still holds here.

    Attributes:
        table: It.
        state: ``"foreign"`` is of another device or engine, ``"stale"`` of other conditions.
        why: It is not fresh.
        changes: Of the conditions.
        covered: By recipe.
        recipe: Name of that of the table's run; None outside of a run.
        whole: Names of the recipes it prices in full; in a run, of the run's alone.
        again: None if nothing was measured again.
    """

    table: LatencyTable
    state: Literal["fresh", "stale", "foreign"]
    why: str
    changes: tuple[Change, ...]
    covered: tuple[Coverage, ...]
    recipe: str | None
    whole: tuple[str, ...]
    again: Again | None = None

    @property
    def good(self) -> bool:
        """Whether it is of this device and these conditions, and prices its run's recipe; outside of a run, any."""
        return self.state == "fresh" and bool(self.whole) and not (self.again is not None and self.again.moved)


def check_table(name: str, measure: int = 0, report: Reporter = SILENT) -> CheckResult:
    """Check whether a table still holds here, and which recipes it prices.

    Args:
        name: Of the table.
        measure: How many of its dearest ops to measure again; 0 for none.
        report: Told how far it is.

    Raises:
        HwnasError: If it cannot be read, or ops are to be measured again that cannot be.
    """
    if measure < 0:
        raise HwnasError(f"--measure takes a number of ops, got {measure}")
    table = find_table(name)
    state, why, changed = _state(table)
    own = None if table.path is None else recipe_beside(table.path)
    by_name = {n: recipes.get(n) for n in recipes.names()} | ({own.name: own} if own is not None else {})
    covered = _covered(table, [by_name[n] for n in sorted(by_name)], report)
    whole = [c.recipe for c in covered if not c.missing and (own is None or own.name == c.recipe.name)]
    again = None
    if measure:
        lack = "" if whole else "it prices no recipe in full"
        lack = f"it is {state}{why}" if state == "foreign" else lack
        if lack:
            raise HwnasError(f"{table.path} cannot be measured again here: {lack}; leave out --measure")
        again = _measure_again(table, whole[0], measure, report)
    recipe = None if own is None else own.name
    return CheckResult(table, state, why, changed, tuple(covered), recipe, tuple(r.name for r in whole), again)


def _state(table: LatencyTable) -> tuple[Literal["fresh", "stale", "foreign"], str, tuple[Change, ...]]:
    """Return whether the conditions of a table are those of here and now, why not, and what changed."""
    try:
        here = conditions_here(table)
    except HwnasError as e:
        return "foreign", f": its engine cannot be opened here: {e}", ()
    changed = changes(table.where, here)
    if not same_device(table.where, here):
        return "foreign", f": this is {device_name(here)}", changed
    stale = [c.name for c in changed if c.counts]
    return ("stale", f": {', '.join(stale)} changed", changed) if stale else ("fresh", "", changed)


def _covered(table: LatencyTable, every: Sequence[Recipe], report: Reporter) -> list[Coverage]:
    out: list[Coverage] = []
    priced = {k for k, row in table.rows.items() if row.status not in UNMEASURED}
    with report.bar("trace recipes", len(every)) as update:
        for recipe in every:
            update(len(out), recipe.name)
            keys = {c.spec.key for trace in _traces(recipe, table) for c in trace.calls}
            out.append(Coverage(recipe, len(keys), tuple(sorted(keys - priced))))
    return out


def _traces(recipe: Recipe, table: LatencyTable) -> list[Trace]:
    return [trace_space(recipe.space.at(s), merge=bool(table.where["merges"])) for s in recipe.scales()]


def _measure_again(table: LatencyTable, recipe: Recipe, n: int, report: Reporter) -> Again:
    """Measure the n dearest ops of a recipe again."""
    traces = _traces(recipe, table)
    by_key = contexts(traces, [likely(recipe.space, trace) for trace in traces])
    dearest = sorted(by_key.values(), key=lambda c: (-table.rows[c.spec.key].latency_ms, c.spec.key))[:n]
    chosen = list(dict.fromkeys([*dearest, *(by_key[c.ending] for c in dearest if c.ending is not None)]))
    engine = table.where["engine"]
    with tempfile.TemporaryDirectory() as folder, report.bar("measure again", None) as update:
        writer = PlanWriter(Path(folder), precision=str(engine["precision"]))
        writer.plan_ops(chosen, by_key)
        writer.write()
        results = supervise(
            Path(folder),
            str(engine["name"]),
            int(engine["threads"]),
            recipe.stop,
            on_progress=lambda p: update(p.done, p.note, p.total, p.left_s),
        )
        rows = diff(table, build_table(Path(folder), results)).ops
    ratio = median_ratio(rows)
    if ratio is None:
        raise HwnasError(f"no op of {table.path} could be measured again")
    return Again(tuple(rows), ratio)
