"""Measure a plan, or run a bundle, where only numpy and an engine are installed: `python -m hwnas.runtime`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[0] and sys.path[0] == os.getcwd():
    sys.path.append(sys.path.pop(0))  # `-m` puts the working folder first: a statistics.py there is not what is meant

import argparse
import json
import math
import resource
import shlex
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NoReturn

from hwnas.ending import ended
from hwnas.errors import REMEDIES, DeviceLost, HwnasError, check_ranges, refusal
from hwnas.progress import Eta
from hwnas.runtime.deploy.picture import run_on_picture
from hwnas.runtime.engines import ENGINES, capabilities, using_engine
from hwnas.runtime.measuring import limits
from hwnas.runtime.measuring.child import die_with_parent, own_channel
from hwnas.runtime.measuring.device import UNPINNED, device_name
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan
from hwnas.runtime.measuring.results import collect, conditions
from hwnas.runtime.measuring.supervise import supervise
from hwnas.runtime.measuring.work import RESULTS_FILE, Progress, free_memory_bytes, measure_plan, pin_to_cpus

STDOUT = 1
LINE_S = 10.0  # between progress lines where the output is not a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or as `hwnas.ending` says."""

    def work() -> int:
        args = _parser().parse_args(argv)
        return int(args.verb(args))

    return ended(work, "error")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hwnas.runtime", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="measure | run")
    _add_measure(verbs)
    _add_run(verbs)
    return parser


def _add_measure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "measure",
        help="measure every entry of a plan folder on this machine",
        description="Measure every entry of a plan folder on this machine. Can be stopped and started again.",
        epilog="example: python -m hwnas.runtime measure plan/ --engine onnxruntime --threads 1",
    )
    verb.add_argument("folder", type=Path, metavar="DIR", help="folder with plan.json")
    engines = f"{', '.join(ENGINES)} or module:class (%(default)s)"
    verb.add_argument("--engine", default="onnxruntime", help=engines)
    verb.add_argument("--threads", type=int, default=1, help="threads of the engine (%(default)s)")
    rule = StopRule()
    verb.add_argument("--visits", type=int, default=rule.min_visits, help="least visits to an entry (%(default)s)")
    most = f"most visits to an entry ({rule.max_visits}, and no fewer than --visits)"
    verb.add_argument("--max-visits", type=int, help=most)
    verb.add_argument(
        "--spread", type=float, default=rule.min_s, metavar="S", help="seconds the visits are spread over (%(default)g)"
    )
    verb.add_argument("--stop", type=json.loads, help=argparse.SUPPRESS)  # the whole rule as JSON, for programs
    verb.add_argument("--results", type=Path, metavar="FILE", help=f"results file (DIR/{RESULTS_FILE})")
    verb.add_argument("--seed", type=int, default=0, help="of the random orders (%(default)s)")
    verb.add_argument("--minutes", type=float, help="stop after this time; what matters most comes first")
    verb.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="seconds after which an entry hangs (%(default)g)"
    )
    verb.add_argument(
        "--json-progress",
        type=int,
        nargs="?",
        const=STDOUT,
        metavar="FD",
        help="measure in this very process and write JSON lines to a descriptor (standard output), for programs",
    )
    verb.set_defaults(verb=lambda args: _measure(args) if args.json_progress is None else _work(args))


def _add_run(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "run",
        help="run an exported network on a picture",
        description="Run the network of a bundle, as hwnas export makes it, on a picture; write picture and labels "
        "side by side.",
        epilog="example: python -m hwnas.runtime run runs/NAME/deploy street.jpg",
    )
    verb.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with engine.json")
    verb.add_argument("image", type=Path, metavar="IMAGE", help="a picture")
    verb.add_argument(
        "--out", type=Path, metavar="PNG", help="what to write (the picture's name with -labels.png, here)"
    )
    verb.add_argument("--overlay", action="store_true", help="lay the colours over the picture")
    verb.add_argument("--force", action="store_true", help="write over what is there")
    verb.set_defaults(verb=_run)


def _work(args: argparse.Namespace) -> int:
    """Measure in this process and tell the parent by lines of JSON."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an interrupt, so not the fault of an entry
    die_with_parent()  # so that the next one can go on
    with own_channel(None if args.json_progress == STDOUT else args.json_progress) as out:
        try:
            about, cpus = dict[str, str](), limits.conditions()  # before it keeps to some of them
            if capabilities(args.engine).on_host:  # a driver of GPUs has threads and mappings of its own
                if refused := pin_to_cpus(args.threads):
                    about[UNPINNED] = refused
                _limit_memory()
            measure_plan(
                args.folder,
                args.engine,
                args.threads,
                _rule(args),
                args.seed,
                args.results,
                lambda progress: print(json.dumps(asdict(progress)), file=out),
                args.minutes,
                about,
                cpus,
            )
            print(json.dumps({"finished": True}), file=out)
        except DeviceLost as e:
            print(e, file=sys.stderr)  # its last words
            return 1
        except Exception as e:  # of an engine, which may raise any
            told = _for_people(e)
            if told is None:
                raise  # the parent finds out that this process has died, and what its last words were
            print(json.dumps({"error": type(told).__name__, "message": str(told)}), file=out)
            return 2
    return 0


def _for_people(e: Exception) -> HwnasError | None:
    """Return what ended a measurement as an error that the parent passes on; None if it is an engine's own fault."""
    if isinstance(e, HwnasError):
        return e
    return refusal(e) if isinstance(e, OSError) and e.errno in REMEDIES else None


