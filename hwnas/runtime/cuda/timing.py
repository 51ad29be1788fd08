"""Timing on a GPU, by events on the stream that the work is on.

A sample is the time between two events with the work between them. All of a visit is put on the stream before any of it
is waited for, behind work that does not count, so the GPU never waits for the host: what is measured is the device. Two
more numbers come with it, which are what users meet elsewhere: runs put on the stream one by one without a graph
(bound by the launches if these take longer than the work), and runs after the second-level cache was flushed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.runtime.cuda.driver import Cuda, Event, Graph, Stream
from hwnas.runtime.cuda.kernels import KERNELS
from hwnas.runtime.cuda.nvml import Watch
from hwnas.runtime.measuring.measure import SHORTEST_SAMPLE_NS, Samples

SIDE_SAMPLES = 3  # of runs without a graph and of runs with a flushed cache, in a visit
MOST_IN_GRAPH = 200  # runs
SETTLE_S = (0.2, 3.0)  # least and most time until clocks have settled
SETTLE_WINDOW_S = 0.1
SETTLED = 0.01  # how far latency and clock may be apart from one window to the next
RETRIES = 3  # of a visit in which the card was throttled
PAUSE_S = 0.05  # before the first of these; doubles
FLUSH_FACTOR = 2  # what is written to flush the cache, over its size

Work = Callable[[], None]
Capture = Callable[[Work], Graph]  # makes a graph of what work puts on the stream


class GpuTimer:
    """Times work on one stream of one GPU. Everything happens inside the GPU's context."""

    def __init__(self, gpu: Cuda, stream: Stream, watch: Watch | None) -> None:
        """Make what is needed to flush the cache.

        Args:
            gpu: Open.
            stream: Where the work is put.
            watch: Of its clock; None if nobody can tell.
        """
        self._gpu, self._stream, self._watch = gpu, stream, watch
        self._settled = False
        self._resources = ExitStack()
        self._events: list[Event] = []
        n_bytes = FLUSH_FACTOR * max(gpu.facts.l2_bytes, 1 << 20)
        with gpu:
            self._scratch = self._own(gpu.memory(n_bytes))
            self._flush = gpu.function(KERNELS["l2_flush"])
        self._blocks = 4 * gpu.facts.multiprocessors

    def close(self) -> None:
        """Give everything back."""
        with self._gpu:
            self._resources.close()

    def prepare(self, work: Work, capturable: bool = True, capture: Capture | None = None) -> Prepared:
        """Return work that is ready to time.

        Args:
            work: Puts one run on the stream.
            capturable: Whether it can be captured.
            capture: How, on this same stream; None for the stream's own way.
        """
        if capture is None and self._gpu.captures:
            capture = self._stream.capture
        return Prepared(self, self._gpu, self._stream, work, capture if capturable else None)

    def settle(self, work: Work) -> None:
        """Run until latency and clock have settled; once, since a card that is kept busy stays so."""
        if self._settled:
            return
        self._settled = True
        start_s, before = time.monotonic(), (math.inf, math.inf)
        while time.monotonic() - start_s < SETTLE_S[1]:
            window_s, took = time.monotonic(), []
            while time.monotonic() - window_s < SETTLE_WINDOW_S:
                took += self.back_to_back(work, 5)
            now = (median(took), float((self._watch and self._watch.sm_mhz()) or 1))
            steady = all(abs(a - b) <= SETTLED * a for a, b in zip(now, before, strict=True))
            if steady and time.monotonic() - start_s >= SETTLE_S[0]:
                return
            before = now

    def unthrottled(self, visit: Callable[[], Samples]) -> Samples:
        """Return samples of a visit in which the card was not throttled, if one of a few is so.

        Of each that is dropped it is said how many there were, and of the last one if it is throttled too.
        """
        pause_s, dropped = PAUSE_S, 0
        for attempt in range(RETRIES + 1):
            before = self._watch and self._watch.throttled()
            samples = visit()
            why = before or (self._watch and self._watch.throttled())
            about = {**samples.about, "sm_mhz": self._watch and self._watch.sm_mhz(), "dropped": dropped}
            if not why:
                return samples._replace(about=about)
            if attempt == RETRIES:
                return samples._replace(about={**about, "throttled": why})
            dropped += len(samples.latency_ms)
            time.sleep(pause_s)
            pause_s *= 2
        raise AssertionError

    def back_to_back(self, work: Work, n: int) -> list[float]:
        """Return the milliseconds of each of n runs, on hot caches."""
        events = self._some_events(n + 1)
        work()  # the GPU is busy with this while the rest is put on the stream
        self._stream.record(events[0])
        for event in events[1:]:
            work()
            self._stream.record(event)
        self._stream.synchronize()
        return [after.ms_since(before) for before, after in pairwise(events)]

    def after_flushes(self, work: Work, n: int) -> list[float]:
        """Return the milliseconds of each of n runs, each after the second-level cache was flushed."""
        events = self._some_events(2 * n)
        for i, (before, after) in enumerate(zip(events[::2], events[1::2], strict=True)):
            self._stream.launch(self._flush, (self._blocks, 1, 1), self._scratch, self._scratch.n_bytes // 4, i)
            self._stream.record(before)
            work()
            self._stream.record(after)
        self._stream.synchronize()
        return [after.ms_since(before) for before, after in zip(events[::2], events[1::2], strict=True)]

    def on_the_wall(self, work: Work, n: int) -> list[float]:
        """Return the milliseconds of each of n runs by the host's clock, from the launch until it is done."""
        out = []
        for _ in range(n):
            start_ns = time.perf_counter_ns()
            work()
            self._stream.synchronize()
            out.append((time.perf_counter_ns() - start_ns) / 1e6)
        return out

    def _some_events(self, n: int) -> list[Event]:
        while len(self._events) < n:
            self._events.append(self._own(self._gpu.event()))
        return self._events[:n]

    def _own(self, it: Any) -> Any:
        self._resources.callback(it.close)
        return it


class Prepared:
    """Work that is ready to time, as a graph where that can be."""

    def __init__(self, timer: GpuTimer, gpu: Cuda, stream: Stream, work: Work, capture: Capture | None) -> None:
        self._timer, self._gpu, self._stream, self._work, self._capture = timer, gpu, stream, work, capture
        self._once: Graph | None = None
        self._block: Graph | None = None
        self._runs = 0  # in a block; 0: not known yet

    def time(self, repeats: int) -> Samples:
        """Return `repeats` samples, as `Runner.time` has it.

        ``about`` says: ``launch`` (``"graph"`` or ``"enqueue"``), ``enqueue_ms`` (put on the stream one by one),
        ``cold_ms`` (after a flush), ``sm_mhz``, ``dropped`` (samples), and ``throttled`` (why) if even the last were.

        Raises:
            HwnasError: If the work fails, or cannot be captured.
        """
        with self._gpu:
            if not self._runs:
                self._first()
            return self._timer.unthrottled(lambda: self._visit(repeats))

    def close(self) -> None:
        """Give everything back."""
        with self._gpu:
            for graph in {id(g): g for g in (self._once, self._block) if g is not None}.values():
                graph.close()
        self._once = self._block = None

    def _first(self) -> None:
        """Run for the first time, which may do more than others, and find how many runs make a block."""
        self._work()
        self._stream.synchronize()
        if self._capture is not None:
            self._once = self._block = self._capture(self._work)
        launch = self._launch(self._once)
        self._timer.settle(launch)
        run_ms = max(1e-6, median(self._timer.back_to_back(launch, 5)))
        self._runs = max(1, min(MOST_IN_GRAPH, math.ceil(SHORTEST_SAMPLE_NS / 1e6 / run_ms)))
        if self._capture is not None and self._runs > 1:
            self._block = self._capture(self._repeated)

    def _repeated(self) -> None:
        for _ in range(self._runs):
            self._work()

    def _launch(self, graph: Graph | None) -> Work:
        return self._work if graph is None else graph.launch

    def _visit(self, repeats: int) -> Samples:
        timer = self._timer
        block = self._repeated if self._block is None else self._block.launch
        hot = np.array(timer.back_to_back(block, repeats)) / self._runs
        about: dict[str, Any] = {
            "launch": "enqueue" if self._block is None else "graph",
            "enqueue_ms": median(timer.back_to_back(self._repeated, SIDE_SAMPLES)) / self._runs,
            "cold_ms": median(timer.after_flushes(self._launch(self._once), SIDE_SAMPLES)),
        }
        walls = np.array(timer.on_the_wall(self._launch(self._once), repeats))
        if not (hot > 0).all():
            raise HwnasError("the GPU's events say that no time passed between them")
        return Samples(hot, walls, about)
