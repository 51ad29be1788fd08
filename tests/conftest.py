"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from hwnas.lock import Lock
from tests.fake_gpu.fixtures import gpu, gpu_folder, tensorrt  # noqa: F401 # fixtures

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("hwnas", "kernels", "profiles", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

PATIENCE_S = 1800.0  # for what another test process makes

# Read when torch is imported. The networks here are small: more threads than one only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are shared, so how long one example takes says nothing about the code.
settings.register_profile("hwnas", deadline=None)
settings.load_profile("hwnas")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in another order are other sums, so equality to the bit needs a fixed number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return what it printed; a failure shows both streams."""
    # Coverage measures child processes through the environment: an environment without coverage cannot join in.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTHON", "PYTEST"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def _once_for_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy so that no build output lands in the repository."""
    shared = _once_for_all_workers(tmp_path_factory)
    with Lock(shared / "wheel.lock", "another process builds the wheel", PATIENCE_S):
        if not (found := list((shared / "wheel").glob("*.whl"))):
            source = shared / "wheel-source"
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            for name in PACKAGED:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(ROOT / name, source / name)
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
            run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", shared / "wheel", source, cwd=shared)
            found = list((shared / "wheel").glob("*.whl"))
    assert len(found) == 1
    return found[0]


def _environment(shared: Path, name: str, *packages: str | Path) -> Path:
    """Return the interpreter of an environment that holds `packages` and what they need, and nothing else."""
    python = shared / name / "bin" / "python"
    with Lock(shared / f"{name}.lock", "another process makes the environment", PATIENCE_S):
        done = shared / name / "done"
        if not done.exists():
            run(sys.executable, "-m", "venv", "--clear", "--without-pip", shared / name, cwd=shared)
            pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet")
            run(*pip, "--constraint", ROOT / "scripts" / "constraints.txt", *packages, cwd=shared)
            done.touch()
    return python


@pytest.fixture(scope="session")
def bare_venv(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The interpreter of an environment that holds the wheel and numpy, and nothing else."""
    return _environment(_once_for_all_workers(tmp_path_factory), "bare", wheel)


@pytest.fixture(scope="session")
def onnxruntime_venv(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The interpreter of a deployment box: the wheel, numpy, ONNX Runtime and Pillow."""
    return _environment(_once_for_all_workers(tmp_path_factory), "onnxruntime", f"{wheel}[cpu,image]")


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole job of darts-tiny on the fake engine.

    ``finished/`` has ``runs/`` and what each verb printed; ``profiled/`` has ``runs/`` as it was after profiling.
    """
    from tests import verbs  # imports torch, which most tests do without

    shared = _once_for_all_workers(tmp_path_factory) / "jobs"
    shared.mkdir(exist_ok=True)
    with Lock(shared / "lock", "another process does the job", PATIENCE_S):
        if not (shared / "done").exists():
            verbs.do_job(shared / "finished", verbs.job(verbs.RECIPE, "--engine", "fake"), shared / "profiled")
            (shared / "done").touch()
    return shared


@pytest.fixture
def profiled(jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run darts-tiny after profiling, ours to change, below the current directory."""
    return _own(jobs / "profiled", tmp_path, monkeypatch)


@pytest.fixture
def finished(jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run darts-tiny after all verbs, ours to change, below the current directory."""
    return _own(jobs / "finished", tmp_path, monkeypatch)


def _own(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(job / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hwnas.search.rerank.IMAGES", 8)  # of 64: judging them is most of what a derivation takes here
    return tmp_path / "runs" / "darts-tiny"
