"""The supernet's kernels for CPUs: C++ that ships as source and is compiled for this very CPU when it is first used."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from hwnas.errors import BuildError
from hwnas.files import sha256, write_atomic
from hwnas.progress import Reporter
from hwnas.resources import kernels_dir

SOURCE = "cpu/supernet.cpp"
# Finite mathematics is not assumed: a search that diverges must show NaN, not hide it.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-std=c++17")
TIMEOUT_S = 120.0
DIGEST = 64  # characters of the checksum at the end of a library


class _Kept(NamedTuple):
    """The library that was loaded, None if torch computes, and what is to be said of that."""

    library: ctypes.CDLL | None
    note: str


def compiler() -> str | None:
    """Return the C++ compiler as a command line: CXX of the environment, else the first of c++, g++ and clang++.

    CXX may have words before the compiler and options after it: ``ccache g++``.
    """
    asked = os.environ.get("CXX")
    try:
        commands = [shlex.split(asked)] if asked else [["c++"], ["g++"], ["clang++"]]
    except ValueError:  # a quotation that does not end
        return None
    found = [[path, *rest] for first, *rest in filter(None, commands) if (path := shutil.which(first))]
    return shlex.join(found[0]) if found else None


def built() -> bool:
    """Tell whether `library` has nothing left to compile, which takes some seconds."""
    command = compiler()
    try:
        name = None if command is None else _name(command)
    except BuildError:
        return True
    return name is None or any(_sound(folder / name) is not None for folder in _folders())


def prepare(report: Reporter) -> None:
    """Compile what is not compiled yet, and report that it takes some seconds, or why torch alone computes."""
    if compiler() is None:
        report.note("no C++ compiler here, so torch alone computes the supernet, more slowly; see: hwnas doctor")
        return
    if not built():
        report.note("compiling the supernet's kernels for this CPU, once")
    if note := _kept().note:
        report.note(note)


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where they cannot be compiled or loaded, and callers compute with torch.

    The library is kept in the user's cache folder under a name that says source, flags, compiler and CPU, with a
    checksum at its end: one that was cut short would kill the process that loads it. Where that folder cannot be
    written or nothing in it may be executed, it is kept in a temporary folder.
    """
    return _kept().library


@cache
def _kept() -> _Kept:
    command = compiler()
    if command is None:
        return _Kept(None, "")
    try:
        return _kept_by(command)
    except BuildError as e:
        return _Kept(None, f"{e}; torch alone computes the supernet, more slowly")


def _kept_by(command: str) -> _Kept:
    """Load the library from the first folder that takes it.

    Raises:
        BuildError: If it cannot be compiled.
    """
    name, content = _name(command), None
    refused: list[str] = []
    for folder in _folders(make=True):
        target = folder / name
        try:
            there = _sound(target)
            content = there or content or _compiled(command, kernels_dir() / SOURCE)
            if there is None:
                _keep(target, content)
            loaded = ctypes.CDLL(str(target))
        except OSError as e:
            refused.append(f"{target}: {e.strerror or e}")
            continue
        note = f"the supernet's kernels are kept in {folder}, for {'; '.join(refused)}" if refused else ""
        return _Kept(loaded, note)
    why = "; ".join(refused) or "no folder of this user's to keep them in"
    return _Kept(None, f"the supernet's kernels cannot be loaded, so torch alone computes, more slowly: {why}")


def _sound(target: Path) -> bytes | None:
    """Return the library in a file, without its checksum; None if there is none that is whole."""
    try:
        content = target.read_bytes()
    except OSError:
        return None
    body, digest = content[:-DIGEST], content[-DIGEST:]
    return body if digest == sha256(body).encode() else None


def _keep(target: Path, content: bytes) -> None:
    # Two processes may get here at once: each puts a whole file in place. What follows a library's sections is nothing
    # to whom loads it.
    write_atomic(target, content + sha256(content).encode())


def _name(command: str) -> str:
    source = (kernels_dir() / SOURCE).read_text(encoding="utf-8")
    version = _run([*shlex.split(command), "--version"], command).stdout
    return f"supernet-{sha256(chr(10).join([source, *FLAGS, *_openmp(), version, _cpu()]))[:16]}.so"


def _compiled(command: str, source: Path) -> bytes:
    """Return the library.

    Raises:
        BuildError: If the compiler fails.
        OSError: If there is no folder to compile in.
    """
    with tempfile.TemporaryDirectory() as folder:
        made, half = Path(folder) / "supernet.so", Path(folder) / "supernet.o"
        threads, words = _openmp(), shlex.split(command)
        # Linked with the OpenMP that torch has loaded, by hand: a second one would have threads of its own.
        pragmas = ["-fopenmp"] if threads else ["-Wno-unknown-pragmas"]
        for step in (
            [*words, *FLAGS, *pragmas, "-c", "-o", str(half), str(source)],
            [*words, "-shared", "-o", str(made), str(half), *threads],
        ):
            done = _run(step, command)
            if done.returncode != 0:
                said = " ".join(done.stderr.split())[-400:]
                raise BuildError(f"{command} could not compile {source}: {said}; repair it, or set CXX to another")
        return made.read_bytes()


def _run(step: list[str], command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            step,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        said = e.strerror if isinstance(e, OSError) else f"it did not end in {TIMEOUT_S:g} s"
        raise BuildError(f"{command} could not be run: {said}; repair it, or set CXX to another") from e


def _openmp() -> list[str]:
    """Return the path of torch's own GNU OpenMP, as a list: none where torch has another; then one thread is used."""
    return [str(p) for p in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))[:1]]


def _folders(make: bool = False) -> Iterator[Path]:
    """Yield where the library may be kept, the user's cache first; some users have no home."""
    root = os.environ.get("XDG_CACHE_HOME")
    home: Path | None = None
    with suppress(RuntimeError):  # no HOME, and nobody knows the user
        home = Path(root) if root and os.path.isabs(root) else Path.home() / ".cache"
    if home is not None:
        yield home / "hwnas"
    with suppress(OSError):
        if (own := _temporary(make)) is not None:
            yield own


def _temporary(make: bool) -> Path | None:
    """Return a folder of this user's own below the temporary one; None if another user has taken its name.

    What is loaded from there is executed, so nobody else may have put it there.
    """
    path = Path(tempfile.gettempdir()) / f"hwnas-{os.getuid()}"
    if make:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    about = path.lstat()
    mine = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022
    return path if mine else None


def _cpu() -> str:
    """Return what -march=native depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
