"""A verb that is killed at any moment goes on with the same command, and ends where it would have ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from hwnas import checkpoint
from hwnas.latency import LatencyTable
from hwnas.profile import Calibration, build_table, make_plan
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.fake import modelled_ms
from hwnas.runtime.measuring.device import provenance
from hwnas.runtime.measuring.journal import Journal, read_journal
from hwnas.runtime.measuring.plan import Plan, load_plan
from hwnas.runtime.measuring.results import collect
from hwnas.spaces import Scale, darts_space
from hwnas.steplog import StepLog
from tests.runtime_cases import spells
from tests.verbs import RECIPE, camvid_folder

# Imports the command line once, then runs one command after the other, each in a process of its own: reads a JSON list
# (folder, file for what it prints, words), prints the process's number, and when it has ended how.
STARTER = """
import json, os, sys
from dataclasses import replace
from hwnas import cli, jobs
from hwnas.profile import Calibration
from hwnas.recipes import base, darts
from hwnas.spaces import trace_space

def darts_longer():
    # less to measure than darts-tiny and more steps, so that there are checkpoints to go on from
    tiny = darts.darts_tiny()
    tiny, train = tiny.searching(steps=16), replace(tiny.train, steps=12, evaluate_every=4)
    calibration = Calibration(fit=4, test=1, derived=1, isolated=False)
    return replace(tiny, name="darts-longer", widths=(4,), train=train, calibration=calibration)

def darts_every():
    # a checkpoint after every step, whatever it costs
    longer = darts_longer()
    return replace(longer.searching(steps=40, checkpoint_every=1), name="darts-every")

base.recipe(darts_longer)
base.recipe(darts_every)
trace_space(darts_longer().space)  # torch imports more when it is first used
import torch._dynamo
import hwnas.show.deriving, hwnas.show.shipping
all_jobs = [getattr(jobs, name) for name in jobs.__all__]  # a verb imports its job when it is called
for line in sys.stdin:
    folder, printed, words = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = cli.main(words)
        sys.stdout.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
LONGER, EVERY = "darts-longer", "darts-every"


class Starter:
    """Starts commands in processes of their own, and kills them."""

    def __init__(self, process: subprocess.Popen[str], printed: Path) -> None:
        self._process, self._printed = process, printed

    def finish(self, folder: Path, *words: str) -> None:
        """Run a command to its end, which must be a good one."""
        self._start(folder, words)
        assert self._read() == 0, self._printed.read_text()

    def kill(self, folder: Path, *words: str, when: Callable[[], bool], group: bool = False) -> None:
        """Start a command and end it by SIGKILL as soon as `when` holds, which must be before it ends by itself.

        Args:
            folder: Where it runs.
            words: The command.
            when: Looked at every few milliseconds.
            group: Whether its child processes are killed with it, as when the power goes; else they outlive it.
        """
        assert self.try_kill(folder, *words, when=when, group=group), self._printed.read_text()

    def try_kill(self, folder: Path, *words: str, when: Callable[[], bool], group: bool = False) -> bool:
        """Do the same, but let a command that ends well before that do so; return whether it was killed."""
        pid = self._start(folder, words)
        end_s = time.monotonic() + 120
        while not when() and not self._ended():
            assert time.monotonic() < end_s, "the moment to kill it never came"
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
        code = self._read()
        assert code in (0, -signal.SIGKILL), self._printed.read_text()
        return code != 0

    def _start(self, folder: Path, words: Sequence[str]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(folder), str(self._printed), words]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def _ended(self) -> bool:
        return bool(select.select([self._process.stdout], [], [], 0)[0])


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """A process that has imported everything and starts verbs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # with more threads sums need not come out the same
    with subprocess.Popen(
        (sys.executable, "-c", STARTER), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Starter(process, tmp_path_factory.mktemp("starter") / "printed.txt")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def has_lines(path: Path, n: int) -> bool:
    return lines(path) >= n


def lines(path: Path) -> int:
    """Return the number of whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def whole_lines(path: Path) -> list[bytes]:
    """Return the whole lines of a file."""
    return path.read_bytes().split(b"\n")[:-1]


