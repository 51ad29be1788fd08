"""What a person sees while something takes long: bars with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from hwnas.progress import Eta, Update


class _Console(Console):
    """One that leaves it to the command how to end when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Let the error pass that this is called for; rich would exit with 1, which a verb says otherwise."""
        raise  # noqa: PLE0704 - within the handler of it


console = _Console(highlight=False, soft_wrap=True)
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
        A function of the steps done so far, a note, e.g. the loss, and the time left where that is known.
    """
    if console.is_terminal:
        eta = Eta()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, _Left(eta), TextColumn("{task.fields[note]}"), console=console) as progress:
            task = progress.add_task(title, total=total, note="")

            def update(done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
                progress.update(task, completed=done, note=note, total=total)
                eta.told(done, None if (t := progress.tasks[0].total) is None else int(t), left_s)

            yield update
        return
    yield _Lines(title, total)


class _Left(ProgressColumn):
    """The time that is left; nothing while it cannot be told."""

    def __init__(self, eta: Eta) -> None:
        super().__init__()
        self._eta = eta

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        return Text(self._eta.text(), style="progress.remaining")


class _Lines:
    """Progress where there is no terminal: a plain line every 15 seconds."""

    def __init__(self, title: str, total: int | None, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._title, self._total, self._clock_s = title, total, clock_s
        self._eta, self._last_s = Eta(clock_s), clock_s()

    def __call__(self, done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
        self._total = total or self._total
        self._eta.told(done, self._total, left_s)
        if self._clock_s() - self._last_s < LINE_EVERY_S:
            return
        self._last_s = self._clock_s()
        of = f"/{self._total}" if self._total else ""
        parts = [f"{self._title} {done}{of}", self._eta.text(), note]
        console.print(", ".join(part for part in parts if part), markup=False)


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
