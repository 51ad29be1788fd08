"""Locks, by flock and by files: one holder at a time, and none that is dead."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hwnas import lock as lock_module
from hwnas.errors import HwnasError
from hwnas.lock import Lock
from hwnas.run import Run
from hwnas.runtime.measuring.journal import Journal, read_journal
from tests.conftest import ROOT

WAYS = ("flock", "files")
# What a process does that takes the lock of argv[1] in the way argv[2]; then it says so, and waits.
CHILD = """
import errno, fcntl, sys, time
from pathlib import Path
from hwnas.lock import Lock

def none(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")

if sys.argv[2] == "files":
    fcntl.flock = none
with Lock(Path(sys.argv[1]), "another holds it"):
    print("held", flush=True)
    time.sleep(60)
"""


def without_flock(code: int) -> Callable[[int, int], NoReturn]:
    def flock(descriptor: int, operation: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return flock


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that locks go in this process."""
    if request.param == "files":
        monkeypatch.setattr(fcntl, "flock", without_flock(errno.ENOLCK))
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder.lock"


def take(path: Path) -> None:
    with Lock(path, "another holds it"):
        pass


def held(path: Path) -> Path:
    return path.with_name(path.name + ".held")


def holder(path: Path, way: str) -> subprocess.Popen[bytes]:
    """Start a process that holds the lock."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), way], stdout=subprocess.PIPE, env=env)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def test_one_at_a_time(path: Path, way: str) -> None:
    with Lock(path, "another holds it"):
        assert held(path).exists() == (way == "files")
        for _ in range(2):  # one that is refused takes nothing away
            with pytest.raises(HwnasError, match="^another holds it"):
                take(path)
    assert not held(path).exists()
    take(path)


def test_it_goes_when_the_block_fails(path: Path, way: str) -> None:
    with pytest.raises(RuntimeError, match="in the block"), Lock(path, "another holds it"):
        raise RuntimeError("in the block")
    take(path)


def test_one_of_another_process_is_refused_and_goes_when_that_is_killed(path: Path, way: str) -> None:
    with holder(path, way) as child:
        with pytest.raises(HwnasError, match="^another holds it") as refusal:
            take(path)
        told = f"; held by process {child.pid} on .*: if that has ended, remove {held(path)}\\*$"
        assert bool(re.search(told, str(refusal.value))) == (way == "files")
        child.kill()
        child.wait()
        take(path)
    assert not held(path).exists()


def test_a_holder_that_died_and_was_not_waited_for_is_dead(path: Path, way: str) -> None:
    """Its number is taken until its parent has asked for its exit code."""
    child = holder(path, way)
    os.kill(child.pid, signal.SIGKILL)
    with Lock(path, "another holds it", wait_s=30):
        pass
    assert child.stdout is not None
    child.stdout.close()
    child.wait()


def test_it_is_waited_for(path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other, waits = Lock(path, "another holds it"), []
    other.__enter__()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            other.__exit__()

    monkeypatch.setattr(time, "sleep", sleep)
    with Lock(path, "another holds it", wait_s=30):
        assert len(waits) == 3


@pytest.mark.parametrize("code", sorted(lock_module.NO_FLOCK))
def test_every_way_to_say_that_there_is_no_flock(path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_flock(code))
    with Lock(path, "another holds it"):
        assert json.loads(held(path).read_text())["pid"] == os.getpid()


def test_other_errors_are_errors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_flock(errno.EIO))
    with pytest.raises(HwnasError, match=r"cannot lock .*folder\.lock: Input/output error"):
        take(path)
    assert not held(path).exists()
    with pytest.raises(HwnasError, match=r"cannot lock .*none/folder\.lock: No such file"):
        take(path.parent / "none" / path.name)


class TestFiles:
    """What only the way without flock has to know."""

    @pytest.fixture(autouse=True)
    def _files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fcntl, "flock", without_flock(errno.ENOLCK))

    def mark(self, path: Path, **other: Any) -> None:
        with Lock(path, ""):
            was = json.loads(held(path).read_text())
        held(path).write_text(json.dumps({**was, **other}))

    def test_a_later_process_of_the_same_number_is_another(self, path: Path) -> None:
        self.mark(path, started="1")
        take(path)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"host": 1, "pid": 1, "started": 1}'])
    def test_what_nobody_understands_is_held(self, path: Path, content: str) -> None:
        held(path).write_text(content)
        with pytest.raises(HwnasError, match=r"^another holds it; held by one that does not say who .* \S+\.held"):
            take(path)

    def test_a_process_of_another_machine_is_not_judged(self, path: Path) -> None:
        self.mark(path, host="elsewhere 1 2", pid=2**22 + 1)
        with pytest.raises(HwnasError, match=f"held by process {2**22 + 1} on elsewhere: if that has ended, remove"):
            take(path)
        held(path).unlink()
        take(path)

    def test_one_that_is_cleared_by_another_process_is_left_to_it(self, path: Path) -> None:
        self.mark(path, started="1")
        turn = held(path).with_name(held(path).name + ".clearing")
        turn.touch()
        with pytest.raises(HwnasError, match="another holds it"):
            take(path)
        turn.unlink()
        take(path)

    def test_two_that_find_a_dead_holder_do_not_clear_the_live_one(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second has read the mark of the dead one; before it can clear, the first has cleared and taken."""
        self.mark(path, started="1")
        create, first = lock_module._create, Lock(path, "another holds it")

        def late(where: Path, content: str) -> bool:
            if where.name.endswith(".clearing"):
                monkeypatch.setattr(lock_module, "_create", create)
                first.__enter__()
            return create(where, content)

        monkeypatch.setattr(lock_module, "_create", late)
        with pytest.raises(HwnasError, match="another holds it"):
            take(path)
        assert json.loads(held(path).read_text())["pid"] == os.getpid()
        first.__exit__()
        take(path)

    def test_one_that_was_removed_by_hand_and_taken_by_another_is_left_alone(self, path: Path) -> None:
        with Lock(path, "another holds it"):
            held(path).write_text("another's")
        assert held(path).read_text() == "another's"

    def test_without_proc_a_process_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        missing: Any = lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError())  # noqa: E731
        monkeypatch.setattr(Path, "read_text", missing)
        monkeypatch.setattr(Path, "exists", lambda _: False)
        assert lock_module._started(os.getpid()) == "alive"
        assert lock_module._started(2**22 + 1) is None

    def test_a_journal_and_a_run_are_held(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("hwnas.runtime.measuring.journal.LOCK_S", 0.0)
        results = tmp_path / "results.jsonl"
        with Journal(results, {"plan": "p", "where": {}}) as journal:
            journal.append({"type": "start"})
            with pytest.raises(HwnasError, match="another process measures into"):
                Journal(results).__enter__()
        assert read_journal(results)[1] == [{"type": "start"}]
        with Run("mine").locked():
            with pytest.raises(HwnasError, match="another process works on the run 'mine'"), Run("mine").locked():
                pass
            assert Run("mine").folder.exists()
        assert not Run("mine").folder.exists()  # nothing was written: the files of the lock are none
