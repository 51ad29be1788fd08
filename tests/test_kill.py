"""A verb that is killed at any moment goes on with the same command, and ends where it would have ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hwnas.latency import LatencyTable
from hwnas.runtime.journal import read_journal
from hwnas.runtime.plan import load_plan
from hwnas.steplog import StepLog
from tests.verbs import CLI, RECIPE, one_thread

# The recipe darts-tiny with less to measure and more steps, so that there are checkpoints to go on from.
LONGER = """
import sys
from dataclasses import replace
from hwnas import cli
from hwnas.profile import Calibration
from hwnas.recipes import base, darts

def darts_longer():
    tiny = darts.darts_tiny()
    search, train = replace(tiny.search, steps=24), replace(tiny.train, steps=24, evaluate_every=6)
    return replace(
        tiny, name="darts-longer", widths=(4,), search=search, train=train, calibration=Calibration(4, 1), passes=1
    )

base.recipe(darts_longer)
sys.exit(cli.main(sys.argv[1:]))
"""
LONGER_CLI = (sys.executable, "-c", LONGER)
STEPS = list(range(24))


def finish(cwd: Path, *command: str) -> str:
    """Run a command to its end; return what it printed."""
    ended = subprocess.run(command, cwd=cwd, env=one_thread(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    return ended.stdout


def kill(cwd: Path, *command: str, when: Callable[[], bool], group: bool = False) -> None:
    """Start a command and end it by SIGKILL as soon as `when` holds.

    Args:
        cwd: Where it runs.
        command: Its words.
        when: Looked at every few milliseconds.
        group: Whether its child processes are killed with it, as when the power goes; else they outlive it.
    """
    child = subprocess.Popen(
        command, cwd=cwd, env=one_thread(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr is not None
    with child.stderr:
        end_s = time.monotonic() + 120
        while not when():
            assert child.poll() is None, f"it ended before it could be killed: {child.stderr.read().decode()}"
            assert time.monotonic() < end_s, "the moment to kill it never came"
            time.sleep(0.002)
        os.killpg(child.pid, signal.SIGKILL) if group else child.kill()
        assert child.wait() == -signal.SIGKILL, "it was finished before it was killed"


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


def test_profile_on_the_fake_engine(jobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / RECIPE
    command = (*CLI, "profile", RECIPE, "--engine", "fake")
    kill(tmp_path, *command, when=lambda: len(list((run / "plan").glob("ops/*.onnx"))) >= 20)
    assert not (run / "plan" / "plan.json").exists()
    journal = run / "results.jsonl"
    kept: list[bytes] = []
    for n, group in ((30, False), (200, True)):
        kill(tmp_path, *command, when=lambda n=n: lines(journal) >= n, group=group)  # type: ignore[misc]
        now = whole_lines(journal)
        assert now[: len(kept)] == kept
        assert len(now) >= n
        kept = now
        assert not (run / "table.json").exists()
    finish(tmp_path, *command)
    assert whole_lines(journal)[: len(kept)] == kept
    check_measured_once(journal, run / "plan")
    assert (run / "table.json").read_bytes() == (jobs / "profiled" / "runs" / RECIPE / "table.json").read_bytes()


def test_profile_on_onnxruntime(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "darts-longer"
    journal = run / "results.jsonl"
    command = (*LONGER_CLI, "profile", "darts-longer")
    kill(tmp_path, *command, when=lambda: lines(journal) >= 20, group=True)
    kept = whole_lines(journal)
    finish(tmp_path, *command)
    assert whole_lines(journal)[: len(kept)] == kept
    check_measured_once(journal, run / "plan")
    table = LatencyTable.load(run / "table.json")
    assert table.where["engine"]["name"] == "onnxruntime"
    assert all(row.latency_ms > 0 for row in table.rows.values())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run darts-longer, searched and trained without a kill."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    verbs = (("profile", "darts-longer", "--engine", "fake"), ("search", "darts-longer"), ("train", "darts-longer"))
    for verb in verbs:
        finish(folder, *LONGER_CLI, *verb)
    return folder / "runs" / "darts-longer"


def mark(log: Path, before: int) -> None:
    """Mark the lines of the steps before one; only lines of steps that are repeated lose their mark."""
    records = [json.dumps(r | {"mark": 1} if r["step"] < before else r) + "\n" for r in StepLog(log).read()]
    log.write_text("".join(records))


def unmarked(log: Path, before: int) -> list[dict[str, float]]:
    """Return the lines of a log, in which exactly those of the steps before one must be marked."""
    records = StepLog(log).read()
    assert [r["step"] for r in records if r.pop("mark", 0)] == list(range(before))
    return records


def test_search_and_train(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "darts-longer"
    run.mkdir(parents=True)
    for name in ("table.json",):
        (run / name).write_bytes((uninterrupted / name).read_bytes())
    search, train = (*LONGER_CLI, "search", "darts-longer"), (*LONGER_CLI, "train", "darts-longer")

    log = run / "search.jsonl"
    kill(tmp_path, *search, when=lambda: lines(log) >= 3)
    assert not (run / "search.pt").exists()
    kill(tmp_path, *search, when=lambda: lines(log) >= 13)
    assert lines(log) < 20, "it was killed too late to say anything"
    assert not (run / "alphas.json").exists()
    mark(log, before=10)  # the checkpoint is that of step 10
    finish(tmp_path, *search)
    assert unmarked(log, before=10) == StepLog(uninterrupted / "search.jsonl").read()
    for name in ("alphas.json", "arch.json", "run.json"):
        if name != "run.json":
            assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()

    log = run / "train.jsonl"
    kill(tmp_path, *train, when=lambda: lines(log) >= 8)
    assert lines(log) < 12, "it was killed too late to say anything"
    assert not (run / "train" / "model.safetensors").exists()
    mark(log, before=6)
    finish(tmp_path, *train)
    assert unmarked(log, before=6) == StepLog(uninterrupted / "train.jsonl").read()
    assert [r["step"] for r in StepLog(log).read()] == STEPS
    name = "train/model.safetensors"
    assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()
