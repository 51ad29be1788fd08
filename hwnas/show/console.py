"""What a person sees while something takes long: bars with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hwnas.progress import Update

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 160  # a log is not cut at 80 columns
LINE_EVERY_S = 15.0


@contextmanager
def bar(title: str, total: int | None) -> Iterator[Update]:
    """Show progress of `total` steps.

    Args:
        title: What is being done.
        total: Steps in all; None until the first report names it.

    Yields:
        A function of the steps done so far and a note, e.g. the loss.
    """
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as progress:
            task = progress.add_task(title, total=total, note="")
            yield lambda done, note="", total=None: progress.update(task, completed=done, note=note, total=total)
        return
    yield _Lines(title, total)


class _Lines:
    """Progress where there is no terminal: a plain line every 15 seconds."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title, self.total = title, total
        self.start_s = self.last_s = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, note: str = "", total: int | None = None) -> None:
        now_s = time.monotonic()
        self.total = total or self.total
        if self.first is None:
            self.first = done  # a resumed run does not start at nothing
        if now_s - self.last_s < LINE_EVERY_S:
            return
        self.last_s = now_s
        each_s = (now_s - self.start_s) / max(1, done - self.first)
        of = f"/{self.total}, {each_s * (self.total - done):.0f} s left" if self.total else ""
        console.print(f"{self.title} {done}{of} {note}".rstrip())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> None:
    """Print a table; `numbers` aligns all columns but the first to the right."""
    out = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for i, c in enumerate(columns):
        out.add_column(c, justify="right" if numbers and i else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(cell) for cell in row))  # else rich takes the extra in 'hwnas[search]' for markup
    console.print(out)


def summary(facts: Mapping[str, object], next_command: str | None) -> None:
    """Print what a verb did and what to run next."""
    width = max(map(len, facts), default=0)
    for name, fact in facts.items():
        console.print(f"{name:<{width}}  {fact}", markup=False)
    if next_command:
        console.print(f"next: {next_command}", markup=False, style="bold")


def warn(text: str) -> None:
    """Print a warning."""
    console.print(f"warning: {text}", style="yellow", markup=False)


class Terminal:
    """What jobs report to while a person watches: bars, and lines between them."""

    def bar(self, title: str, total: int | None) -> AbstractContextManager[Update]:
        """Show progress."""
        return bar(title, total)

    def note(self, text: str, warning: bool = False) -> None:
        """Print one line."""
        console.print(text, style="bold" if warning else None, markup=False)


TERMINAL = Terminal()
