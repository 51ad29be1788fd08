"""Batches made ahead by worker processes: they are those that the step would make itself, and nothing outlives it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

from hwnas import checkpoint
from hwnas.data import SegmentationData, Synthetic
from hwnas.errors import HwnasError
from hwnas.learn.batches import Batches, default_workers
from hwnas.learn.device import CPU
from hwnas.learn.training import TrainConfig, Training, train
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.strategy import search
from hwnas.spaces import Scale, darts_space, sample
from hwnas.steplog import StepLog

SIZE = (32, 48)
ROOT = Path(__file__).parents[1]
SPACE = darts_space(Scale(4, 3, SIZE), 11, ops=("none", "skip_connect", "sep_conv_3x3"), nodes=1, head_channels=8)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


def test_how_many_help_depends_on_the_device() -> None:
    assert default_workers(CPU) == Batches(workers=None).workers == 0
    assert default_workers(torch.device("cuda", 0)) == min(4, os.cpu_count() or 1)
    with pytest.raises(HwnasError, match="the number of workers is 0 or more, got -1"):
        Batches(workers=-1)


def test_they_hold_with_workers(tmp_path: Path) -> None:
    options = (
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(ROOT / "tests" / "worker_laws.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout, done.stdout[-300:]


def test_a_worker_that_is_killed_is_an_error_that_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.worker_laws import outlive; outlive()"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.match("a process that makes batches was ended from outside.*--workers 0", done.stdout), done


# Searches or trains in the folder it is given, with workers.
PROGRAM = """
import sys
from tests.test_batches import go
go(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""
SEARCH = SearchConfig(SPACE.scale, steps=30, warmup=2, batch=2, crop=(24, 32), w_lr=0.1, checkpoint_every=1)
TRAIN = TrainConfig(steps=30, batch=2, crop=(24, 32), evaluate_every=15, checkpoint_every=1, average=0.9)


def go(kind: str, folder: str, workers: int) -> None:
    """Search or train to the end, resuming from what is there."""
    torch.set_num_threads(1)
    path, fitted = Path(folder), Synthetic("train", SIZE, length=9)
    log = StepLog(path / "log.jsonl")
    path.mkdir(exist_ok=True)
    if kind == "search":
        search(BilevelSearch(SPACE, SEARCH, fitted, workers=workers), path / "checkpoint.pt", {}, log)
    else:
        arch = sample(SPACE, np.random.default_rng(0))
        training = Training(SPACE, arch, TRAIN, fitted, workers=workers)
        train(training, Synthetic("val", SIZE, length=3), path, {}, log)


def start(kind: str, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind, str(folder), str(workers)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def lines(folder: Path) -> list[dict[str, object]]:
    return [{**json.loads(x), "seconds": 0} for x in (folder / "log.jsonl").read_bytes().splitlines()]


def alive(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("search", 1),
        *(
            pytest.param(kind, kills, marks=pytest.mark.slow)
            for kind, kills in [("train", 1), ("search", 20), ("train", 20)]
        ),
    ],
)
def test_kills_with_workers_change_nothing_and_leave_nobody_behind(tmp_path: Path, kind: str, kills: int) -> None:
    go(kind, str(tmp_path / "whole"), 0)
    rng, folder, killed = np.random.default_rng(kills), tmp_path / "killed", 0
    while killed < kills:
        with start(kind, folder, 2) as process:
            log = folder / "log.jsonl"
            before = log.read_bytes().count(b"\n") if log.exists() else 0
            target, late_s = before + int(rng.integers(0, 30 // kills)), float(rng.uniform(0, 0.05))
            while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > target):
                time.sleep(0.005)
            time.sleep(late_s)
            ended = process.poll() is not None
            process.kill()
            if not ended:
                killed += 1
            end_s = time.monotonic() + 30
            while alive(process.pid):
                assert time.monotonic() < end_s, "a worker outlived its parent"
                time.sleep(0.05)
        if ended:
            assert process.returncode == 0
            check(kind, folder, tmp_path / "whole")
            shutil.rmtree(folder)
    with start(kind, folder, 2) as process:
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    check(kind, folder, tmp_path / "whole")


def check(kind: str, folder: Path, whole: Path) -> None:
    """Hold what came out against what came of an uninterrupted run without workers."""
    assert lines(folder) == lines(whole)
    if kind == "train":
        assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    left, right = (tree_flatten(checkpoint.read(f / "checkpoint.pt")) for f in (folder, whole))
    assert left[1] == right[1]
    for one, other in zip(left[0], right[0], strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_ctrl_c_ends_quietly(tmp_path: Path) -> None:
    with start("search", tmp_path / "run", 2) as process:
        while not (tmp_path / "run" / "log.jsonl").exists() or len(lines(tmp_path / "run")) < 3:
            time.sleep(0.02)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert said.decode().count("Traceback") == 1  # that of the program, which has no command line around it
    assert said.decode().rstrip().endswith("KeyboardInterrupt")
    assert alive(process.pid) == []


def test_settings_of_a_training_say_what_is_averaged() -> None:
    with pytest.raises(HwnasError, match="average from 0 to less than 1"):
        replace(TRAIN, average=1.0)


def test_averaged_weights_are_what_is_judged_and_kept(data: SegmentationData) -> None:
    arch = sample(SPACE, np.random.default_rng(0))
    plain, averaged = (Training(SPACE, arch, replace(TRAIN, average=a), data) for a in (0.0, 0.9))
    expected: dict[str, torch.Tensor] = {}
    for n in range(4):
        for t in (plain, averaged):
            t.advance()
        share = 1 - min(0.9, (1 + n) / (10 + n))  # of the newest weights; the first ones are taken as they are
        for k, v in plain.net.named_parameters():
            expected[k] = torch.lerp(expected.get(k, v.detach()), v.detach(), share)
    for k, v in averaged.net.named_parameters():
        assert torch.equal(v, dict(plain.net.named_parameters())[k])  # the training itself is the same
    averaged.judge(Synthetic("val", SIZE, length=2))
    for k, value in expected.items():
        torch.testing.assert_close(averaged.best[k], value)


def test_a_teacher_adds_its_loss(data: SegmentationData) -> None:
    arch = sample(SPACE, np.random.default_rng(0))
    seen: list[torch.Size] = []

    def teacher(images: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.extend((images.shape, scores.shape))
        return 3 + 0 * scores.sum()

    alone, taught = (Training(SPACE, arch, TRAIN, data, teacher=t) for t in (None, teacher))
    assert float(taught.advance()["loss"]) == pytest.approx(float(alone.advance()["loss"]) + 3, rel=1e-6)
    assert seen == [torch.Size([2, 3, 24, 32]), torch.Size([2, 11, 24, 32])]
