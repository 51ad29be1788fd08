"""Measuring whole plans: passes, resume, children that crash or hang, kills, the command line."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import HwnasError, ProvenanceError
from hwnas.runtime.__main__ import main
from hwnas.runtime.device import provenance
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.fake import modelled_ms
from hwnas.runtime.journal import Journal, read_journal
from hwnas.runtime.measure import StopRule, measure
from hwnas.runtime.plan import load_plan, write_plan
from hwnas.runtime.supervise import supervise
from hwnas.runtime.work import Progress, Row, collect, measure_plan, settled
from tests.runtime_cases import Scripted, conv_entry, conv_relu, four_ops

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return four_ops(tmp_path / "plan")


# --- whole runs


def samples_of(results: Path) -> list[tuple[str, int]]:
    return [(r["key"], r["pass"]) for r in read_journal(results)[1] if r["type"] == "sample"]


def test_every_entry_is_measured_once_a_pass_in_another_order(plan: Path) -> None:
    told: list[Progress] = []
    results = measure_plan(plan, "fake", passes=3, on_record=told.append)
    assert results == plan / "results.jsonl"
    done = samples_of(results)
    passes = [[key for key, pass_ in done if pass_ == p] for p in range(3)]
    assert [sorted(keys) for keys in passes] == [["op0", "op1", "op2", "op3"]] * 3
    assert len({tuple(keys) for keys in passes}) > 1
    assert [(p.done, p.total) for p in told] == [(i, 12) for i in range(1, 13)]
    where, rows = collect(results)
    assert where == provenance(open_engine("fake"))
    assert [row.key for row in rows] == ["op0", "op1", "op2", "op3"]
    for row, entry in zip(rows, load_plan(plan).entries, strict=True):
        assert row.latency_ms == pytest.approx(modelled_ms(entry), rel=0.002)
        assert (row.status, row.n, row.passes, row.doubtful, row.pass_spread) == ("ok", 21, 3, False, 0)


def test_a_seed_gives_an_order(plan: Path, tmp_path: Path) -> None:
    orders = []
    for i, seed in enumerate([0, 0, 1]):
        orders.append(samples_of(measure_plan(plan, "fake", seed=seed, results=tmp_path / f"{i}" / "r.jsonl")))
    assert orders[0] == orders[1] != orders[2]


def test_what_is_there_is_not_measured_again(plan: Path) -> None:
    results = measure_plan(plan, "fake", passes=1)
    before = results.read_bytes()
    measure_plan(plan, "fake", passes=1)
    assert results.read_bytes() == before
    measure_plan(plan, "fake", passes=2)
    assert results.read_bytes().startswith(before)
    assert len(samples_of(results)) == len(set(samples_of(results))) == 8


def test_time_limit_stops_and_another_run_goes_on(plan: Path) -> None:
    results = measure_plan(plan, "fake", minutes=0)
    assert samples_of(results) == []
    measure_plan(plan, "fake", minutes=5)
    assert len(samples_of(results)) == 12


def test_results_of_other_conditions_are_refused(plan: Path) -> None:
    measure_plan(plan, "fake")
    with pytest.raises(ProvenanceError, match=r"where\.engine\.threads = 1, now it is 2; use another results file"):
        measure_plan(plan, "fake", threads=2)
    write_plan(plan, [conv_entry("other")])
    with pytest.raises(ProvenanceError, match="holds results of another plan"):
        measure_plan(plan, "fake")
    with pytest.raises(HwnasError, match="passes must be at least 1, got 0"):
        measure_plan(plan, "fake", passes=0)


def test_an_engine_error_is_a_row_and_the_run_goes_on(tmp_path: Path) -> None:
    file, _ = conv_relu(tmp_path)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    write_plan(tmp_path, [conv_entry("bad", tmp_path, "junk.onnx"), conv_entry("good", tmp_path, file)])
    bad, good = collect(measure_plan(tmp_path, "onnxruntime", passes=2))[1]
    assert (bad.status, bad.latency_ms, bad.passes) == ("failed", None, 2)
    assert "onnxruntime cannot run junk.onnx" in bad.reason
    assert good.status == "ok"
    assert good.latency_ms is not None
    assert 0 < good.latency_ms < 50


def test_rows_take_the_quietest_pass_and_tell_when_no_other_comes_close(tmp_path: Path) -> None:
    base = measure(Scripted([1.0]), StopRule(warmup_s=0)).to_dict()
    path = tmp_path / "r.jsonl"
    with Journal(path, {"plan": "p", "where": {}}) as journal:
        for key, medians, doubts in [
            ("alone", [1.3, 1.0, 1.1], [False] * 3),
            ("backed", [1.4, 1.0, 1.02], [True, False, False]),
            ("unsure", [1.0, 1.01], [True, False]),
        ]:
            for i, (ms, doubtful) in enumerate(zip(medians, doubts, strict=True)):
                fields = {**base, "latency_ms": ms, "p90_ms": 2 * ms, "doubtful": doubtful}
                journal.append({"type": "sample", "key": key, "pass": i, "status": "ok", **fields})
    rows = {row.key: row for row in collect(path)[1]}
    assert (rows["alone"].latency_ms, rows["alone"].p90_ms, rows["alone"].doubtful) == (1.0, 2.0, True)
    assert rows["alone"].pass_spread == pytest.approx(0.1)
    assert (rows["backed"].latency_ms, rows["backed"].doubtful, rows["backed"].n) == (1.0, False, 21)
    assert rows["unsure"].doubtful


def test_entries_whose_passes_disagree_get_more_of_them(plan: Path, engines: str, tmp_path: Path) -> None:
    """`Disturbed` slows the first two passes over op1, by different amounts: a third and a fourth pass settle it."""
    told: list[Progress] = []
    measure_plan(plan, f"{engines}:Disturbed", passes=2, on_record=told.append)
    rows = {row.key: row for row in collect(plan / "results.jsonl")[1]}
    assert {key: row.passes for key, row in rows.items()} == {"op0": 2, "op1": 4, "op2": 2, "op3": 2}
    assert not rows["op1"].doubtful
    measure_plan(plan, "fake", passes=1, results=tmp_path / "quiet.jsonl")
    quiet = {row.key: row for row in collect(tmp_path / "quiet.jsonl")[1]}
    assert rows["op1"].latency_ms == quiet["op1"].latency_ms
    assert (told[-1].done, told[-1].total) == (10, 10)


def test_an_entry_whose_passes_all_fell_into_slow_seconds_is_not_settled() -> None:
    """Three passes over ten entries; seconds in which all is 1.4 times slower take `c` in every pass."""
    names = "abcdefghij"
    quiet = [(name, 1.0) for name in names]
    slow = [(name, 1.4 if name in "abcd" else 1.0) for name in names]
    # `c` agrees with itself, but in each of its passes so did its neighbours with their slow selves.
    assert settled([*quiet, *quiet]) == set(names)
    unlucky = [*slow, *slow, *(item for item in quiet if item[0] != "c")]
    assert "c" not in settled(unlucky)
    assert "c" in settled([*unlucky, ("c", 1.0), ("c", 1.01)])
    assert "c" not in settled([*quiet, *(item for item in quiet if item[0] != "c"), ("c", 0.8)])  # nothing is close


def test_killing_everything_is_not_the_fault_of_an_entry(plan: Path, tmp_path: Path) -> None:
    """Starts without an end, up to four, are kills by the user; deaths that a supervisor recorded are the entry's."""
    measure_plan(plan, "fake", passes=1, results=tmp_path / "whole.jsonl")
    header, _ = read_journal(tmp_path / "whole.jsonl")
    for n, status in ((4, "ok"), (5, "crashed")):
        path = tmp_path / f"{n}.jsonl"
        with Journal(path, {k: v for k, v in header.items() if k != "schema"}) as journal:
            for _ in range(n):
                journal.append({"type": "start", "key": "op1", "pass": 0})
        measure_plan(plan, "fake", passes=1, results=path)
        assert {row.key: row.status for row in collect(path)[1]}["op1"] == status