def check_measured_once(results: Path, plan: Path) -> None:
    """Every entry was measured, and no visit to it twice."""
    _, records = read_journal(results)
    samples = Counter((r["key"], r["visit"]) for r in records if r["type"] == "sample")
    assert set(samples.values()) == {1}
    assert {key for key, _ in samples} == {e.key for e in load_plan(plan).entries}
    assert {r["status"] for r in records if r["type"] == "sample"} == {"ok"}


# --- the process that measures

ROOT = Path(__file__).parents[1]
VISITS = 24  # in the recording
RULE = ("--visits", "3", "--max-visits", str(VISITS), "--spread", "0")


class Whole(NamedTuple):
    """An uninterrupted run, to hold others against."""

    plan: Path
    recording: Path
    results: Path
    start_s: float  # until the first visit is over


def write_recording(path: Path, plan: Plan) -> None:
    """Write a results file as of a restless machine: all times of all visits differ, some visits are slow."""
    rng = np.random.default_rng(0)
    with Journal(path, {"plan": plan.id, "where": provenance(open_engine("fake"))}) as journal:
        for entry in plan.entries:
            medians_ms = modelled_ms(entry) * spells(rng, VISITS, slow_share=0.5) * rng.uniform(1, 1.05, VISITS)
            for n, ms in enumerate(medians_ms):
                times = np.round(ms * rng.uniform(0.99, 1.01, 3), 7).tolist()
                record = {"type": "sample", "key": entry.key, "visit": n, "status": "ok"}
                journal.append({**record, "latency_ms": times, "wall_ms": times})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    base = tmp_path_factory.mktemp("whole")
    scale = Scale(4, 3, (48, 64))
    make_plan(darts_space(scale, 11), [scale], base / "plan", Calibration(fit=3, test=2, isolated=False))
    write_recording(base / "recording.jsonl", load_plan(base / "plan"))
    whole = Whole(base / "plan", base / "recording.jsonl", base / "results.jsonl", 0.0)
    begin_s = time.monotonic()
    with start_measuring(whole, whole.results) as process:
        while lines(whole.results) < 4:
            time.sleep(0.001)
        start_s = time.monotonic() - begin_s
        assert process.wait(120) == 0
    build_table(whole.plan, whole.results).save(base / "table.json")
    stops = {row.measurement.stop for row in collect(whole.results, load_plan(whole.plan))[1] if row.measurement}
    assert stops == {"ci", "stable", "timeout"}  # or the kills would show little
    return whole._replace(start_s=start_s)


