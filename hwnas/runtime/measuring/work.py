"""Measuring a whole plan: in rounds of short visits to warm runners, resumable after a kill at any moment."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from hwnas.errors import DeviceLost, HwnasError, SystemRefusal
from hwnas.runtime.engines import using_engine
from hwnas.runtime.engines.base import Engine, OnDevice, Runner
from hwnas.runtime.measuring import limits
from hwnas.runtime.measuring.device import provenance, with_cpus
from hwnas.runtime.measuring.forecast import Forecast, Left, Moment, at_most
from hwnas.runtime.measuring.journal import Journal
from hwnas.runtime.measuring.measure import DEFAULT_STOP, TIMES, Samples, StopRule, visit
from hwnas.runtime.measuring.plan import Entry, Plan, load_plan
from hwnas.runtime.measuring.results import History

RESULTS_FILE = "results.jsonl"
FIRST_ROUND = 0.4  # share of the time there is that loading may take; what is not reached then is left out
FORECAST_S = 0.5  # between two forecasts: one takes a millisecond, and the caches of what is visited next
MEMORY_SHARE = 0.5  # of what is free, for runners that stay loaded


@dataclass(frozen=True)
class Progress:
    """What is told after each visit.

    Attributes:
        done: Visits in the results file.
        total: Visits when finished, as far as can be told by now.
        record: The sample just written: key, visit, status, and the samples or a reason.
        left_s: About how many seconds it takes from now on, waiting included.
        note: Why it is not finished and how long it takes at most, for people.
    """

    done: int
    total: int
    record: Mapping[str, Any]
    left_s: float | None = None
    note: str = ""


def pin_to_cpus(threads: int, root: Path = Path("/")) -> str:
    """Keep this process on as many CPUs as it has threads, of different cores while there are such.

    For a process that does nothing but measure.

    Returns:
        Why the system does not let it; empty if it does, or cannot do that at all.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ""
    try:
        _pin(threads, root)
    except OSError as e:  # some containers forbid it
        return e.strerror or str(e)
    return ""


def _pin(threads: int, root: Path) -> None:
    # The first ones serve most interrupts; those of a hybrid that are for little work come last.
    allowed = limits.fastest(sorted(os.sched_getaffinity(0), reverse=True), root)
    cores: dict[str, int] = {}
    for cpu in allowed:
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.setdefault(siblings.read_text(encoding="utf-8"), cpu)
        except OSError:
            cores.setdefault(str(cpu), cpu)
    first = list(cores.values())
    os.sched_setaffinity(0, [*first, *(cpu for cpu in allowed if cpu not in first)][:threads])


def measure_plan(
    folder: Path,
    engine_name: str = "onnxruntime",
    threads: int = 1,
    stop: StopRule = DEFAULT_STOP,
    seed: int = 0,
    results: Path | None = None,
    on_record: Callable[[Progress], None] | None = None,
    minutes: float | None = None,
    about: Mapping[str, Any] | None = None,
    cpus: Mapping[str, Any] | None = None,
) -> Path:
    """Measure what the results file lacks, in this process. A crash of the engine ends it: see `supervise`.

    All entries are visited in rounds, each round in another order, until each has been visited often enough.

    Args:
        folder: A plan.
        engine_name: Name of the engine.
        threads: Threads of the engine.
        stop: When an entry needs no more visits.
        seed: Of the orders.
        results: The results file; ``results.jsonl`` in the plan folder if None.
        on_record: Called after each visit.
        minutes: Start no visit after this time. Entries come in the order of the plan then, and what is not reached
            in the first part of the time is left out.
        about: Conditions of this process that are recorded beside those of machine and engine.
        cpus: What limits its CPUs; None to look now.

    Returns:
        The results file.

    Raises:
        HwnasError: If the plan or the results file is damaged, or another process measures into it.
        ProvenanceError: If the results file was made from another plan, or under other conditions.
    """
    plan = load_plan(folder)
    path = folder / RESULTS_FILE if results is None else results
    path.parent.mkdir(parents=True, exist_ok=True)

    def where(engine: Engine) -> dict[str, Any]:
        return {**with_cpus(provenance(engine), cpus), **(about or {})}

    with (
        using_engine(engine_name, threads, plan.precision) as engine,
        Journal(path, {"plan": plan.id, "where": where(engine)}) as journal,
        ExitStack() as stack,
    ):
        _Work(plan, folder, engine, journal, stack, stop, on_record, minutes).run(seed)
    return path


