"""How a latency table was measured, and how well it predicts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hwnas.jobs.profiling import ProfileResult, error_percent
from hwnas.latency.table import LatencyTable
from hwnas.runtime.measuring import limits
from hwnas.runtime.measuring.device import UNPINNED
from hwnas.runtime.measuring.plan import Plan
from hwnas.show.console import console, summary, table

NAMES = {
    "flops": "FLOPs, affine",
    "sum": "plain sum of ops alone",
    "sum_affine": "plain sum, affine",
    "uncorrected": "sum of ops in context",
    "ours": "ops in context, corrected",
    "derived": "the same on derived networks",
}


def planned(plan: Plan, folder: Path) -> None:
    """Show what was written for another box."""
    facts: dict[str, object] = {"plan": folder, "entries": len(plan.entries), "needs": "numpy and the engine, no torch"}
    summary(facts, f"on the device: python -m hwnas.runtime measure {shlex.quote(folder.resolve().name)}")


def profiled(result: ProfileResult, following: str) -> None:
    """Show a table that was measured; `following` is the next command."""
    measured = result.table
    bad = [r for r in measured.rows.values() if r.status != "ok"]
    facts: dict[str, object] = {"table": measured.path, "device": measured.name, "ops": len(measured.rows)}
    if result.complete:
        facts["state"] = "complete, nothing to do"
    facts["not ok"] = f"{len(bad)} ({', '.join(sorted({r.status for r in bad})) or 'none'})"
    if "held_out" in measured.report:
        errors(measured)
        ours = measured.report["predictors"]["ours"]
        facts["error"] = f"{ours['mape']:.1%} on {ours['n']} networks it was not fitted on"
        facts["noise floor"] = f"{measured.report['noise_floor']:.1%}"
        interval = measured.correction.interval
        facts["a prediction holds"] = "" if interval is None else f"within {interval:.1%}, with 95 % confidence"
    derived = measured.report.get("derived", {})
    if derived.get("again"):
        times = f"{derived['level']:.3f} of what they had taken"
        facts["derived networks"] = f"measured beside {len(derived['again'])} of the others, which took {times}"
    facts |= machine(measured)
    summary(facts, following)


def machine(measured: LatencyTable) -> dict[str, object]:
    """Return what a summary says of the machine while it measured."""
    seen, refused = measured.report.get("conditions"), measured.where.get(UNPINNED)
    facts: dict[str, object] = {} if refused is None else {"not pinned to CPUs": refused}
    if (quota := limits.quota_of(measured.where)) is not None:
        facts["CPU quota"] = f"{quota:g} CPUs: what is measured in moments does not last"
    if seen and seen["visits"]:
        facts["machine"] = f"slow {seen['slow_share']:.0%} of the time, drift {seen['drift']:+.1%}"
    return facts


def within(measured: LatencyTable, percent: float) -> bool:
    """Return whether a table's error on held-out networks is at most `percent`; print it if not."""
    error = error_percent(measured)
    if not error <= percent:  # nor by a percentage that is no number
        console.print(f"the table's error is {error:.2f} %, more than the {percent:g} % asked for")
        return False
    return True


def errors(measured: LatencyTable) -> None:
    """Print how well a table predicts networks, beside simpler predictors."""
    predictors: dict[str, Any] = dict(measured.report.get("predictors", {}))
    if "derived" in measured.report:
        predictors["derived"] = measured.report["derived"]
    rows = [
        [
            NAMES.get(name, name),
            f"{e['mape']:.1%}",
            f"{e['bias']:+.1%}",
            f"{e['within_5']:.0%}",
            f"{e['within_10']:.0%}",
            f"{e['tau']:.3f}",
            str(e["n"]),
        ]
        for name, e in predictors.items()
    ]
    header = ("predictor", "error (MAPE)", "bias", "within 5 %", "within 10 %", "Kendall tau", "networks")
    table("networks the table was not fitted on", header, rows, numbers=True)
