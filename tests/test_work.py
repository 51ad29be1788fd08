"""Measuring whole plans: rounds, resume, children that crash or hang, memory, the command line."""

from __future__ import annotations

import importlib
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import HwnasError, ProvenanceError
from hwnas.runtime import __main__ as command_line
from hwnas.runtime.__main__ import main
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.base import Capabilities
from hwnas.runtime.engines.fake import REPLAY, modelled_ms
from hwnas.runtime.measuring import supervise as supervise_module
from hwnas.runtime.measuring import work
from hwnas.runtime.measuring.device import provenance
from hwnas.runtime.measuring.journal import Journal, Record, read_journal
from hwnas.runtime.measuring.measure import StopRule, level
from hwnas.runtime.measuring.plan import load_plan, write_plan
from hwnas.runtime.measuring.results import (
    DEATHS,
    DEATHS_LATER,
    OUTSIDE_DEATHS,
    REFERENCE_EVERY,
    Conditions,
    Row,
    collect,
    conditions,
)
from hwnas.runtime.measuring.supervise import supervise
from hwnas.runtime.measuring.work import RESULTS_FILE, Progress, free_memory_bytes, measure_plan, pin_to_cpus
from tests.runtime_cases import conv_entry, conv_relu, four_ops, spells

ROOT = Path(__file__).parents[1]
QUICK = StopRule(min_visits=2, max_visits=4, min_s=0)
NAMES = ["op0", "op1", "op2", "op3"]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return four_ops(tmp_path / "plan")


def rows_of(results: Path, folder: Path) -> dict[str, Row]:
    return {row.key: row for row in collect(results, load_plan(folder))[1]}


def statuses(results: Path, folder: Path) -> dict[str, str]:
    return {key: row.status for key, row in rows_of(results, folder).items()}


def visits_in(results: Path) -> list[tuple[str, int]]:
    return [(r["key"], r["visit"]) for r in read_journal(results)[1] if r["type"] == "sample"]


def times_in(results: Path) -> list[Record]:
    """Return all that was measured, in order; how a run was interrupted is not seen in it."""
    return [r for r in read_journal(results)[1] if r["type"] in {"sample", "reference"}]


def header_of(folder: Path, engine: str = "fake") -> dict[str, Any]:
    return {"plan": load_plan(folder).id, "where": provenance(open_engine(engine))}


