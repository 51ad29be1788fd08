"""Batches made ahead by worker processes: they are those that the step would make itself, and nothing outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

from hwnas import checkpoint
from hwnas.data import ClassList, Sample, SegmentationData, Synthetic
from hwnas.data.augment import BatchSource, batch_source
from hwnas.errors import DataError, HwnasError
from hwnas.learn.batches import Batches, default_workers, worker_errors
from hwnas.learn.device import CPU
from hwnas.learn.training import TrainConfig, Training, train
from hwnas.lock import Lock
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


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_two_workers_make_what_none_makes(data: SegmentationData) -> None:
    sources = [batch_source(data, range(9), 2, (24, 32), seed) for seed in (1, 2)]
    alone, ahead, state = Batches(), Batches(workers=2), torch.random.get_rng_state()
    numbers = [0, 1, 2, 3, 7, 8, 2, 3]  # in order, from the middle, and back
    for number in numbers:
        for source in sources:
            for left, right in zip(alone(source, number), ahead(source, number), strict=True):
                assert torch.equal(left, right)
                assert left.stride() == right.stride()
    assert len(children()) >= 4
    assert torch.equal(torch.random.get_rng_state(), state)
    ahead.close()
    assert children() == []


def test_how_many_help_depends_on_the_device() -> None:
    assert default_workers(CPU) == Batches(workers=None).workers == 0
    assert default_workers(torch.device("cuda", 0)) == min(4, os.cpu_count() or 1)
    with pytest.raises(HwnasError, match="the number of workers is 0 or more, got -1"):
        Batches(workers=-1)


CLASSES = ClassList(("one", "two"), ((0, 0, 0),) * 2)


@dataclass(frozen=True)
class Broken:
    """Cannot read one of its images."""

    name: str = "broken/train"
    mean: tuple[float, float, float] = (0.5, 0.4, 0.3)
    std: tuple[float, float, float] = (0.2, 0.3, 0.4)
    classes: ClassList = CLASSES

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        if index == 5:
            raise DataError("cannot read 5.png: it is cut off; copy it again")
        return Sample(np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8), str(index))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_the_data_is_said_in_one_line(workers: int) -> None:
    batches, source = Batches(workers=workers), batch_source(Broken(), range(6), 2, (24, 32), 0)
    with pytest.raises(DataError, match=r"^cannot read 5\.png: it is cut off; copy it again$"):
        _ = [batches(source, number) for number in range(3)]
    batches.close()


def outlive(batches: Batches, source: BatchSource) -> None:
    """Kill a worker, and go on."""
    with worker_errors():
        os.kill(int(children()[0]), signal.SIGKILL)
        for number in range(1, 99):
            batches(source, number)
            time.sleep(0.01)


def test_a_worker_that_is_killed_is_an_error_that_says_so(data: SegmentationData) -> None:
    batches, source = Batches(workers=1), batch_source(data, range(9), 2, (24, 32), 0)
    batches(source, 0)
    with pytest.raises(HwnasError, match="a process that makes batches was ended from outside.*--workers 0"):
        outlive(batches, source)
    batches.close()


def test_workers_do_not_hold_the_lock_of_their_parent(tmp_path: Path, data: SegmentationData) -> None:
    batches = Batches(workers=1)
    with Lock(tmp_path / "lock", "held"):
        batches(batch_source(data, range(9), 2, (24, 32), 0), 0)
    with Lock(tmp_path / "lock", "held by a worker"):
        pass
    batches.close()


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


@pytest.mark.parametrize("kind", ["search", "train"])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
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
    for _ in range(4):
        for t in (plain, averaged):
            t.advance()
        for k, v in plain.net.named_parameters():
            expected[k] = v.detach().clone() if k not in expected else torch.lerp(expected[k], v.detach(), 0.1)
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
