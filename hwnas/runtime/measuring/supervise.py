"""Measuring in a child process, so that an engine that crashes or hangs costs one entry and not the run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

from hwnas import errors
from hwnas.errors import HwnasError
from hwnas.files import is_there
from hwnas.runtime.engines import capabilities
from hwnas.runtime.measuring.child import channel, environment, last_words, message_of
from hwnas.runtime.measuring.child import command as child_command
from hwnas.runtime.measuring.device import malloc_tunables
from hwnas.runtime.measuring.journal import Journal
from hwnas.runtime.measuring.measure import DEFAULT_STOP, StopRule
from hwnas.runtime.measuring.results import OUTSIDE_DEATHS
from hwnas.runtime.measuring.work import RESULTS_FILE, Progress

# Sent by users, init systems and a kernel short of memory; an engine's own faults have other signals.
OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
INTERRUPTED = 130  # exit code of a child that was asked to end


class Death(NamedTuple):
    """How a child ended before it was finished.

    Attributes:
        reason: In one line.
        outside: Whether the signal came from outside, as far as its number tells.
    """

    reason: str
    outside: bool = False


def supervise(
    folder: Path,
    engine_name: str = "onnxruntime",
    threads: int = 1,
    stop: StopRule = DEFAULT_STOP,
    results: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    seed: int = 0,
    minutes: float | None = None,
    timeout_s: float = 120.0,
    on_restart: Callable[[str], None] | None = None,
) -> Path:
    """Measure in a child process, and start it again if it dies or hangs.

    An entry that keeps killing it is recorded as crashed and left out: see `hwnas.runtime.measuring.work`.

    Args:
        folder: A plan.
        engine_name: Name of the engine.
        threads: Threads of the engine.
        stop: When an entry needs no more visits.
        results: The results file; ``results.jsonl`` in the plan folder if None.
        on_progress: Called after each visit.
        seed: Of the orders.
        minutes: As in `measure_plan`.
        timeout_s: A child that finishes no measurement for so long, waiting as the rule asks for and building aside,
            is killed.
        on_restart: Told why, when a child that died is started again.

    Returns:
        The results file.

    Raises:
        HwnasError: What the child reported, or that it died although no entry was being measured.
    """
    if not timeout_s > 0:
        raise HwnasError(f"the time after which an entry hangs must be positive, got {timeout_s}")
    if minutes is not None and not minutes >= 0:
        raise HwnasError(f"minutes must not be negative, got {minutes}")
    if seed < 0:
        raise HwnasError(f"the seed of the orders must not be negative, got {seed}")
    path = folder / RESULTS_FILE if results is None else results
    deadline_s = None if minutes is None else time.monotonic() + 60 * minutes
    command = child_command("hwnas.runtime", "measure", f"--engine={engine_name}", "--threads", str(threads))
    command += [f"--results={path}", f"--seed={seed}", "--stop", json.dumps(asdict(stop))]
    load_s = capabilities(engine_name).slowest_load_s
    early = 0  # deaths in a row before anything was measured
    while True:
        left = [] if deadline_s is None else ["--minutes", str(max(0.0, (deadline_s - time.monotonic()) / 60))]
        seen = _written(path)
        try:
            death = _run_child([*command, *left, "--", str(folder)], timeout_s + stop.min_s + load_s, on_progress)
        except BaseException:  # also of `on_progress`: nobody reads what it prints, or its disk is full
            with suppress(HwnasError, OSError):
                _close_start(path, seen, {"type": "interrupted"})
            raise
        if death is None:
            return path
        early = 0 if _close_start(path, seen, {"type": "death", **death._asdict()}) else early + 1
        if early >= (OUTSIDE_DEATHS if death.outside else 1):
            raise HwnasError(f"the measuring process died before it measured anything: {death.reason}")
        if on_restart is not None:
            on_restart(death.reason)


def _run_child(
    command: Sequence[str], timeout_s: float, on_progress: Callable[[Progress], None] | None
) -> Death | None:
    """Return None if the child finished, else why it did not."""
    surroundings, tunables = environment(), malloc_tunables()
    if tunables is not None:
        surroundings["GLIBC_TUNABLES"] = tunables
    with tempfile.TemporaryFile() as log, channel() as (told, telling):
        telling_to = [f"--json-progress={telling}"]
        at = list(command).index("measure") + 1
        words = [*command[:at], *telling_to, *command[at:]]
        with subprocess.Popen(words, stdout=log, stderr=log, env=surroundings, pass_fds=[telling]) as child:
            os.close(telling)
            try:
                death = _follow(child, told, log, timeout_s, on_progress)
            finally:
                child.kill()
        return None if death is None else death._replace(reason=death.reason + last_words(log))


def _follow(
    child: subprocess.Popen[bytes],
    told: int,
    log: IO[bytes],
    timeout_s: float,
    on_progress: Callable[[Progress], None] | None,
) -> Death | None:
    for line in _lines(told, timeout_s):
        if line is None:
            return Death(f"no measurement was finished in {timeout_s:g} s")
        message = message_of(line)
        if message is None:  # something else writes to every descriptor it finds
            log.write(line + b"\n")
            continue
        if "error" in message:
            raise getattr(errors, message["error"], HwnasError)(message["message"])
        if "finished" in message:
            return None
        if on_progress is not None:
            on_progress(Progress(**message))
    try:
        code = child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return Death(f"it did not end in {timeout_s:g} s")
    if code >= 0:
        return Death(f"exit code {code} before it was finished", code == INTERRUPTED)
    return Death(f"killed by {_signal_name(-code)}", -code in OUTSIDE)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _lines(descriptor: int, timeout_s: float) -> Iterator[bytes | None]:
    """Yield whole lines of what a child tells, and None if nothing comes in time."""
    rest = b""
    while select.select([descriptor], [], [], timeout_s)[0]:
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield None


def _written(path: Path) -> int:
    """Return how many whole lines a results file has."""
    return path.read_bytes().count(b"\n") if is_there(path) else 0


def _close_start(path: Path, seen: int, end: Mapping[str, Any]) -> bool:
    """Record how the measurement ended that a dead child had begun; return whether it had begun any.

    Args:
        path: The results file.
        seen: Lines that were there before the child.
        end: What to record, without key and visit.
    """
    if _written(path) <= max(seen, 1):  # the first line is no measurement
        return False
    with Journal(path) as journal:
        last = journal.records[-1]
        if last.get("type") == "start":
            journal.append({**last, **end})
    return True
