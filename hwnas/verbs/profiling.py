"""`hwnas profile`: from a recipe to a latency table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hwnas.errors import HwnasError
from hwnas.latency.table import UNMEASURED, LatencyTable
from hwnas.profile import add_derived, build_table, make_plan
from hwnas.profile.derived import ANCHORS
from hwnas.profile.networks import estimate_ms
from hwnas.recipes import Recipe
from hwnas.run import Run
from hwnas.runtime.engines import using_engine
from hwnas.runtime.engines.base import Capabilities
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.measure import StopRule, visit_s
from hwnas.runtime.measuring.plan import Entry, Plan, load_plan
from hwnas.runtime.measuring.supervise import supervise
from hwnas.ui import bar, console, summary, table

SETTINGS = {"engine": "name", "threads": "threads", "precision": "precision"}  # of a run, as an engine calls them
DERIVED_SHARE = 0.15  # of a bound on minutes, for the networks that are derived with the finished table


def plan_only(recipe: Recipe, folder: Path, engine: str | None, precision: str | None = None) -> None:
    """Write what a recipe needs measured into a folder to carry to another box.

    Without `engine` the plan is for engines that merge identical ops, as all do that optimise graphs.

    Raises:
        HwnasError: If the folder has something in it already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise HwnasError(f"{folder} is not empty; name a new folder")
    precision = precision or "fp32"
    merges = True
    if engine is not None:
        with using_engine(engine, precision=precision) as opened:
            merges = opened.capabilities.merges
    entries = len(_plan(recipe, folder, merges, precision).entries)
    facts: dict[str, object] = {"plan": folder, "entries": entries}
    summary(facts, f"on the device: python -m hwnas.runtime measure {folder.name}  (numpy and the engine suffice)")


def _plan(recipe: Recipe, folder: Path, merges: bool, precision: str) -> Plan:
    """Write a plan unless a whole one is there already; return it."""
    if not (folder / "plan.json").exists():
        torch.set_num_threads(1)  # many small tensors: threads would only wait for each other
        with bar("plan: export ops and networks", None) as update:
            make_plan(recipe.space, recipe.scales(), folder, recipe.calibration, merges, update, precision)
    return load_plan(folder)


def profile(
    run: Run,
    engine: str | None,
    threads: int | None,
    results: Path | None,
    minutes: float | None = None,
    precision: str | None = None,
) -> LatencyTable:
    """Measure the latency table of a run's recipe on this machine, or build it from results measured elsewhere.

    A table that is there is complete, unless some of it is doubtful or was left out: that is measured again, until the
    run has been searched with it.

    Args:
        run: The run.
        engine: None for the one the run was made with, else ONNX Runtime.
        threads: None for those the run was made with, else one.
        results: Measured elsewhere; None to measure here.
        minutes: Bound on the time to measure.
        precision: None for that the run was made with, else float32.
    """
    path, recipe, following = run.folder / "table.json", run.recipe, run.command("search")
    run.ask(engine=engine, threads=threads, precision=precision)
    stop = recipe.stop
    if path.exists():
        there = LatencyTable.load(path)
        used = (run.folder / "search.pt").exists() or (run.folder / "arch.json").exists()
        if used or results is not None or not there.unsettled or not (run.folder / "results.jsonl").exists():
            _show_table(there, following, "complete, nothing to do")
            return there
        console.print(f"{len(there.unsettled)} rows are doubtful or were left out; measuring these again")
        stop = _longer(run.folder / "results.jsonl", stop)
    if results is None:
        made = _measure(run, recipe, stop, minutes)
    else:
        where = read_journal(results)[0]["where"]  # a file that cannot be read is refused before anything is written
        run.ask(**{name: where["engine"][key] for name, key in SETTINGS.items()})
        _plan(recipe, run.folder / "plan", bool(where["merges"]), str(where["engine"]["precision"]))
        made = build_table(run.folder / "plan", results)
    run.commit()
    made.save(path)
    _show_table(made, following)
    return made


def _measure(run: Run, recipe: Recipe, stop: StopRule, minutes: float | None) -> LatencyTable:
    """Measure a recipe's plan, then networks that are derived with the table of it."""
    start_s = time.monotonic()
    engine, threads = str(run.settings.get("engine", "onnxruntime")), int(run.settings.get("threads", 1))
    precision = str(run.settings.get("precision", "fp32"))
    with using_engine(engine, threads, precision) as opened:
        can, clock = opened.capabilities, opened.clock
    run.ask(engine=engine, threads=threads, precision=precision)
    run.commit()
    folder, results = run.folder / "plan", run.folder / "results.jsonl"
    plan = _plan(recipe, folder, can.merges, precision)
    derived = [n for n in (recipe.calibration.refit, recipe.calibration.derived) if n]
    forecast = forecast_minutes(plan, stop, derived, can.load_s) if clock != "model" else 0.0
    bound = "" if minutes is None else f", at most {minutes:g}: what matters most comes first"
    console.print(f"{len(plan.entries)} entries on {engine} in {precision}, some {forecast:.1f} minutes{bound}")

    def left(share: float) -> float | None:
        return None if minutes is None else max(0.0, share * minutes - (time.monotonic() - start_s) / 60)

    def measure(where: Path, into: Path, title: str, rule: StopRule, share: float) -> None:
        with bar(title, None) as update:
            supervise(
                where,
                engine,
                threads,
                rule,
                into,
                lambda p: update(p.done, str(p.record["key"])[:60], p.total),
                minutes=left(share),
            )

    measure(folder, results, "measure", stop, 1 - DERIVED_SHARE)
    made = build_table(folder, results)
    whole = all(r.status not in UNMEASURED for r in made.rows.values())  # else no network can be derived with it
    if made.correction.networks and whole:
        brief = replace(stop, min_s=stop.min_s / 2)
        with bar("derive networks to fit and check the table on", None) as update:
            add_derived(
                made,
                recipe.space,
                recipe.scales(),
                folder,
                run.folder / "derived",
                recipe.calibration,
                lambda where, into: measure(where, into, "measure derived networks", brief, 1.0),
                update,
            )
    return made