ENGINES_OF_TESTS = """
import os, signal, sys, time
import numpy as np
from hwnas.errors import HwnasError
from hwnas.runtime.engines.fake import Fake
from hwnas.runtime.measuring.measure import Samples
from hwnas.runtime.measuring.work import free_memory_bytes

class Slow(Fake):
    def load(self, entry, folder):
        time.sleep(0.02)
        return super().load(entry, folder)

class Faulty(Fake):
    def load(self, entry, folder):
        if entry.key == "op1":
            self.fault()
        return super().load(entry, folder)

class Segfault(Faulty):
    def fault(self): os.kill(os.getpid(), signal.SIGSEGV)

class Abort(Faulty):
    def fault(self): os.abort()

class Bug(Faulty):
    def fault(self): raise TypeError("a bug of the engine")

class Exit0(Faulty):
    def fault(self): os._exit(0)

class Hang(Faulty):
    def fault(self): time.sleep(1000)

class Greedy(Faulty):
    def fault(self): np.empty(int(0.97 * free_memory_bytes()), np.uint8)

class Killed(Faulty):
    # from outside, as often as the file MARK says
    def fault(self):
        with open(os.environ["MARK"], "r+") as f:
            left = int(f.read())
            f.seek(0)
            f.write(str(left - 1))
        if left > 0:
            os.kill(os.getpid(), signal.SIGKILL)

class Timed(Fake):
    # by a clock, so rounds are spread over time; counts what is loaded and closed
    loads, closed = [], []
    def __init__(self, threads=1):
        super().__init__(threads)
        self.clock = "wall"
    def load(self, entry, folder):
        self.loads.append(entry.key)
        return Watched(super().load(entry, folder), self, entry.key)

class Watched:
    def __init__(self, runner, engine, key):
        self.runner, self.engine, self.key = runner, engine, key
    def __enter__(self):
        self.runner.__enter__()
        return self
    def __exit__(self, *exc):
        self.engine.closed.append(self.key)
        self.runner.__exit__(*exc)
    def time(self, repeats, visit=0):
        return self.engine.change(self.key, visit, self.runner.time(repeats, visit))

class Plain(Timed):
    def change(self, key, visit, samples): return samples

class Drifting(Plain):
    # op1 gets 5 % slower with every visit
    def __init__(self, threads=1):
        super().__init__(threads)
        self.clock = "model"
    def change(self, key, visit, samples):
        return Samples(*(x * (1 + 0.05 * visit * (key == "op1")) for x in samples[:2]))

class Crowded(Drifting):
    # another process has half of the core whenever op1 runs
    def __init__(self, threads=1):
        super().__init__(threads)
        self.clock = "thread_cpu"
    def change(self, key, visit, samples):
        return Samples(samples.latency_ms, samples.wall_ms * (1 + (key == "op1")))

class Lying(Drifting):
    # the times of its third visit to op1 are what the environment says
    def change(self, key, visit, samples):
        if (key, visit) != ("op1", 2):
            return samples
        return Samples(np.full_like(samples.latency_ms, float(os.environ["LIE"])), samples.wall_ms)

class Chatty(Fake):
    def load(self, entry, folder):
        os.write(1, b"chatter without a newline")
        print("and {with} one")
        return super().load(entry, folder)

class Broken(Fake):
    def __init__(self, threads=1): raise TypeError("cannot even start")
"""


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with engines of the tests, importable in this process and in children."""
    (tmp_path / "engines_of_tests.py").write_text(textwrap.dedent(ENGINES_OF_TESTS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.delitem(sys.modules, "engines_of_tests", raising=False)
    return "engines_of_tests"


# --- rounds


def test_every_round_visits_every_entry_in_another_order(plan: Path) -> None:
    told: list[Progress] = []
    results = measure_plan(plan, "fake", stop=StopRule(5, 5, 0), on_record=told.append)
    assert results == plan / RESULTS_FILE
    done = visits_in(results)
    rounds = [[key for key, _ in done[4 * n : 4 * n + 4]] for n in range(5)]
    assert [sorted(keys) for keys in rounds] == [NAMES] * 5
    assert [n for _, n in done] == [n for n in range(5) for _ in NAMES]
    assert len({tuple(keys) for keys in rounds}) > 1
    assert [(p.done, p.total) for p in told] == [(i, 20) for i in range(1, 21)]
    where, rows = collect(results, load_plan(plan))
    assert where == provenance(open_engine("fake"))
    assert [row.key for row in rows] == NAMES
    for row, entry in zip(rows, load_plan(plan).entries, strict=True):
        m = row.measurement
        assert m is not None
        assert m.latency_ms == pytest.approx(modelled_ms(entry), rel=0.002)
        assert (row.status, m.n, m.visits, m.stop, m.doubtful) == ("ok", 15, 5, "ci", False)


def test_a_seed_gives_an_order(plan: Path, tmp_path: Path) -> None:
    orders = []
    for i, seed in enumerate([0, 0, 1]):
        results = tmp_path / f"{i}" / "r.jsonl"
        orders.append(visits_in(measure_plan(plan, "fake", seed=seed, results=results, stop=QUICK)))
    assert orders[0] == orders[1] != orders[2]


def test_settled_entries_are_visited_no_more(plan: Path, engines: str) -> None:
    told: list[Progress] = []
    results = measure_plan(plan, f"{engines}:Drifting", stop=StopRule(2, 6, 0), on_record=told.append)
    assert Counter(key for key, _ in visits_in(results)) == {"op0": 2, "op1": 6, "op2": 2, "op3": 2}
    rows = rows_of(results, plan)
    assert {key: row.measurement.stop for key, row in rows.items() if row.measurement} == {
        **dict.fromkeys(NAMES, "ci"),
        "op1": "timeout",
    }
    assert [key for key, row in rows.items() if row.measurement and row.measurement.doubtful] == ["op1"]
    assert [p.done for p in told] == list(range(1, 13))
    assert told[-1].total == 12
    assert all(p.total > p.done for p in told[:-1])  # there was always one more to come


def test_a_rule_with_more_visits_goes_on_with_what_is_doubtful(plan: Path, engines: str) -> None:
    results = measure_plan(plan, f"{engines}:Drifting", stop=QUICK)
    before = results.read_bytes()
    measure_plan(plan, f"{engines}:Drifting", stop=QUICK)
    assert results.read_bytes() == before
    measure_plan(plan, f"{engines}:Drifting", stop=StopRule(2, 7, 0))
    assert results.read_bytes().startswith(before)
    assert Counter(key for key, _ in visits_in(results)) == {"op0": 2, "op1": 7, "op2": 2, "op3": 2}
    assert [n for key, n in visits_in(results) if key == "op1"] == list(range(7))
    measure_plan(plan, f"{engines}:Drifting", stop=StopRule(2, 7, 0, relative_ci=2))
    row = rows_of(results, plan)["op1"].measurement
    assert row is not None
    assert (row.stop, row.visits) == ("ci", 7)  # the rule that was given last counts


def test_results_of_other_conditions_are_refused(plan: Path) -> None:
    results = measure_plan(plan, "fake", stop=QUICK)
    with pytest.raises(ProvenanceError, match=r"where\.engine\.threads = 1, now it is 2; use another results file"):
        measure_plan(plan, "fake", threads=2)
    write_plan(plan, [conv_entry("other")])
    with pytest.raises(ProvenanceError, match="holds results of another plan"):
        measure_plan(plan, "fake")
    with pytest.raises(HwnasError, match="holds results of another plan; measure this one, or name its own results"):
        collect(results, load_plan(plan))


def test_an_engine_error_is_a_row_and_the_run_goes_on(tmp_path: Path) -> None:
    file, _ = conv_relu(tmp_path)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    write_plan(tmp_path, [conv_entry("bad", tmp_path, "junk.onnx"), conv_entry("good", tmp_path, file)])
    results = measure_plan(tmp_path, "onnxruntime", stop=QUICK)
    rows = rows_of(results, tmp_path)
    assert (rows["bad"].status, rows["bad"].measurement) == ("failed", None)
    assert "onnxruntime cannot run junk.onnx" in rows["bad"].reason
    assert [key for key, _ in visits_in(results)].count("bad") == 1
    assert rows["good"].status == "ok"
    assert rows["good"].measurement is not None
    assert 0 < rows["good"].measurement.latency_ms < 50


@pytest.mark.parametrize("lie", ["0", "-1", "1e-9", "inf", "nan"])
def test_an_impossible_time_is_a_row_and_the_file_stays_readable(
    plan: Path, engines: str, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    monkeypatch.setenv("LIE", lie)
    results = measure_plan(plan, f"{engines}:Lying", stop=StopRule(4, 4, 0))
    rows = rows_of(results, plan)
    assert {key: row.status for key, row in rows.items()} == {**dict.fromkeys(NAMES, "ok"), "op1": "failed"}
    assert "the engine gave a latency_ms of" in rows["op1"].reason
    assert [n for key, n in visits_in(results) if key == "op1"] == [0, 1, 2]


def test_contention_is_doubtful(plan: Path, engines: str) -> None:
    rows = rows_of(measure_plan(plan, f"{engines}:Crowded", stop=QUICK), plan)
    assert [key for key, row in rows.items() if row.measurement and row.measurement.doubtful] == ["op1"]
    m = rows["op1"].measurement
    assert m is not None
    assert m.stop == "ci"
    assert m.wall_ms == pytest.approx(2 * m.latency_ms)


def test_a_replay_gives_the_times_of_the_recording_visit_by_visit(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine sees a machine that is slow most of the time; the levels are those of the quiet machine."""
    rng = np.random.default_rng(1)
    recording, quiet, slow = tmp_path / "recorded.jsonl", {}, {}
    with Journal(recording, header_of(plan)) as journal:
        for i, key in enumerate(NAMES):
            quiet[key] = (1 + i) * (1 + 0.002 * rng.standard_normal(100))
            slow[key] = quiet[key] * spells(rng, 100, slow_share=0.7)
            for n, ms in enumerate(np.round(slow[key], 7).tolist()):
                times = {"latency_ms": [ms] * 3, "wall_ms": [ms] * 3}
                journal.append({"type": "sample", "key": key, "visit": n, "status": "ok", **times})
    plain = measure_plan(plan, "fake", stop=QUICK)
    monkeypatch.setenv(REPLAY, str(recording))
    results = measure_plan(plan, "fake", stop=StopRule(100, 100, 0), results=tmp_path / "r.jsonl")
    for key, row in rows_of(results, plan).items():
        m = row.measurement
        assert m is not None
        assert m.latency_ms == pytest.approx(level(quiet[key].tolist()), rel=0.005)
        assert m.p50_ms > 1.1 * np.median(quiet[key])
        seen = [r["latency_ms"] for r in read_journal(results)[1] if r["type"] == "sample" and r["key"] == key]
        assert seen == [[ms] * 3 for ms in np.round(slow[key], 7).tolist()]
    assert conditions(results).slow_share > 0.4
    with pytest.raises(ProvenanceError, match=r"replay_sha256 = null, now it is"):
        measure_plan(plan, "fake", results=plain)
    write_plan(tmp_path, [conv_entry("other")])
    (row,) = rows_of(measure_plan(tmp_path, "fake", results=tmp_path / "o.jsonl"), tmp_path).values()
    assert row.status == "failed"
    assert row.reason == f"other has no times in {recording}"