# --- child processes

ENGINES_OF_TESTS = """
import os, signal, sys, time
from hwnas.runtime.engines.fake import Fake

class Slow(Fake):
    def load(self, entry, folder):
        time.sleep(0.02)
        return super().load(entry, folder)

class Faulty(Fake):
    def load(self, entry, folder):
        if entry.key == "op1":
            self.fault()
        return super().load(entry, folder)

class Segfault(Faulty):
    def fault(self): os.kill(os.getpid(), signal.SIGSEGV)

class Bug(Faulty):
    def fault(self): raise TypeError("a bug of the engine")

class Exit0(Faulty):
    def fault(self): os._exit(0)

class Hang(Faulty):
    def fault(self): time.sleep(1000)

class Once(Faulty):
    def fault(self):
        if not os.path.exists(os.environ["MARK"]):
            open(os.environ["MARK"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

class Disturbed(Fake):
    slow = [1.5, 1.3]
    def load(self, entry, folder):
        runner = super().load(entry, folder)
        if entry.key == "op1" and self.slow:
            factor, quiet = self.slow.pop(), runner.time
            runner.time = lambda n: type(quiet(n))(*(factor * a for a in quiet(n)))
        return runner

class Chatty(Fake):
    def load(self, entry, folder):
        os.write(1, b"chatter without a newline")
        print("and {with} one")
        return super().load(entry, folder)

class Broken(Fake):
    def __init__(self, threads=1): raise TypeError("cannot even start")
"""


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with engines of the tests, importable in this process and in children."""
    (tmp_path / "engines_of_tests.py").write_text(textwrap.dedent(ENGINES_OF_TESTS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return "engines_of_tests"


def test_supervise_gives_what_measuring_here_gives(plan: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    there = supervise(plan, "fake", passes=2, results=tmp_path / "there.jsonl", on_progress=told.append)
    here = measure_plan(plan, "fake", passes=2, results=tmp_path / "here.jsonl")
    assert there.read_bytes() == here.read_bytes()
    assert [(p.done, p.total) for p in told] == [(i, 8) for i in range(1, 9)]
    assert told[0].record["status"] == "ok"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("Segfault", "killed by SIGSEGV"),
        ("Bug", "exit code 1 before it was finished; its last words: TypeError: a bug of the engine"),
        ("Exit0", "exit code 0 before it was finished"),
        ("Hang", "no measurement was finished in 2 s"),
    ],
)
def test_an_entry_that_kills_the_child_twice_is_a_row(plan: Path, engines: str, fault: str, reason: str) -> None:
    results = supervise(plan, f"{engines}:{fault}", passes=2, timeout_s=2)
    rows = {row.key: row for row in collect(results)[1]}
    assert {key: row.status for key, row in rows.items()} == {
        "op0": "ok",
        "op1": "crashed",
        "op2": "ok",
        "op3": "ok",
    }
    assert rows["op1"].reason == reason
    records = read_journal(results)[1]
    assert [r["type"] for r in records if r["key"] == "op1"] == ["start", "death"] * 2 + ["sample"] * 2
    assert len(samples_of(results)) == len(set(samples_of(results))) == 8


def test_one_death_is_measured_again(plan: Path, engines: str) -> None:
    rows = collect(supervise(plan, f"{engines}:Once", passes=1))[1]
    assert [row.status for row in rows] == ["ok"] * 4


def test_engines_that_print_do_not_disturb(plan: Path, engines: str) -> None:
    rows = collect(supervise(plan, f"{engines}:Chatty", passes=1))[1]
    assert [row.status for row in rows] == ["ok"] * 4


def test_a_child_that_cannot_start_is_an_error_with_its_last_words(plan: Path, engines: str) -> None:
    with pytest.raises(HwnasError, match="died before it measured anything: exit code 1 .*cannot even start"):
        supervise(plan, f"{engines}:Broken")


def test_mistakes_come_back_from_the_child_with_their_type(plan: Path, tmp_path: Path) -> None:
    results = measure_plan(plan, "fake", passes=1)
    with pytest.raises(ProvenanceError, match=r"where\.engine\.threads = 1, now it is 2"):
        supervise(plan, "fake", threads=2)
    with Journal(results), pytest.raises(HwnasError, match="another process measures into"):
        supervise(plan, "fake")
    with pytest.raises(HwnasError, match="cannot read a plan at"):
        supervise(tmp_path / "none", "fake")


def test_an_interrupted_parent_ends_the_child_and_blames_nobody(plan: Path, engines: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(plan, f"{engines}:Slow", passes=2, on_progress=interrupt)
    results = plan / "results.jsonl"
    with Journal(results) as journal:  # nobody holds the lock: the child is gone
        types = [record["type"] for record in journal.records]
        assert types.count("start") == types.count("sample") + types.count("interrupted")
        assert types.count("sample") < 8


def test_an_interrupt_while_measuring_is_no_death(plan: Path, engines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engines_of_tests = importlib.import_module(engines)

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engines_of_tests.Bug, "fault", interrupt)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                measure_plan(plan, f"{engines}:Bug", passes=1)
    monkeypatch.setattr(engines_of_tests.Bug, "fault", lambda self: None)
    assert [row.status for row in collect(measure_plan(plan, f"{engines}:Bug", passes=1))[1]] == ["ok"] * 4


def test_kill_9_at_any_moment_loses_at_most_one_measurement(tmp_path: Path, engines: str) -> None:
    folder = tmp_path / "plan"
    write_plan(folder, [conv_entry(f"op{i:02}", macs=10**6 * (i + 1)) for i in range(30)])
    rng = np.random.default_rng(0)
    results = folder / "results.jsonl"
    command = [sys.executable, "-m", "hwnas.runtime", "measure", str(folder), "--engine", f"{engines}:Slow"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    told, unfinished = 0, 0
    for _ in range(4):
        with subprocess.Popen(
            [*command, "--passes", "1", "--json-progress"], stdout=subprocess.PIPE, env=environment
        ) as child:
            assert child.stdout is not None
            for _ in range(int(rng.integers(1, 4))):
                told = json.loads(child.stdout.readline())["done"]
            time.sleep(float(rng.uniform(0, 0.03)))
            child.send_signal(signal.SIGKILL)
        records = read_journal(results)[1]
        kinds = [record["type"] for record in records]
        assert kinds.count("sample") >= told  # what was told is on disk
        unfinished = kinds.count("start") - kinds.count("sample")
        assert unfinished <= 4
    assert kinds.count("sample") < 30
    measure_plan(folder, f"{engines}:Slow", passes=1)
    assert len(samples_of(results)) == len(set(samples_of(results))) == 30
    uninterrupted = measure_plan(folder, f"{engines}:Slow", passes=1, results=tmp_path / "whole.jsonl")
    assert collect(results) == collect(uninterrupted)
    starts = sum(record["type"] == "start" for record in read_journal(results)[1])
    assert starts == 30 + unfinished  # one measured again for each kill at most


# --- command line


def test_main_measures_and_says_what_is_next(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(plan), "--engine", "fake", "--passes", "2"]) == 0
    out = capsys.readouterr().out
    assert "[8/8]" in out
    assert "measured 4 of 4 entries on fake-roofline-1 with fake" in out
    assert out.endswith(f"next: hwnas profile RECIPE --results {plan / 'results.jsonl'}\n")


def test_main_tells_what_is_left_and_what_crashed(plan: Path, engines: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(plan), "--engine", f"{engines}:Segfault", "--minutes", "0"]) == 0
    assert "12 measurements are left; next: the same command again" in capsys.readouterr().out
    assert main(["measure", str(plan), "--engine", f"{engines}:Segfault", "--passes", "1"]) == 0
    out = capsys.readouterr().out
    assert "measured 3 of 4 entries" in out
    assert "op1: crashed: killed by SIGSEGV" in out


def test_main_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot read a plan at")
    assert err.count("\n") == 1


def test_main_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    assert "example: python -m hwnas.runtime measure plan/" in capsys.readouterr().out


def test_importing_the_runtime_needs_numpy_alone() -> None:
    code = """
import sys, hwnas.runtime.work, hwnas.runtime.__main__, hwnas.runtime.engines.fake, hwnas.runtime.engines.onnxruntime
heavy = {"torch", "onnx", "onnxruntime", "scipy", "rich", "tyro", "PIL"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_row_as_json() -> None:
    assert json.loads(json.dumps(Row("a", "failed", "why").to_dict()))["reason"] == "why"
