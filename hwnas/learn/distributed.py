"""One training or search in several processes, each with its part of every batch, as torchrun starts them.

The process of rank 0 leads: it owns the run folder, reads and writes all files of it, and runs the jobs. The others
follow: they wait until it begins a training or search, build the same one, take over its state, and do the same steps.
What is summed over processes is sums and counts, never means, so that a step is that of one process with the whole
batch, up to the order of sums.

Sums of tensors on the host go through gloo, those of tensors on a GPU through NCCL.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # it imports them where it is built in
from torch.distributed.rendezvous import rendezvous

from hwnas.data.augment import BatchSource
from hwnas.errors import HwnasError, ProcessLost
from hwnas.learn.device import AUTO, open_device
from hwnas.ops.synced import LOST, all_reduced, lost_processes, reduce_
from hwnas.ranks import Ranks, ranks_here

Source = Callable[[int], tuple[Any, Any]]  # as of `hwnas.learn.batches`
# The others wait as long as rank 0 reads data or derives. That a process has ended is noticed at once.
PATIENCE = timedelta(days=30)


class _Signal(IntEnum):
    """What rank 0 tells the others."""

    END = 0  # of the job
    ABORT = 1  # likewise, by an error
    ORDER = 2  # something to take part in follows
    STATE = 3  # that of steps follows
    STEP = 4
    FINISH = 5  # there are no steps left


class World:
    """The processes that compute together; everything here is a no-op where there is one.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        ranks: Both, and those on this machine.
    """

    def __init__(self, ranks: Ranks, store: Store | None = None) -> None:
        """Take what `joined` has opened."""
        self.ranks, self._store = ranks, store
        self.rank, self.size = ranks.rank, ranks.size
        self._midway = False  # whether others may be waiting for the sums of a step
        self._told = False  # whether rank 0 reports an error

    @property
    def shared(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1

    @property
    def part(self) -> tuple[int, int]:
        """Which part of each batch is computed here, of how many."""
        return self.rank, self.size

    def device(self, name: str = AUTO) -> torch.device:
        """Open a device by name, see `open_device`: each process of a machine has a GPU of its own.

        Raises:
            HwnasError: If there is none for this process.
        """
        if not self.shared:
            return open_device(name)
        if name.startswith("cuda:"):
            raise HwnasError(f"several processes take a GPU each: use --device auto, cuda or cpu, got {name}")
        device = open_device(name)
        if device.type == "cpu":
            return device
        n, own = torch.cuda.device_count(), self.ranks.local_rank
        if own >= n:
            raise HwnasError(
                f"there are {self.ranks.local_size} processes on this machine and {n} GPUs; "
                f"use --nproc-per-node {n}, or --device cpu"
            )
        torch.cuda.set_device(own)
        return torch.device("cuda", own)

    def share(self, batch: int, what: str) -> int:
        """Return how many samples of a batch each process has.

        Raises:
            HwnasError: If they have not all as many.
        """
        if batch % self.size:
            raise HwnasError(
                f"{what} needs a batch that its {self.size} processes can share evenly, got {batch}; "
                "start another number of processes, or set another batch"
            )
        return batch // self.size

    def source(self, source: BatchSource) -> Source:
        """Return the part of each batch of a source that is computed here."""
        return partial(source.part, number=self.rank, parts=self.size) if self.shared else source

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes, without a gradient."""
        return reduce_(tensor.detach().clone(memory_format=torch.contiguous_format)) if self.shared else tensor

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes, differentiable; see `all_reduced`."""
        return all_reduced(tensor) if self.shared else tensor

    def gathered(self, values: Tensor) -> Tensor:
        """Return the values (n,) of all processes, (size * n,)."""
        if not self.shared:
            return values
        out = values.new_zeros(self.size, len(values))
        out[self.rank] = values.detach()
        return reduce_(out).reshape(-1)

    def reduced(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of tensors over processes, in one exchange for each type and device."""
        if not self.shared:
            return list(tensors)
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, t in enumerate(tensors):
            kinds.setdefault((t.dtype, t.device), []).append(i)
        out: dict[int, Tensor] = {}
        for own in kinds.values():
            flat = reduce_(torch.cat([tensors[i].detach().reshape(-1) for i in own]))
            parts = torch.split(flat, [tensors[i].numel() for i in own])
            out |= {i: part.view(tensors[i].shape) for i, part in zip(own, parts, strict=True)}
        return [out[i] for i in range(len(tensors))]

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients of parameters over processes, in place."""
        if self.shared:
            grads = [p.grad for p in parameters if p.grad is not None]
            for grad, whole in zip(grads, self.reduced(grads), strict=True):
                grad.copy_(whole)

    # What rank 0 does.

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Let the others take part in what is done inside; they are told of its end, be it by an error."""
        assert self.rank == 0
        try:
            yield
        except BaseException:
            if self.shared and not self._midway:  # else what they wait for is not this
                with suppress(ProcessLost):
                    self._send(_Signal.ABORT)
            raise
        if self.shared:
            self._send(_Signal.END)

    def order(self, content: object) -> None:
        """Let the others begin what `orders` gives them."""
        if self.shared:
            self._send(_Signal.ORDER, pickle.dumps(content))

    def begin(self, state: Callable[[], dict[str, Any]]) -> None:
        """Give the others the state of the steps that come."""
        if self.shared:
            buffer = io.BytesIO()
            torch.save(state(), buffer)
            self._send(_Signal.STATE, buffer.getvalue())

    @contextmanager
    def step(self) -> Iterator[None]:
        """Let the others do a step, while this one does it too."""
        if self.shared:
            self._send(_Signal.STEP)
            self._midway = True
        yield
        self._midway = False

    def finish(self) -> None:
        """Tell the others that there are no steps left."""
        if self.shared:
            self._send(_Signal.FINISH)

    # What the others do.

    def orders(self) -> Iterator[Any]:
        """Yield what rank 0 wants to be begun, until its job ends.

        Raises:
            ProcessLost: If it ends by an error.
        """
        while (signal := self._receive())[0] is not _Signal.END:
            assert signal[0] is _Signal.ORDER, signal[0]
            yield pickle.loads(signal[1])  # noqa: S301 - from a process of the same command

    def steps(self) -> Iterator[dict[str, Any] | None]:
        """Yield the state that steps begin with, then None for each step to do."""
        signal, content = self._receive()
        assert signal is _Signal.STATE, signal
        yield torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        while (signal := self._receive()[0]) is not _Signal.FINISH:
            assert signal is _Signal.STEP, signal
            yield None

    def _send(self, signal: _Signal, content: bytes = b"") -> None:
        _broadcast(torch.tensor([signal, len(content)]))
        if content:
            _broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def _receive(self) -> tuple[_Signal, bytes]:
        signal, n = _broadcast(torch.zeros(2, dtype=torch.int64)).tolist()
        if signal == _Signal.ABORT:
            self._told = True
            raise ProcessLost(LOST)
        content = _broadcast(torch.empty(n, dtype=torch.uint8)).cpu().numpy().tobytes() if n else b""
        return _Signal(signal), content

    def first_to_fail(self) -> bool:
        """Return whether no other process has reported an error; one is enough."""
        if self._told:
            return False
        try:
            return self._store is None or self._store.add("failed", 1) == 1
        except RuntimeError:  # who keeps the store has ended
            return True


