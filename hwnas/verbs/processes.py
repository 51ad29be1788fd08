"""The command line in each of several processes that torchrun has started: they meet, and one of them prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hwnas.ending import INTERRUPTED
from hwnas.errors import HwnasError
from hwnas.ranks import Ranks, ranks_here


def _ranks() -> Ranks:
    try:
        return ranks_here()
    except HwnasError:  # `together` says it
        return Ranks()


def prints() -> bool:
    """Return whether this process is the one that prints."""
    return _ranks().rank == 0


def named(program: str) -> str:
    """Return what an error begins with: the program, and the rank where it is one of several processes."""
    ranks = _ranks()
    return f"{program}: rank {ranks.rank} of {ranks.size}" if ranks.size > 1 else program


@contextmanager
def together(shareable: bool) -> Iterator[None]:
    """Let the processes meet as long as the context is open; those of other ranks than 0 are silent.

    Args:
        shareable: Whether what is to be run is for several processes.

    Raises:
        HwnasError: If it is not and there are several, or they do not meet.
    """
    ranks = ranks_here()
    if ranks.size == 1:
        yield
        return
    # Where a process is lost, torch prints stack traces of its own; read when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from hwnas.learn.distributed import joined
    from hwnas.show.console import console

    before, console.quiet = console.quiet, ranks.rank != 0
    try:
        with joined():
            if not shareable:
                raise HwnasError("only train and search run in several processes; start this one without torchrun")
            yield
    except KeyboardInterrupt:
        if ranks.rank == 0:
            raise
        raise SystemExit(INTERRUPTED) from None  # that of rank 0 says it
    finally:
        console.quiet = before