class _Work:
    """One process measuring one plan."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        engine: Engine,
        journal: Journal,
        stack: ExitStack,
        stop: StopRule,
        on_record: Callable[[Progress], None] | None,
        minutes: float | None,
    ) -> None:
        self._entries, self._engine, self._journal, self._on_record = plan.entries, engine, journal, on_record
        rules = [r for r in journal.records if r.get("type") == "rule"]
        if not rules or rules[-1] != {"type": "rule", **asdict(stop)}:
            journal.append({"type": "rule", **asdict(stop)})
        self._history = History(journal.records, plan)
        self._runners = _Runners(engine, folder, stack)
        self._start_s = time.monotonic()
        self._waits = engine.clock != "model"  # a formula is the same at any time
        self._min_s = stop.min_s if self._waits else 0.0
        self._limit_s = math.inf if minutes is None else 60 * minutes
        self._forecast = Forecast(plan.entries, self._history, self._min_s, engine.capabilities.load_s)
        self._left: Left | None = None  # as last forecast, when `_left_done` visits were done after `_left_at_s`
        self._left_done, self._left_at_s = 0, 0.0
        ops = sorted(
            (e for e in plan.entries if e.role in ("op", "context", "boundary")),
            key=lambda e: (sum(c.macs for c in e.calls), e.key),
        )
        self._reference = ops[len(ops) // 2] if ops else None

    def run(self, seed: int) -> None:
        """Visit until nothing is due or time is up."""
        if self._limit_s > 0:
            self._time_reference()  # a kill may have come just before it
        first: int | None = None
        for round_ in range(self._history.stop.max_visits):
            due = self._due(round_, seed)
            if not due:
                continue
            first = round_ if first is None else first
            self._pace(round_, first)
            limit_s = self._limit_s * (FIRST_ROUND if round_ == 0 else 1.0)
            for n, entry in enumerate(due, start=1):
                if self._elapsed_s() >= limit_s:
                    break
                record = self._visit(entry, round_)
                self._tell(record, round_, first, last=n == len(due))
                self._time_reference()

    def _due(self, round_: int, seed: int) -> list[Entry]:
        """Return whom to visit in a round: who has had all rounds before it, and needs more."""
        # Each round has its own order, so that drift does not fall on the same entries.
        order = np.random.default_rng([seed, round_]).permutation(len(self._entries)).tolist()
        if round_ == 0 and self._limit_s < math.inf:
            order = list(range(len(self._entries)))  # what matters most first
        return [e for e in (self._entries[i] for i in order) if self._needs(e.key, round_)]

    def _needs(self, key: str, round_: int) -> bool:
        if self._history.visits(key) != round_ or self._history.bad(key):  # fewer: it was left out in the first round
            return False
        return self._history.reached(key) is None or self._now_s() - self._history.first_s(key) < self._min_s

    def _pace(self, round_: int, first: int) -> None:
        """Wait where the rounds of a small plan would all be over within one slow spell of the machine."""
        until_s = self._min_s * (round_ - first) / max(1, self._history.stop.max_visits - 1 - first)
        time.sleep(max(0.0, min(until_s, self._limit_s) - self._elapsed_s()))

    def _visit(self, entry: Entry, number: int) -> dict[str, Any]:
        start_s = self._elapsed_s()
        which = {"key": entry.key, "visit": number}
        reason = self._history.crash(entry.key, number)
        outcome = self._attempt(which, entry) if reason is None else _bad("crashed", reason)
        if self._waits:
            outcome["at_s"] = round(self._now_s(), 3)
        record = {"type": "sample", **which, **outcome}
        self._journal.append(record)
        self._history.add(record)
        self._forecast.visited(entry.key, self._elapsed_s() - start_s)
        return record

    def _tell(self, record: Mapping[str, Any], round_: int, first: int, last: bool) -> None:
        """Tell how far it is; at the end of a round the forecast is that of the next one, so that 0 means the end."""
        if self._on_record is None:
            return
        done, elapsed_s = self._history.done, self._elapsed_s()
        if self._left is None or last or elapsed_s - self._left_at_s >= FORECAST_S:
            reach_s = self._limit_s * FIRST_ROUND
            at = Moment(round_ + last, first, elapsed_s, self._limit_s, reach_s)
            self._left, self._left_done, self._left_at_s = self._forecast.left(at), done, elapsed_s
        left = self._left
        visits = max(0, left.visits - (done - self._left_done))
        least_s = left.seconds * visits / (2 * max(1, left.visits))  # what is late is not over
        left_s = max(least_s, left.seconds - (elapsed_s - self._left_at_s))
        note = at_most(left) if visits else ""
        self._on_record(Progress(done, done + visits, record, left_s if visits else 0.0, note))

    def _attempt(self, which: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
        """Return what happened, as fields of a sample record."""
        self._journal.append({"type": "start", **which})
        try:
            samples = self._runners.visit(entry, int(which["visit"]))
        except DeviceLost:
            raise  # no other entry could be measured in this process: it ends, and that is this entry's doing
        except SystemRefusal:
            self._journal.append({"type": "interrupted", **which})  # a full disk is nothing of this entry's
            raise
        except HwnasError as e:
            return _bad("failed", str(e))
        except KeyboardInterrupt:
            self._journal.append({"type": "interrupted", **which})  # not a death
            raise
        times = {name: [round(v, 7) for v in getattr(samples, name).tolist()] for name in TIMES}
        return {"status": "ok", **times, **({"about": dict(samples.about)} if samples.about else {})}

    def _time_reference(self) -> None:
        """Time the reference op if that is due; an op in the middle of the plan's arithmetic."""
        entry, history = self._reference, self._history
        if entry is None or not history.reference_due or not history.visits(entry.key) or history.bad(entry.key):
            return
        which = {"key": entry.key, "visit": history.references, "reference": True}
        if history.crash(entry.key, history.references, reference=True) is None:
            record = {"type": "reference", **which, **self._attempt(which, entry)}
            self._journal.append(record)
            history.add(record)

    def _elapsed_s(self) -> float:
        """Return how long this process has been measuring."""
        return time.monotonic() - self._start_s

    def _now_s(self) -> float:
        """Return how long all processes have been measuring into this file."""
        return self._history.before_s + self._elapsed_s()


