"""From a recipe to a latency table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from hwnas.errors import DataError, HwnasError
from hwnas.files import is_there
from hwnas.jobs.inputs import settle_data
from hwnas.latency.table import UNMEASURED, LatencyTable
from hwnas.profile import add_derived, build_table, make_plan
from hwnas.profile.derived import ANCHORS
from hwnas.progress import SILENT, Reporter, span
from hwnas.recipes import Recipe
from hwnas.run import Run
from hwnas.runtime.engines import using_engine
from hwnas.runtime.engines.base import Capabilities
from hwnas.runtime.measuring import limits
from hwnas.runtime.measuring.forecast import run_s
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.measure import WARMUP_S, StopRule, visit_s
from hwnas.runtime.measuring.plan import Plan, load_plan
from hwnas.runtime.measuring.supervise import supervise

SETTINGS = {"engine": "name", "threads": "threads", "precision": "precision"}  # of a run, as an engine calls them
SLOW = 1.3  # what other load makes of a time on average, on a machine that is slow most of the time
DERIVED_SHARE = 0.15  # of a bound on minutes, for the networks that are derived with the finished table


@dataclass(frozen=True)
class PlanSettings:
    """What a plan for another box is for.

    Attributes:
        engine: Without one the plan is for engines that merge identical ops, as all do that optimise graphs.
        precision: Of the files.
    """

    engine: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class ProfileSettings:
    """How a table is measured.

    Attributes:
        engine: None for the one the run was made with, else ONNX Runtime.
        threads: None for those the run was made with, else one.
        precision: None for that the run was made with, else float32.
        results: Measured elsewhere; None to measure here.
        minutes: Bound on all of it: planning, measuring, and networks that are derived. What was begun is ended.
    """

    engine: str | None = None
    threads: int | None = None
    precision: str | None = None
    results: Path | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class ProfileResult:
    """The table of a run.

    Attributes:
        table: It.
        complete: Whether it was there already, and nothing of it was to be measured again.
    """

    table: LatencyTable
    complete: bool = False


def plan(recipe: Recipe, folder: Path, settings: PlanSettings = PlanSettings(), report: Reporter = SILENT) -> Plan:
    """Write what a recipe needs measured into a folder to carry to another box.

    Raises:
        HwnasError: If the folder has something in it already.
    """
    if is_there(folder) and not _is_begun(folder):
        raise HwnasError(f"{folder} is not empty; name a new folder")
    precision = settings.precision or "fp32"
    merges = True
    if settings.engine is not None:
        with using_engine(settings.engine, precision=precision) as opened:
            merges = opened.capabilities.merges
    return _write_plan(recipe, folder, merges, precision, report)


def _is_begun(folder: Path) -> bool:
    """Return whether a folder has nothing but what an interrupted plan leaves, whose files are named by what they hold.

    The plan itself comes last: a folder that has one is somebody's.
    """
    made = {"assembly.json", "ops", "nets"}
    files = [p for p in folder.rglob("*") if not p.is_dir()]
    return all(p.name in made or p.suffix in (".onnx", ".tmp") for p in files) and all(
        p.name in made or p.suffix == ".tmp" for p in folder.iterdir()
    )


def _write_plan(recipe: Recipe, folder: Path, merges: bool, precision: str, report: Reporter) -> Plan:
    """Write a plan unless a whole one is there already; return it."""
    if not is_there(folder / "plan.json"):
        torch.set_num_threads(1)  # many small tensors: threads would only wait for each other
        make_plan(recipe.space, recipe.scales(), folder, recipe.calibration, merges, report, precision)
    return load_plan(folder)


def profile(run: Run, settings: ProfileSettings = ProfileSettings(), report: Reporter = SILENT) -> ProfileResult:
    """Measure the latency table of a run's recipe on this machine, or build it from results measured elsewhere.

    A table that is there is complete, unless some of it is doubtful or was left out: that is measured again, until the
    run has been searched with it.
    """
    if not _has_measured(run):
        run.release(*SETTINGS)
    run.ask(engine=settings.engine, threads=settings.threads, precision=settings.precision)
    with run.locked():
        settle_data(run, report, read=False)
        path, recipe, results = run.folder / "table.json", run.recipe, settings.results
        stop = recipe.stop
        if path.exists():
            there = LatencyTable.load(path)
            used = (run.folder / "search.pt").exists() or (run.folder / "arch.json").exists()
            if used or results is not None or not there.unsettled or not (run.folder / "results.jsonl").exists():
                return ProfileResult(there, complete=True)
            report.note(f"{len(there.unsettled)} rows are doubtful or were left out; measuring these again")
            stop = _longer(run.folder / "results.jsonl", stop)
        with suppress(DataError):  # measuring needs no data
            run.identify()
        if results is None:
            table = _measure(run, recipe, stop, settings.minutes, report)
        else:
            where = read_journal(results)[0]["where"]  # what cannot be read is refused before anything is written
            run.ask(**{name: where["engine"][key] for name, key in SETTINGS.items()})
            _write_plan(recipe, run.folder / "plan", bool(where["merges"]), str(where["engine"]["precision"]), report)
            table = _make_table(run.folder / "plan", results, report)
        run.commit()
        table.save(path)
    return ProfileResult(table)


def _measure(run: Run, recipe: Recipe, stop: StopRule, minutes: float | None, report: Reporter) -> LatencyTable:
    """Measure a recipe's plan, then networks that are derived with the table of it."""
    start_s = time.monotonic()
    settings = run.settings
    engine, threads = settings.engine or "onnxruntime", 1 if settings.threads is None else settings.threads
    precision = settings.precision or "fp32"
    with using_engine(engine, threads, precision) as opened:
        can, clock = opened.capabilities, opened.clock
    if can.on_host and clock != "model":
        limits.check_threads(threads)
    folder, results, was = run.folder / "plan", run.folder / "results.jsonl", run.stored
    run.ask(engine=engine, threads=threads, precision=precision)
    run.commit()
    if not _has_measured(run):  # what was begun with other settings is begun anew
        results.unlink(missing_ok=True)
        if was is not None and (was.engine, was.precision) not in ((None, None), (engine, precision)):
            (folder / "plan.json").unlink(missing_ok=True)
    plan = _write_plan(recipe, folder, can.merges, precision, report)
    derived = [n for n in (recipe.calibration.refit, recipe.calibration.derived) if n]
    takes = span(*forecast_s(plan, stop, derived, can.load_s)) if clock != "model" else "a moment"
    bound = "" if minutes is None else f", at most {minutes:g} min in all: what matters most comes first"
    report.note(f"{len(plan.entries)} entries on {engine} in {precision}; takes {takes}{bound}")

    def left(share: float) -> float | None:
        return None if minutes is None else max(0.0, share * minutes - (time.monotonic() - start_s) / 60)

    def measure(where: Path, into: Path, title: str, rule: StopRule, share: float) -> None:
        with report.bar(title, None) as update:
            supervise(
                where,
                engine,
                threads,
                rule,
                into,
                lambda p: update(p.done, p.note, p.total, p.left_s),
                minutes=left(share),
                on_restart=lambda reason: report.note(f"the measuring process is started again: {reason}"),
            )

    measure(folder, results, "measure", stop, 1 - DERIVED_SHARE * bool(derived))
    table = _make_table(folder, results, report)
    whole = all(r.status not in UNMEASURED for r in table.rows.values())  # else no network can be derived with it
    if table.correction.networks and whole:
        brief = replace(stop, min_s=stop.min_s / 2)
        shares = [1 - DERIVED_SHARE * (len(derived) - 1 - i) / len(derived) for i in range(len(derived))]
        add_derived(
            table,
            recipe.space,
            recipe.scales(),
            folder,
            run.folder / "derived",
            recipe.calibration,
            lambda where, into: measure(where, into, "measure derived networks", brief, shares.pop(0)),
            report,
            lambda: left(shares[0]) != 0,
        )
    return table


