"""`hwnas table show`, `diff` and `check`: what a latency table says, and whether it still holds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from hwnas import recipes
from hwnas.errors import HwnasError, ProvenanceError, unknown
from hwnas.files import canonical_json, read_json
from hwnas.latency.diff import CLOSE, RowDiff, by_kind, changes, diff_tables, flatten, median_ratio
from hwnas.latency.table import UNMEASURED, LatencyTable, NetRow, OpRow
from hwnas.ops.trace import Trace
from hwnas.profile import PlanWriter, build_table, contexts, likely
from hwnas.recipes import Recipe
from hwnas.resources import profiles_dir
from hwnas.run import RUNS, Run
from hwnas.runtime.engines import provenance_here
from hwnas.runtime.measuring.device import device_name, same_device
from hwnas.runtime.measuring.supervise import supervise
from hwnas.spaces import trace_space
from hwnas.ui import bar, console, summary, table
from hwnas.verbs.profiling import show_errors

DEAREST = 15
MOVED = 0.05  # the median of ops measured again may differ by so much: as far apart as quiet and slow on one machine
RULE = (
    "B is better or worse where the 95 % intervals do not overlap and the latencies differ by at least "
    f"{CLOSE:.0%}; else it is ambiguous"
)


def find_table(name: str) -> LatencyTable:
    """Load a table.

    Args:
        name: A path, the name of a run, or that of a table that ships with hwnas, without ``.json``.

    Raises:
        HwnasError: If there is none of this name, or it cannot be read.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".json":
        return LatencyTable.load(path)
    if (RUNS / name / "run.json").is_file():
        return LatencyTable.load(Run(name).require("table.json", "profile"))
    folder = profiles_dir()
    shipped = {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.json"))}
    if name not in shipped:
        raise unknown("latency table", name, [*shipped, *(p.parent.name for p in RUNS.glob("*/table.json"))])
    return LatencyTable.load(shipped[name])


def recipe_beside(path: Path) -> str | None:
    """Return the recipe of the run that a file is in; None if it is in no run."""
    settings = path.parent / "run.json"
    data = read_json(settings, "the settings of a run") if settings.is_file() else None
    return str(data["recipe"]) if isinstance(data, dict) and "recipe" in data else None


def conditions_here(made: LatencyTable) -> Mapping[str, Any]:
    """Return the provenance that the table's engine has on this machine, as JSON values.

    Raises:
        HwnasError: If the engine cannot be opened here.
    """
    here: Mapping[str, Any] = json.loads(canonical_json(provenance_here(made.where)))
    return here


def require_here(made: LatencyTable) -> None:
    """Refuse a table that does not speak for this machine.

    Raises:
        ProvenanceError: If it is of another device, or its engine cannot be opened here.
    """
    try:
        here = conditions_here(made)
    except HwnasError as e:
        raise ProvenanceError(
            f"the table {made.path or made.name} is of an engine that cannot be opened here ({e}); "
            "to use it all the same, say --foreign-table"
        ) from e
    made.require_device(here)


def show(name: str, every: bool) -> None:
    """Print how a table was measured, how well it predicts, and its rows; `every` prints all of them."""
    made = find_table(name)
    table("conditions", ("condition", "value"), [[k, _said(v)] for k, v in sorted(flatten(made.where).items())])
    if made.report.keys() & {"predictors", "derived"}:
        show_errors(made)
    rows = sorted(made.rows.values(), key=lambda r: (-r.latency_ms, r.key))
    _show_kinds(made, rows)
    measured = [r for r in rows if r.status not in UNMEASURED]
    shown = measured if every else measured[:DEAREST]
    header = ("op", "ms", "95 % interval", "alone ms", "visits", "status")
    cells = [[r.key, f"{r.latency_ms:.4g}", _interval(r), _ms(r.isolated_ms), str(r.visits), r.status] for r in shown]
    table("rows, the dearest first" if every else f"the {len(shown)} dearest rows", header, cells, numbers=True)
    bad = [[r.key, r.status, r.reason] for r in rows if r.status != "ok"]
    bad += [[n.key, n.status, "it did not become precise enough"] for n in made.nets if n.status != "ok"]
    bad += [[key, "skipped", "time was up"] for key in made.report.get("left_out", ())]
    if bad:
        table("rows that are not ok", ("row", "status", "why"), bad)
    summary(_facts(made), None)


def _facts(made: LatencyTable) -> dict[str, object]:
    visits = [r.visits for r in made.rows.values() if r.visits]
    uses = [f"{sum(n.use == use for n in made.nets)} {use}" for use in ("fit", "test", "derived")]
    half = made.correction.interval
    facts: dict[str, object] = {
        "table": made.path,
        "device": made.name,
        "rows": f"{len(made.rows)} ops, {len(made.nets)} networks ({', '.join(uses)})",
        "visits": f"{min(visits)} to {max(visits)} for each op, median {median(visits):g}" if visits else "none",
        "a prediction holds": "not known: no networks to test it on"
        if half is None
        else f"within {half:.1%}, with 95 % confidence",
    }
    machine = made.report.get("conditions")
    if machine and machine["visits"]:
        facts["machine"] = f"slow {machine['slow_share']:.0%} of the time, drift {machine['drift']:+.1%}"
    return facts


def _show_kinds(made: LatencyTable, rows: Sequence[OpRow]) -> None:
    cells = []
    for kind in sorted({r.kind for r in rows}):
        own = [r for r in rows if r.kind == kind]
        ms = [r.latency_ms for r in own if r.status not in UNMEASURED]
        least, most = (f"{min(ms):.4g}", f"{max(ms):.4g}") if ms else ("", "")
        states = [str(sum(r.status in which for r in own)) for which in (("doubtful",), UNMEASURED)]
        cells.append([kind, str(len(own)), least, most, f"{made.correction.factor(kind):.3f}", *states])
    header = ("kind", "rows", "least ms", "most ms", "factor in networks", "doubtful", "not measured")
    table("rows by kind", header, cells, numbers=True)


def diff(name_a: str, name_b: str, every: bool) -> None:
    """Print how the second table compares with the first; `every` prints all rows."""
    a, b = find_table(name_a), find_table(name_b)
    found = diff_tables(a, b)
    if every:
        _show_rows("rows", [*found.ops, *found.nets])
    cells = [
        [kind, str(s.rows), _ratio(s.ratio), *(str(s.verdicts[v]) for v in ("better", "worse", "ambiguous"))]
        for kind, s in by_kind([*found.ops, *found.nets]).items()
    ]
    table("B against A", ("kind", "rows", "median B/A", "better", "worse", "ambiguous"), cells, numbers=True)
    console.print(RULE, markup=False)
    if found.where:
        table(
            "conditions that differ",
            ("condition", "A", "B"),
            [[c.name, _said(c.old), _said(c.new)] for c in found.where],
        )
    if not same_device(a.where, b.where):
        _warn(f"the tables are of different devices: {device_name(a.where)} and {device_name(b.where)}")
    engines = [str(t.where["engine"]["name"]) for t in (a, b)]
    if engines[0] != engines[1]:
        _warn(f"the tables are of different engines: {engines[0]} and {engines[1]}")
    facts: dict[str, object] = {"A": a.path, "B": b.path, "ops in both": len(found.ops)}
    facts["correction"] = f"{_correction(a)} -> {_correction(b)}"
    for side, keys in (("A", found.only_a), ("B", found.only_b)):
        facts[f"ops only in {side}"] = f"{len(keys)}{_list(keys, every)}"
    summary(facts, None)


def _correction(made: LatencyTable) -> str:
    c = made.correction
    return f"{c.base_ms:.4g} ms + {c.call_ms:.4g} ms a call + {c.common:.3f} of the ops"


def _list(keys: Sequence[str], every: bool) -> str:
    if not keys:
        return ""
    return ": " + ", ".join(keys) if every else f", the first is {keys[0]}"


def _show_rows(title: str, rows: Sequence[RowDiff]) -> None:
    cells = [[r.a.key, _measured(r.a), _measured(r.b), _ratio(r.ratio), r.verdict] for r in rows]
    table(title, ("row", "A ms (95 % interval)", "B ms (95 % interval)", "B/A", "B is"), cells, numbers=True)


def check(name: str, again: int) -> bool:
    """Print whether a table still holds here, and which recipes it prices.

    Args:
        name: Of the table.
        again: How many of its dearest ops to measure again; 0 for none.

    Returns:
        Whether it is of this device and these conditions, and prices its run's recipe; outside of a run, any recipe.

    Raises:
        HwnasError: If it cannot be read, or ops are to be measured again that cannot be.
    """
    if again < 0:
        raise HwnasError(f"--measure takes a number of ops, got {again}")
    made = find_table(name)
    state, why = _state(made)
    own = None if made.path is None else recipe_beside(made.path)
    covered = _covered(made, sorted({*recipes.names(), *([own] if own else [])}))
    table("recipes it prices", ("recipe", "ops", "all of them"), [[c.recipe.name, str(c.ops), c.text] for c in covered])
    whole = [c.recipe for c in covered if not c.missing and own in (None, c.recipe.name)]
    names = ", ".join(r.name for r in whole)
    doubtful = [r.key for r in made.rows.values() if r.status == "doubtful"]
    facts: dict[str, object] = {
        "table": made.path,
        "device": made.name,
        "state": state + why,
        "whole": f"yes, for {names}" if whole else f"no, not for {own or 'any recipe'}",
        "doubtful rows": f"{len(doubtful)}{_list(doubtful, every=False)}",
    }
    good = state == "fresh" and bool(whole)
    if again:
        lack = "" if whole else "it prices no recipe in full"
        lack = f"it is {state}{why}" if state == "foreign" else lack
        if lack:
            raise HwnasError(f"{made.path} cannot be measured again here: {lack}; leave out --measure")
        moved, facts["measured again"] = _measure_again(made, whole[0], again)
        good = good and not moved
    summary(facts, None if good else f"hwnas profile {own or 'RECIPE'} --run NAME  (a new name: it is measured anew)")
    return good


def _state(made: LatencyTable) -> tuple[Literal["fresh", "stale", "foreign"], str]:
    """Say whether the conditions of a table are those of here and now, and why not; print what changed."""
    try:
        here = conditions_here(made)
    except HwnasError as e:
        return "foreign", f": its engine cannot be opened here: {e}"
    found = changes(made.where, here)
    for c in found:
        note = "" if c.counts else " (does not count)"
        console.print(f"{c.name}: {_said(c.old)} -> {_said(c.new)}{note}", markup=False)
    if not same_device(made.where, here):
        return "foreign", f": this is {device_name(here)}"
    stale = [c.name for c in found if c.counts]
    return ("stale", f": {', '.join(stale)} changed") if stale else ("fresh", "")


@dataclass(frozen=True)
class _Coverage:
    """Which ops of a recipe, at all its widths, a table cannot price."""

    recipe: Recipe
    ops: int
    missing: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"no: {len(self.missing)} missing, the first is {self.missing[0]}" if self.missing else "yes"


def _covered(made: LatencyTable, names: Sequence[str]) -> list[_Coverage]:
    out: list[_Coverage] = []
    with bar("trace recipes", len(names)) as update:
        for name in names:
            update(len(out), name)
            out.append(_coverage(recipes.get(name), made))
    return out


def _coverage(recipe: Recipe, made: LatencyTable) -> _Coverage:
    keys = {c.spec.key for trace in _traces(recipe, made) for c in trace.calls}
    priced = {k for k, row in made.rows.items() if row.status not in UNMEASURED}
    return _Coverage(recipe, len(keys), tuple(sorted(keys - priced)))


def _traces(recipe: Recipe, made: LatencyTable) -> list[Trace]:
    return [trace_space(recipe.space.at(s), merge=bool(made.where["merges"])) for s in recipe.scales()]


def _measure_again(made: LatencyTable, recipe: Recipe, n: int) -> tuple[bool, str]:
    """Measure the n dearest ops of a recipe again; return whether the device is another than it was, and how far."""
    traces = _traces(recipe, made)
    known = contexts(traces, [likely(recipe.space, trace) for trace in traces])
    chosen = sorted(known.values(), key=lambda c: (-made.rows[c.spec.key].latency_ms, c.spec.key))[:n]
    chosen = list(dict.fromkeys([*chosen, *(known[c.ending] for c in chosen if c.ending is not None)]))
    engine = made.where["engine"]
    with tempfile.TemporaryDirectory() as folder, bar("measure again", None) as update:
        writer = PlanWriter(Path(folder), precision=str(engine["precision"]))
        writer.plan_ops(chosen, known)
        writer.write()
        results = supervise(
            Path(folder),
            str(engine["name"]),
            int(engine["threads"]),
            recipe.stop,
            on_progress=lambda p: update(p.done, str(p.record["key"])[:60], p.total),
        )
        rows = diff_tables(made, build_table(Path(folder), results)).ops
    _show_rows("measured again: A is the table, B is now", rows)
    times = median_ratio(rows)
    if times is None:
        raise HwnasError(f"no op of {made.path} could be measured again")
    moved = abs(times - 1) > MOVED
    than = "more" if moved else "no more"
    return moved, f"{len(rows)} ops take {times:.3f} of what they did, {than} than {MOVED:.0%} apart"


def _warn(text: str) -> None:
    console.print(f"warning: {text}", style="yellow", markup=False)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return "nothing" if value is None else str(value)


def _interval(row: OpRow | NetRow) -> str:
    return f"{row.ci_ms[0]:.4g} to {row.ci_ms[1]:.4g}"


def _measured(row: OpRow | NetRow) -> str:
    return f"{row.latency_ms:.4g} ({_interval(row)}){' doubtful' if row.status == 'doubtful' else ''}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