ALONE = World(Ranks())
_current: ContextVar[World] = ContextVar("world", default=ALONE)


def current() -> World:
    """Return the processes that `joined` has brought together; this one alone outside of it."""
    return _current.get()


@contextmanager
def joined() -> Iterator[World]:
    """Meet the other processes that torchrun has started, as long as the context is open; none is a world of one.

    Raises:
        HwnasError: If this process was not started by torchrun though its environment says so.
        SystemExit: With code 2 in place of an error that another process has reported.
    """
    ranks = ranks_here()
    if ranks.size == 1:
        yield ALONE
        return
    world = World(ranks, _meet(ranks))
    token = _current.set(world)
    try:
        yield world
    except BaseException as e:
        first = world.first_to_fail()
        if isinstance(e, HwnasError | OSError) and not first:
            raise SystemExit(2) from None
        if isinstance(e, ProcessLost):
            raise ProcessLost(f"{e}; the same command goes on where it stopped") from e
        raise
    else:
        dist.destroy_process_group()
    finally:
        _current.reset(token)


def _meet(ranks: Ranks) -> Store:
    """Open the connections to all processes, and return what they can write to."""
    both = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store: Store = next(iter(rendezvous("env://", timeout=PATIENCE)))[0]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if both else "gloo",
            store=PrefixStore("group", store),
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as e:
        (line, *_) = str(e).splitlines() or [repr(e)]
        raise HwnasError(
            f"expected {ranks.size} processes that torchrun started together, and they do not meet: {line}; start with "
            "torchrun --nproc-per-node N -m hwnas, or unset RANK and WORLD_SIZE"
        ) from e
    return store


def _broadcast(tensor: Tensor) -> Tensor:
    with lost_processes():
        dist.broadcast(tensor, 0)
    return tensor
