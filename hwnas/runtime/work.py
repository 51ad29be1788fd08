"""Measuring a whole plan: in rounds of short visits to warm runners, resumable after a kill at any moment.

Whose fault is a death? A signal such as SIGSEGV, an exit or a hang is the engine's, at the entry it was at: two of
them, and the entry is `crashed`; five, if it has been measured before. SIGKILL, SIGTERM and the like may come from a
user or from a system short of memory, and after a death of everything at once nobody can tell. These prove something
only when they keep striking: five at the same visit to the same entry. That visit is the first one to be tried after
each of them, so kills at random moments would have to hit it five times in a row.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.runtime.device import provenance
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.base import Engine, Runner
from hwnas.runtime.journal import Journal, Record, read_journal
from hwnas.runtime.measure import DEFAULT_STOP, Measurement, Samples, StopRule, level, samples_from, summarise, visit
from hwnas.runtime.plan import Entry, Plan, load_plan

RESULTS_FILE = "results.jsonl"
DEATHS = 2  # by the engine's own doing, at any visit of an entry that was never measured
DEATHS_LATER = 5  # the same for an entry that was: not all its visits are deadly
OUTSIDE_DEATHS = 5  # by a signal from outside, or with everything else, at one and the same visit
FIRST_ROUND = 0.4  # share of the time there is that loading may take; what is not reached then is left out
REFERENCE_EVERY = 25  # visits between two of the reference op
SLOW = 1.05  # of its quiet level: the machine was slow
MEMORY_SHARE = 0.25  # of what is free, for runners that stay loaded


@dataclass(frozen=True)
class Progress:
    """What is told after each visit.

    Attributes:
        done: Visits in the results file.
        total: Visits when finished, as far as can be told by now.
        record: The sample just written: key, visit, status, and the samples or a reason.
    """

    done: int
    total: int
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One entry over all its visits.

    Attributes:
        key: The entry.
        status: ``"ok"``, or ``"failed"`` or ``"crashed"`` if that happened in any visit.
        reason: Why it is not ok, else empty.
        measurement: None unless ok.
    """

    key: str
    status: str
    reason: str = ""
    measurement: Measurement | None = None


@dataclass(frozen=True)
class Conditions:
    """How restless the machine was, by an op that was timed again and again.

    Attributes:
        reference: Key of that op; empty if it never was timed.
        visits: How often it was timed.
        slow_share: Share of these in which it was more than 5 % above its quiet level.
        drift: Its quiet level in the second half over that in the first, less one.
    """

    reference: str = ""
    visits: int = 0
    slow_share: float = 0.0
    drift: float = 0.0


