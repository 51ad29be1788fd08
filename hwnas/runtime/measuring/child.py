"""What all child processes of ours have in common."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import hwnas
from hwnas.runtime import _child

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def die_with_parent() -> None:
    """End this process when its parent is killed; without Linux it ends when it next meets a closed pipe."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library that cannot be asked
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command of a child that runs a module of this very package; see `hwnas.runtime._child`."""
    return [sys.executable, _child.__file__, str(Path(hwnas.__file__).parent), module, *arguments]


def environment() -> dict[str, str]:
    """Return the environment of a child: it can import what this process can, after Python's own modules."""
    return {**os.environ, _child.SEARCHED: json.dumps([os.path.abspath(p) for p in sys.path])}


def with_hwnas() -> dict[str, str]:
    """Return the environment in which any Python finds this very package, installed or not; for scripts."""
    paths = [str(Path(hwnas.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


@contextmanager
def channel() -> Iterator[tuple[int, int]]:
    """Open a pipe for what a child tells, which nothing else that it prints gets into.

    Yields:
        The end to read, and the end to hand to the child by ``pass_fds``; close that as soon as it has it, for the
        child's end of the pipe is how its death is seen.
    """
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            with suppress(OSError):  # closed already
                os.close(end)


def own_channel(descriptor: int | None) -> IO[str]:
    """Return what a child tells its parent by, whose lines nothing else it prints gets between.

    Args:
        descriptor: The end of a pipe that the parent handed down; None for standard output, which everything else is
            kept out of from then on.
    """
    if descriptor is not None:
        os.set_inheritable(descriptor, False)  # its own children do not keep it open
        return os.fdopen(descriptor, "w", buffering=1)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return out


def message_of(line: str | bytes) -> dict[str, Any] | None:
    """Return what a child tells by a line of JSON; None for what gets into its channel besides."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def last_words(log: IO[bytes]) -> str:
    """Return the last line that a child wrote to a file, as the end of a message; empty if there is none."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
    lines = log.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its last words: {last[:300]}" if last else ""