def forecast_minutes(
    plan: Plan, stop: StopRule, derived: Sequence[int] = (), load_s: float = Capabilities.load_s
) -> float:
    """Return roughly how long a plan takes to measure on one CPU core where the machine is quiet.

    Args:
        plan: What to measure.
        stop: When an entry has been visited often enough.
        derived: Networks that are derived and measured afterwards, each time for half the time at least.
        load_s: Time to load an entry, and to build it where that has to be done.
    """
    visits_s = [visit_s(_run_s(e)) for e in plan.entries]
    nets_s = [s for e, s in zip(plan.entries, visits_s, strict=True) if e.role == "net"]
    total_s = load_s * len(plan.entries) + max(stop.min_s, 1.5 * stop.min_visits * sum(visits_s))
    for n in derived if nets_s else ():
        round_s = (n + ANCHORS) * sum(nets_s) / len(nets_s)
        total_s += load_s * (n + ANCHORS) + max(stop.min_s / 2, 1.5 * stop.min_visits * round_s)
    return total_s / 60


def _run_s(entry: Entry) -> float:
    return sum(estimate_ms(c.macs, c.bytes) for c in entry.calls) / 1e3


def _longer(results: Path, stop: StopRule) -> StopRule:
    """Return a rule that gives entries whose time was up as many visits again."""
    rules = [r for r in read_journal(results)[1] if r.get("type") == "rule"]
    last = int(rules[-1]["max_visits"]) if rules else stop.max_visits
    return replace(stop, max_visits=last + stop.max_visits)


def require_mape(made: LatencyTable, percent: float) -> bool:
    """Tell whether a table's error on held-out networks is at most `percent`; say so if not.

    Raises:
        HwnasError: If its error was never measured.
    """
    found = made.report.get("predictors", {}).get("ours")
    if found is None:
        raise HwnasError(f"{made.path} has no held-out networks, so --require-mape cannot be answered; profile again")
    if not 100 * found["mape"] <= percent:  # nor by a percentage that is no number
        console.print(f"the table's error is {100 * found['mape']:.2f} %, more than the {percent:g} % asked for")
        return False
    return True


def _show_table(made: LatencyTable, following: str, state: str | None = None) -> None:
    bad = [r for r in made.rows.values() if r.status != "ok"]
    facts: dict[str, object] = {"table": made.path, "device": made.name, "ops": len(made.rows)}
    if state is not None:
        facts["state"] = state
    facts["not ok"] = f"{len(bad)} ({', '.join(sorted({r.status for r in bad})) or 'none'})"
    if "held_out" in made.report:
        show_errors(made)
        ours = made.report["predictors"]["ours"]
        facts["error"] = f"{ours['mape']:.1%} on {ours['n']} networks it was not fitted on"
        facts["noise floor"] = f"{made.report['noise_floor']:.1%}"
        interval = made.correction.interval
        facts["a prediction holds"] = "" if interval is None else f"within {interval:.1%}, with 95 % confidence"
    derived = made.report.get("derived", {})
    if derived.get("again"):
        times = f"{derived['level']:.3f} of what they had taken"
        facts["derived networks"] = f"measured beside {len(derived['again'])} of the others, which took {times}"
    machine = made.report.get("conditions")
    if machine and machine["visits"]:
        facts["machine"] = f"slow {machine['slow_share']:.0%} of the time, drift {machine['drift']:+.1%}"
    summary(facts, following)


NAMES = {
    "flops": "FLOPs, affine",
    "sum": "plain sum of ops alone",
    "sum_affine": "plain sum, affine",
    "uncorrected": "sum of ops in context",
    "ours": "ops in context, corrected",
    "derived": "the same on derived networks",
}


def show_errors(made: LatencyTable) -> None:
    """Print how well a table predicts networks, beside simpler predictors."""
    found: dict[str, Any] = dict(made.report.get("predictors", {}))
    if "derived" in made.report:
        found["derived"] = made.report["derived"]
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
        for name, e in found.items()
    ]
    header = ("predictor", "error (MAPE)", "bias", "within 5 %", "within 10 %", "Kendall tau", "networks")
    table("networks the table was not fitted on", header, rows, numbers=True)