class _Runners:
    """Runners that stay loaded while there is memory for more: loading takes longer than a visit."""

    def __init__(self, engine: Engine, folder: Path, stack: ExitStack) -> None:
        self._engine, self._folder, self._stack = engine, folder, stack
        self._open: dict[str, Runner] = {}
        self._free: list[Callable[[], float]] = [free_memory_bytes]
        if not engine.capabilities.on_host:
            self._free.append(cast(OnDevice, engine).free_memory_bytes)
        self._floors = [(1 - MEMORY_SHARE) * free() for free in self._free]

    def visit(self, entry: Entry, number: int) -> Samples:
        """Measure an entry for some milliseconds, and load it before if need be."""
        runner = self._open.get(entry.key)
        if runner is not None:
            return visit(runner, number, self._engine.clock, fresh=False)
        loaded = self._engine.load(entry, self._folder)
        if any(free() < floor for free, floor in zip(self._free, self._floors, strict=True)):
            with loaded as runner:
                return visit(runner, number, self._engine.clock, fresh=True)
        runner = self._open[entry.key] = self._stack.enter_context(loaded)
        return visit(runner, number, self._engine.clock, fresh=True)


def free_memory_bytes(root: Path = Path("/")) -> float:
    """Return how much memory this process can still have, in its container too; 4 GiB where nobody tells."""
    group, machine = limits.free_group_bytes(root), None
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                machine = 1024.0 * int(line.split()[1])
    return min((free for free in (group, machine) if free is not None), default=4.0 * 2**30)


def _bad(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason}
