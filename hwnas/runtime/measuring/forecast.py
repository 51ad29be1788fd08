"""How long measuring a plan will still take, from what its visits have shown so far, and at most.

An entry needs visits until its interval is narrow enough, and the width of an interval falls with the root of the
visits; after twice the least visits noise that has stabilised is enough as well (`StopRule`). So each entry that is due
has visits of its own left, and each visit the seconds that this entry's visits took: those that remain at the end are
mostly whole networks, which take several times as long as what was visited before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hwnas.progress import duration
from hwnas.runtime.measuring.measure import QUIET, WARMUP_S, StopRule, visit_s
from hwnas.runtime.measuring.plan import Entry
from hwnas.runtime.measuring.results import History

# Visits to an entry of which nothing is known, over the least visits: about what was seen on machines that are slow
# some of the time. It counts less with each visit, by the square of their number.
PRIOR = 1.2
NET_PRIOR = 1.5
SLOWEST = 2.0  # what other load makes of a time, at most: half of the core, where a busy sibling makes 1.6 of it


class Left(NamedTuple):
    """What is left to measure.

    Attributes:
        visits: About how many.
        seconds: About how long these take, waiting included.
        most_s: How long they take at most, on a machine that is not slowed by more than `SLOWEST`.
        reason: Why it is not finished.
    """

    visits: int
    seconds: float
    most_s: float
    reason: str


class Moment(NamedTuple):
    """Where a process stands.

    Attributes:
        round: The round it is in.
        first: The first round it had something to do in.
        elapsed_s: How long it has been measuring.
        limit_s: After how long it starts no visit; infinite without a bound.
        reach_s: The same for the first round.
    """

    round: int
    first: int
    elapsed_s: float
    limit_s: float = math.inf
    reach_s: float = math.inf


class Forecast:
    """Learns from each visit how long others will take."""

    def __init__(self, entries: Sequence[Entry], history: History, min_s: float, load_s: float) -> None:
        """Begin with what a results file says.

        Args:
            entries: Of the plan.
            history: Kept up to date by others.
            min_s: Wall time that the visits to an entry are spread over.
            load_s: Time to load an entry, before any was loaded.
        """
        self._entries, self._history, self._min_s, self._load_s = entries, history, min_s, load_s
        self._nets = np.array([e.role == "net" for e in entries], bool)
        self._arithmetic_s = np.array([visit_s(run_s(e)) for e in entries])
        self._index = {e.key: i for i, e in enumerate(entries)}
        self._first_s: dict[int, float] = {}  # of the first visit in this process, which loads
        self._later_s: dict[int, list[float]] = {}
        self._needed = np.array([self._visits_needed(e.key, e.role == "net") for e in entries])

    def visited(self, key: str, took_s: float) -> None:
        """Take into account how long a visit took, loading included; the history has its record already."""
        i = self._index[key]
        if i in self._first_s:
            self._later_s.setdefault(i, []).append(took_s)
        else:
            self._first_s[i] = took_s
        self._needed[i] = self._visits_needed(key, bool(self._nets[i]))

    def left(self, at: Moment) -> Left:
        """Return what is left, by going through the rounds that are left."""
        stop, history = self._history.stop, self._history
        visits = np.array([history.visits(e.key) for e in self._entries])
        open_ = (visits >= at.round) & np.array([history.bad(e.key) is None for e in self._entries], bool)
        now_s = history.before_s + at.elapsed_s
        since_s = np.array(
            [history.first_s(e.key) if n else math.inf for e, n in zip(self._entries, visits, strict=True)]
        )
        each_s, load_s = self._seconds()
        loaded = np.array([i in self._first_s for i in range(len(self._entries))], bool)
        count, elapsed_s, at_most = 0, at.elapsed_s, stop.max_visits - 1
        for n in range(at.round, stop.max_visits):
            spread = history.before_s + elapsed_s - np.minimum(since_s, now_s) < self._min_s
            due = np.flatnonzero(open_ & (visits <= n) & ((self._needed > n) | spread))
            elapsed_s = max(elapsed_s, min(at.limit_s, self._min_s * (n - at.first) / max(1, at_most - at.first)))
            if not len(due) or elapsed_s >= at.limit_s:
                if len(due) or n >= visits.max(initial=0):
                    break
                continue
            took_s = each_s[due] + np.where(loaded[due], 0.0, load_s[due])
            if n == 0:  # what is not reached in the first round is left out of all
                reached = elapsed_s + np.cumsum(took_s) - took_s < at.reach_s
                open_[due[~reached]] = False
                due, took_s = due[reached], took_s[reached]
            loaded[due] = True
            count, elapsed_s = count + len(due), elapsed_s + float(took_s.sum())
        seconds = elapsed_s - at.elapsed_s if count else 0.0
        bound_s = self._most_s(visits, open_, each_s, load_s, now_s - since_s)
        longest_s = float((each_s + load_s).max(initial=0.0)) if count else 0.0
        time_s = max(0.0, at.limit_s - at.elapsed_s) + longest_s  # a visit that is under way may end
        return Left(count, min(seconds, time_s), min(max(seconds, bound_s), time_s), self._reason(visits, open_))

    def _seconds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the seconds of a visit to each entry, and those of loading it on top of that."""
        known_s = np.array([self._of_latency_s(e.key) for e in self._entries])
        known = np.isfinite(known_s)
        off = known_s[known].sum() / self._arithmetic_s[known].sum() if known.any() else 1.0
        each_s = np.where(known, known_s, off * self._arithmetic_s)
        later = np.array(sorted(self._later_s), int)
        if len(later):
            later_s = np.array([fmean(self._later_s[i]) for i in later])
            each_s *= later_s.sum() / each_s[later].sum()
            each_s[later] = later_s
        load_s = np.full(len(self._entries), self._load_s + WARMUP_S)
        for role in (self._nets, ~self._nets):
            beyond_s = [took_s - each_s[i] for i, took_s in self._first_s.items() if role[i]]
            if beyond_s:
                load_s[role] = max(0.0, fmean(beyond_s))
        return each_s, load_s

    def _of_latency_s(self, key: str) -> float:
        """Return how long a visit takes by the latency that was seen last, NaN if none was."""
        medians_ms = self._history.medians_ms(key)
        return visit_s(medians_ms[-1] / 1e3) if medians_ms else math.nan

    def _most_s(
        self,
        visits: npt.NDArray[np.int_],
        open_: npt.NDArray[np.bool_],
        each_s: npt.NDArray[np.float64],
        load_s: npt.NDArray[np.float64],
        for_s: npt.NDArray[np.float64],
    ) -> float:
        """Return how long it takes if every entry that is due gets all visits that the rule allows, each a slow one.

        Args:
            visits: So far, of each entry.
            open_: Whether it may be visited again.
            each_s: What a visit takes on average.
            load_s: What loading takes.
            for_s: How long each entry has been visited; minus infinity if it never was.
        """
        reached = np.array([self._history.reached(e.key) is not None for e in self._entries], bool)
        due = open_ & (~reached | (for_s < self._min_s))
        slow_s = SLOWEST * each_s
        for i, took_s in self._later_s.items():
            slow_s[i] = max(SLOWEST * min(took_s), float(each_s[i]))
        load_s = np.where([i in self._first_s for i in range(len(self._entries))], 0.0, load_s)
        rest = np.maximum(0, self._history.stop.max_visits - visits)
        wait_s = float((self._min_s - np.maximum(0.0, for_s[due])).max(initial=0.0))
        return float(((rest * slow_s + SLOWEST * load_s) * due).sum()) + wait_s

    def _visits_needed(self, key: str, net: bool) -> int:
        """Return about how many visits an entry needs in all."""
        medians_ms, stop = self._history.medians_ms(key), self._history.stop
        n = len(medians_ms)
        if n and self._history.reached(key) is not None:
            return n
        needed, prior = visits_needed(medians_ms, stop, net), (NET_PRIOR if net else PRIOR) * stop.min_visits
        if n < stop.min_visits:
            trust = (n / stop.min_visits) ** 2
            needed = trust * needed + (1 - trust) * prior if math.isfinite(needed) else prior
        return min(stop.max_visits, max(stop.min_visits, n + 1, round(needed)))

    def _reason(self, visits: npt.NDArray[np.int_], open_: npt.NDArray[np.bool_]) -> str:
        stop = self._history.stop
        least = int(visits[open_].min(initial=stop.max_visits))
        if least < stop.min_visits:
            return f"each is visited at least {stop.min_visits} times"
        wide = open_ & np.array([self._history.reached(e.key) is None for e in self._entries], bool)
        nets, ops = int((wide & self._nets).sum()), int((wide & ~self._nets).sum())
        if not nets + ops:
            return f"the visits are spread over {self._min_s:g} s"
        counts = [_counted(n, name) for n, name in ((nets, "network"), (ops, "op")) if n]
        return f"{' and '.join(counts)} {'is' if nets + ops == 1 else 'are'} not precise yet"


