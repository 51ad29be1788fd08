"""From results to a table: prices of ops, the correction, and the error on networks it was not fitted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.latency.table import UNMEASURED, LatencyTable, NetRow, OpRow
from hwnas.latency.validation import calibrate
from hwnas.ops.registry import OpSpec
from hwnas.profile.assembly import Assembly, Price
from hwnas.profile.context import price
from hwnas.progress import Update, ignore
from hwnas.runtime.measuring.measure import Measurement
from hwnas.runtime.measuring.plan import Entry, Plan, load_plan
from hwnas.runtime.measuring.results import Row, collect, conditions

SKIPPED = "time was up"
DRIFT = 0.05  # between the halves of a measurement; more than a machine's slow spells leave of its quiet level
DRIFT_VISITS = 8  # of the op that tells it, at least
STEPS = 4  # of making a table


def build_table(folder: Path, results: Path, update: Update = ignore) -> LatencyTable:
    """Make the table of a plan from its results.

    Args:
        folder: The plan, with its list of networks.
        results: What the runtime wrote while measuring it. Entries it has not reached become rows that say so.
        update: Told after each of its steps, which take about as long.

    Raises:
        HwnasError: If the results are of another plan, or nothing in them could be measured.
    """
    update(0, total=STEPS)
    plan = load_plan(folder)
    update(1, "read what was measured")
    where, measured = collect(results, plan)
    update(2, "prices of ops in context")
    rows = {r.key: r for r in measured}
    assembly = Assembly.load(folder, plan.id)
    op_of = {op.entry: key for key, op in assembly.ops.items()}
    keys = [op_of[e.key] for e in plan.entries if e.role == "context"]
    ops = {key: _op_row(key, assembly.ops[key], rows) for key in keys}
    nets = [net_row(e, rows.get(e.key), ops, assembly.networks[e.key].use) for e in plan.entries if e.role == "net"]
    if all(row.status in UNMEASURED for row in ops.values()):
        first = next((row for row in ops.values() if row.status != "skipped"), None)
        if first is None:
            raise HwnasError(f"time was up before any op of {results} was measured; go on with the same command")
        raise HwnasError(f"{results} has no op that could be measured; of {first.key} it says: {first.reason}")
    table = LatencyTable(where, ops, [n for n in nets if n is not None])
    update(3, "fit")
    seen = conditions(results)
    table.report = {"conditions": asdict(seen)}
    note_left_out(table, plan, rows)
    calibrate(table)
    if seen.visits >= DRIFT_VISITS and abs(seen.drift) > DRIFT:
        _doubt(table, f"the machine's quiet level drifted by {seen.drift:+.1%} while it measured: heat, or other load")
    update(STEPS)
    return table


def _doubt(table: LatencyTable, reason: str) -> None:
    """Let no row count as precise: visits of the first half and of the second are of two machines."""
    table.rows = {
        key: replace(row, status="doubtful", reason=reason) if row.status == "ok" else row
        for key, row in table.rows.items()
    }
    table.nets = [replace(net, status="doubtful") if net.status == "ok" else net for net in table.nets]


def note_left_out(table: LatencyTable, plan: Plan, rows: Mapping[str, Row]) -> None:
    """Add to the report which networks and ops alone were not reached when time was up; ops in context are rows."""
    reached = {*rows, *(net.key for net in table.nets)}
    keys = [e.key for e in plan.entries if e.role in ("net", "op") and e.key not in reached]
    if keys:
        table.report = {**table.report, "left_out": [*table.report.get("left_out", ()), *keys]}


def _op_row(key: str, op: Price, rows: Mapping[str, Row]) -> OpRow:
    """Return the row of an op: its price in context, and what it takes alone if that was measured."""
    measured: dict[str, Measurement] = {}
    for name in sorted(op.weights, key=lambda name: name != op.entry):  # a reason of its own comes first
        row = rows.get(name)
        if row is None:
            return OpRow(key, 0.0, macs=op.macs, bytes=op.bytes, status="skipped", reason=SKIPPED)
        if row.measurement is None:
            reason = row.reason if name == op.entry else f"{name}: {row.reason}"
            return OpRow(key, 0.0, macs=op.macs, bytes=op.bytes, status=row.status, reason=reason)
        measured[name] = row.measurement
    latencies = {name: (m.latency_ms, (m.ci_ms[1] - m.ci_ms[0]) / 2) for name, m in measured.items()}
    latency_ms, half_ms = price(op.weights, latencies)
    own = measured[op.entry]
    doubtful = [name for name, m in measured.items() if m.doubtful]
    alone = rows.get(key)
    return OpRow(
        key=key,
        latency_ms=latency_ms,
        ci_ms=(max(0.0, latency_ms - half_ms), latency_ms + half_ms),
        isolated_ms=alone.measurement.latency_ms if alone is not None and alone.measurement else None,
        macs=op.macs,
        bytes=op.bytes,
        spread=own.spread,
        n=own.n,
        visits=own.visits,
        stop=own.stop,
        status="doubtful" if doubtful else "ok",
        reason=f"{doubtful[0]} did not become precise enough" if doubtful else "",
        about=_about(op, measured),
    )


def _about(op: Price, measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """Return `OpRow.about`: other latencies, assembled as the price is, and facts of the entry of the op itself."""
    out = dict(measured[op.entry].about)
    for name in ("enqueue_ms", "cold_ms"):
        if all(name in m.about for m in measured.values()):
            out[name], _ = price(op.weights, {key: (float(m.about[name]), 0.0) for key, m in measured.items()})
    return out


def ops_of(entry: Entry) -> dict[str, int]:
    """Return how often an entry calls each op, by `OpSpec.key`."""
    return dict(Counter(OpSpec(c.op, tuple(sorted(c.attrs.items())), c.in_shapes).key for c in entry.calls))


def net_row(entry: Entry, row: Row | None, ops: Mapping[str, OpRow], use: str) -> NetRow | None:
    """Return the row of a network; None if it was not or could not be measured, or an op in it could not."""
    if row is None or row.measurement is None:
        return None
    counts = ops_of(entry)
    if any(key not in ops or ops[key].status in UNMEASURED for key in counts):  # the sum would count that op as 0
        return None
    m = row.measurement
    return NetRow(
        key=entry.key,
        ops=counts,
        latency_ms=m.latency_ms,
        use=use,
        ci_ms=m.ci_ms,
        repeatability=m.repeatability,
        spread=m.spread,
        n=m.n,
        visits=m.visits,
        stop=m.stop,
        status="doubtful" if m.doubtful else "ok",
        about=m.about,
    )
