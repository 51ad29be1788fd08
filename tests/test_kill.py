"""A verb that is killed at any moment goes on with the same command, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from hwnas.latency import LatencyTable
from hwnas.runtime.journal import read_journal
from hwnas.runtime.plan import load_plan
from hwnas.steplog import StepLog
from tests.verbs import RECIPE, camvid_folder

# Imports the command line once, then runs one command after the other, each in a process of its own: reads a JSON list
# (folder, file for what it prints, words), prints the process's number, and when it has ended how.
STARTER = """
import json, os, sys
from dataclasses import replace
from hwnas import cli
from hwnas.profile import Calibration
from hwnas.recipes import base, darts
from hwnas.spaces import trace_space

def darts_longer():
    # less to measure than darts-tiny and more steps, so that there are checkpoints to go on from
    tiny = darts.darts_tiny()
    search, train = replace(tiny.search, steps=16), replace(tiny.train, steps=12, evaluate_every=4)
    return replace(
        tiny, name="darts-longer", widths=(4,), search=search, train=train, calibration=Calibration(4, 1), passes=1
    )

base.recipe(darts_longer)
trace_space(darts_longer().space)  # torch imports more when it is first used
import torch._dynamo
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
LONGER = "darts-longer"


class Starter:
    """Starts commands in processes of their own, and kills them."""

    def __init__(self, process: subprocess.Popen[str], printed: Path) -> None:
        self._process, self._printed = process, printed

    def finish(self, folder: Path, *words: str) -> None:
        """Run a command to its end, which must be a good one."""
        self._start(folder, words)
        assert self._read() == 0, self._printed.read_text()

    def kill(self, folder: Path, *words: str, when: Callable[[], bool], group: bool = False) -> None:
        """Start a command and end it by SIGKILL as soon as `when` holds.

        Args:
            folder: Where it runs.
            words: The command.
            when: Looked at every few milliseconds.
            group: Whether its child processes are killed with it, as when the power goes; else they outlive it.
        """
        pid = self._start(folder, words)
        end_s = time.monotonic() + 120
        while not when():
            assert time.monotonic() < end_s, "the moment to kill it never came"
            if self._ended():
                pytest.fail(f"it ended with {self._read()} before it could be killed: {self._printed.read_text()}")
            time.sleep(0.002)
        (os.killpg if group else os.kill)(pid, signal.SIGKILL)
        assert self._read() == -signal.SIGKILL, "it was finished before it was killed"

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
    """Every entry was measured as often as it was tried, and no pass of it twice."""
    _, records = read_journal(results)
    samples = Counter((r["key"], r["pass"]) for r in records if r["type"] == "sample")
    assert set(samples.values()) == {1}
    assert {key for key, _ in samples} == {e.key for e in load_plan(plan).entries}
    assert {r["status"] for r in records if r["type"] == "sample"} == {"ok"}


def test_profile_on_the_fake_engine(starter: Starter, jobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / RECIPE
    command = ("profile", RECIPE, "--engine", "fake")
    starter.kill(tmp_path, *command, when=lambda: len(list((run / "plan").glob("ops/*.onnx"))) >= 20)
    assert not (run / "plan" / "plan.json").exists()
    journal = run / "results.jsonl"
    kept: list[bytes] = []
    for n, group in ((30, False), (120, True)):
        starter.kill(tmp_path, *command, when=partial(has_lines, journal, n), group=group)
        now = whole_lines(journal)
        assert now[: len(kept)] == kept
        assert len(now) >= n
        kept = now
        assert not (run / "table.json").exists()
    starter.finish(tmp_path, *command)
    assert whole_lines(journal)[: len(kept)] == kept
    check_measured_once(journal, run / "plan")
    assert (run / "table.json").read_bytes() == (jobs / "profiled" / "runs" / RECIPE / "table.json").read_bytes()


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
    assert all(row.latency_ms > 0 for row in table.rows.values())


def mark(log: Path) -> int:
    """Mark all lines of a log and return their number; only lines of steps that are repeated lose their mark."""
    records = StepLog(log).read()
    log.write_text("".join(json.dumps(r | {"mark": 1}) + "\n" for r in records))
    return len(records)


def check_log(log: Path, whole: Path, marked: int, every: int) -> None:
    """Hold a log against that of an uninterrupted run: at most the steps since a checkpoint were repeated.

    Args:
        log: Of the run that was killed, marked, and finished.
        whole: Of the uninterrupted run.
        marked: How many lines were marked.
        every: Steps between checkpoints.
    """
    records = StepLog(log).read()
    kept = [r["step"] for r in records if r.pop("mark", 0)]
    assert records == StepLog(whole).read()
    assert kept == list(range(len(kept)))
    # A step's line is written before its checkpoint.
    assert len(kept) in {marked // every * every, (marked - 1) // every * every} - {0}


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
    starter.kill(cwd, "search", LONGER, *data, when=lambda: lines(log) >= 3)
    assert not (run / "search.pt").exists()
    starter.kill(cwd, "search", LONGER, when=lambda: lines(log) >= 11)
    assert not (run / "alphas.json").exists()
    marked = mark(log)
    starter.finish(cwd, "search", LONGER)
    check_log(log, uninterrupted / "search.jsonl", marked, every=10)
    for name in ("alphas.json", "arch.json", "run.json"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()

    log = run / "train.jsonl"
    starter.kill(cwd, "train", LONGER, when=lambda: lines(log) >= 6)
    assert not (run / "train" / "model.safetensors").exists()
    marked = mark(log)
    starter.finish(cwd, "train", LONGER)
    check_log(log, uninterrupted / "train.jsonl", marked, every=4)
    assert [r["step"] for r in StepLog(log).read()] == list(range(12))
    name = "train/model.safetensors"
    assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()
