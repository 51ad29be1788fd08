"""The front of latency and utility: many budgets answered from one search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hwnas.errors import HwnasError
from hwnas.progress import Update, ignore
from hwnas.search.derive import TIE, reachable_fps
from hwnas.search.widths import Candidate, Contest


@dataclass(frozen=True)
class Point:
    """One network of a front.

    Attributes:
        fps: The budget as text, which `hwnas derive --fps` takes to derive this network.
        candidate: Of the highest utility under that budget.
    """

    fps: str
    candidate: Candidate

    @property
    def budget_ms(self) -> float:
        """What the network may take."""
        return 1000 / float(self.fps)


def rates(contest: Contest, n: int) -> list[str]:
    """Return n frame rates to derive at, fastest first.

    They are spread evenly, in the logarithm, from the fastest network of all scales to the one that the largest scale
    has without a budget; each with four digits, rounded down, so that the fastest one can be reached.

    Raises:
        HwnasError: If n is less than 2.
    """
    if n < 2:
        raise HwnasError(f"a front needs 2 points or more, got {n}")
    low_ms = min(contest.fastest_ms(i) for i in range(len(contest.scales)))
    high_ms = max(low_ms, *(contest.free_ms(i) for i in range(len(contest.scales))))
    return [reachable_fps(float(ms)) for ms in np.geomspace(low_ms, high_ms, n)]


def pareto_front(contest: Contest, n: int, update: Update = ignore) -> list[Point]:
    """Return the networks that are best at n budgets, fastest first.

    Each is exact over all scales; one that another budget gave already, or that is no better than a faster one, is
    left out. So latency and utility both increase strictly along the list.

    Args:
        contest: The solvers of all scales.
        n: Number of budgets, see `rates`.
        update: Told after each budget.

    Raises:
        HwnasError: If n is less than 2, or nothing keeps the limits and bounds.
    """
    points: list[Point] = []
    for done, fps in enumerate(reversed(rates(contest, n)), start=1):  # falling budgets: `winner` solves less
        best = contest.winner(1000 / float(fps))
        update(done, f"{fps} fps", n)
        if best is not None:
            points.append(Point(fps, best))
    if not points:
        raise contest.refusal(1000 / float(fps))
    return list(_rising(reversed(points)))


def _rising(points: Iterable[Point]) -> Iterator[Point]:
    """Keep the points that are better than all before them."""
    last: Candidate | None = None
    for point in points:
        c = point.candidate
        if last is None or (c.latency_ms > last.latency_ms and c.utility > last.utility + TIE):
            last = c
            yield point