def pin_to_cpus(threads: int) -> None:
    """Keep this process on as many CPUs as it has threads: for a process that does nothing but measure."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(allowed[-threads:]))  # the first ones serve most interrupts


def measure_plan(
    folder: Path,
    engine_name: str = "onnxruntime",
    threads: int = 1,
    stop: StopRule = DEFAULT_STOP,
    seed: int = 0,
    results: Path | None = None,
    on_record: Callable[[Progress], None] | None = None,
    minutes: float | None = None,
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

    Returns:
        The results file.

    Raises:
        HwnasError: If the plan or the results file is damaged, or another process measures into it.
        ProvenanceError: If the results file was made from another plan, or under other conditions.
    """
    plan, engine = load_plan(folder), open_engine(engine_name, threads)
    path = folder / RESULTS_FILE if results is None else results
    path.parent.mkdir(parents=True, exist_ok=True)
    with Journal(path, {"plan": plan.id, "where": provenance(engine)}) as journal, ExitStack() as stack:
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
        ops = sorted((e for e in plan.entries if e.role != "net"), key=lambda e: (sum(c.macs for c in e.calls), e.key))
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
            later = self._later(round_, first, len(due))
            for n, entry in enumerate(due, start=1):
                if self._elapsed_s() >= limit_s:
                    break
                self._visit(entry, round_, len(due) - n + later)

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

    def _visit(self, entry: Entry, number: int, left: int) -> None:
        which = {"key": entry.key, "visit": number}
        reason = self._history.crash(entry.key, number)
        outcome = self._attempt(which, entry) if reason is None else _bad("crashed", reason)
        if self._waits:
            outcome["at_s"] = round(self._now_s(), 3)
        record = {"type": "sample", **which, **outcome}
        self._journal.append(record)
        self._history.add(record)
        if self._on_record is not None:
            if left == 0 and number + 1 < self._history.stop.max_visits:  # unless it asks for another round
                left = sum(self._needs(e.key, number + 1) for e in self._entries)
            self._on_record(Progress(self._history.done, self._history.done + left, record))
        self._time_reference()

    def _later(self, round_: int, first: int, due: int) -> int:
        """Return how many visits there will be after this round, as far as can be told."""
        rounds, most = self._history.stop.min_visits, self._history.stop.max_visits
        elapsed_s = self._elapsed_s()
        if round_ > first and elapsed_s < self._min_s:
            rounds = max(rounds, min(most, first + int((round_ - first) * self._min_s / elapsed_s)))
        return max(0, rounds - round_ - 1) * due

    def _attempt(self, which: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
        """Return what happened, as fields of a sample record."""
        self._journal.append({"type": "start", **which})
        try:
            samples = self._runners.visit(entry, int(which["visit"]))
        except HwnasError as e:
            return _bad("failed", str(e))
        except KeyboardInterrupt:
            self._journal.append({"type": "interrupted", **which})  # not a death
            raise
        return {"status": "ok", **{k: [round(v, 7) for v in x.tolist()] for k, x in samples._asdict().items()}}

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
    """Runners that stay loaded, as far as memory allows: loading takes longer than a visit."""

    def __init__(self, engine: Engine, folder: Path, stack: ExitStack) -> None:
        self._engine, self._folder, self._stack = engine, folder, stack
        self._open: dict[str, Runner] = {}
        self._left = MEMORY_SHARE * free_memory_bytes()

    def visit(self, entry: Entry, number: int) -> Samples:
        """Measure an entry for some milliseconds, and load it before if need be."""
        runner = self._open.get(entry.key)
        if runner is not None:
            return visit(runner, number, self._engine.clock, fresh=False)
        loaded = self._engine.load(entry, self._folder)
        # Weights are in the values read, activations in the values made; some engines keep a second copy of weights.
        needs = 2 * sum(c.bytes for c in entry.calls)
        if needs > self._left:
            with loaded as runner:
                return visit(runner, number, self._engine.clock, fresh=True)
        runner = self._open[entry.key] = self._stack.enter_context(loaded)
        self._left -= needs
        return visit(runner, number, self._engine.clock, fresh=True)


def free_memory_bytes(root: Path = Path("/")) -> float:
    """Return how much memory can still be had; 4 GiB where the system does not tell."""
    try:
        for line in (root / "proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 4.0 * 2**30


def _bad(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason}


class History:
    """What the records of a results file say.

    Attributes:
        stop: When an entry needs no more visits: the rule that was given last.
        done: Number of visits.
        references: How often the reference op was timed.
        reference_due: Whether it is to be timed again.
        before_s: How long the processes that are gone have been measuring.
    """

    def __init__(self, records: Sequence[Record], plan: Plan) -> None:
        """Take all records into account."""
        self.stop, self.done = DEFAULT_STOP, 0
        self.references, self.reference_due = 0, True
        self.before_s = max((float(r["at_s"]) for r in records if "at_s" in r), default=0.0)
        self._since_reference = 0
        self._nets = {e.key for e in plan.entries if e.role == "net"}
        # Reference or not and key of the engine's own deaths; the visit too of all others.
        self._deaths: Counter[tuple[bool, str]] = Counter()
        self._outside: Counter[tuple[bool, str, int]] = Counter()
        self._bad: dict[str, Record] = {}
        self._reasons: dict[str, str] = {}
        self._first_s: dict[str, float] = {}
        self._medians_ms: dict[str, list[float]] = {}
        self._reached: dict[str, tuple[int, str | None]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take one more record into account."""
        kind = record.get("type")
        if kind == "rule":
            self.stop = StopRule(**{name: value for name, value in record.items() if name != "type"})
            self._reached = {}
            return
        key, reference = str(record.get("key")), bool(record.get("reference"))
        which = (reference, key, int(record.get("visit", -1)))
        if kind == "start":
            self._outside[which] += 1  # until something tells otherwise
        elif not (kind == "death" and record.get("outside")):
            self._outside[which] -= 1
        if kind == "death":
            self._reasons[key] = str(record.get("reason"))
            self._deaths[reference, key] += not record.get("outside")
        elif kind == "reference":
            self.references += 1
            self._since_reference, self.reference_due = 0, False
        elif kind == "sample":
            self._add_sample(key, record)

    def _add_sample(self, key: str, record: Record) -> None:
        self.done += 1
        self._since_reference += 1
        self.reference_due = self.references == 0 or self._since_reference >= REFERENCE_EVERY
        self._first_s.setdefault(key, float(record.get("at_s", 0.0)))
        if record.get("status") == "ok":
            self._medians_ms.setdefault(key, []).append(median(samples_from(record).latency_ms.tolist()))
        else:
            self._bad[key] = record

    def visits(self, key: str) -> int:
        """Return how often an entry has been visited."""
        return len(self._medians_ms.get(key, ())) + (key in self._bad)

    def bad(self, key: str) -> Record | None:
        """Return the record that says why an entry cannot be measured, if there is one."""
        return self._bad.get(key)

    def reached(self, key: str) -> str | None:
        """Return why an entry needs no more visits, None if it does or has none."""
        medians = self._medians_ms.get(key, [])
        known = self._reached.get(key)
        if known is None or known[0] != len(medians):
            known = self._reached[key] = (len(medians), self.stop.reached(medians, key in self._nets))
        return known[1]

    def first_s(self, key: str) -> float:
        """Return how long had been measured when an entry was first visited."""
        return self._first_s.get(key, 0.0)

    def crash(self, key: str, visit_: int, reference: bool = False) -> str | None:
        """Return why an entry is not to be tried again, else None."""
        limit = DEATHS_LATER if key in self._medians_ms else DEATHS
        if self._deaths[reference, key] >= limit or self._outside[reference, key, visit_] >= OUTSIDE_DEATHS:
            return self._reasons.get(key, "everything died several times while it was measured")
        return None


def collect(results: Path, plan: Plan) -> tuple[Record, list[Row]]:
    """Read a results file.

    Args:
        results: What `measure_plan` wrote.
        plan: The plan that was measured.

    Returns:
        Where it was measured (the provenance), and one row per entry that was visited, by key.

    Raises:
        HwnasError: If the file cannot be read or is damaged, or is of another plan.
    """
    header, records = read_journal(results)
    if header["plan"] != plan.id:
        raise HwnasError(f"{results} holds results of another plan; measure this one, or name its own results")
    history = History(records, plan)
    samples: dict[str, list[Samples]] = {}
    for record in records:
        if record.get("type") == "sample":
            found = samples.setdefault(str(record["key"]), [])
            if record.get("status") == "ok":
                found.append(samples_from(record))
    rows = []
    for key in sorted(samples):
        bad = history.bad(key)
        if bad is not None:
            rows.append(Row(key, str(bad["status"]), str(bad.get("reason", ""))))
            continue
        measured = summarise(samples[key], history.reached(key) or "timeout", str(header["where"]["clock"]))
        rows.append(Row(key, "ok", measurement=measured))
    return header["where"], rows


def conditions(results: Path) -> Conditions:
    """Return how restless the machine was while a results file was made.

    Raises:
        HwnasError: If the file cannot be read or is damaged.
    """
    found = [r for r in read_journal(results)[1] if r.get("type") == "reference" and r.get("status") == "ok"]
    if not found:
        return Conditions()
    medians = [median(samples_from(r).latency_ms.tolist()) for r in found]
    half = len(medians) // 2
    drift = level(medians[half:]) / level(medians[:half]) - 1 if half else 0.0
    slow = float(np.mean(np.array(medians) > SLOW * level(medians)))
    return Conditions(str(found[0]["key"]), len(medians), slow, drift)