def start_measuring(whole: Whole, results: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hwnas.runtime", "measure", str(whole.plan), "--engine", "fake", *RULE]
    environment = {**os.environ, "HWNAS_FAKE_REPLAY": str(whole.recording), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--results", str(results)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Killer:
    """Kills runs at random moments, and holds each that comes to its end against the uninterrupted one."""

    def __init__(self, whole: Whole, folder: Path, kills: int) -> None:
        self._whole, self._folder, self._kills = whole, folder, kills
        self._rng = np.random.default_rng(kills)
        self._size = whole.results.stat().st_size
        self._before = 0  # kills of earlier runs
        self.finished = 0
        self.victims: Counter[str] = Counter()
        self.stages: Counter[int] = Counter()  # tenths of a run; -1 before it measures

    @property
    def _results(self) -> Path:
        return self._folder / f"{self.finished}.jsonl"

    def run(self) -> None:
        """Start runs and kill them until all kills are spent and the last run is finished."""
        while self.victims.total() < self._kills or self._results.exists():
            with start_measuring(self._whole, self._results) as process:
                while self.victims.total() < self._kills and self._wait(process) and self._kill(process):
                    pass
                code = process.wait(120)
                assert process.stderr is not None
                said = process.stderr.read()
            if code == 0:
                self._check()
            elif code == 2:  # killed again and again before it measured anything: the same command goes on
                assert "died before it measured anything: killed by SIGKILL" in said
            else:
                assert code == -signal.SIGKILL, said

    def _wait(self, process: subprocess.Popen[str]) -> bool:
        """Wait for a random moment; return whether it came before the end.

        One moment in four is taken by the clock, so that starts are hit too; the others by what was measured.
        """
        if self._rng.random() < 0.25:
            self._sleep(process, lambda: False, float(self._rng.uniform(0, self._whole.start_s)))
        else:
            target = self._length() + self._rng.exponential(2 * self._size / self._kills)  # through more than one run
            self._sleep(process, lambda: self._length() >= target, 120)
            self._sleep(process, lambda: False, float(self._rng.uniform(0, 0.002)))
        return process.poll() is None

    def _sleep(self, process: subprocess.Popen[str], until: Callable[[], bool], seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not until() and process.poll() is None:
            time.sleep(0.0005)

    def _kill(self, process: subprocess.Popen[str]) -> bool:
        """Kill the process, its child, or both; return whether the process goes on."""
        victim = str(self._rng.choice(["parent", "child", "group"]))
        if victim == "child":
            found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if not found:
                return True  # not started yet
            os.kill(int(found[0]), signal.SIGKILL)
        else:
            (os.killpg if victim == "group" else os.kill)(process.pid, signal.SIGKILL)
        self.victims[victim] += 1
        self.stages[int(10 * self._length() / self._size) if self._length() else -1] += 1
        return victim == "child"

    def _length(self) -> int:
        return self._results.stat().st_size if self._results.exists() else 0

    def _check(self) -> None:
        _, records = read_journal(self._results)
        kinds = Counter(r["type"] for r in records)
        unfinished = kinds["start"] - kinds["sample"] - kinds["reference"]
        kills = self.victims.total() - self._before
        assert 0 <= kinds["death"] <= unfinished <= kills  # at most one measurement is repeated for each kill
        check_measured_once(self._results, self._whole.plan)
        assert measured(self._results) == measured(self._whole.results)
        table = self._folder / "table.json"
        build_table(self._whole.plan, self._results).save(table)
        assert table.read_bytes() == (self._whole.results.parent / "table.json").read_bytes()
        self._before = self.victims.total()
        self.finished += 1


def measured(results: Path) -> list[bytes]:
    """Return the lines of a results file that hold times."""
    return [line for line in whole_lines(results) if b'"type":"sample"' in line or b'"type":"reference"' in line]


@pytest.mark.skipif(sys.platform != "linux", reason="finds children in /proc")
@pytest.mark.parametrize("kills", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(whole: Whole, tmp_path: Path, kills: int) -> None:
    recorded = [r["latency_ms"] for r in read_journal(whole.recording)[1]]
    assert len({tuple(times) for times in recorded}) == len(recorded)
    killer = Killer(whole, tmp_path, kills)
    killer.run()
    assert killer.finished >= 1
    assert killer.victims.total() == kills
    assert all(killer.victims[victim] >= kills / 10 for victim in ("parent", "child", "group"))
    assert len(killer.stages.keys() - {-1}) >= (10 if kills > 100 else 5)


# --- verbs


def test_profile_on_the_fake_engine(starter: Starter, jobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / RECIPE
    command = ("profile", RECIPE, "--engine", "fake")
    starter.kill(tmp_path, *command, when=lambda: len(list((run / "plan").glob("ops/*.onnx"))) >= 20)
    assert not (run / "plan" / "plan.json").exists()
    journal = run / "results.jsonl"
    kept: list[bytes] = []
    for more, group in ((30, False), (60, True)):
        n = len(kept) + more  # what the child of a killed parent still wrote counts as kept
        starter.kill(tmp_path, *command, when=partial(has_lines, journal, n), group=group)
        time.sleep(0.2)
        now = whole_lines(journal)
        assert now[: len(kept)] == kept
        assert len(now) >= n
        kept = now
        assert not (run / "table.json").exists()
    starter.finish(tmp_path, *command)
    assert whole_lines(journal)[: len(kept)] == kept
    check_measured_once(journal, run / "plan")
    assert (run / "table.json").read_bytes() == (jobs / "profiled" / "runs" / RECIPE / "table.json").read_bytes()


@pytest.mark.slow
def test_profile_on_onnxruntime(starter: Starter, tmp_path: Path) -> None:
    run = tmp_path / "runs" / LONGER
    journal = run / "results.jsonl"
    starter.kill(tmp_path, "profile", LONGER, when=lambda: lines(journal) >= 20, group=True)
    kept = whole_lines(journal)
    starter.finish(tmp_path, "profile", LONGER)
    assert whole_lines(journal)[: len(kept)] == kept
    check_measured_once(journal, run / "plan")
    table = LatencyTable.load(run / "table.json")
    assert table.where["engine"]["name"] == "onnxruntime"
    assert {row.status for row in table.rows.values()} <= {"ok", "doubtful"}
    assert all(net.latency_ms > 0 for net in table.nets)  # an op may be free inside a network, a network is not


def mark(log: Path) -> int:
    """Mark all lines of a log and return their number; only lines of steps that are repeated lose their mark."""
    records = StepLog(log).read()
    log.write_text("".join(json.dumps(r | {"mark": 1}) + "\n" for r in records))
    return len(records)


def check_log(log: Path, whole: Path, marked: int, kept_steps: Container[int]) -> None:
    """Hold a log against that of an uninterrupted run: only the steps since a checkpoint were repeated.

    Args:
        log: Of the run that was killed, marked, and finished.
        whole: Of the uninterrupted run.
        marked: How many lines were marked.
        kept_steps: How many of them may have been kept.
    """
    records, expected = ([r | {"seconds": 0} for r in StepLog(path).read()] for path in (log, whole))
    kept = [r["step"] for r in records if r.pop("mark", 0)]
    assert records == expected
    assert kept == list(range(len(kept)))
    assert len(kept) in kept_steps, f"{len(kept)} of {marked}"


def test_search_and_train(starter: Starter, jobs: Path, tmp_path: Path) -> None:
    data = ("--data", str(camvid_folder(tmp_path / "pictures")))
    for folder in (tmp_path / "whole", tmp_path / "killed"):
        run = folder / "runs" / LONGER
        run.mkdir(parents=True)
        shutil.copy(jobs / "profiled" / "runs" / RECIPE / "table.json", run)  # has all that is needed and more
    for verb in ("search", "train"):
        starter.finish(tmp_path / "whole", verb, LONGER, *(data if verb == "search" else ()))
    uninterrupted, cwd = tmp_path / "whole" / "runs" / LONGER, tmp_path / "killed"

    log = run / "search.jsonl"
    starter.kill(cwd, "search", LONGER, *data, when=lambda: lines(log) >= 1)
    starter.kill(cwd, "search", LONGER, when=lambda: lines(log) >= 11)
    assert not (run / "alphas.json").exists()
    marked = mark(log)
    starter.finish(cwd, "search", LONGER)
    check_log(log, uninterrupted / "search.jsonl", marked, range(marked - 10, marked + 1))  # ten are lost at most
    for name in ("alphas.json", "arch.json", "run.json"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()

    log = run / "train.jsonl"
    starter.kill(cwd, "train", LONGER, when=lambda: lines(log) >= 6)
    assert not (run / "train" / "model.safetensors").exists()
    marked = mark(log)
    starter.finish(cwd, "train", LONGER)
    check_log(log, uninterrupted / "train.jsonl", marked, range(marked - 4, marked + 1))  # four are lost at most
    assert [r["step"] for r in StepLog(log).read()] == list(range(12))
    name = "train/model.safetensors"
    assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()


class SearchKiller:
    """Kills searches at random moments, and holds each that comes to its end against the uninterrupted one."""

    def __init__(self, starter: Starter, table: Path, folder: Path, kills: int) -> None:
        self._starter, self._table, self._folder, self._kills = starter, table, folder, kills
        self._rng = np.random.default_rng(kills)
        self._whole = self._new("whole")
        begin_s = time.monotonic()
        starter.finish(folder / "whole", "search", EVERY)
        self._seconds = time.monotonic() - begin_s
        self._steps = lines(self._whole / "search.jsonl")
        self.killed = self.finished = self.repeated = self._marked = 0
        self.stages: Counter[int] = Counter()  # tenths of the steps; -1 before the first, 10 after the last

    def _new(self, name: str) -> Path:
        run = self._folder / name / "runs" / EVERY
        run.mkdir(parents=True)
        shutil.copy(self._table, run)  # has all that is needed and more
        return run

    def run(self) -> None:
        """Start searches and kill them until all kills are spent and the last search is finished."""
        while self.killed < self._kills:
            run = self._new(str(self.finished))
            while self.killed < self._kills and self._starter.try_kill(
                run.parents[1], "search", EVERY, when=self._moment(run / "search.jsonl")
            ):
                self._look(run)
            self._starter.finish(run.parents[1], "search", EVERY)
            self._check(run)

    def _moment(self, log: Path) -> Callable[[], bool]:
        """Return when to kill next: one moment in four by the clock, so that starts and ends are hit, else by steps.

        Half of the latter are right after a step's line is written, which is while its checkpoint is.
        """
        if self._rng.random() < 0.25:
            end_s = time.monotonic() + float(self._rng.uniform(0, 0.4 * self._seconds))
            return lambda: time.monotonic() >= end_s
        target = lines(log) + self._rng.exponential(self._steps / self._kills / 2)
        later_s, seen_s = float(self._rng.choice([0.0, self._rng.uniform(0, self._seconds / self._steps)])), 0.0

        def reached() -> bool:
            nonlocal seen_s
            if not seen_s and lines(log) >= target:
                seen_s = time.monotonic()
            return bool(seen_s) and time.monotonic() >= seen_s + later_s

        return reached

    def _look(self, run: Path) -> None:
        """Hold what a kill left against the checkpoint, and mark what was done, to see what of it is done again."""
        log, saved = run / "search.jsonl", run / "search.pt"
        steps = len(self._repeats(log))
        done = checkpoint.read(saved)["step"] if saved.exists() else 0
        assert 0 <= steps - done <= 1, f"{steps} steps were done and {done} of them kept"
        if log.exists():
            self._marked = mark(log)
        self.killed += 1
        self.stages[int(10 * steps / self._steps) if steps else -1] += 1

    def _repeats(self, log: Path) -> list[dict[str, Any]]:
        """Return the lines of a log, less their marks: of those that were marked, one at most is there anew."""
        records = StepLog(log).read()
        assert [r["step"] for r in records] == list(range(len(records)))
        lost = self._marked - sum(r.pop("mark", 0) for r in records)
        assert 0 <= lost <= 1, f"{lost} of {self._marked} steps were done again"
        self.repeated += lost
        self._marked = 0
        return [r | {"seconds": 0} for r in records]

    def _check(self, run: Path) -> None:
        assert self._repeats(run / "search.jsonl") == self._repeats(self._whole / "search.jsonl")
        for name in ("alphas.json", "arch.json", "run.json"):
            assert (run / name).read_bytes() == (self._whole / name).read_bytes(), name
        self.finished += 1


@pytest.mark.slow  # shorter ones are in test_search_and_train
@pytest.mark.parametrize("kills", [6, 50])
def test_a_search_killed_at_random_moments_loses_a_step_at_most_each_time(
    starter: Starter, jobs: Path, tmp_path: Path, kills: int
) -> None:
    killer = SearchKiller(starter, jobs / "profiled" / "runs" / RECIPE / "table.json", tmp_path, kills)
    killer.run()
    print(f"{killer.killed} kills, {killer.finished} searches, {killer.repeated} steps repeated, {killer.stages}")
    assert killer.killed == kills
    assert killer.finished >= 1
    assert killer.repeated <= kills
    assert len(killer.stages.keys() - {-1, 10}) >= (8 if kills >= 50 else 2)
