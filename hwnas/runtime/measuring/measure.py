"""The only timing loop: short visits to warm runners, and what many visits say about a latency.

Other work on a shared machine only ever adds time, for milliseconds to minutes on end, and adds it to CPU time too (a
busy sibling core). So an entry is not measured once and for long, but visited many times for some milliseconds, and
its latency is the quiet level of the visits: their 5th percentile. Seen on a machine that was slow half of the time:
levels of two halves of the visits differ by 0.3 %, their medians by 6 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hwnas.errors import HwnasError

Floats = npt.NDArray[np.float64]

QUIET = 0.05  # the quantile of the visits that is the latency
SHORTEST_SAMPLE_NS = 50_000  # reading two clocks costs about 0.5 us: 1 % of this
SHORTEST_MS = 1e-6  # what is below a nanosecond was not measured
MAX_WALL_RATIO = 1.2  # above it something else was running on the core
CPU_CLOCKS = ("thread_cpu",)
WARMUP_S = 0.02  # of a runner that was just loaded
# Of one that others have pushed out of the caches. Seen: the first run is 20 % slow, the second 5, the third 3, the
# fourth 1; from the sixth on nothing changes.
REWARM_RUNS = 5
VISIT_S = 0.003
SAMPLES = (3, 25)  # least and most in a visit
TIMES = ("latency_ms", "wall_ms")  # what a visit has a number of for each sample
STABLE = 0.005  # how far the levels of both halves of the visits may be apart when noise has stabilised


class Samples(NamedTuple):
    """Raw times, one per sample; a sample of very short runs is the mean of a block of them.

    Attributes:
        latency_ms: By the engine's clock, shape (n,).
        wall_ms: By the wall clock, shape (n,).
        about: What the engine knows of this visit besides, JSON values; see `hwnas.runtime.cuda.timing`.
    """

    latency_ms: Floats
    wall_ms: Floats
    about: Mapping[str, Any] = MappingProxyType({})


class Timeable(Protocol):
    """What can be measured: every runner of an engine."""

    def time(self, repeats: int, visit: int = 0) -> Samples:
        """Return `repeats` samples of the visit with this number."""


@dataclass(frozen=True)
class StopRule:
    """When an entry has been visited often enough.

    Attributes:
        min_visits: Visits in any case.
        max_visits: Visits after which time is up.
        min_s: Wall time that the visits are spread over, however quiet: slow spells may last that long.
        relative_ci: Half-width of the interval of the latency, relative to it, that is narrow enough.
        net_relative_ci: The same for whole networks.
        net_stable: Whether noise that has stabilised is enough for whole networks; else only the interval is.
    """

    min_visits: int = 30
    max_visits: int = 100
    min_s: float = 45.0
    relative_ci: float = 0.01
    net_relative_ci: float = 0.005
    net_stable: bool = True

    def __post_init__(self) -> None:
        """Raise HwnasError for values that cannot work."""
        if not 1 <= self.min_visits <= self.max_visits:
            raise HwnasError(
                f"visits must be at least 1 and at most max_visits, got {self.min_visits} and {self.max_visits}"
            )
        if not (0 <= self.min_s < math.inf and self.relative_ci > 0 and self.net_relative_ci > 0):
            raise HwnasError(f"min_s must be finite and not negative, relative_ci must be positive, got {self}")

    def reached(self, medians_ms: Sequence[float], net: bool = False) -> str | None:
        """Return why no more visits are needed: ``"ci"``, ``"stable"`` or ``"timeout"``; None if they are.

        Args:
            medians_ms: Of the visits so far, in their order.
            net: Whether the entry is a whole network.
        """
        n = len(medians_ms)
        if n < self.min_visits:
            return None
        low_ms, high_ms = interval(medians_ms)
        wide = self.net_relative_ci if net else self.relative_ci
        if n > 1 and (high_ms - low_ms) / 2 <= wide * low_ms:  # the interval of one visit has no width
            return "ci"
        if n >= 2 * self.min_visits and (self.net_stable or not net) and abs(halves_apart(medians_ms)) <= STABLE:
            return "stable"
        return "timeout" if n >= self.max_visits else None


DEFAULT_STOP = StopRule()


def visit_s(run_s: float) -> float:
    """Return how long a visit takes at least, where one run takes so long."""
    return max(VISIT_S, (REWARM_RUNS + SAMPLES[0]) * run_s)


def level(medians_ms: Sequence[float]) -> float:
    """Return the quiet level of some visits, at least one, in milliseconds."""
    ranked = sorted(medians_ms)
    below, share = divmod(QUIET * (len(ranked) - 1), 1)
    low_ms, high_ms = ranked[int(below)], ranked[min(int(below) + 1, len(ranked) - 1)]
    return float(low_ms + share * (high_ms - low_ms))


def interval(medians_ms: Sequence[float]) -> tuple[float, float]:
    """Return (low, high) that holds the quiet level with at least 95 % confidence, from 72 visits on.

    From order statistics: how many of n visits lie below the 5th percentile is binomial. Of fewer visits than 72 it may
    be that none lies below it (of 20: with a probability of 36 %). Then the lower end is the lowest visit, and what
    speaks for it is that work on an idle core has a floor.
    """
    ranked = sorted(medians_ms)
    low, high = _ranks(len(ranked))
    return ranked[low], ranked[high]


@lru_cache(maxsize=4096)
def _ranks(n: int) -> tuple[int, int]:
    """Return the ranks that enclose the quiet level of n visits, each side missed with at most 2.5 %."""
    # in logarithms: from 1,030 visits on, binomial coefficients are larger than a float can be
    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    log_p = [w + k * math.log(QUIET) + (n - k) * math.log1p(-QUIET) for k, w in enumerate(log_ways)]
    below = np.cumsum(np.exp(log_p))
    low = int(np.searchsorted(below, 0.025, side="right"))  # P(at most `low` - 1 visits lie below the level) <= 2.5 %
    return max(0, low - 1), min(n - 1, int(np.searchsorted(below, 0.975)))


def halves_apart(medians_ms: Sequence[float]) -> float:
    """Return by how much the level of the odd visits is above that of the even ones, relative; 0 for one visit."""
    if len(medians_ms) < 2:
        return 0.0
    return level(medians_ms[1::2]) / level(medians_ms[::2]) - 1


def visit(runner: Timeable, number: int, clock: str, fresh: bool) -> Samples:
    """Measure an open runner for some milliseconds.

    Args:
        runner: An open runner.
        number: Which visit to the entry this is.
        clock: The engine's clock; a ``"model"`` needs no warm-up and takes no time.
        fresh: Whether the runner was just loaded.

    Raises:
        HwnasError: If the engine gives a time that is not a positive, finite number.
    """
    if clock == "model":
        return _checked(runner.time(SAMPLES[0], number), SAMPLES[0])
    run_s = _warm_up(runner, number, WARMUP_S if fresh else 0.0)
    wanted = min(SAMPLES[1], max(SAMPLES[0], int(VISIT_S / max(run_s, 1e-9))))
    return _checked(runner.time(wanted, number), wanted)


def _warm_up(runner: Timeable, number: int, warmup_s: float) -> float:
    """Run for a while, at least five times; return the wall time of one sample at the end, in seconds."""
    start_s, count = time.perf_counter(), REWARM_RUNS
    while True:
        batch_s = time.perf_counter()
        runner.time(count, number)
        now_s = time.perf_counter()
        run_s = (now_s - batch_s) / count
        left_s = warmup_s - (now_s - start_s)
        if left_s <= 0:
            return run_s
        count = max(1, min(2 * count, int(left_s / run_s)))


def _checked(samples: Samples, wanted: int) -> Samples:
    for name, values in zip(TIMES, (samples.latency_ms, samples.wall_ms), strict=True):
        if len(values) != wanted:
            raise HwnasError(f"the engine gave {len(values)} {name} for {wanted} runs")
        bad = values[~(np.isfinite(values) & (values >= SHORTEST_MS))]
        if len(bad):
            raise HwnasError(f"the engine gave a {name} of {bad[0]}; expected a positive number")
    return samples


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


@dataclass(frozen=True)
class Measurement:
    """A latency and what is known about it, from all visits to an entry.

    Attributes:
        latency_ms: The quiet level: 5th percentile of the medians of the visits.
        ci_ms: (low, high) that holds it with about 95 % confidence.
        p50_ms: Median of all samples, slow spells of the machine included.
        p90_ms: 90th percentile of all samples.
        p99_ms: 99th percentile of all samples.
        wall_ms: The quiet level by the wall clock.
        spread: Interquartile range of the visits over their median: how restless the machine was.
        repeatability: Relative difference of the levels of odd and even visits.
        n: Number of samples.
        visits: Number of visits.
        stop: ``"ci"`` if the interval became narrow enough, ``"stable"`` if noise has stabilised above that,
            ``"timeout"`` if neither.
        doubtful: Time was up, or the wall clock disagrees with the CPU clock by more than 1.2 times in the quiet
            visits, or the device was throttled in most of them.
        about: What the engine told of the visits besides, over all of them; empty for a CPU.
    """

    latency_ms: float
    ci_ms: tuple[float, float]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    wall_ms: float
    spread: float
    repeatability: float
    n: int
    visits: int
    stop: str
    doubtful: bool
    about: Mapping[str, Any] = field(default_factory=dict)


def summarise(visits: Sequence[Samples], stop: str, clock: str) -> Measurement:
    """Return what some visits to an entry say.

    Args:
        visits: In their order, at least one.
        stop: Why there are no more.
        clock: The engine's clock.
    """
    throttled = sum("throttled" in v.about for v in visits)
    everything, visits = visits, [v for v in visits if "throttled" not in v.about] or visits
    medians = np.array([median(v.latency_ms.tolist()) for v in visits])  # numpy's takes ten times as long
    walls = np.array([median(v.wall_ms.tolist()) for v in visits])
    latency_ms = level(medians.tolist())
    quiet = np.argsort(medians)[: max(3, len(medians) // 10)]
    q25, q50, q75 = np.percentile(medians, [25, 50, 75])
    p50, p90, p99 = np.percentile(np.concatenate([v.latency_ms for v in visits]), [50, 90, 99])
    contended = clock in CPU_CLOCKS and float(np.median(walls[quiet] / medians[quiet])) > MAX_WALL_RATIO
    return Measurement(
        latency_ms=latency_ms,
        ci_ms=interval(medians.tolist()),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        wall_ms=level(walls.tolist()),
        spread=float((q75 - q25) / q50),
        repeatability=abs(halves_apart(medians.tolist())),
        n=sum(len(v.latency_ms) for v in visits),
        visits=len(visits),
        stop=stop,
        doubtful=contended or throttled > len(everything) / 2 or stop == "timeout",
        about=_about(everything, visits, throttled),
    )


def _about(everything: Sequence[Samples], used: Sequence[Samples], throttled: int) -> dict[str, Any]:
    """Return what a device told of its visits: levels of the other ways to run, its clock, and what was not counted."""
    if not any(v.about for v in everything):
        return {}
    dropped = sum(int(v.about.get("dropped", 0)) for v in everything)
    out: dict[str, Any] = {"dropped": dropped, "throttled_visits": throttled}
    for name in ("enqueue_ms", "cold_ms"):
        values = [float(v.about[name]) for v in used if name in v.about]
        if values:
            out[name] = level(values)
    clocks = [float(v.about["sm_mhz"]) for v in used if v.about.get("sm_mhz")]
    if clocks:
        out["sm_mhz"] = median(clocks)
    by_build: dict[int, list[float]] = {}
    for v in used:
        if "build" in v.about:
            by_build.setdefault(int(v.about["build"]), []).append(median(v.latency_ms.tolist()))
    if by_build:
        levels = [level(values) for values in by_build.values()]
        out |= {"builds": len(levels), "build_spread": max(levels) / min(levels) - 1}
    return out


def samples_from(record: Mapping[str, Any]) -> Samples:
    """Read the samples of a record of the results.

    Raises:
        HwnasError: If they are missing or are not positive, finite numbers.
    """
    lists = [record.get(name) for name in TIMES]
    for name, values in zip(TIMES, lists, strict=True):
        if not (isinstance(values, list) and values and all(type(v) in (int, float) for v in values)):
            raise HwnasError(f"{name} must be a list of numbers, got {values!r}")
    latency_ms, wall_ms = (np.array(v, dtype=float) for v in lists)
    return _checked(Samples(latency_ms, wall_ms, record.get("about", {})), len(lists[0] or []))