# --- time


class Clock:
    """Stands in for the module `time`: sleeping and loading take time, and nothing else does."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(work, "time", clock)
    return clock


def ten_ops(folder: Path) -> Path:
    write_plan(folder, [conv_entry(f"op{i}", macs=10**6 * (10 - i)) for i in range(10)])
    return folder


def test_rounds_are_spread_over_time(plan: Path, engines: str, clock: Clock) -> None:
    starts: list[float] = []

    def note(progress: Progress) -> None:
        if progress.done % 4 == 1:
            starts.append(clock.now_s - 1000)

    results = measure_plan(plan, f"{engines}:Plain", stop=StopRule(2, 6, min_s=50), on_record=note)
    assert starts == pytest.approx([0, 10, 20, 30, 40, 50])  # all were precise enough after two visits
    assert Counter(key for key, _ in visits_in(results)) == dict.fromkeys(NAMES, 6)
    assert [r["at_s"] for r in times_in(results) if r["type"] == "sample"] == [
        10.0 * i for i in range(6) for _ in NAMES
    ]


def test_a_formula_waits_for_nothing(plan: Path, clock: Clock) -> None:
    results = measure_plan(plan, "fake", stop=StopRule(2, 6, min_s=50))
    assert clock.now_s == 1000
    assert Counter(key for key, _ in visits_in(results)) == dict.fromkeys(NAMES, 2)


def test_entries_that_were_spread_long_enough_are_not_visited_again_for_the_sake_of_others(
    plan: Path, engines: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the fourth of six rounds, before op1 and some others had their visit."""
    rule = StopRule(2, 6, min_s=50)
    whole = measure_plan(plan, f"{engines}:Plain", stop=rule)
    kept = whole.read_bytes().splitlines(keepends=True)
    third = next(i for i, line in enumerate(kept) if b'"type":"sample"' in line and b'"visit":3' in line)
    killed = plan / "killed.jsonl"
    killed.write_bytes(b"".join(kept[: third + 1]))
    measure_plan(plan, f"{engines}:Plain", stop=rule, results=killed)
    assert len(visits_in(killed)) == len(set(visits_in(killed)))
    times = {key: [r["at_s"] for r in times_in(killed) if r["key"] == key and "at_s" in r] for key in NAMES}
    assert all(t[-1] - t[0] >= 50 for t in times.values())  # the time before the kill counts

    # All have had 50 s by now: a rule that asks for more of op1 alone asks nothing of the others.
    before = Counter(key for key, _ in visits_in(killed))
    history = work.History

    class Doubting(history):  # type: ignore[misc, valid-type]
        def reached(self, key: str) -> str | None:
            return None if key == "op1" and self.visits(key) < 9 else "ci"

    monkeypatch.setattr(work, "History", Doubting)
    measure_plan(plan, f"{engines}:Plain", stop=StopRule(2, 9, min_s=50), results=killed)
    assert Counter(key for key, _ in visits_in(killed)) == {**before, "op1": 9}


