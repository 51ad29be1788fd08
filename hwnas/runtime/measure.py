"""The only timing loop: when a measurement is warm, when it is precise enough, and how far it may be trusted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hwnas.errors import HwnasError

Floats = npt.NDArray[np.float64]

SHORTEST_SAMPLE_NS = 50_000  # reading two clocks costs about 0.5 us: 1 % of this
MAX_WALL_RATIO = 1.2  # above it something else was running on the core
CPU_CLOCKS = ("thread_cpu",)


class Samples(NamedTuple):
    """Raw times, one per sample; a sample of very short runs is the mean of a block of them.

    Attributes:
        latency_ms: By the engine's clock, shape (n,).
        wall_ms: By the wall clock, shape (n,).
    """

    latency_ms: Floats
    wall_ms: Floats


class Timeable(Protocol):
    """What can be measured: every runner of an engine."""

    def time(self, repeats: int) -> Samples:
        """Return `repeats` samples."""


@dataclass(frozen=True)
class StopRule:
    """When to stop: the interval of the median is narrow enough, or time is up.

    Attributes:
        warmup_s: Wall time of runs that are thrown away, at least two runs.
        min_runs: Samples taken in any case, even past `max_s`; 6 is the least that give a 95 % interval of a median.
        max_s: Wall time of the samples, in seconds.
        relative_ci: Half-width of the 95 % interval of the median, relative to the median.
    """

    warmup_s: float = 0.02
    min_runs: int = 7
    max_s: float = 0.3
    relative_ci: float = 0.01

    def __post_init__(self) -> None:
        """Raise HwnasError for values that cannot work."""
        if self.min_runs < 6:
            raise HwnasError(f"min_runs must be at least 6 for an interval of the median, got {self.min_runs}")
        if not (self.warmup_s >= 0 and self.max_s > 0 and self.relative_ci > 0):
            raise HwnasError(f"warmup_s must not be negative, max_s and relative_ci must be positive, got {self}")


@dataclass(frozen=True)
class Measurement:
    """A latency and what is known about it.

    Attributes:
        latency_ms: Median by the engine's clock.
        p50_ms: The same median, beside its percentiles.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        spread: Interquartile range over median.
        ci_ms: Interval (low, high) that holds the median with about 95 % confidence.
        n: Number of samples.
        wall_ms: Median by the wall clock.
        stop: ``"ci"`` if the interval became narrow enough, ``"timeout"`` if not.
        doubtful: The wall clock disagrees with the CPU clock by more than 1.2 times, or time was up with an
            interval more than five times too wide.
    """

    latency_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    spread: float
    ci_ms: tuple[float, float]
    n: int
    wall_ms: float
    stop: str
    doubtful: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "ci_ms": list(self.ci_ms)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """Build from what `to_dict` gave; other keys are ignored.

        Raises:
            HwnasError: If a field is missing or is not a finite, non-negative number.
        """
        missing = [f.name for f in fields(cls) if f.name not in values]
        if missing:
            raise HwnasError(f"a measurement needs {', '.join(missing)}; got {sorted(values)}")
        known = {f.name: values[f.name] for f in fields(cls)}
        if not isinstance(known["ci_ms"], (list, tuple)) or len(known["ci_ms"]) != 2:
            raise HwnasError(f"ci_ms must be a pair (low, high), got {known['ci_ms']!r}")
        known["ci_ms"] = tuple(known["ci_ms"])
        numbers = {n: v for n, v in known.items() if n not in ("stop", "doubtful", "ci_ms")}
        for name, value in [*numbers.items(), *(("ci_ms", v) for v in known["ci_ms"])]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise HwnasError(f"{name} must be a finite number and not negative, got {value!r}")
        if known["stop"] not in ("ci", "timeout") or not isinstance(known["doubtful"], bool):
            raise HwnasError(f"stop must be 'ci' or 'timeout' and doubtful a boolean, got {dict(values)}")
        return cls(**known)


def timed(call: Callable[[], object], repeats: int, clock_ns: Callable[[], int]) -> Samples:
    """Time `call`, for engines whose clock is read on the host.

    Runs shorter than 50 us are timed in blocks and divided, so that reading the clock does not count.

    Args:
        call: One run, complete when it returns.
        repeats: Number of samples.
        clock_ns: The engine's clock, e.g. ``time.thread_time_ns``.
    """
    latency_ms, wall_ms = np.empty(repeats), np.empty(repeats)
    block, i = 1, 0
    while i < repeats:
        wall_start_ns, start_ns = time.perf_counter_ns(), clock_ns()
        for _ in range(block):
            call()
        took_ns, wall_took_ns = clock_ns() - start_ns, time.perf_counter_ns() - wall_start_ns
        if block == 1 and took_ns < SHORTEST_SAMPLE_NS:
            block = min(1000, max(2, math.ceil(SHORTEST_SAMPLE_NS / max(took_ns, 1))))
            continue  # this run only told how many make a block
        latency_ms[i], wall_ms[i] = took_ns / block / 1e6, wall_took_ns / block / 1e6
        i += 1
    return Samples(latency_ms, wall_ms)


def median_interval(sorted_ms: Floats) -> tuple[float, float]:
    """Return (low, high) that holds the median with about 95 % confidence, from order statistics.

    Args:
        sorted_ms: Samples in ascending order, shape (n,), n >= 1. Below n = 6 the confidence is less.
    """
    n = len(sorted_ms)
    low = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))  # binomial ranks, normal approximation: 1.96 / 2
    return float(sorted_ms[low]), float(sorted_ms[n - 1 - low])


def measure(runner: Timeable, stop: StopRule = StopRule(), clock: str = "thread_cpu") -> Measurement:
    """Measure until the median is known well enough.

    Args:
        runner: An open runner.
        stop: When to stop.
        clock: The engine's clock: a CPU clock is checked against the wall, a ``"model"`` needs no warm-up.

    Raises:
        HwnasError: If the engine gives a time that is not a positive, finite number.
    """
    run_s = 0.0 if clock == "model" else _warm_up(runner, stop.warmup_s)
    latency_ms, wall_ms = np.empty(0), np.empty(0)
    start_s = time.perf_counter()
    wanted = stop.min_runs
    while True:
        samples = runner.time(wanted)
        _check(samples, wanted)
        latency_ms, wall_ms = np.append(latency_ms, samples.latency_ms), np.append(wall_ms, samples.wall_ms)
        n, elapsed_s = len(latency_ms), time.perf_counter() - start_s
        median_ms = float(np.median(latency_ms))
        low_ms, high_ms = median_interval(np.sort(latency_ms))
        relative_ci = (high_ms - low_ms) / 2 / median_ms
        if relative_ci <= stop.relative_ci or elapsed_s >= stop.max_s:
            return _summary(latency_ms, wall_ms, relative_ci, stop, clock)
        run_s = max(elapsed_s / n, run_s / 10, 1e-9)
        wanted = max(1, min(n // 2, int((stop.max_s - elapsed_s) / run_s)))  # half as many again, if time allows


def _warm_up(runner: Timeable, warmup_s: float) -> float:
    """Return the wall time of one sample at the end of the warm-up, in seconds."""
    start_s, count = time.perf_counter(), 2
    while True:
        batch_s = time.perf_counter()
        runner.time(count)
        now_s = time.perf_counter()
        run_s = (now_s - batch_s) / count
        left_s = warmup_s - (now_s - start_s)
        if left_s <= 0:
            return run_s
        count = max(1, min(2 * count, int(left_s / run_s)))


def _check(samples: Samples, wanted: int) -> None:
    for name, values in zip(Samples._fields, samples, strict=True):
        if len(values) != wanted:
            raise HwnasError(f"the engine gave {len(values)} {name} for {wanted} runs")
        bad = values[~(np.isfinite(values) & (values > 0))]
        if len(bad):
            raise HwnasError(f"the engine gave a {name} of {bad[0]}; expected a positive number")


def _summary(latency_ms: Floats, wall_ms: Floats, relative_ci: float, stop: StopRule, clock: str) -> Measurement:
    q25, p50, q75, p90, p99 = (float(v) for v in np.percentile(latency_ms, [25, 50, 75, 90, 99]))
    wall_p50 = float(np.median(wall_ms))
    contended = clock in CPU_CLOCKS and wall_p50 > MAX_WALL_RATIO * p50
    return Measurement(
        latency_ms=p50,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        spread=(q75 - q25) / p50,
        ci_ms=median_interval(np.sort(latency_ms)),
        n=len(latency_ms),
        wall_ms=wall_p50,
        stop="ci" if relative_ci <= stop.relative_ci else "timeout",
        doubtful=contended or relative_ci > 5 * stop.relative_ci,
    )
