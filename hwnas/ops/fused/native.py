"""The supernet's kernels for CPUs: C++ that ships as source and is compiled for this very CPU when it is first used."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from hwnas.errors import BuildError
from hwnas.files import sha256
from hwnas.progress import Reporter
from hwnas.resources import kernels_dir

SOURCE = "cpu/supernet.cpp"
# Finite mathematics is not assumed: a search that diverges must show NaN, not hide it.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-std=c++17")
TIMEOUT_S = 120.0


def compiler() -> str | None:
    """Return the C++ compiler: that of the environment variable CXX, else the first of c++, g++ and clang++."""
    asked = os.environ.get("CXX")
    return next(
        (found for name in ([asked] if asked else ["c++", "g++", "clang++"]) if (found := shutil.which(name))), None
    )


def built() -> bool:
    """Tell whether `library` has nothing left to compile, which takes some seconds."""
    command = compiler()
    return command is None or _target(command).exists()


def prepare(report: Reporter) -> None:
    """Compile what is not compiled yet, and report that it takes some seconds, or that nothing can compile it."""
    if compiler() is None:
        report.note("no C++ compiler here, so torch alone computes the supernet, more slowly; see: hwnas doctor")
    elif not built():
        report.note("compiling the supernet's kernels for this CPU, once")
        library()


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None where there is no compiler, and callers compute with torch.

    The library is kept in the user's cache folder under a name that says source, flags, compiler and CPU.

    Raises:
        BuildError: If there is a compiler and it fails: a wrong installation should be seen, not worked around.
    """
    command = compiler()
    if command is None:
        return None
    target = _target(command)
    if not target.exists():
        _compile(command, kernels_dir() / SOURCE, target)
    return ctypes.CDLL(str(target))


def _target(command: str) -> Path:
    source = (kernels_dir() / SOURCE).read_text(encoding="utf-8")
    version = subprocess.run(
        [command, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    ).stdout
    name = sha256("\n".join([source, *FLAGS, *_openmp(), version, _cpu()]))[:16]
    return _cache_dir() / f"supernet-{name}.so"


def _compile(command: str, source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, half = Path(folder) / target.name, Path(folder) / "supernet.o"
        threads = _openmp()
        # Linked with the OpenMP that torch has loaded, by hand: a second one would have threads of its own.
        pragmas = ["-fopenmp"] if threads else ["-Wno-unknown-pragmas"]
        for step in (
            [command, *FLAGS, *pragmas, "-c", "-o", str(half), str(source)],
            [command, "-shared", "-o", str(made), str(half), *threads],
        ):
            done = subprocess.run(step, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            if done.returncode != 0:
                raise BuildError(
                    f"{command} could not compile {source}: {done.stderr.strip()[-400:]}; repair it, or set CXX to "
                    "another compiler; with CXX=none the search computes with torch alone"
                )
        os.replace(made, target)  # two processes may get here at once: each puts a whole file in place


def _openmp() -> list[str]:
    """Return the path of torch's own GNU OpenMP, as a list: none where torch has another; then one thread is used."""
    return [str(p) for p in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))[:1]]


def _cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "hwnas"


def _cpu() -> str:
    """Return what -march=native depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
