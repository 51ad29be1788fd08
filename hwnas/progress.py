"""How far a long task is: what tasks report to, what of it is silent, and when it will end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

WINDOW_S = 60.0  # the pace of a task is that of so long before its last step
FEWEST = 5  # steps that the pace is taken from, however long they last


class Update(Protocol):
    """Tells how far something is."""

    def __call__(self, done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
        """Report `done` steps, counted from the start, a short note, and the total if it changed.

        Where steps differ, who knows by how much hands over the seconds that are left; else they are extrapolated.
        """


def ignore(done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
    """Show nothing."""


class Reporter(Protocol):
    """What a job reports to while it works; `hwnas.show.console.TERMINAL` prints it."""

    def bar(self, title: str, total: int | None) -> AbstractContextManager[Update]:
        """Begin something that takes a while, of `total` steps; None until the first update names it."""

    def note(self, text: str, warning: bool = False) -> None:
        """Report one line that is worth reading before the result is there."""


class Silent:
    """Reports nothing."""

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Update]:
        """Ignore all updates."""
        yield ignore

    def note(self, text: str, warning: bool = False) -> None:
        """Ignore the line."""


SILENT = Silent()


class Eta:
    """How long a task will still take: as handed over with its last update, else by the pace of its recent steps."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet; the first update is where the count begins, which may be the middle of a resumed task."""
        self._clock_s = clock_s
        self._steps: deque[tuple[float, int]] = deque()  # when so many were done, oldest first
        self._total: int | None = None
        self._handed_s: float | None = None
        self._told_s = clock_s()

    def told(self, done: int, total: int | None, left_s: float | None = None) -> None:
        """Take one more update into account; see `Update`."""
        now_s = self._told_s = self._clock_s()
        self._total, self._handed_s = total, left_s
        if self._steps and done < self._steps[-1][1]:
            self._steps.clear()  # a new phase that counts anew
        if not self._steps or done > self._steps[-1][1]:
            self._steps.append((now_s, done))
        while len(self._steps) > FEWEST and self._steps[1][0] < now_s - WINDOW_S:
            self._steps.popleft()

    def left_s(self) -> float | None:
        """Return the seconds left; None if that cannot be told, or nothing is left to do."""
        if not self._steps or (self._total is not None and self._steps[-1][1] >= self._total):
            return None
        left_s = self._extrapolated_s() if self._handed_s is None else self._handed_s
        if left_s is None:
            return None
        silent_s = self._clock_s() - self._told_s
        return max(left_s - silent_s, silent_s)  # what is late takes as long again: it is not about to end

    def text(self) -> str:
        """Return e.g. ``"12 min left"``; empty if it cannot be told."""
        left_s = self.left_s()
        return "" if left_s is None else f"{duration(left_s)} left"

    def _extrapolated_s(self) -> float | None:
        (first_s, first), (last_s, last) = self._steps[0], self._steps[-1]
        if self._total is None or last == first:
            return None
        return (self._total - last) * (last_s - first_s) / (last - first)


def duration(seconds: float) -> str:
    """Return a time as people say it: ``"under 1 s"``, ``"47 s"``, ``"12 min"``, ``"2 h 5 min"``."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def span(low_s: float, high_s: float) -> str:
    """Return a range of times in one unit: ``"4 to 12 min"``, ``"40 to 90 s"``, ``"2 s"`` if its ends read the same."""
    unit, name = (1.0, "s") if high_s < 99.5 else (60.0, "min")
    low, high = (max(1, round(s / unit)) for s in (low_s, high_s))
    return f"{low} to {high} {name}" if low < high else f"{high} {name}"
