"""What machines and file systems do to a command: one line and exit code 2, whole files, and the same command again."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from hwnas import doctor, errors, files
from hwnas.cli import _parsed as parsed
from hwnas.ending import UNREAD, ended
from hwnas.errors import BrokenPackage, HwnasError
from hwnas.files import write_atomic
from hwnas.jobs import deriving
from hwnas.jobs.deriving import DeriveSettings
from hwnas.latency.diff import changes
from hwnas.latency.table import LatencyTable
from hwnas.lock import Lock
from hwnas.ops.fused import native
from hwnas.optional import require
from hwnas.profile import build
from hwnas.profile import plan as plan_module
from hwnas.profile.plan import PlanWriter
from hwnas.progress import Silent
from hwnas.run import Run
from hwnas.runtime import __main__ as runtime_main
from hwnas.runtime.engines import using_engine
from hwnas.runtime.measuring import limits
from hwnas.runtime.measuring.device import DENORMALS, UNPINNED, cpu_identity, provenance, same_device, with_cpus
from hwnas.runtime.measuring.journal import Journal, read_journal
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan, write_plan
from hwnas.runtime.measuring.results import Conditions
from hwnas.runtime.measuring.supervise import supervise
from hwnas.runtime.measuring.work import free_memory_bytes, pin_to_cpus
from hwnas.show.profiling import machine, planned
from hwnas.spaces import Scale, Space
from tests.conftest import ROOT
from tests.runtime_cases import conv_entry
from tests.verbs import RECIPE, done, edit, hwnas, tree

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE)
QUICK = StopRule(min_visits=2, max_visits=2, min_s=0)
LONG = "n" * 300
SUPERVISE = importlib.import_module("hwnas.runtime.measuring.supervise")
NOTHING = contextlib.nullcontext()
ONE_LINE = r"(hwnas|error): [^\n]+; [^\n]+\n"


def fails(code: int, path: str | None = None) -> Callable[..., NoReturn]:
    """Return a function of the system that refuses."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError(code, os.strerror(code), path)

    return refuse


def half_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of four entries for the fake engine."""
    write_plan(tmp_path / "plan", [conv_entry(f"op{i}", macs=10**6 * (i + 1)) for i in range(4)])
    return tmp_path / "plan"


def runtime(*args: str | Path) -> tuple[int, str]:
    """Run the runtime's command in this process; return its exit code and what it said of errors."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = runtime_main.main([str(a) for a in args])
    return code, err.getvalue()


