"""What holds of batches made by worker processes; run by tests/test_batches.py in a process of their own.

Workers are forked, and torch raises in their parent at any moment where one dies: neither is for a process that runs
other tests as well.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.data import ClassList, Sample, SegmentationData, Synthetic
from hwnas.data.augment import batch_source
from hwnas.errors import DataError, HwnasError
from hwnas.learn.batches import Batches, worker_errors
from hwnas.lock import Lock

SIZE = (32, 48)


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


def outlive() -> None:
    """Kill a worker, and go on."""
    batches, source = Batches(workers=1), batch_source(Synthetic("train", SIZE, length=9), range(9), 2, (24, 32), 0)
    batches(source, 0)
    try:
        with worker_errors():
            os.kill(int(children()[0]), signal.SIGKILL)
            for number in range(1, 99):
                batches(source, number)
                time.sleep(0.01)
    except HwnasError as e:
        print(e)
    batches.close()


def test_workers_do_not_hold_the_lock_of_their_parent(tmp_path: Path, data: SegmentationData) -> None:
    batches = Batches(workers=1)
    with Lock(tmp_path / "lock", "held"):
        batches(batch_source(data, range(9), 2, (24, 32), 0), 0)
    with Lock(tmp_path / "lock", "held by a worker"):
        pass
    batches.close()
