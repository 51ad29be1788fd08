"""How a command ends: with its own exit code, or in one line that says what to do."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from hwnas.errors import HwnasError, frames, refusal, unimportable

REFUSED = 2
INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE
PRINTING = (__name__, "__main__", "hwnas.cli", "hwnas.runtime.__main__", "rich.console")


def ended(work: Callable[[], int], prefix: str) -> int:
    """Do the work of a command and return its exit code.

    What a user can mend, what the system refuses, and a package that cannot be imported end in one line on standard
    error and exit code 2. A reader of the output that has gone, as ``head`` does, ends it without a word. What is left
    is a fault of ours, which is raised.

    Args:
        work: Returns the exit code.
        prefix: Of the line: ``"hwnas"``.
    """
    try:
        code = work()
        if sys.stdout is not None:
            sys.stdout.flush()
    except HwnasError as e:
        code = _say(f"{prefix}: {e}", REFUSED)
    except KeyboardInterrupt:
        code = _say("interrupted; the same command goes on where it stopped", INTERRUPTED)
    except OSError as e:
        gone = isinstance(e, BrokenPipeError) and _is_unread()
        code = UNREAD if gone else _say(f"{prefix}: {unimportable(e) or refusal(e, _output(e))}", REFUSED)
    except Exception as e:  # an import may fail with any; what is none is raised
        broken = unimportable(e)
        if broken is None:
            raise
        code = _say(f"{prefix}: {broken}", REFUSED)
    finally:
        _let_go()
    return code


def _say(line: str, code: int) -> int:
    with suppress(OSError):
        print(" ".join(line.split()), file=sys.stderr, flush=True)
    return code


def _is_unread() -> bool:
    """Return whether nobody reads what this process prints."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
                return True
    return False


def _output(e: OSError) -> str | None:
    """Return the name of standard output if an error was raised where nothing else is written."""
    module = ""
    for frame in frames(e):
        module = str(frame.f_globals.get("__name__"))
    return "standard output" if e.filename is None and module in PRINTING else None


def _let_go() -> None:
    """Drop output that cannot be written: else Python tries once more at its end, and says so in its own words."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