class TestWhatTheSystemRefuses:
    """One line with the path, the reason and what to do; old files whole, nothing half, and the same command again."""

    @pytest.mark.parametrize("code", REFUSALS)
    @pytest.mark.parametrize("call", ["os.fsync", "os.replace", "tempfile.mkstemp"])
    def test_a_file_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
    ) -> None:
        path = tmp_path / "table.json"
        write_atomic(path, "old")
        monkeypatch.setattr(call, fails(code, str(tmp_path / ".table.json.x.tmp") if "os." not in call else None))
        if (call, code) in {("os.fsync", c) for c in files.NO_SYNC}:
            write_atomic(path, "old")  # what cannot be synced is written none the less
        else:
            with pytest.raises(OSError, match=re.escape(os.strerror(code))) as e:
                write_atomic(path, "new")
            assert e.value.filename == str(path)
            assert str(errors.refusal(e.value)).startswith(f"{path}: {os.strerror(code)}; ")
        assert path.read_text() == "old"
        assert not half_files(tmp_path)

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """By a limit of the system on what a process may write, in a process of its own."""
        path = tmp_path / "table.json"
        write_atomic(path, "old")
        code = (
            "from pathlib import Path; from hwnas.ending import ended; from hwnas.files import write_atomic\n"
            f"raise SystemExit(ended(lambda: write_atomic(Path({str(path)!r}), b'x' * 9999), 'hwnas'))"
        )

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

        said = subprocess.run(
            [sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert (said.returncode, said.stdout) == (2, "")
        assert re.fullmatch(rf"hwnas: {path}: File too large; files may not become so large.*\n", said.stderr)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["table.json"]

    @pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
    @pytest.mark.parametrize(
        "args", [("profile", RECIPE, "--engine", "fake"), ("search", RECIPE), ("profile", RECIPE, "--plan-only", "p")]
    )
    def test_a_folder_that_cannot_be_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, args: tuple[str, ...]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("hwnas.jobs.profiling.make_plan", small_plan)
        monkeypatch.setattr(os, "mkdir", fails(code, "the folder"))
        said = hwnas(*args)
        assert said.code == 2
        assert re.fullmatch(ONE_LINE, said.err), said.err
        assert f"the folder: {os.strerror(code)}; {errors.REMEDIES[code]}" in said.err
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_that_is_full_while_it_is_measured(self, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the very process that measures, which tells its parent in JSON."""
        results = plan / "results.jsonl"
        write, left = os.write, [12]

        def full(fd: int, data: bytes) -> int:
            left[0] -= b'"crc32"' in data
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(fd, data)

        args = ("measure", plan, "--engine", "fake", "--spread", "0", "--visits", "2")
        monkeypatch.setattr(os, "write", full)
        monkeypatch.setattr(runtime_main, "die_with_parent", lambda: None)
        out = os.dup(1)
        try:
            with tempfile.TemporaryFile() as told:
                code, _ = runtime(*args, "--json-progress", str(os.dup(told.fileno())))
                told.seek(0)
                last = told.read().splitlines()[-1]
        finally:
            os.dup2(out, 1)
            os.close(out)
        assert code == 2
        assert b'"SystemRefusal"' in last
        assert f"cannot write results to {results}: No space left on device; make room there".encode() in last
        seen = len(read_journal(results)[1])
        monkeypatch.setattr(os, "write", write)
        assert runtime(*args)[0] == 0
        assert len(read_journal(results)[1]) > seen

    def test_no_temporary_folder(self, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/none"])
        code, err = runtime("measure", plan, "--engine", "fake")
        assert code == 2
        assert re.fullmatch(r"error: No usable temporary directory found in .*; .*set TMPDIR to a folder.*\n", err)

    @pytest.mark.parametrize(
        "args",
        [("price", LONG), ("table", "show", LONG), ("train", LONG), ("profile", RECIPE, "--run", LONG)],
    )
    def test_names_that_are_too_long(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = hwnas(*args)
        assert said.code == 2
        assert re.fullmatch(r"hwnas: [^\n]+\n", said.err), said.err
        assert re.search("File name too long; use a shorter name|unknown latency table|there is no run", said.err)

    def test_missing_and_not_readable_are_two_things(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not files.is_there(tmp_path / "none")
        assert not files.is_there(tmp_path / "none" / "below")
        (tmp_path / "file").touch()
        assert files.is_there(tmp_path / "file")
        assert not files.is_there(tmp_path / "file" / "below")
        monkeypatch.setattr(os, "stat", fails(errno.EACCES))
        with pytest.raises(PermissionError):
            files.is_there(tmp_path / "file")

    @pytest.mark.parametrize("where", ["stdout", "/dev/full"])
    def test_output_that_nobody_takes(self, plan: Path, where: str) -> None:
        """`head` has gone, or the disk that the output goes to is full."""
        command = [sys.executable, "-m", "hwnas.runtime", "measure", str(plan), "--engine", "fake", "--spread", "0"]
        if where == "stdout":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(where, os.O_WRONLY)
        try:
            said = subprocess.run(
                command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment()
            )
        finally:
            os.close(writer)
        if where == "stdout":
            assert (said.returncode, said.stderr) == (UNREAD, "")
        else:
            assert said.returncode == 2
            assert said.stderr == "error: standard output: No space left on device; make room there\n"
        types = [r["type"] for r in read_journal(plan / "results.jsonl")[1]]
        assert types.count("start") == types.count("sample") + types.count("reference") + types.count("interrupted")
        assert not types.count("death")

    def test_a_fault_of_ours_is_none_of_the_users(self) -> None:
        def wrong() -> int:
            raise LookupError("ours")

        with pytest.raises(LookupError, match="ours"):
            ended(wrong, "hwnas")


def environment(**more: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith("COV")}, "PYTHONPATH": str(ROOT), **more}


class TestARunOfAnotherUser:
    """What is complete can be read; what is not is refused by the system, with the path."""

    @pytest.fixture(autouse=True)
    def _read_only(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Root is refused nothing, so the system's calls are."""
        real, access, folder = os.open, os.access, str(Path("runs").resolve())

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and os.path.realpath(os.fspath(path)).startswith(folder):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return real(path, flags, *args, **kwargs)

        def may(path: Any, mode: int, **kwargs: Any) -> bool:
            mine = not os.path.realpath(os.fspath(path)).startswith(folder)
            return (mine or not mode & os.W_OK) and access(path, mode, **kwargs)

        monkeypatch.setattr(os, "open", opened)
        monkeypatch.setattr(os, "access", may)

    @pytest.mark.parametrize(
        "args",
        [("profile", RECIPE), ("search", RECIPE), ("train", RECIPE), ("export", RECIPE), ("validate", RECIPE), ("ls",)],
    )
    def test_what_is_complete_is_read(self, args: tuple[str, ...]) -> None:
        done(*args)

    def test_what_is_not_is_refused(self, finished: Path) -> None:
        (finished / "arch.json").unlink()
        (finished / "alphas.json").unlink()
        said = hwnas("search", RECIPE)
        assert said.code == 2
        assert re.fullmatch(rf"hwnas: runs/{RECIPE}/\S+: Permission denied; get the permission.*\n", said.err), said.err


class TestTheChildIsNotAlone:
    """What lies in the working folder or is printed by anybody does not get between a child and its parent."""

    @pytest.mark.parametrize("name", ["statistics", "random", "json", "numpy", "hwnas", "queue"])
    def test_modules_in_the_working_folder_come_last(
        self, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (tmp_path / f"{name}.py").write_text("print('mine'); raise SystemExit('mine')\n")
        monkeypatch.chdir(tmp_path)
        results = supervise(plan, "fake", stop=QUICK)
        assert sum(r["type"] == "sample" for r in read_journal(results)[1]) == 4 * QUICK.min_visits

    @pytest.mark.parametrize("module", ["hwnas.runtime", "hwnas"])
    def test_also_of_a_command_that_is_started_there(self, tmp_path: Path, module: str) -> None:
        for name in ("statistics", "random"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')\n")
        said = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=tmp_path, env=environment(), capture_output=True, check=False
        )
        assert said.returncode == 0, said.stderr

    def test_what_is_beside_the_package_comes_after_python(self, tmp_path: Path, plan: Path) -> None:
        """As an old backport in site-packages would."""
        beside = tmp_path / "site"
        beside.mkdir()
        (beside / "hwnas").symlink_to(ROOT / "hwnas")
        (beside / "typing.py").write_text("raise SystemExit('an old backport')\n")
        code = (
            "import sys, typing; sys.path.insert(0, sys.argv[1])\n"
            "from hwnas.runtime.measuring.measure import StopRule\n"
            "from hwnas.runtime.measuring.supervise import supervise; from pathlib import Path\n"
            "supervise(Path(sys.argv[2]), 'fake', stop=StopRule(min_visits=2, max_visits=2, min_s=0))"
        )
        said = subprocess.run(
            [sys.executable, "-c", code, beside, plan], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stderr

    def test_an_engine_of_the_working_folder_is_found(
        self, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And what it prints, at its import and later, is in nobody's way."""
        (tmp_path / "loud.py").write_text(
            "import os, sys\nfrom hwnas.runtime.engines.fake import Fake\n"
            "print('{loud'); os.write(1, b'loud\\n'); sys.stdout.flush()\n"
            "class Loud(Fake):\n def load(self, entry, folder):\n  print('loud', flush=True); os.write(1, b'[')\n"
            "  return super().load(entry, folder)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        results = supervise(plan, "loud:Loud", stop=QUICK)
        assert sum(r["type"] == "sample" for r in read_journal(results)[1]) == 4 * QUICK.min_visits


class Told(Silent):
    """A reporter that keeps its lines."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str, warning: bool = False) -> None:
        """Keep it."""
        self.notes.append(text)


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
class TestTheKernelCache:
    """Folders of the user's home: there may be none, or one that cannot be written or executed from."""

    @pytest.fixture(autouse=True)
    def _own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A home and a temporary folder of this test's own, and a library that takes no time to compile."""
        source = tmp_path / "kernels" / "cpu"
        source.mkdir(parents=True)
        (source / "supernet.cpp").write_text('extern "C" int hwnas_answer() { return 42; }\n')
        monkeypatch.setattr(native, "kernels_dir", lambda: tmp_path / "kernels")
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        native._kept.cache_clear()
        yield
        native._kept.cache_clear()

    def kept(self, tmp_path: Path) -> list[str]:
        return sorted(str(p.relative_to(tmp_path).parent) for p in tmp_path.rglob("*.so"))

    def prepared(self) -> tuple[bool, str]:
        """Return whether the library is loaded and works, and what was said of it."""
        native._kept.cache_clear()
        told = Told()
        native.prepare(told)
        loaded = native.library()
        assert loaded is None or loaded.hwnas_answer() == 42
        return loaded is not None, " ".join(told.notes)

    def test_is_in_the_home(self, tmp_path: Path) -> None:
        assert self.prepared() == (True, "compiling the supernet's kernels for this CPU, once")
        assert self.kept(tmp_path) == ["home/.cache/hwnas"]
        assert self.prepared() == (True, "")
        assert not list((tmp_path / "tmp").iterdir())

    @pytest.mark.parametrize("case", ["/dev/null", "a file", "read-only", "nobody", "relative"])
    def test_a_home_that_cannot_be_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
        if case == "a file":
            (tmp_path / "home").touch()
        elif case == "read-only":
            real, home = os.mkdir, str(tmp_path / "home")

            def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
                if str(path).startswith(home):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                real(path, *args, **kwargs)

            monkeypatch.setattr(os, "mkdir", mkdir)
        elif case == "nobody":
            monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        elif case == "relative":
            monkeypatch.setenv("XDG_CACHE_HOME", "cache")  # must be absolute, says the specification
            monkeypatch.setenv("HOME", "/dev/null")
        else:
            monkeypatch.setenv("HOME", case)
        loaded, said = self.prepared()
        assert loaded
        assert self.kept(tmp_path) == [f"tmp/hwnas-{os.getuid()}"]
        assert ("are kept in" in said) == (case != "nobody")
        loaded, said = self.prepared()
        assert loaded
        assert "compiling" not in said

    def test_a_mount_that_nothing_is_executed_from(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real, compiled = native.ctypes.CDLL, []

        def load(path: str) -> Any:
            if "/home/" in path:
                raise OSError(f"{path}: failed to map segment from shared object")
            return real(path)

        monkeypatch.setattr(native.ctypes, "CDLL", load)
        compile_ = native._compiled
        monkeypatch.setattr(native, "_compiled", lambda *a: compiled.append(1) or compile_(*a))
        for said in ("compiling", "are kept in"):
            loaded, notes = self.prepared()
            assert loaded
            assert said in notes
        assert len(compiled) == 1
        monkeypatch.setattr(native.ctypes, "CDLL", lambda path: load("/home/"))
        loaded, notes = self.prepared()
        assert not loaded
        assert notes.startswith("the supernet's kernels cannot be loaded, so torch alone computes, more slowly: ")

    @pytest.mark.parametrize("left", [0, 10, 4096, -1])
    def test_a_library_that_was_cut_short(self, tmp_path: Path, left: int) -> None:
        self.prepared()
        (path,) = (tmp_path / "home").rglob("*.so")
        content = path.read_bytes()
        path.unlink()  # this process still has it mapped
        path.write_bytes(content[:left])
        native._kept.cache_clear()
        assert not native.built()
        assert self.prepared()[0]
        assert native.built()

    def test_the_temporary_folder_of_another_user_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/dev/null")
        theirs = tmp_path / "tmp" / f"hwnas-{os.getuid()}"
        theirs.mkdir()
        theirs.chmod(0o777)
        loaded, said = self.prepared()
        assert not loaded
        assert "torch alone computes" in said

    def test_no_temporary_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/none")
        loaded, said = self.prepared()
        assert not loaded
        assert "torch alone computes" in said

    @pytest.mark.parametrize("case", ["before", "after", "broken quotation", "hangs", "not executable"])
    def test_a_compiler_of_several_words(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
        plain = native.compiler()
        assert plain is not None
        wrapper = tmp_path / "my ccache"
        wrapper.write_text('#!/bin/sh\nexec "$@"\n')
        wrapper.chmod(0o755)
        words = {
            "before": f"{shlex.quote(str(wrapper))} {plain}",
            "after": f"{plain} -g0",
            "broken quotation": "'g++",
            "hangs": f"{shlex.quote(str(wrapper))} sleep 60",
            "not executable": str(wrapper.with_name("kernels")),
        }
        monkeypatch.setenv("CXX", words[case])
        monkeypatch.setattr(native, "TIMEOUT_S", 30.0 if case != "hangs" else 0.2)
        loaded, said = self.prepared()
        assert loaded == (case in ("before", "after"))
        assert loaded or re.search("torch alone computes", said)


class TestWhatIsNotEssential:
    """Best effort: what the system does not let a process do is done without, and recorded where it matters."""

    def test_permissions_that_cannot_be_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "chmod", fails(errno.EPERM))
        write_atomic(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new"
        assert not half_files(tmp_path)

    @pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o027])
    @pytest.mark.parametrize("proc", [True, False])
    def test_permissions_are_those_of_the_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, proc: bool
    ) -> None:
        if not proc:
            monkeypatch.setattr(Path, "read_text", fails(errno.ENOENT))
        before = os.umask(mask)
        try:
            write_atomic(tmp_path / "file", "new")
            with Lock(tmp_path / "lock", "held"), Journal(tmp_path / "results", {"plan": "p", "where": {}}):
                pass
        finally:
            assert os.umask(before) == mask
        assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == dict.fromkeys(
            ("file", "lock", "results"), 0o666 & ~mask
        )

    @pytest.mark.parametrize("call", ["sched_setaffinity", "sched_getaffinity"])
    def test_a_process_that_may_not_choose_its_cpus(
        self, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            f"import os\ndef no(*_): raise PermissionError(1, 'Operation not permitted')\nos.{call} = no\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert runtime_main.main(["measure", str(plan), "--engine", "fake", "--spread", "0"]) == 0
        where = read_journal(plan / "results.jsonl")[0]["where"]
        assert where[UNPINNED] == "Operation not permitted"
        assert out.getvalue().count("not kept on one CPU for each thread: Operation not permitted") == 1

    def test_a_folder_that_cannot_be_synced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.open

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if Path(path) == tmp_path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", opened)
        write_atomic(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new"


BROKEN = {
    "an executable stack": "raise ImportError('libonnx.so: cannot enable executable stack as shared object requires')",
    "another release": "import numpy; numpy.no_such_name",
    "a library": "import ctypes; ctypes.CDLL('libnowhere.so')",
    "what it needs": "import no_such_package",
    "its own way": "raise RuntimeError('module was compiled for another one')",
}


class TestOneBadThing:
    """What is broken says so in its own place, and everything else goes on."""

    @pytest.mark.parametrize("fault", BROKEN)
    def test_a_broken_package_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
        (tmp_path / "bad_package").mkdir()
        (tmp_path / "bad_package" / "__init__.py").write_text(BROKEN[fault] + "\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(
            BrokenPackage, match="^bad_package is installed and cannot be imported: .*; install it anew"
        ):
            require("bad_package", "cpu")
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert ended(lambda: int(importlib.import_module("bad_package")), "hwnas") == 2
        assert re.fullmatch(
            r"hwnas: \w+ is (installed and cannot be imported: .*|not installed; run: .*)\n", err.getvalue()
        )

    @pytest.mark.parametrize("package", ["onnxruntime", "tyro", "torch"])
    def test_a_command_with_a_broken_package(self, tmp_path: Path, package: str) -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('cannot enable executable stack')\n")
        command = [sys.executable, "-c", "import sys; from hwnas.__main__ import main; sys.exit(main())", "doctor"]
        env = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert "Traceback" not in said.stderr + said.stdout
        if package in ("tyro",):  # nothing can be asked without
            assert said.returncode == 2
            assert said.stderr.startswith("hwnas: tyro is installed and cannot be imported: cannot enable")
            return
        assert (said.returncode, said.stderr) == (0, "")
        assert "cannot enable executable stack" in said.stdout
        for name in ("numpy", "safetensors", "fake"):
            assert re.search(rf"^{name} +(\d|yes)", said.stdout, re.MULTILINE), said.stdout

    def test_a_folder_that_is_no_run_and_one_that_is_damaged(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(finished, finished.with_name("darts-tiny (copy)"))
        for name, file in (("bad-table", "table.json"), ("bad-run", "run.json"), ("worse-run", "run.json")):
            shutil.copytree(finished, finished.with_name(name))
            (finished.parent / name / file).write_text("{" if name != "worse-run" else '{"schema": 2, "recipe": 3}')
        (finished.parent / "not-a-run").mkdir()
        (finished.parent / "a file").touch()
        theirs = finished.with_name("theirs")
        theirs.mkdir()
        real = os.stat

        def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            if str(path).startswith("runs/theirs/"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "stat", stat)
        out = done("ls").out
        for name in ("darts-tiny", "darts-tiny (copy)", "bad-table", "bad-run", "worse-run", "theirs"):
            assert re.search(rf"^{re.escape(name)} ", out, re.MULTILINE), out
        assert "warning: the run theirs: runs/theirs/run.json: Permission denied" in out
        assert "warning: the run darts-tiny (copy): a run's name is made of" in out
        assert re.search("warning: the run bad-table: runs/bad-table/table.json is not a latency table", out)
        assert "not-a-run" not in out
        assert "a file" not in out


def small_plan(space: Space, scales: Sequence[Scale], folder: Path, *more: Any) -> None:
    """Write a plan of one network, as a real plan writes its hundreds of entries."""
    writer = PlanWriter(folder, precision=more[-1], scales=scales)
    writer.plan_network("fit", space, space.problem.draw(np.random.default_rng(0)), merge=True)
    writer.plan_network("test", space, space.problem.draw(np.random.default_rng(1)), merge=True)
    writer.write()


class TestSettingsAreCheckedFirst:
    """Nothing that will not do is written, and what nothing has come of can be given anew."""

    @pytest.mark.parametrize("seed", ["-1", str(2**32), "99999999999999999999999"])
    def test_a_seed_that_is_none(self, profiled: Path, seed: str) -> None:
        before = tree(Path())
        said = hwnas("search", RECIPE, "--seed", seed)
        assert (said.code, said.out) == (2, "")
        assert re.fullmatch(rf"hwnas: a run needs a seed of 0 or more, up to 4294967295, got {seed}\n", said.err)
        for name in ("search.seed", "train.seed"):
            said = hwnas("search", RECIPE, "--set", f"{name}={seed}", "--run", "other")
            assert said.code == 2
            assert f"seed of 0 or more, up to 4294967295, got {seed}" in said.err
        assert tree(Path()) == before

    @pytest.mark.parametrize("percent", ["nan", "-1"])
    def test_a_requirement_that_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, percent: str) -> None:
        monkeypatch.chdir(tmp_path)
        said = hwnas("profile", RECIPE, "--engine", "fake", "--require-mape", percent)
        assert said.err == f"hwnas: --require-mape must be a percentage of 0 or more, got {percent}\n"
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "words",
        [
            ("--seed", "-1"),
            ("--visits", "0"),
            ("--max-visits", "1"),
            ("--spread", "nan"),
            ("--threads", "-1"),
            ("--timeout", "nan"),
            ("--minutes", "nan"),
            ("--stop", '{"a": 1}'),
            ("--stop", "3"),
        ],
    )
    def test_the_runtimes_own(self, plan: Path, words: tuple[str, str]) -> None:
        code, err = runtime("measure", plan, "--engine", "fake", *words)
        assert code == 2
        assert re.fullmatch(rf"error: [^\n]*{words[0].removeprefix('--').replace('max-', '')}[^\n]*\n", err), err
        assert not (plan / "results.jsonl").exists()

    def test_an_engine_that_measured_nothing_can_be_given_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("hwnas.jobs.profiling.make_plan", small_plan)

        def dies(*_: Any, **__: Any) -> NoReturn:
            raise HwnasError("the measuring process died before it measured anything")

        with monkeypatch.context() as patch:
            patch.setattr("hwnas.jobs.profiling.supervise", dies)
            for engine, precision in (("fake", "fp16"), ("onnxruntime", "fp32")):
                said = hwnas("profile", RECIPE, "--engine", engine, "--precision", precision)
                assert "died before it measured anything" in said.err
                stored = Run(RECIPE).settings
                assert (stored.engine, stored.precision) == (engine, precision)
                assert load_plan(Run(RECIPE).folder / "plan").precision == precision
        monkeypatch.setattr("hwnas.jobs.profiling._measure", lambda *_: (_ for _ in ()).throw(HwnasError("measured")))
        assert "measured" in hwnas("profile", RECIPE, "--engine", "fake").err
        with Journal(Run(RECIPE).folder / "results.jsonl", {"plan": "p", "where": {}}) as journal:
            journal.append({"type": "sample", "key": "a", "visit": 0, "status": "failed"})
        said = hwnas("profile", RECIPE, "--engine", "fake")
        assert "was made with engine 'onnxruntime', not 'fake'; give the new one another name with --run" in said.err

    def test_two_budgets_are_two_runs_and_messages_have_the_flags_of_their_verb(self, finished: Path) -> None:
        def target(fps: float) -> str:
            return deriving._target(Run(RECIPE), DeriveSettings(fps=(fps,)), 1000 / fps).name

        assert target(3000) == target(2999.7) == f"{RECIPE}-3000fps"
        shutil.copytree(finished, finished.with_name(target(3000)))
        edit(finished.with_name(target(3000)) / "run.json", budget_ms=1000 / 3000)
        assert (target(3000), target(2999.7)) == (f"{RECIPE}-3000fps", f"{RECIPE}-2999.7fps")
        said = hwnas("derive", RECIPE, "--fps", "2999", "--to", target(3000))
        assert said.code == 2
        assert re.search("was made with budget_ms .*; give the new one another name with --to\n", said.err)
        said = hwnas("search", RECIPE, "--fps", "2999")
        assert re.search("another name with --run\n", said.err)


class TestPrintedCommands:
    """What is printed to be run can be: a shell reads the words that were meant."""

    @pytest.mark.parametrize("folder", ["plan", "my plan", "plan's", "a$b"])
    def test_a_plan_is_measured_and_its_results_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            planned(write_plan(tmp_path / folder, [conv_entry("op", macs=10**6)]), Path(folder))
        (line,) = re.findall("^next: on the device: (.*)$", said.getvalue(), re.MULTILINE)
        words = shlex.split(line)
        assert words == ["python", "-m", "hwnas.runtime", "measure", folder]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert runtime_main.main([*words[3:], "--engine", "fake", "--spread", "0"]) == 0
        (line,) = re.findall("^next: (.*)$", out.getvalue(), re.MULTILINE)
        assert shlex.split(line) == ["hwnas", "profile", "RECIPE", "--results", f"{folder}/results.jsonl"]

    def test_those_of_a_front(self, finished: Path) -> None:
        table = finished.parent / "my table.json"
        shutil.copy(finished / "table.json", table)
        front = done("derive", RECIPE, "--pareto", "3", "--table", table)
        commands = [p["command"] for p in json.loads((finished / "pareto.json").read_text())["points"]]
        assert commands
        assert "Traceback" not in front.out
        for command in commands:
            verb = parsed(shlex.split(command)[1:])
            assert verb.table == (table,)

    def test_an_interrupted_plan_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write, left = plan_module.write_atomic, [1]

        def interrupted(path: Path, content: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                (path.parent / ".half.onnx.x.tmp").touch()  # of a kill
                raise KeyboardInterrupt
            write(path, content)

        args = ("profile", RECIPE, "--plan-only", "plan")
        monkeypatch.setattr("hwnas.jobs.profiling.make_plan", small_plan)
        monkeypatch.setattr(plan_module, "write_atomic", interrupted)
        said = hwnas(*args)
        assert (said.code, said.err) == (130, "interrupted; the same command goes on where it stopped\n")
        monkeypatch.setattr(plan_module, "write_atomic", write)
        done(*args)
        assert hwnas(*args).err == "hwnas: plan is not empty; name a new folder\n"


def denormal_model(folder: Path) -> Path:
    """A 1x1 convolution whose weights have no full mantissa, so that its outputs have none either."""
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.full((8, 8, 1, 1), 1e-40, np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, 8, 16, 16)) for n in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "denormal.onnx"
    path.write_bytes(model.SerializeToString())
    return path


class TestWeightsDoNotDecide:
    """Weights that decayed to denormal numbers are computed with no more slowly than others."""

    @pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
    def test_numbers_without_a_full_mantissa_count_as_zero(self, tmp_path: Path, name: str) -> None:
        model = denormal_model(tmp_path)
        with using_engine(name) as engine, engine.open_model(model) as runner:
            assert engine.provenance()["options"][DENORMALS] is True
            out = runner.run({"x": np.ones((1, 8, 16, 16), np.float32)})["y"]
            runner.time(3, 0)
        assert float(np.abs(out).max()) == 0
        self.assert_kept()

    def test_torch_too(self, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[float] = []

        def forward(x: Any) -> tuple[Any]:
            seen.append(float((x * 0 + 1e-40).max()))
            return (x,)

        monkeypatch.setattr("hwnas.runtime.engines.torch.entry_module", lambda _: forward)
        with using_engine("torch") as engine, engine.load(load_plan(plan).entries[0], plan) as runner:
            assert engine.provenance()["options"][DENORMALS] is True
            runner.time(3, 0)
        assert set(seen) == {0.0}
        self.assert_kept()

    def assert_kept(self) -> None:
        """What else this process computes is as it was."""
        assert float((np.full(64, 1e-40, np.float32) * np.float32(0.5)).max()) > 0

    def test_what_was_measured_before_stays_usable(self, tmp_path: Path) -> None:
        with using_engine("onnxruntime") as engine:
            where = json.loads(json.dumps(provenance(engine)))
        older = json.loads(json.dumps(where))
        assert older["engine"]["options"].pop(DENORMALS) is True
        with Journal(tmp_path / "results", {"plan": "p", "where": older}):
            pass
        with Journal(tmp_path / "results", {"plan": "p", "where": where}):
            pass
        assert not [c for c in changes(older, where) if c.counts]
        for value in (False, True):
            with (
                pytest.raises(HwnasError, match="denormals_as_zero = false, now it is true") if value else NOTHING,
                Journal(tmp_path / "other", {"plan": "p", "where": {"engine": {"options": {DENORMALS: value}}}}),
            ):
                pass


def write(root: Path, **files: str) -> Path:
    """Write files below a folder; ``__`` in a name is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class TestWhatTheMachineReallyGives:
    """Groups of the system in both versions, affinity, kinds of CPUs; unknown is not equal, drift not precise."""

    V2 = "0::/user.slice/job\n"
    V1 = "5:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n0::/\n"

    @pytest.mark.parametrize(
        ("files", "quota"),
        [
            ({}, None),
            ({"proc__self__cgroup": V2, "sys__fs__cgroup__user.slice__job__cpu.max": "50000 100000\n"}, 0.5),
            ({"proc__self__cgroup": V2, "sys__fs__cgroup__user.slice__cpu.max": "150000 100000\n"}, 1.5),
            ({"proc__self__cgroup": V2, "sys__fs__cgroup__user.slice__job__cpu.max": "max 100000\n"}, None),
            (
                {
                    "proc__self__cgroup": V2,
                    "sys__fs__cgroup__user.slice__cpu.max": "50000 100000",
                    "sys__fs__cgroup__user.slice__job__cpu.max": "200000 100000",
                },
                0.5,
            ),
            ({"proc__self__cgroup": V2, "sys__fs__cgroup__cpu.max": "25000 50000\n"}, 0.5),  # a container's own root
            (
                {
                    "proc__self__cgroup": V1,
                    "sys__fs__cgroup__cpu,cpuacct__docker__a__cpu.cfs_quota_us": "50000\n",
                    "sys__fs__cgroup__cpu,cpuacct__docker__a__cpu.cfs_period_us": "100000\n",
                },
                0.5,
            ),
            (
                {
                    "proc__self__cgroup": V1,
                    "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1",
                    "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000",
                },
                None,
            ),
        ],
    )
    def test_the_quota_is_the_least_of_all_groups(
        self, tmp_path: Path, files: dict[str, str], quota: float | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, **files)
        assert limits.cpu_quota(tmp_path) == quota
        assert limits.conditions(tmp_path)["quota"] == ("none" if quota is None else quota)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        assert limits.usable_cpus(tmp_path) == {None: 8, 0.5: 1, 1.5: 2}[quota]

    @pytest.mark.parametrize(
        ("files", "mib"),
        [
            ({}, 20_000),
            (
                {
                    "proc__self__cgroup": V2,
                    "sys__fs__cgroup__user.slice__job__memory.max": str(300 << 20),
                    "sys__fs__cgroup__user.slice__job__memory.current": str(100 << 20),
                    "sys__fs__cgroup__user.slice__job__memory.stat": f"anon 1\ninactive_file {40 << 20}\n",
                },
                240,
            ),
            ({"proc__self__cgroup": V2, "sys__fs__cgroup__user.slice__memory.max": str(300 << 20)}, 300),
            ({"proc__self__cgroup": V2, "sys__fs__cgroup__user.slice__job__memory.max": "max\n"}, 20_000),
            (
                {
                    "proc__self__cgroup": V1,
                    "sys__fs__cgroup__memory__docker__a__memory.limit_in_bytes": str(300 << 20),
                    "sys__fs__cgroup__memory__docker__a__memory.usage_in_bytes": str(50 << 20),
                },
                250,
            ),
            ({"proc__self__cgroup": V1, "sys__fs__cgroup__memory__memory.limit_in_bytes": str(2**63 - 4096)}, 20_000),
        ],
    )
    def test_memory_is_what_the_group_has_left(self, tmp_path: Path, files: dict[str, str], mib: int) -> None:
        write(tmp_path, proc__meminfo=f"MemAvailable: {20_000 << 10} kB\n", **files)
        assert free_memory_bytes(tmp_path) == mib << 20

    def test_more_threads_than_cpus_are_refused(
        self, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
        code, err = runtime("measure", plan, "--engine", "onnxruntime", "--threads", "2")
        assert code == 2
        assert err.startswith("error: 2 threads, 1 CPU allowed: they would take turns; ask for at most --threads 1")
        said = hwnas("profile", RECIPE, "--threads", "2")
        assert (said.code, said.err.startswith("hwnas: 2 threads, 1 CPU allowed")) == (2, True)
        assert not list((tmp_path / "runs").rglob("*.json"))

    def test_a_quota_is_stated(self, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "cpu_quota", lambda *_: 0.5)
        assert any("the time of 0.5 CPUs" in line for line in doctor.warnings())
        with using_engine("onnxruntime") as engine:
            where = with_cpus(provenance(engine))
        assert where["cpus"]["quota"] == 0.5
        assert limits.quota_of(where) == 0.5
        assert limits.quota_of({}) is None
        assert machine(LatencyTable({**where}, {}))["CPU quota"].startswith("0.5 CPUs")
        assert not [c for c in changes({}, {"cpus": where["cpus"]}) if c.counts]  # an older table
        assert [c for c in changes({"cpus": {"quota": "none"}}, {"cpus": {"quota": 0.5}}) if c.counts]

    def test_hybrid_cpus_are_measured_on_the_fast_ones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pinned: list[list[int]] = []
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
        monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: pinned.append(list(cpus)))
        intel = write(tmp_path / "a", sys__devices__cpu_core__cpus="0-3\n", sys__devices__cpu_atom__cpus="4-11\n")
        for cpu in range(12):
            write(
                tmp_path / "b", **{f"sys__devices__system__cpu__cpu{cpu}__cpu_capacity": "1024" if cpu < 2 else "446"}
            )
        governor = {"sys__devices__system__cpu__cpu3__cpufreq__scaling_governor": "powersave\n"}
        assert pin_to_cpus(1, write(intel, **governor)) == pin_to_cpus(3, tmp_path / "b") == ""
        assert pinned[0] == [3]
        assert set(pinned[1]) == {0, 1, 11}
        about = {"allowed": 12, "quota": "none", "kind": "cpu_core", "governor": "powersave"}
        assert limits.conditions(intel) == about
        assert limits.conditions(tmp_path / "b")["kind"] == "capacity 1024"

    def test_two_that_do_not_say_what_they_are_are_not_the_same(self, tmp_path: Path) -> None:
        text = "processor : 0\nCPU implementer : 0x61\nCPU architecture: 8\nCPU part : 0x000\nCPU revision : 0\n"
        nameless = cpu_identity(write(tmp_path / "a", proc__cpuinfo=text))
        assert not same_device({"device": nameless}, {"device": dict(nameless)})
        older = {k: v for k, v in nameless.items() if k != "machine"}
        assert not same_device({"device": older}, {"device": dict(older)})
        one, other = (
            {"device": cpu_identity(write(tmp_path / n, proc__cpuinfo=text, sys__class__dmi__id__product_name=n))}
            for n in ("Mac14,7", "Mac15,3")
        )
        assert same_device(one, one)
        assert not same_device(one, other)
        known = cpu_identity(write(tmp_path / "b", proc__cpuinfo=text.replace("0x000", "0xd0c")))
        assert "machine" not in known
        assert same_device({"device": known}, {"device": dict(known)})

    @pytest.mark.parametrize(
        ("drift", "visits", "status"), [(0.4, 8, "doubtful"), (-0.1, 8, "doubtful"), (0.04, 8, "ok"), (0.4, 7, "ok")]
    )
    def test_drift_makes_rows_doubtful(
        self, profiled: Path, monkeypatch: pytest.MonkeyPatch, drift: float, visits: int, status: str
    ) -> None:
        monkeypatch.setattr(build, "conditions", lambda _: Conditions("op", visits, 0.0, drift))
        monkeypatch.setattr(build, "calibrate", lambda _: None)
        table = build.build_table(profiled / "plan", profiled / "results.jsonl")
        assert {row.status for row in (*table.rows.values(), *table.nets)} == {status}
        assert all(("drifted by" in row.reason) == (status != "ok") for row in table.rows.values())

    def test_a_restart_is_said(self, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        deaths = iter([SUPERVISE.Death("killed by SIGKILL", outside=True), None])
        monkeypatch.setattr(SUPERVISE, "_run_child", lambda *_: next(deaths))
        said: list[str] = []
        supervise(plan, "fake", on_restart=said.append)
        assert said == ["killed by SIGKILL"]