def visits_needed(medians_ms: Sequence[float], stop: StopRule, net: bool) -> float:
    """Return about how many visits an entry needs in all by those it has had, not less than one; infinite for none.

    The ranks of `interval` are whole numbers, so that its width jumps as visits are added: here they are not rounded.
    Where noise that has stabilised is enough, the chance that it has after twice the least visits is taken for how much
    narrower the interval would have to be then, and all visits for what it takes otherwise. What has not stabilised
    after more visits is the less likely to do so with the next.
    """
    n, wide = len(medians_ms), stop.net_relative_ci if net else stop.relative_ci
    if n < 2:
        return math.inf
    ranked, middle, half = sorted(medians_ms), QUIET * (n - 1), 1.96 * math.sqrt(n * QUIET * (1 - QUIET))
    low_ms, high_ms = (float(np.interp(rank, range(n), ranked)) for rank in (middle - half, middle + half))
    needed = n * ((high_ms - low_ms) / 2 / low_ms / wide) ** 2
    stable = 2 * stop.min_visits
    if needed <= stable or not (stop.net_stable or not net) or stable >= stop.max_visits:
        return max(1.0, needed)
    since = max(stable, n)
    chance = math.sqrt(stable / needed) * (stop.max_visits - since) / (stop.max_visits - stable)
    return since + (stop.max_visits - since) * (1 - chance)


def run_s(entry: Entry) -> float:
    """Return roughly how long one run of an entry takes on one core."""
    return sum(estimate_ms(c.macs, c.bytes) for c in entry.calls) / 1e3


def estimate_ms(macs: int, nbytes: int) -> float:
    """Return rough milliseconds of an op on one core: for proportions and forecasts, never for a table."""
    return macs / 75e6 + nbytes / 25e6 + 0.0008


def at_most(left: Left) -> str:
    """Return the reason why it is not finished and the bound, for people."""
    return f"{left.reason}; at most {duration(left.most_s)}"


def _counted(n: int, name: str) -> str:
    return f"{n} {name}" + "s" * (n != 1)
