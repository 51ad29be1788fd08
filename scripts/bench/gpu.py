"""All evidence that a GPU can give, in one go: tests, latency tables, kernels, frames per second.

Runs in steps, what matters most first, each in a process of its own with a bound on its time. A step leaves
``<step>.json`` and ``<step>.log`` in the folder; one that worked is not run again, one that failed is tried again, and
one that there is no time for is left out and said to be. At the end ``results.json`` has everything and ``results.md``
is a page of it. The same command goes on where it stopped. Ends with 1 if a step failed, with 2 if there is no GPU.

example: python scripts/bench/gpu.py --minutes 60 --out gpu-results
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import gpu_host
import gpu_report

from hwnas.errors import HwnasError
from hwnas.files import read_json, write_atomic
from hwnas.runtime.measuring.child import with_hwnas

ROOT = Path(__file__).resolve().parents[2]
BENCH = Path(__file__).resolve().parent
KINDS = ("doctor", "tests", "tables", "kernels", "fps")
TABLE = "table-"  # before the names of tables
SETTINGS = "settings.json"
TOLD_EVERY_S = 60.0  # where the output is not a terminal
GRACE_S = 10.0  # for a child that was interrupted, to end by itself
OVERTIME = 3.0  # minutes for the entry that is under way when a measurement's time is up
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)")


class Failed(Exception):
    """A step that did not work.

    Attributes:
        data: What it found nevertheless.
    """

    def __init__(self, reason: str, data: dict[str, Any] | None = None) -> None:
        """Say why."""
        super().__init__(reason)
        self.data = data or {}


class NotReady(Exception):
    """A step that cannot be tried here."""


@dataclass(frozen=True)
class Step:
    """One piece of evidence.

    Attributes:
        name: Of its files.
        title: For people.
        least: Minutes below which it is not begun: what it is estimated to take.
        most: Minutes after which it is ended.
        run: Finds it, in so many minutes; raises `Failed` or `NotReady`.
    """

    name: str
    title: str
    least: float
    most: float
    run: Callable[[Child, float], dict[str, Any]]


class Child:
    """Runs the commands of a step, one after the other, into its log."""

    def __init__(self, log: Path, tell: Callable[[str], None]) -> None:
        """Append to `log`; `tell` is told the last line of it, every second."""
        self._log, self._tell = log, tell

    def __call__(self, command: Sequence[str], minutes: float, cwd: Path | None = None) -> tuple[int, str]:
        """Return the exit code of a command, and what it said.

        Raises:
            Failed: If it takes longer than that.
        """
        with self._log.open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            env = {**with_hwnas(), "PYTHONUNBUFFERED": "1"}
            with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=env) as child:
                try:
                    self._wait(child, time.monotonic() + 60 * minutes, start)
                except KeyboardInterrupt:  # it was interrupted too
                    _give(child, GRACE_S)
                    raise
                finally:
                    child.kill()
        return child.returncode, self._said(start)

    def _wait(self, child: subprocess.Popen[bytes], until_s: float, start: int) -> None:
        while not _give(child, 1.0):
            if time.monotonic() > until_s:
                raise Failed(f"its time was up; its last words: {_last_line(self._said(start)) or 'none'}")
            self._tell(_last_line(self._said(start)))

    def _said(self, start: int) -> str:
        with self._log.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")


def _give(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Return whether a child ended in so many seconds."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(text: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1][:300] if lines else ""


def doctor(child: Child, minutes: float) -> dict[str, Any]:
    """Return what `hwnas doctor` and nvidia-smi say."""
    code, said = child([sys.executable, "-m", "hwnas", "doctor"], minutes)
    if code:
        raise Failed(_last_line(said))
    out = {"doctor": said}
    if shutil.which("nvidia-smi"):
        code, out["nvidia_smi"] = child(["nvidia-smi", "-q"], minutes)
    return out


def tests(paths: Sequence[Path], child: Child, minutes: float) -> dict[str, Any]:
    """Return how many tests for GPUs passed, failed and were skipped."""
    # Only files that have such tests: the others need packages that a GPU box need not have.
    found = [p for p in paths if re.search(r"\bmark\.gpu\b", p.read_text(encoding="utf-8"))]
    if not found:
        raise NotReady("no test has the marker gpu")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, found)]
    code, said = child(command, minutes, ROOT)
    last = _last_line(said)
    counts = {name.rstrip("s") if name == "errors" else name: int(n) for n, name in COUNT.findall(last)}
    if code or not counts.get("passed"):
        raise Failed(f"pytest ended with {code}: {last}", {"counts": counts})
    return {"counts": counts}


def table(recipe: str, engine: str, precision: str, folder: Path, child: Child, minutes: float) -> dict[str, Any]:
    """Return how well a latency table of an engine predicts networks."""
    here = gpu_host.engine(engine, precision)
    if "reason" in here:
        raise NotReady(here["reason"])
    run = f"{engine}-{precision}"
    command = [sys.executable, "-m", "hwnas", "profile", recipe, "--engine", engine, "--precision", precision]
    code, said = child([*command, "--run", run, *_bound(minutes)], minutes + OVERTIME, folder)
    if code:
        raise Failed(_last_line(said))
    return read_table(folder / "runs" / run / "table.json")


def read_table(path: Path) -> dict[str, Any]:
    """Return the errors of a table and where it was measured; ``unfinished`` says what time left out.

    Raises:
        Failed: If it was not held against a network that it was not fitted on.
    """
    from hwnas.latency import LatencyTable  # brings torch, which nothing else here needs

    made = LatencyTable.load(path)
    report, states = made.report, Counter(row.status for row in made.rows.values())
    skipped = states["skipped"] + len(report.get("left_out", ()))
    out: dict[str, Any] = {
        "where": made.where,
        "ops": len(made.rows),
        "ops_by_status": dict(states),
        "interval": made.correction.interval,
        "base_ms": made.correction.base_ms,
        "call_ms": made.correction.call_ms,
        **{name: report.get(name) for name in gpu_report.OF_TABLE},
        "unfinished": f"{skipped} entries were not reached in the time" if skipped else "",
    }
    if not report.get("held_out"):
        bad = next((r for r in made.rows.values() if r.status in ("failed", "crashed")), None)
        why = out["unfinished"] or (f"of {bad.key} it says: {bad.reason}" if bad else "it has no such networks")
        raise Failed(f"it was held against no network that it was not fitted on: {why}", out)
    return out


def program(command: Sequence[str], bounded: bool, child: Child, minutes: float) -> dict[str, Any]:
    """Return what a program of this folder prints as its last line, one JSON object.

    Args:
        command: Name of the program and arguments.
        bounded: Whether it takes ``--minutes``.
        child: Runs it.
        minutes: At most.
    """
    name, *arguments = command
    bound, overtime = (_bound(minutes), OVERTIME) if bounded else ([], 0.0)
    code, said = child([sys.executable, str(BENCH / name), *arguments, *bound], minutes + overtime)
    last = said.rstrip().rpartition("\n")[2]
    data = json.loads(last) if last.startswith("{") else {}
    if code or not data:
        found = (str(f["reason"]) for f in data.get("engines", ()) if f.get("ready") and "reason" in f)
        raise Failed(f"{name} ended with {code}: {next(found, _last_line(said)[:300])}", data)
    late = [r for f in data.get("engines", ()) for r in f.get("rows", ()) if r["status"] == "skipped"]
    return {**data, "unfinished": f"{len(late)} entries were not reached in the time" if late else ""}


def _bound(minutes: float) -> list[str]:
    return ["--minutes", f"{max(minutes / 2, minutes - OVERTIME):g}"]


def steps(args: argparse.Namespace) -> list[Step]:
    """Return the steps that were asked for, in their order."""
    size = [] if args.size is None else ["--size", "x".join(map(str, args.size))]
    copy = [] if args.copy_mib is None else ["--copy-mib", str(args.copy_mib)]
    kernels = ["gpu_kernels.py", *size, *copy, *(["--visits", "5"] if args.quick else [])]
    fps = ["gpu_fps.py", "--recipe", args.recipe, *size, "--folder", str(args.out / "fps")]
    fps += ["--random", "1", "--visits", "5", "--spread", "0"] if args.quick else []
    fps += ["--engines", *(":".join(pair) for pair in args.engines)]
    least, most = (2.0, 5.0) if args.quick else (5.0, 20.0)
    every = {
        "doctor": [Step("doctor", "what is here", 0.3, 3.0, doctor)],
        "tests": [Step("tests", "tests that need a GPU", 1.0, 10.0, partial(tests, args.tests))],
        "tables": [
            Step(f"{TABLE}{e}-{p}", f"table of {e} in {p}", least, most, partial(table, args.recipe, e, p, args.out))
            for e, p in args.engines
        ],
        "kernels": [Step("kernels", "kernels of ours", 1.0, 6.0, partial(program, kernels, False))],
        "fps": [Step("fps", "frames per second", least, most, partial(program, fps, True))],
    }
    return [step for kind in KINDS if kind in args.steps for step in every[kind]]


class Session:
    """One call of this program.

    Attributes:
        failed: Names of the steps that were tried and did not work.
        not_tried: Why others were not, by name.
    """

    def __init__(self, out: Path, minutes: float) -> None:
        """Work in the folder `out`, for so many minutes."""
        self._out, self._start_s, self._minutes = out, time.monotonic(), minutes
        self.failed: list[str] = []
        self.not_tried: dict[str, str] = {}

    def run(self, todo: Sequence[Step]) -> None:
        """Run all steps that are not done and that there is time for."""
        open_steps = [step for step in todo if not self._done(step)]
        self.not_tried = {step.name: "left out: it was interrupted" for step in open_steps}  # until it is tried
        for step in todo:
            at = f"[{todo.index(step) + 1}/{len(todo)}] {step.name}"
            if step not in open_steps:
                print(f"{at}: done before", flush=True)
                continue
            left = self._left()
            later = self._kept_for(open_steps[open_steps.index(step) + 1 :]) if step.name.startswith(TABLE) else []
            minutes = min(step.most, left - sum(s.least for s in later))
            if minutes < step.least:
                self.not_tried[step.name] = f"left out: {max(0.0, left):.1f} minutes were left" + (
                    f", some of them for {', '.join(s.name for s in later)}" if later else ""
                )
                print(f"{at}: {self.not_tried[step.name]}", flush=True)
                continue
            print(f"{at}: {step.title}, at most {minutes:.0f} of {left:.0f} minutes", flush=True)
            self._try(step, at, minutes)

    def _kept_for(self, later: Sequence[Step]) -> list[Step]:
        """Return the later steps that are not to go without: tables take all the time they are given."""
        a_table = any(self._out.glob(f"{TABLE}*.json"))  # before there is one, nothing but the kernels is worth more
        return [step for step in later if not step.name.startswith(TABLE) and (a_table or step.name == "kernels")]

    def _done(self, step: Step) -> bool:
        path = self._out / f"{step.name}.json"
        if not path.exists():
            return False
        found = read_json(path, "a step's result")
        return bool(found["ok"]) and not found["data"].get("unfinished")

    def _left(self) -> float:
        return self._minutes - (time.monotonic() - self._start_s) / 60

    def _try(self, step: Step, at: str, minutes: float) -> None:
        """Run one step and write down what came of it."""
        start_s, reason, data = time.monotonic(), "", dict[str, Any]()
        tell = _Teller(at, self._left)
        try:
            data = step.run(Child(self._out / f"{step.name}.log", tell), minutes)
        except NotReady as e:
            self.not_tried[step.name] = f"not ready: {e}"
            tell.close()
            print(f"{at}: {self.not_tried[step.name]}", flush=True)
            return
        except Failed as e:
            reason, data = str(e), e.data
        except (HwnasError, OSError, json.JSONDecodeError) as e:
            reason = str(e)
        tell.close()
        del self.not_tried[step.name]
        seconds = time.monotonic() - start_s
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = {"step": step.name, "ok": not reason, "reason": reason, "seconds": seconds, "at": now, "data": data}
        write_atomic(self._out / f"{step.name}.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
        if reason:
            self.failed.append(step.name)
        said = f"FAILED: {reason}" if reason else data.get("unfinished") or "ok"
        print(f"{at}: {said} ({seconds:.0f} s)", flush=True)


class _Teller:
    """Shows how long a step has been at it and what it said last: in place on a terminal, else now and then."""

    def __init__(self, at: str, left: Callable[[], float]) -> None:
        self._at, self._left = at, left
        self._start_s = self._last_s = time.monotonic()
        self._open = False

    def __call__(self, said: str) -> None:
        now_s = time.monotonic()
        seconds = round(now_s - self._start_s)
        line = f"{self._at}  {seconds // 60}:{seconds % 60:02d}, {max(0.0, self._left()):.0f} minutes left  {said}"
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
            self._open = True
        elif now_s - self._last_s >= TOLD_EVERY_S:
            self._last_s = now_s
            print(line, flush=True)

    def close(self) -> None:
        """Go to the next line if the cursor is not at the start of one."""
        if self._open:
            print()


def claim(args: argparse.Namespace, host: dict[str, Any]) -> dict[str, Any]:
    """Return what the folder's results are of, which it has, or gets, in a file.

    Raises:
        HwnasError: If the folder has something else in it.
    """
    folder, path = args.out, args.out / SETTINGS
    size = None if args.size is None else "x".join(map(str, args.size))
    card = {"gpu": host["device"]["name"], "card": host["options"]["card"]}
    settings = {"recipe": args.recipe, "size": size, "quick": args.quick, **card}
    if path.exists():
        there = read_json(path, "the settings of results")
        differ = [
            f"{name} {there.get(name)!r}, not {value!r}" for name, value in settings.items() if there.get(name) != value
        ]
        if differ:
            raise HwnasError(f"{folder} has results of {', '.join(differ)}; name another folder with --out")
        return settings
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HwnasError(f"{folder} is there and is no folder of results; name another one with --out")
    write_atomic(path, json.dumps(settings) + "\n")
    return settings


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--minutes", type=float, help="bound on the time (60; with --quick 20)")
    out.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="DIR", help="%(default)s")
    out.add_argument("--quick", action="store_true", help="small images and few visits: to see whether all works")
    out.add_argument("--steps", nargs="+", choices=KINDS, default=KINDS, metavar="STEP", help=f"of {', '.join(KINDS)}")
    out.add_argument(
        "--engines",
        type=gpu_host.pair,
        nargs="+",
        default=gpu_host.ORDER,
        metavar="ENGINE:PRECISION",
        help="in their order (all for GPUs)",
    )
    out.add_argument("--recipe", help="of tables and networks (darts-gpu; with --quick darts-quick)")
    out.add_argument("--size", type=gpu_host.size, metavar="HxW", help="of images, but for tables")
    out.add_argument("--copy-mib", type=int, metavar="MIB", help="see gpu_kernels.py")
    out.add_argument(
        "--tests", type=Path, nargs="+", default=sorted((ROOT / "tests").glob("test_*.py")), metavar="FILE",
        help="where tests are (all of tests/)",
    )  # fmt: skip
    return out


def main() -> int:
    """Run the steps; return the exit code."""
    line = parser()
    args = line.parse_args()
    missing = [str(path) for path in args.tests if not path.is_file()]
    if missing:
        line.error(f"there is no file {missing[0]}")
    args.recipe = args.recipe or ("darts-quick" if args.quick else "darts-gpu")
    args.out, args.tests = args.out.resolve(), [path.resolve() for path in args.tests]
    minutes = args.minutes if args.minutes is not None else 20.0 if args.quick else 60.0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that children are ended too
    try:
        host = gpu_host.gpu() | gpu_report.surroundings()
        settings = claim(args, host)
        session = Session(args.out, minutes)
        try:
            session.run(steps(args))
        finally:
            page = gpu_report.write(args.out, host, settings, session.not_tried)
    except HwnasError as e:
        print(f"gpu: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    print(f"\n{page}")
    if session.failed:
        print(f"failed: {', '.join(session.failed)}; their logs are in {args.out}")
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