def _rule(args: argparse.Namespace) -> StopRule:
    if args.stop is not None:
        return _rule_of(args.stop)
    most = max(args.visits, StopRule.max_visits) if args.max_visits is None else args.max_visits
    check_ranges(
        "a measurement",
        ("a --spread of 0 or more seconds", args.spread, 0 <= args.spread < math.inf),
        ("a --seed of 0 or more", args.seed, args.seed >= 0),
        ("--threads of 1 or more", args.threads, args.threads >= 1),
        ("a --timeout of more than 0 seconds", args.timeout, args.timeout > 0),
        ("--minutes of 0 or more", args.minutes, args.minutes is None or args.minutes >= 0),
    )
    return StopRule(args.visits, most, args.spread)


def _rule_of(fields: object) -> StopRule:
    """Return the rule that a program gave as a JSON object.

    Raises:
        HwnasError: If it is none.
    """
    try:
        return StopRule(**fields)  # type: ignore[arg-type] # what JSON holds is seen by the call
    except TypeError as e:
        raise HwnasError(f"--stop takes a JSON object of {', '.join(StopRule.__dataclass_fields__)}: {e}") from e


def _limit_memory() -> None:
    """Let an entry that allocates too much fail by itself, before the system kills what it likes."""
    free = int(0.9 * free_memory_bytes())
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or free < soft:
        with suppress(OSError, ValueError):  # not every system lets a process do that
            resource.setrlimit(resource.RLIMIT_DATA, (free, hard))


def _measure(args: argparse.Namespace) -> int:
    """Measure in a child process and tell a person."""
    start_s = time.monotonic()
    plan, reporter = load_plan(args.folder), _Reporter()
    with using_engine(args.engine, args.threads, plan.precision) as engine:
        if engine.capabilities.on_host and engine.clock != "model":
            limits.check_threads(args.threads)
    try:
        path = supervise(
            args.folder,
            args.engine,
            args.threads,
            _rule(args),
            args.results,
            reporter,
            seed=args.seed,
            minutes=args.minutes,
            timeout_s=args.timeout,
            on_restart=reporter.restarted,
        )
    finally:
        reporter.close()
    where, rows = collect(path, plan)
    bad = [row for row in rows if row.measurement is None]
    doubtful = sum(row.measurement.doubtful for row in rows if row.measurement)
    machine = conditions(path)
    print(
        f"measured {len(rows) - len(bad)} of {len(plan.entries)} entries on {device_name(where)} with {args.engine} "
        f"in {time.monotonic() - start_s:.0f} s; {len(bad)} could not be measured, {doubtful} are doubtful"
    )
    if machine.visits:
        drift = f"its quiet level drifted by {machine.drift:+.1%}"
        print(f"the machine was slow {machine.slow_share:.0%} of the time; {drift}")
    if (quota := limits.quota_of(where)) is not None:
        print(f"this process may have the time of {quota:g} CPUs: it computes no faster than that for long")
    if UNPINNED in where:
        print(f"the measuring process was not kept on one CPU for each thread: {where[UNPINNED]}")
    for row in bad:
        print(f"  {row.key}: {row.status}: {row.reason}")
    if len(rows) < len(plan.entries):
        print(f"{len(plan.entries) - len(rows)} entries are left; next: the same command again")
    else:
        print(f"next: hwnas profile RECIPE --results {shlex.quote(str(path))}")
    return 0


def _run(args: argparse.Namespace) -> int:
    """Run a bundle on a picture and tell a person."""
    out = args.out or Path(f"{args.image.stem}-labels.png")
    for line in run_on_picture(args.bundle, args.image, out, args.overlay, args.force):
        print(line)
    return 0


class _Reporter:
    """Prints progress with an estimate of the time left: in place on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._eta, self._last_s = Eta(), time.monotonic()
        self._open = False  # whether the cursor stands in the line

    def __call__(self, progress: Progress) -> None:
        now_s = time.monotonic()
        self._eta.told(progress.done, progress.total, progress.left_s)
        about = "; ".join(text for text in (self._eta.text(), progress.note) if text)
        line = f"[{progress.done}/{progress.total}] {_outcome(progress)}  {about}".rstrip()
        if sys.stdout.isatty():
            width = shutil.get_terminal_size((120, 24)).columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
            self._open = True
        elif progress.done == progress.total or now_s - self._last_s >= LINE_S:
            self._last_s = now_s
            print(line, flush=True)

    def restarted(self, reason: str) -> None:
        """Say that a child had to be started again."""
        self.close()
        self._open = False
        print(f"the measuring process is started again: {reason}", flush=True)

    def close(self) -> None:
        """Go to the next line if the cursor is not at the start of one."""
        if self._open:
            print()


def _outcome(progress: Progress) -> str:
    record = progress.record
    what = f"{median(record['latency_ms']):.3f} ms" if record["status"] == "ok" else str(record["status"])
    return f"{str(record['key'])[:40]}  {what}"


def _exit_on_signal(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _exit_on_signal)  # so that a child is ended too
    sys.exit(main())
