"""How far a long task is: what tasks report to, and what of it is silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Update(Protocol):
    """Tells how far something is."""

    def __call__(self, done: int, note: str = "", total: int | None = None) -> None:
        """Report `done` steps, counted from the start, a short note, and the total if it changed."""


def ignore(done: int, note: str = "", total: int | None = None) -> None:
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