def test_an_entry_that_comes_late_is_spread_as_long_as_the_others(plan: Path, engines: str, clock: Clock) -> None:
    rule = StopRule(2, 6, min_s=50)
    whole = measure_plan(plan, f"{engines}:Plain", stop=rule)
    late = plan / "late.jsonl"
    late.write_bytes(b"".join(line for line in whole.read_bytes().splitlines(keepends=True) if b"op3" not in line))
    measure_plan(plan, f"{engines}:Plain", stop=rule, results=late)
    assert [r["at_s"] for r in times_in(late) if r["key"] == "op3"] == pytest.approx([50 + 10 * i for i in range(6)])
    assert Counter(key for key, _ in visits_in(late)) == dict.fromkeys(NAMES, 6)


def test_a_bound_on_time_takes_what_comes_first_and_another_run_goes_on(
    tmp_path: Path, engines: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, load = ten_ops(tmp_path / "plan"), importlib.import_module(engines).Slow.load

    def slow(self: Any, entry: Any, folder: Path) -> Any:
        clock.now_s += 6  # to load takes 6 s
        return load(self, entry, folder)

    monkeypatch.setattr(importlib.import_module(engines).Slow, "load", slow)
    results = measure_plan(plan, f"{engines}:Slow", minutes=1, stop=QUICK)
    # 40 % of 60 s are for loading: four are begun before 24 s are over
    assert [key for key, n in visits_in(results) if n == 0] == ["op0", "op1", "op2", "op3"]
    assert Counter(key for key, _ in visits_in(results)) == {f"op{i}": 2 for i in range(4)}
    assert sorted(rows_of(results, plan)) == ["op0", "op1", "op2", "op3"]
    measure_plan(plan, f"{engines}:Slow", minutes=1, stop=QUICK)
    assert sorted(rows_of(results, plan)) == [f"op{i}" for i in range(8)]
    measure_plan(plan, f"{engines}:Slow", stop=QUICK)
    assert Counter(key for key, _ in visits_in(results)) == {f"op{i}": 2 for i in range(10)}
    assert len(visits_in(results)) == len(set(visits_in(results)))


def test_time_that_is_up_in_a_later_round_ends_the_run(plan: Path, engines: str, clock: Clock) -> None:
    results = measure_plan(plan, f"{engines}:Plain", stop=StopRule(2, 6, min_s=50), minutes=0.4)
    assert [n for _, n in visits_in(results)] == [0] * 4 + [1] * 4 + [2] * 4  # rounds begin at 0, 10 and 20 of 24 s
    assert clock.now_s == pytest.approx(1024)
    measure_plan(plan, f"{engines}:Plain", stop=StopRule(2, 6, min_s=50))
    assert Counter(key for key, _ in visits_in(results)) == dict.fromkeys(NAMES, 6)


def test_no_time_measures_nothing(plan: Path) -> None:
    results = measure_plan(plan, "fake", minutes=0, stop=QUICK)
    assert times_in(results) == []
    assert collect(results, load_plan(plan))[1] == []


# --- runners and memory


def test_runners_stay_loaded(plan: Path, engines: str) -> None:
    plain = importlib.import_module(engines).Plain
    measure_plan(plan, f"{engines}:Plain", stop=StopRule(4, 4, 0))
    assert sorted(plain.loads) == sorted(plain.closed) == NAMES


def test_runners_are_not_kept_where_memory_is_short(plan: Path, engines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.import_module(engines).Plain
    free = iter([100.0, 90.0, 80.0])  # at the start, and after the first and the second were loaded; then it is short
    monkeypatch.setattr(work, "free_memory_bytes", lambda: next(free, 40.0))
    results = measure_plan(plan, f"{engines}:Plain", stop=StopRule(4, 4, 0))
    kept = sorted(Counter(plain.loads).values())
    assert kept[:2] == [1, 1]  # two fit
    assert all(n in {4, 5} for n in kept[2:])  # once a visit, and once to time the reference
    assert sorted(plain.closed) == sorted(plain.loads)
    assert statuses(results, plan) == dict.fromkeys(NAMES, "ok")


def test_runners_are_not_kept_where_the_memory_of_the_device_is_short(
    plan: Path, engines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = importlib.import_module(engines).Plain
    free = iter([100.0, 90.0])
    monkeypatch.setattr(plain, "capabilities", Capabilities(merges=True, on_host=False))
    monkeypatch.setattr(plain, "free_memory_bytes", lambda _: next(free, 40.0), raising=False)
    measure_plan(plan, f"{engines}:Plain", stop=StopRule(4, 4, 0))
    kept = sorted(Counter(plain.loads).values())
    assert kept[0] == 1
    assert all(n in {4, 5} for n in kept[1:])


def test_only_engines_of_the_host_are_kept_to_its_cpus(
    plan: Path, engines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver of GPUs has threads and mappings of its own."""
    seen: list[str] = []
    monkeypatch.setattr(command_line, "pin_to_cpus", lambda threads: seen.append("pinned"))
    monkeypatch.setattr(command_line, "_limit_memory", lambda: seen.append("limited"))
    monkeypatch.setattr(command_line, "die_with_parent", lambda: None)
    plain = importlib.import_module(engines).Plain
    arguments = [str(plan), "--engine", f"{engines}:Plain", "--json-progress", *RULE]
    command_line.main(["measure", *arguments])
    assert seen == ["pinned", "limited"]
    monkeypatch.setattr(plain, "capabilities", Capabilities(merges=True, on_host=False))
    monkeypatch.setattr(plain, "free_memory_bytes", lambda _: 40.0, raising=False)
    command_line.main(["measure", *arguments])
    assert seen == ["pinned", "limited"]


def test_free_memory_is_read_or_assumed(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    info = tmp_path / "proc/meminfo"
    info.write_text("MemTotal:  8000 kB\nMemAvailable:    2048 kB\n")
    assert free_memory_bytes(tmp_path) == 2 * 2**20
    for text in ("", "MemAvailable:\n", "MemAvailable: many kB\n"):
        info.write_text(text)
        assert free_memory_bytes(tmp_path) == 4 * 2**30
    assert free_memory_bytes(tmp_path / "none") == 4 * 2**30


@pytest.mark.parametrize(
    ("soft", "want"),
    [(resource.RLIM_INFINITY, 900), (100, 100), (5000, 900)],
)
def test_the_limit_of_memory_lowers_and_never_raises(monkeypatch: pytest.MonkeyPatch, soft: int, want: int) -> None:
    limits = [(soft, resource.RLIM_INFINITY)]
    monkeypatch.setattr(command_line, "free_memory_bytes", lambda: 1000.0)
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    command_line._limit_memory()
    assert limits[-1] == (want, resource.RLIM_INFINITY)


@pytest.mark.parametrize(("threads", "want"), [(1, {7}), (2, {6, 7}), (3, {4, 6, 7}), (9, {0, 2, 4, 6, 7})])
def test_pinning_takes_as_many_cpus_as_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int, want: set[int]
) -> None:
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 2, 7, 6}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: pinned.append((pid, cpus)), raising=False)
    pin_to_cpus(threads, tmp_path)
    assert [(pid, set(cpus)) for pid, cpus in pinned] == [(0, want)]


@pytest.mark.parametrize(("threads", "want"), [(1, {3}), (2, {2, 3}), (3, {1, 2, 3})])
def test_pinning_prefers_cpus_of_different_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int, want: set[int]
) -> None:
    pinned = []
    for cpu, core in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").write_text(core + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: pinned.append(set(cpus)), raising=False)
    pin_to_cpus(threads, tmp_path)
    assert pinned == [want]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_a_child_is_pinned(plan: Path, engines: str, tmp_path: Path) -> None:
    out = tmp_path / "pinned"
    (tmp_path / "telling.py").write_text(
        "import os\nfrom hwnas.runtime.engines.fake import Fake\n"
        f"class Telling(Fake):\n    def load(self, *args):\n        open({str(out)!r}, 'w').write("
        "str(len(os.sched_getaffinity(0))))\n        return super().load(*args)\n"
    )
    for threads in (1, 2):
        supervise(plan, "telling:Telling", threads, QUICK, tmp_path / f"{threads}.jsonl")
        assert int(out.read_text()) == min(threads, len(os.sched_getaffinity(0)))


# --- the reference op


def reference_file(path: Path, medians_ms: list[float]) -> Path:
    with Journal(path, {"plan": "p", "where": {}}) as journal:
        for n, ms in enumerate(medians_ms):
            times = {"latency_ms": [ms] * 3, "wall_ms": [ms] * 3}
            journal.append({"type": "reference", "key": "op", "visit": n, "status": "ok", **times})
        journal.append({"type": "reference", "key": "op", "visit": 99, "status": "failed", "reason": "why"})
    return path


def test_conditions_tell_slow_spells_and_drift(tmp_path: Path) -> None:
    steady = conditions(reference_file(tmp_path / "steady.jsonl", [1.0] * 40))
    assert (steady.reference, steady.visits, steady.slow_share, steady.drift) == ("op", 40, 0, 0)
    spell = conditions(reference_file(tmp_path / "spell.jsonl", [1.0, 1.04, 1.06, 1.3] * 10))
    assert (spell.slow_share, spell.drift) == (0.5, 0)
    drift = conditions(reference_file(tmp_path / "drift.jsonl", [1.0] * 20 + [1.03] * 20))
    assert drift.drift == pytest.approx(0.03)
    assert drift.slow_share == 0
    assert conditions(reference_file(tmp_path / "none.jsonl", [])).visits == 0
    assert conditions(reference_file(tmp_path / "one.jsonl", [1.0])).drift == 0


def test_the_reference_is_the_op_in_the_middle_timed_now_and_then(plan: Path) -> None:
    results = measure_plan(plan, "fake", stop=StopRule(20, 20, 0))
    records = times_in(results)
    at = [i for i, r in enumerate(records) if r["type"] == "reference"]
    assert {records[i]["key"] for i in at} == {"op2"}
    assert at[0] <= 4  # as soon as it has been visited
    assert np.diff(at).tolist() == [REFERENCE_EVERY + 1] * (len(at) - 1)
    assert [records[i]["visit"] for i in at] == list(range(len(at)))
    assert (conditions(results).reference, conditions(results).visits) == ("op2", len(at))


def test_networks_are_no_reference(tmp_path: Path) -> None:
    write_plan(tmp_path, [replace(conv_entry("net"), role="net")])
    results = measure_plan(tmp_path, "fake", stop=QUICK)
    assert conditions(results) == Conditions()


def test_a_reference_that_keeps_dying_is_given_up(plan: Path) -> None:
    whole = measure_plan(plan, "fake", stop=QUICK)
    death = {"type": "death", "key": "op2", "visit": 0, "reference": True, "reason": "killed by SIGSEGV"}
    start = {"type": "start", "key": "op2", "visit": 0, "reference": True}
    for n, timed in ((DEATHS_LATER - 1, True), (DEATHS_LATER, False)):
        path = plan / f"{n}.jsonl"
        with Journal(path, header_of(plan)) as journal:
            for record in read_journal(whole)[1]:
                if record["type"] == "reference" or record.get("reference"):
                    break
                journal.append(record)
            for _ in range(n):
                journal.append(start)
                journal.append({**death, "outside": False})
        measure_plan(plan, "fake", stop=QUICK, results=path)
        assert (conditions(path).visits > 0) is timed
        assert rows_of(path, plan) == rows_of(whole, plan)


# --- resume


def test_what_is_there_is_not_measured_again(plan: Path) -> None:
    results = measure_plan(plan, "fake", stop=StopRule(20, 20, 0))
    before = results.read_bytes()
    measure_plan(plan, "fake", stop=StopRule(20, 20, 0))
    assert results.read_bytes() == before


def test_a_run_cut_at_any_line_ends_as_the_whole_one(plan: Path, tmp_path: Path) -> None:
    rule = StopRule(8, 8, 0)
    whole = measure_plan(plan, "fake", stop=rule)
    lines, path = whole.read_bytes().splitlines(keepends=True), tmp_path / "cut.jsonl"
    for cut in range(len(lines)):
        path.write_bytes(b"".join(lines[:cut]) + lines[cut][: cut % len(lines[cut])])
        measure_plan(plan, "fake", stop=rule, results=path)
        assert times_in(path) == times_in(whole)
        assert len(read_journal(path)[1]) - len(read_journal(whole)[1]) in {0, 1}  # one visit may start twice


def test_resuming_30000_records_takes_seconds(tmp_path: Path) -> None:
    entries = [conv_entry(f"op{i:03}", macs=10**6 * (i + 1)) for i in range(300)]
    write_plan(tmp_path, entries)
    path, times = tmp_path / "long.jsonl", [round(1 + i / 7000, 7) for i in range(25)]
    with Journal(path, header_of(tmp_path)) as journal:
        journal.append({"type": "rule", **vars(StopRule(50, 50, 0))})
        for n in range(50):
            for entry in entries:
                which = {"key": entry.key, "visit": n}
                journal.append({"type": "start", **which})
                journal.append({"type": "sample", **which, "status": "ok", "latency_ms": times, "wall_ms": times})
    start_s = time.process_time()
    measure_plan(tmp_path, "fake", stop=StopRule(50, 50, 0), results=path)
    assert time.process_time() - start_s < 3
    start_s = time.process_time()
    assert len(collect(path, load_plan(tmp_path))[1]) == 300
    assert time.process_time() - start_s < 4


# --- whose fault a death is


OWN = {"type": "death", "reason": "killed by SIGSEGV", "outside": False}
OUTSIDE = {"type": "death", "reason": "killed by SIGKILL", "outside": True}


@pytest.mark.parametrize(
    ("end", "times", "measured_before", "reason"),
    [
        (OWN, DEATHS - 1, False, None),
        (OWN, DEATHS, False, "killed by SIGSEGV"),
        (OWN, DEATHS_LATER - 1, True, None),
        (OWN, DEATHS_LATER, True, "killed by SIGSEGV"),
        (OUTSIDE, OUTSIDE_DEATHS - 1, False, None),
        (OUTSIDE, OUTSIDE_DEATHS, False, "killed by SIGKILL"),
        (None, OUTSIDE_DEATHS - 1, False, None),  # everything at once: nobody was left to record a death
        (None, OUTSIDE_DEATHS, False, "everything died several times while it was measured"),
        ({"type": "interrupted"}, 50, False, None),
    ],
)
def test_deaths_at_one_visit(
    plan: Path, end: Record | None, times: int, measured_before: bool, reason: str | None
) -> None:
    path = plan / "r.jsonl"
    visit = int(measured_before)
    which = {"key": "op1", "visit": visit}
    with Journal(path, header_of(plan)) as journal:
        if measured_before:
            times_ms = {"latency_ms": [1.0] * 3, "wall_ms": [1.0] * 3}
            journal.append({"type": "sample", "key": "op1", "visit": 0, "status": "ok", **times_ms})
        for _ in range(times):
            journal.append({"type": "start", **which})
            if end is not None:
                journal.append({**end, **which})
    measure_plan(plan, "fake", stop=QUICK, results=path)
    row = rows_of(path, plan)["op1"]
    assert (row.status, row.reason) == ("ok", "") if reason is None else ("crashed", reason)
    assert {key: s for key, s in statuses(path, plan).items() if key != "op1"} == dict.fromkeys(
        ["op0", "op2", "op3"], "ok"
    )


@pytest.mark.parametrize(("end", "status"), [(OUTSIDE, "ok"), (OWN, "crashed")])
def test_deaths_at_different_visits_add_up_if_they_are_the_engines(plan: Path, end: Record, status: str) -> None:
    path = plan / "r.jsonl"
    times_ms = {"latency_ms": [1.0] * 3, "wall_ms": [1.0] * 3}
    with Journal(path, header_of(plan)) as journal:
        for n in range(5):
            for _ in range(OUTSIDE_DEATHS - 1 if end is OUTSIDE else 1):
                journal.append({"type": "start", "key": "op1", "visit": n})
                journal.append({**end, "key": "op1", "visit": n})
            journal.append({"type": "start", "key": "op1", "visit": n})
            journal.append({"type": "sample", "key": "op1", "visit": n, "status": "ok", **times_ms})
    measure_plan(plan, "fake", stop=StopRule(7, 7, 0), results=path)
    assert statuses(path, plan)["op1"] == status


# --- child processes


def test_supervise_gives_what_measuring_here_gives(plan: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    there = supervise(plan, "fake", 1, QUICK, tmp_path / "there.jsonl", told.append)
    here = measure_plan(plan, "fake", stop=QUICK, results=tmp_path / "here.jsonl")
    assert there.read_bytes() == here.read_bytes()
    assert [(p.done, p.total) for p in told] == [(i, 8) for i in range(1, 9)]
    assert told[0].record["status"] == "ok"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("Segfault", "killed by SIGSEGV"),
        ("Abort", "killed by SIGABRT"),
        ("Bug", "exit code 1 before it was finished; its last words: TypeError: a bug of the engine"),
        ("Exit0", "exit code 0 before it was finished"),
        ("Hang", "no measurement was finished in 1 s"),
        ("Greedy", "exit code 1 before it was finished; its last words: .*Unable to allocate"),
    ],
)
def test_an_entry_that_kills_the_child_twice_is_a_row(plan: Path, engines: str, fault: str, reason: str) -> None:
    results = supervise(plan, f"{engines}:{fault}", stop=QUICK, timeout_s=1)
    rows = rows_of(results, plan)
    assert {key: row.status for key, row in rows.items()} == {**dict.fromkeys(NAMES, "ok"), "op1": "crashed"}
    assert re.match(reason, rows["op1"].reason)
    records = read_journal(results)[1]
    assert [r["type"] for r in records if r.get("key") == "op1"] == ["start", "death"] * 2 + ["sample"]
    assert len(visits_in(results)) == len(set(visits_in(results))) == 7
    assert all(row.measurement.visits == 2 for row in rows.values() if row.measurement)


@pytest.mark.parametrize(("kills", "status"), [(OUTSIDE_DEATHS - 1, "ok"), (OUTSIDE_DEATHS, "crashed")])
def test_kills_from_outside_are_measured_again(
    plan: Path, engines: str, tmp_path: Path, kills: int, status: str
) -> None:
    (tmp_path / "mark").write_text(str(kills))
    results = supervise(plan, f"{engines}:Killed", stop=QUICK)
    assert statuses(results, plan) == {**dict.fromkeys(NAMES, "ok"), "op1": status}
    assert sum(r["type"] == "death" for r in read_journal(results)[1]) == kills


def test_kills_before_anything_is_measured_end_in_an_error(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def killed(command: Any, timeout_s: float, on_progress: Any) -> supervise_module.Death:
        started.append(timeout_s)
        return supervise_module.Death("killed by SIGKILL", outside=True)

    monkeypatch.setattr(supervise_module, "_run_child", killed)
    with pytest.raises(HwnasError, match="died before it measured anything: killed by SIGKILL"):
        supervise(plan, "fake", timeout_s=5, stop=StopRule(min_s=7))
    assert started == [12] * OUTSIDE_DEATHS  # a child may wait for `min_s` between rounds


def test_engines_that_print_do_not_disturb(plan: Path, engines: str) -> None:
    assert statuses(supervise(plan, f"{engines}:Chatty", stop=QUICK), plan) == dict.fromkeys(NAMES, "ok")


def test_a_child_that_cannot_start_is_an_error_with_its_last_words(plan: Path, engines: str) -> None:
    with pytest.raises(HwnasError, match="died before it measured anything: exit code 1 .*cannot even start"):
        supervise(plan, f"{engines}:Broken")


def test_mistakes_come_back_from_the_child_with_their_type(plan: Path, tmp_path: Path) -> None:
    results = measure_plan(plan, "fake", stop=QUICK)
    with pytest.raises(ProvenanceError, match=r"where\.engine\.threads = 1, now it is 2"):
        supervise(plan, "fake", threads=2)
    with Journal(results), pytest.raises(HwnasError, match="another process measures into"):
        supervise(plan, "fake")
    with pytest.raises(HwnasError, match="cannot read a plan at"):
        supervise(tmp_path / "none", "fake")
    with pytest.raises(HwnasError, match="must be positive, got 0"):
        supervise(plan, "fake", timeout_s=0)
    for minutes in (-1.0, float("nan")):
        with pytest.raises(HwnasError, match="minutes must not be negative, got"):
            supervise(plan, "fake", minutes=minutes)


def test_an_interrupted_parent_ends_the_child_and_blames_nobody(plan: Path, engines: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(plan, f"{engines}:Slow", stop=QUICK, on_progress=interrupt)
    with Journal(plan / RESULTS_FILE) as journal:  # nobody holds the lock: the child is gone
        types = [record["type"] for record in journal.records]
        ended = types.count("sample") + types.count("interrupted") + types.count("reference")
        assert types.count("start") == ended
        assert types.count("sample") < 8


def test_an_interrupt_while_measuring_is_no_death(plan: Path, engines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engines_of_tests = importlib.import_module(engines)

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engines_of_tests.Bug, "fault", interrupt)
        for _ in range(OUTSIDE_DEATHS + 1):
            with pytest.raises(KeyboardInterrupt):
                measure_plan(plan, f"{engines}:Bug", stop=QUICK)
    monkeypatch.setattr(engines_of_tests.Bug, "fault", lambda self: None)
    assert statuses(measure_plan(plan, f"{engines}:Bug", stop=QUICK), plan) == dict.fromkeys(NAMES, "ok")


@pytest.fixture
def running(tmp_path: Path, engines: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A command that has just begun to measure 500 entries in a child, and the results file."""
    folder = tmp_path / "long"
    write_plan(folder, [conv_entry(f"op{i:03}", macs=10**6 * (i + 1)) for i in range(500)])
    command = [sys.executable, "-m", "hwnas.runtime", "measure", str(folder), "--engine", f"{engines}:Slow"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        try:
            results = folder / RESULTS_FILE
            wait_until(lambda: results.exists() and results.read_bytes().count(b"\n") > 4)
            yield done, results
        finally:
            done.kill()


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s, "it never came to hold"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_a_killed_parent_takes_its_child_along(plan: Path, engines: str) -> None:
    """Even if it hangs, and so would never notice that nobody listens any more."""
    command = [sys.executable, "-m", "hwnas.runtime", "measure", str(plan), "--engine", f"{engines}:Hang"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    results = plan / RESULTS_FILE
    with subprocess.Popen(command, env=environment) as parent:
        wait_until(lambda: results.exists() and b'"key":"op1","type":"start"' in results.read_bytes())
        (child,) = children(parent.pid)
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{child}/maps").exists() or not Path(f"/proc/{child}/maps").read_bytes(), 5)
    with Journal(results) as journal:  # so the next one can go on at once
        types = Counter(record["type"] for record in journal.records)
    assert types["start"] - types["sample"] - types["reference"] in {0, 1}
    assert not types["death"]


@linux
def test_a_child_that_is_asked_to_end_is_started_again_and_nobody_is_blamed(
    running: tuple[subprocess.Popen[str], Path],
) -> None:
    parent, results = running
    (first,) = children(parent.pid)
    os.kill(first, signal.SIGTERM)
    seen = results.read_bytes().count(b"\n")
    wait_until(lambda: children(parent.pid) not in ([], [first]))
    wait_until(lambda: results.read_bytes().count(b"\n") > seen + 4)
    assert not [r for r in read_journal(results)[1] if r["type"] == "death"]


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_parent_that_is_asked_to_end_takes_its_child_along(
    running: tuple[subprocess.Popen[str], Path], number: signal.Signals
) -> None:
    parent, results = running
    parent.send_signal(number)
    _, err = parent.communicate(timeout=30)
    assert parent.returncode == (130 if number == signal.SIGINT else 143)
    assert "Traceback" not in err
    with Journal(results) as journal:
        types = Counter(record["type"] for record in journal.records)
    assert types["start"] == types["sample"] + types["reference"] + types["interrupted"]


# --- command line


RULE = ("--visits", "2", "--max-visits", "4", "--spread", "0")


def test_main_measures_and_says_what_is_next(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(plan), "--engine", "fake", *RULE]) == 0
    out = capsys.readouterr().out
    assert "[8/8]" in out
    assert "measured 4 of 4 entries on fake-roofline-1 with fake" in out
    assert "0 could not be measured, 0 are doubtful" in out
    assert "the machine was slow 0% of the time; its quiet level drifted by +0.0%" in out
    assert out.endswith(f"next: hwnas profile RECIPE --results {plan / 'results.jsonl'}\n")


def test_main_tells_what_is_left_and_what_crashed(plan: Path, engines: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(plan), "--engine", f"{engines}:Segfault", "--minutes", "0", *RULE]) == 0
    out = capsys.readouterr().out
    assert "measured 0 of 4 entries" in out
    assert "slow" not in out  # nothing is known about the machine
    assert "4 entries are left; next: the same command again" in out
    assert main(["measure", str(plan), "--engine", f"{engines}:Segfault", *RULE]) == 0
    out = capsys.readouterr().out
    assert "measured 3 of 4 entries" in out
    assert "op1: crashed: killed by SIGSEGV" in out


def test_progress_on_a_terminal_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = command_line._Reporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        for done in (1, 2):
            reporter(Progress(done, 9, {"key": "a", "status": "ok", "latency_ms": [1.0, 3.0]}))
        reporter.close()
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.endswith("\n")
    assert [line.split("  ")[:2] for line in out.strip().split("\r")] == [
        ["[1/9] a", "2.000 ms"],
        ["[2/9] a", "2.000 ms"],
    ]


def test_main_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot read a plan at")
    assert err.count("\n") == 1
    four_ops(tmp_path)
    assert main(["measure", str(tmp_path), "--visits", "0"]) == 2
    assert "visits must be at least 1" in capsys.readouterr().err


def test_main_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    assert "example: python -m hwnas.runtime measure plan/" in capsys.readouterr().out


def test_importing_the_runtime_needs_numpy_alone() -> None:
    code = """
import sys, hwnas.runtime.__main__, hwnas.runtime.measuring.work
import hwnas.runtime.engines.fake, hwnas.runtime.engines.onnxruntime
heavy = {"torch", "onnx", "onnxruntime", "scipy", "highspy", "rich", "tyro", "PIL"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