def _has_measured(run: Run) -> bool:
    """Return whether anything has come of a run's settings of an engine: a table, or a first measurement."""
    table, results = run.folder / "table.json", run.folder / "results.jsonl"
    if is_there(table) or not is_there(results):
        return is_there(table)
    try:
        return any(r.get("type") == "sample" for r in read_journal(results)[1])
    except HwnasError:  # damaged, which measuring says, or without a line
        return results.stat().st_size > 0


def _make_table(folder: Path, results: Path, report: Reporter) -> LatencyTable:
    with report.bar("make the table", None) as update:
        return build_table(folder, results, update)


def forecast_s(
    plan: Plan, stop: StopRule, derived: Sequence[int] = (), load_s: float = Capabilities.load_s
) -> tuple[float, float]:
    """Return roughly how long a plan takes to measure on one CPU core: on a quiet machine, and on one that is slow.

    Nothing has been measured yet, so that arithmetic has to tell how long a run takes.

    Args:
        plan: What to measure.
        stop: When an entry has been visited often enough.
        derived: Networks that are derived and measured afterwards, each time for half the time at least.
        load_s: Time to load an entry, and to build it where that has to be done.
    """
    ops_s = [visit_s(run_s(e)) for e in plan.entries if e.role != "net"]
    nets_s = [visit_s(run_s(e)) for e in plan.entries if e.role == "net"]
    batches = [(len(ops_s), sum(ops_s), len(nets_s), sum(nets_s), stop.min_s)]
    batches += [(0, 0.0, n + ANCHORS, (n + ANCHORS) * fmean(nets_s), stop.min_s / 2) for n in derived if nets_s]
    low_s = high_s = 0.0
    for ops, op_round_s, nets, net_round_s, min_s in batches:
        loading_s, least = (load_s + WARMUP_S) * (ops + nets), stop.min_visits
        low_s += loading_s + max(min_s, least * (op_round_s + net_round_s))
        # On a slow machine most ops settle when noise that has stabilised is enough, and networks long after.
        most = min(stop.max_visits, 2 * least) * op_round_s + stop.max_visits * net_round_s
        high_s += SLOW * (loading_s + max(min_s, most))
    return low_s, high_s


def _longer(results: Path, stop: StopRule) -> StopRule:
    """Return a rule that gives entries whose time was up as many visits again."""
    rules = [r for r in read_journal(results)[1] if r.get("type") == "rule"]
    last = int(rules[-1]["max_visits"]) if rules else stop.max_visits
    return replace(stop, max_visits=last + stop.max_visits)


def error_percent(table: LatencyTable) -> float:
    """Return a table's error (MAPE) on held-out networks, in percent.

    Raises:
        HwnasError: If it was never measured.
    """
    ours = table.report.get("predictors", {}).get("ours")
    if ours is None:
        raise HwnasError(f"{table.path} has no held-out networks, so --require-mape cannot be answered; profile again")
    return 100 * float(ours["mape"])
