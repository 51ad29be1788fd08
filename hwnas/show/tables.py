"""What latency tables say, how two differ, and whether one still holds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from hwnas.jobs.tables import MOVED, CheckResult, Coverage, DiffResult
from hwnas.latency.diff import CLOSE, RowDiff, by_kind, flatten
from hwnas.latency.table import UNMEASURED, LatencyTable, NetRow, OpRow
from hwnas.runtime.measuring.device import device_name, same_device
from hwnas.show.console import console, summary, table, warn
from hwnas.show.profiling import errors, machine

DEAREST = 15
RULE = (
    "B is better or worse where the 95 % intervals do not overlap and the latencies differ by at least "
    f"{CLOSE:.0%}; else it is ambiguous"
)


def content(measured: LatencyTable, every: bool) -> None:
    """Print how a table was measured, how well it predicts, and its rows; `every` prints all of them."""
    table("conditions", ("condition", "value"), [[k, _text(v)] for k, v in sorted(flatten(measured.where).items())])
    if measured.report.keys() & {"predictors", "derived"}:
        errors(measured)
    rows = sorted(measured.rows.values(), key=lambda r: (-r.latency_ms, r.key))
    _show_kinds(measured, rows)
    priced = [r for r in rows if r.status not in UNMEASURED]
    shown = priced if every else priced[:DEAREST]
    header = ("op", "ms", "95 % interval", "alone ms", "visits", "status")
    cells = [[r.key, f"{r.latency_ms:.4g}", _interval(r), _ms(r.isolated_ms), str(r.visits), r.status] for r in shown]
    table("rows, the dearest first" if every else f"the {len(shown)} dearest rows", header, cells, numbers=True)
    bad = [[r.key, r.status, r.reason] for r in rows if r.status != "ok"]
    bad += [[n.key, n.status, "it did not become precise enough"] for n in measured.nets if n.status != "ok"]
    bad += [[key, "skipped", "time was up"] for key in measured.report.get("left_out", ())]
    if bad:
        table("rows that are not ok", ("row", "status", "why"), bad)
    summary(_facts(measured), None)


def _facts(measured: LatencyTable) -> dict[str, object]:
    visits = [r.visits for r in measured.rows.values() if r.visits]
    uses = [f"{sum(n.use == use for n in measured.nets)} {use}" for use in ("fit", "test", "derived")]
    half = measured.correction.interval
    facts: dict[str, object] = {
        "table": measured.path,
        "device": measured.name,
        "rows": f"{len(measured.rows)} ops, {len(measured.nets)} networks ({', '.join(uses)})",
        "visits": f"{min(visits)} to {max(visits)} for each op, median {median(visits):g}" if visits else "none",
        "a prediction holds": "not known: no networks to test it on"
        if half is None
        else f"within {half:.1%}, with 95 % confidence",
    }
    return facts | machine(measured)


def _show_kinds(measured: LatencyTable, rows: Sequence[OpRow]) -> None:
    cells = []
    for kind in sorted({r.kind for r in rows}):
        own = [r for r in rows if r.kind == kind]
        ms = [r.latency_ms for r in own if r.status not in UNMEASURED]
        least, most = (f"{min(ms):.4g}", f"{max(ms):.4g}") if ms else ("", "")
        states = [str(sum(r.status in which for r in own)) for which in (("doubtful",), UNMEASURED)]
        cells.append([kind, str(len(own)), least, most, f"{measured.correction.factor(kind):.3f}", *states])
    header = ("kind", "rows", "least ms", "most ms", "factor in networks", "doubtful", "not measured")
    table("rows by kind", header, cells, numbers=True)


def difference(result: DiffResult, every: bool) -> None:
    """Print how the second table compares with the first; `every` prints all rows."""
    a, b, diff = result.a, result.b, result.diff
    if every:
        _show_rows("rows", [*diff.ops, *diff.nets])
    cells = [
        [kind, str(s.rows), _ratio(s.ratio), *(str(s.verdicts[v]) for v in ("better", "worse", "ambiguous"))]
        for kind, s in by_kind([*diff.ops, *diff.nets]).items()
    ]
    table("B against A", ("kind", "rows", "median B/A", "better", "worse", "ambiguous"), cells, numbers=True)
    console.print(RULE, markup=False)
    if diff.where:
        table(
            "conditions that differ",
            ("condition", "A", "B"),
            [[c.name, _text(c.old), _text(c.new)] for c in diff.where],
        )
    if not same_device(a.where, b.where):
        warn(f"the tables are of different devices: {device_name(a.where)} and {device_name(b.where)}")
    engines = [str(t.where["engine"]["name"]) for t in (a, b)]
    if engines[0] != engines[1]:
        warn(f"the tables are of different engines: {engines[0]} and {engines[1]}")
    facts: dict[str, object] = {"A": a.path, "B": b.path, "ops in both": len(diff.ops)}
    facts["correction"] = f"{_correction(a)} -> {_correction(b)}"
    for side, keys in (("A", diff.only_a), ("B", diff.only_b)):
        facts[f"ops only in {side}"] = f"{len(keys)}{_list(keys, every)}"
    summary(facts, None)


def _correction(measured: LatencyTable) -> str:
    c = measured.correction
    return f"{c.base_ms:.4g} ms + {c.call_ms:.4g} ms a call + {c.common:.3f} of the ops"


def _list(keys: Sequence[str], every: bool) -> str:
    if not keys:
        return ""
    return ": " + ", ".join(keys) if every else f", the first is {keys[0]}"


def _show_rows(title: str, rows: Sequence[RowDiff]) -> None:
    cells = [[r.a.key, _measured(r.a), _measured(r.b), _ratio(r.ratio), r.verdict] for r in rows]
    table(title, ("row", "A ms (95 % interval)", "B ms (95 % interval)", "B/A", "B is"), cells, numbers=True)


def checked(result: CheckResult) -> None:
    """Print whether a table still holds here, and which recipes it prices."""
    measured, again = result.table, result.again
    for c in result.changes:
        note = "" if c.counts else " (does not count)"
        console.print(f"{c.name}: {_text(c.old)} -> {_text(c.new)}{note}", markup=False)
    rows = [[c.recipe.name, str(c.ops), _coverage(c)] for c in result.covered]
    table("recipes it prices", ("recipe", "ops", "all of them"), rows)
    doubtful = [r.key for r in measured.rows.values() if r.status == "doubtful"]
    facts: dict[str, object] = {
        "table": measured.path,
        "device": measured.name,
        "state": result.state + result.why,
        "whole": f"yes, for {', '.join(result.whole)}"
        if result.whole
        else f"no, not for {result.recipe or 'any recipe'}",
        "doubtful rows": f"{len(doubtful)}{_list(doubtful, every=False)}",
    }
    if again is not None:
        _show_rows("measured again: A is the table, B is now", again.rows)
        than = "more" if again.moved else "no more"
        facts["measured again"] = (
            f"{len(again.rows)} ops take {again.ratio:.3f} of what they did, {than} than {MOVED:.0%} apart"
        )
    anew = f"hwnas profile {result.recipe or 'RECIPE'} --run NAME  (a new name: it is measured anew)"
    summary(facts, None if result.good else anew)


def _coverage(c: Coverage) -> str:
    return f"no: {len(c.missing)} missing, the first is {c.missing[0]}" if c.missing else "yes"


def _text(value: Any) -> str:
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
