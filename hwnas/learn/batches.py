"""Batches made ahead by worker processes: those that the step would make itself, whatever the number of workers."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hwnas.errors import HwnasError
from hwnas.learn.device import CPU
from hwnas.learn.losses import Batch, tensors

Source = Callable[[int], tuple[Any, Any]]  # a batch by its number: `hwnas.data.augment.BatchSource`
MOST = 4  # workers for each source that are started unasked
AHEAD = 2  # batches that each worker makes ahead
_DIED = "DataLoader worker"  # how torch's message begins


def default_workers(device: torch.device) -> int:
    """Return how many workers help: on a CPU none, since the network takes every core; see scripts/bench/workers.py."""
    return 0 if device.type == "cpu" else min(MOST, os.cpu_count() or 1)


class Batches:
    """Batches of several sources by number, in pinned memory where they go to a GPU.

    Each source has workers of its own, started when its first batch is asked for, from that number on. They share what
    the dataset has read by then. Batches are asked for in order; another number starts the workers anew.
    """

    def __init__(self, device: torch.device = CPU, workers: int | None = 0) -> None:
        """Take what the batches are for; nothing is started.

        Args:
            device: Where they go.
            workers: Processes for each source; None for `default_workers`.

        Raises:
            HwnasError: If the number is negative.
        """
        if workers is not None and workers < 0:
            raise HwnasError(f"the number of workers is 0 or more, got {workers}")
        self.workers = default_workers(device) if workers is None else workers
        self._pinned = device.type == "cuda"
        self._ahead: dict[Source, _Ahead] = {}

    def __call__(self, source: Source, number: int) -> Batch:
        """Return a batch of a source, on the host.

        Raises:
            DataError: If a sample cannot be read.
        """
        if not self.workers:
            batch = tensors(source(number))
            return (batch[0].pin_memory(), batch[1].pin_memory()) if self._pinned else batch
        ahead = self._ahead.get(source)
        if ahead is None or ahead.number != number:
            if ahead is not None:
                ahead.close()
            self._ahead[source] = ahead = _Ahead(source, number, self.workers, self._pinned)
        return ahead.take()

    def close(self) -> None:
        """End all workers."""
        for ahead in self._ahead.values():
            ahead.close()
        self._ahead.clear()


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn what torch raises where a worker has died, which may be at any moment, into an error of ours.

    Raises:
        HwnasError: If one died.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as e:  # the last two: it died while it handed on a batch
        if isinstance(e, RuntimeError) and not str(e).startswith(_DIED):
            raise
        raise HwnasError(
            "a process that makes batches was ended from outside, perhaps for want of memory; the same command goes on "
            "where it stopped, with --workers 0 without such processes"
        ) from e


class _Ahead:
    """The batches of one source from a number on."""

    def __init__(self, source: Source, number: int, workers: int, pinned: bool) -> None:
        self.number = number
        with warnings.catch_warnings():
            # Of more workers than there are CPUs: so many were asked for.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            self._batches: Any = iter(self._loader(source, workers, pinned))

    def _loader(self, source: Source, workers: int, pinned: bool) -> DataLoader[Any]:
        return DataLoader(
            _Numbered(source),
            batch_size=None,
            sampler=_From(self.number),
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # without a batch size it gets one item
            pin_memory=pinned,
            worker_init_fn=_begin,
            prefetch_factor=AHEAD,
            # Forked, so that what the dataset has read is shared.
            multiprocessing_context="fork",
            # The default would take a number from torch's generator, and so change what is drawn from it.
            generator=torch.Generator().manual_seed(0),
        )

    def take(self) -> Batch:
        batch = next(self._batches)
        if isinstance(batch, HwnasError):
            raise batch
        self.number += 1
        images, labels = batch
        return images, labels

    def close(self) -> None:
        self._batches._shutdown_workers()


class _From:
    """All numbers from one on, as a sampler."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while True:
            yield number
            number += 1


class _Numbered(Dataset[Any]):
    """A source as a map-style dataset. What is wrong with the data is an item too: raised, it would be a traceback."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, number: int) -> Batch | HwnasError:
        try:
            return tensors(self.source(number))
        except HwnasError as e:
            return e


def _as_it_is(item: Batch | HwnasError) -> Batch | HwnasError:
    return item


def _begin(worker: int) -> None:
    """Leave Ctrl-C to the process that asks for batches: it ends its workers."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
