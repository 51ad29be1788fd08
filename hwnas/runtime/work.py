"""Measuring a whole plan: in several interleaved passes, resumable after a kill at any moment."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.runtime.device import provenance
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.base import Engine
from hwnas.runtime.journal import Journal, Record, read_journal
from hwnas.runtime.measure import Measurement, measure
from hwnas.runtime.plan import Entry, load_plan

RESULTS_FILE = "results.jsonl"
DEATHS = 2  # of the measuring process alone, which its supervisor saw and recorded: the entry's fault
SILENT_DEATHS = 5  # of everything at once: a user's kill, or an entry that takes the machine down
# Other work on the machine only ever adds time (a busy sibling core adds to CPU time too, for seconds on end), so the
# quietest pass counts, and it is believed when a second one comes close.
CLOSE = 0.03
EXTRA_PASSES = 6  # at most, for entries that are not settled
# All passes over an entry may fall into slow seconds and agree. What was measured just before and after tells: how slow
# the machine was then is how far those entries were above their own quietest pass.
WINDOW = 4
SLOW = 1.05


@dataclass(frozen=True)
class Progress:
    """What is told after each measurement.

    Attributes:
        done: Measurements in the results file, of all passes.
        total: Measurements when finished: entries times passes.
        record: The sample just written: key, pass, status, and the measurement or a reason.
    """

    done: int
    total: int
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One entry over all its passes.

    Attributes:
        key: The entry.
        status: ``"ok"``, or ``"failed"`` or ``"crashed"`` if that happened in any pass.
        reason: Why it is not ok, else empty.
        latency_ms: Median of the quietest pass; None unless ok. So are the other times.
        p90_ms: 90th percentile of that pass.
        p99_ms: 99th percentile of that pass.
        wall_ms: Wall median of that pass.
        spread: Interquartile range over median of that pass.
        pass_spread: How much slower the second quietest pass is, relative; 0 with a single pass.
        n: Samples in all passes.
        passes: Passes measured.
        doubtful: The quietest pass is doubtful, or it is not settled: no second one is within 3 %, or the machine was
            slow around the quietest one.
    """

    key: str
    status: str
    reason: str = ""
    latency_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    wall_ms: float | None = None
    spread: float | None = None
    pass_spread: float | None = None
    n: int = 0
    passes: int = 0
    doubtful: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def pin_to_one_cpu() -> None:
    """Keep this process on one CPU, where the system can: for a process that does nothing but measure."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the first ones serve most interrupts


def measure_plan(
    folder: Path,
    engine_name: str = "onnxruntime",
    threads: int = 1,
    passes: int = 3,
    seed: int = 0,
    results: Path | None = None,
    on_record: Callable[[Progress], None] | None = None,
    minutes: float | None = None,
) -> Path:
    """Measure what the results file lacks, in this process. A crash of the engine ends it: see `supervise`.

    Args:
        folder: A plan.
        engine_name: Name of the engine.
        threads: Threads of the engine.
        passes: How often every entry is measured, each time in another order; entries that are not settled (see
            `settled`) get up to 6 more.
        seed: Of the orders.
        results: The results file; ``results.jsonl`` in the plan folder if None.
        on_record: Called after each measurement.
        minutes: Start no measurement after this time.

    Returns:
        The results file.

    Raises:
        HwnasError: If the plan or the results file is damaged, or another process measures into it.
        ProvenanceError: If the results file was made from another plan, or under other conditions.
    """
    if passes < 1:
        raise HwnasError(f"passes must be at least 1, got {passes}")
    deadline_s = None if minutes is None else time.monotonic() + 60 * minutes
    plan, engine = load_plan(folder), open_engine(engine_name, threads)
    path = folder / RESULTS_FILE if results is None else results
    path.parent.mkdir(parents=True, exist_ok=True)
    with Journal(path, {"plan": plan.id, "where": provenance(engine)}) as journal:
        history = _History(journal.records)
        for pass_ in range(passes + EXTRA_PASSES):
            done = history.settled() if pass_ >= passes else set()
            due = [e for e in plan.entries if e.key not in done]
            total = len(plan.entries) * passes if pass_ < passes else len(history.done) + len(due)
            # Each pass has its own order, so that drift does not fall on the same entries.
            for i in np.random.default_rng([seed, pass_]).permutation(len(due)):
                entry = due[int(i)]
                if (entry.key, pass_) in history.done:
                    continue
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    return path
                which = {"key": entry.key, "pass": pass_}
                reason = history.crash(entry.key, pass_)
                outcome = _attempt(journal, which, engine, entry, folder) if reason is None else _bad("crashed", reason)
                record = {"type": "sample", **which, **outcome}
                journal.append(record)
                history.add(record)
                if on_record is not None:
                    on_record(Progress(len(history.done), total, record))
    return path


def collect(results: Path) -> tuple[Record, list[Row]]:
    """Read a results file.

    Returns:
        Where it was measured (the provenance), and one row per entry that has a measurement, by key.

    Raises:
        HwnasError: If the file cannot be read or is damaged.
    """
    header, records = read_journal(results)
    by_key: dict[str, list[Record]] = {}
    for record in records:
        if record.get("type") == "sample":
            by_key.setdefault(str(record["key"]), []).append(record)
    quiet = _History(records).settled()
    return header["where"], [_row(key, by_key[key], key in quiet) for key in sorted(by_key)]


class _History:
    """What the records of earlier runs say.

    Attributes:
        done: (key, pass) that need no measuring.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.done: set[tuple[str, int]] = set()
        self._deaths: Counter[tuple[str, int]] = Counter()
        self._unfinished: Counter[tuple[str, int]] = Counter()
        self._crashed: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._medians_ms: list[tuple[str, float]] = []  # in the order of measurement
        self._bad: set[str] = set()
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take one more record into account."""
        which = (str(record.get("key")), int(record.get("pass", -1)))
        kind = record.get("type")
        if kind == "start":
            self._unfinished[which] += 1  # until something tells otherwise
        elif kind in ("sample", "interrupted", "death"):
            self._unfinished[which] -= 1
        if kind == "death":
            self._deaths[which] += 1
            self._reasons[which[0]] = str(record.get("reason"))
        if kind == "sample":
            self.done.add(which)
            if record.get("status") == "crashed":
                self._crashed[which[0]] = str(record.get("reason"))
            if record.get("status") == "ok":
                self._medians_ms.append((which[0], float(record["latency_ms"])))
            else:
                self._bad.add(which[0])

    def settled(self) -> set[str]:
        """Return the entries that need no more passes."""
        return settled(self._medians_ms) | self._bad

    def crash(self, key: str, pass_: int) -> str | None:
        """Return why an entry is not to be tried (again), else None."""
        which = (key, pass_)
        if key not in self._crashed and (self._deaths[which] >= DEATHS or self._unfinished[which] >= SILENT_DEATHS):
            self._crashed[key] = self._reasons.get(key, "everything died several times while it was measured")
        return self._crashed.get(key)


def settled(medians_ms: Sequence[tuple[str, float]]) -> set[str]:
    """Return the entries whose quietest pass can be believed.

    A second pass comes close to it, and the machine was not slow around it.

    Args:
        medians_ms: Entry and median of each measurement, in the order of measurement.
    """
    passes: dict[str, list[int]] = {}
    for i, (key, _) in enumerate(medians_ms):
        passes.setdefault(key, []).append(i)
    quietest = {key: min(indices, key=lambda i: medians_ms[i][1]) for key, indices in passes.items()}
    ratios = np.array([ms / medians_ms[quietest[key]][1] for key, ms in medians_ms])
    out = set()
    for key, best in quietest.items():
        around = np.delete(ratios[max(0, best - WINDOW) : best + WINDOW + 1], min(best, WINDOW))
        slow = len(around) > 0 and float(np.median(around)) > SLOW
        if not slow and _apart([medians_ms[i][1] for i in passes[key]]) <= CLOSE:
            out.add(key)
    return out


def _apart(medians_ms: Sequence[float]) -> float:
    """Return how much slower the second quietest pass is, relative; 0 if there is no other."""
    ranked = sorted(medians_ms)
    return ranked[1] / ranked[0] - 1 if len(ranked) > 1 else 0.0


def _attempt(journal: Journal, which: Mapping[str, Any], engine: Engine, entry: Entry, folder: Path) -> dict[str, Any]:
    """Return what happened, as fields of a sample record."""
    journal.append({"type": "start", **which})
    try:
        with engine.load(entry, folder) as runner:
            return {"status": "ok", **measure(runner, clock=engine.clock).to_dict()}
    except HwnasError as e:
        return _bad("failed", str(e))
    except KeyboardInterrupt:
        journal.append({"type": "interrupted", **which})  # not a death
        raise


def _bad(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason}


def _row(key: str, samples: Sequence[Record], quiet: bool) -> Row:
    bad = next((s for s in samples if s["status"] != "ok"), None)
    if bad is not None:
        return Row(key, str(bad["status"]), str(bad.get("reason", "")), passes=len(samples))
    measured = [Measurement.from_dict(s) for s in samples]
    quietest = min(measured, key=lambda m: m.latency_ms)
    return Row(
        key=key,
        status="ok",
        latency_ms=quietest.latency_ms,
        p90_ms=quietest.p90_ms,
        p99_ms=quietest.p99_ms,
        wall_ms=quietest.wall_ms,
        spread=quietest.spread,
        pass_spread=_apart([m.latency_ms for m in measured]),
        n=sum(m.n for m in measured),
        passes=len(measured),
        doubtful=quietest.doubtful or not quiet,
    )
