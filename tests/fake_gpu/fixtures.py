"""Making the libraries of the GPU that is not there, and the fixtures of tests that use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_gpu import NAMES, FakeGpu, load
from tests.host_kernels import host_kernels

SOURCES = Path(__file__).resolve().parent
# What a process finds that has the folder on its path.
MODULES = {
    "sitecustomize": "from pathlib import Path\nfrom tests import fake_gpu\n\nfake_gpu.load(Path(__file__).parent)\n",
    "tensorrt": "from tests import fake_tensorrt\n\nfake_tensorrt.install(__name__)\n",
    "tensorrt_rtx": "from tests import fake_tensorrt\n\nfake_tensorrt.install(__name__)\n",
}


def make(folder: Path) -> Path:
    """Compile the libraries into a folder, with a ``sitecustomize`` that loads them."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc to compile the driver with")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    for name, library in NAMES.items():
        source = str(SOURCES / f"{name}.c")
        out = ["-o", str(folder / library), f"-Wl,-soname,{library}"]
        subprocess.run([compiler, *flags, source, *out, "-ldl"], check=True)
    host_kernels(folder, sanitize=False)
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="session")
def gpu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the libraries."""
    return make(tmp_path_factory.mktemp("fake_gpu"))


@pytest.fixture
def gpu(gpu_folder: Path) -> Iterator[FakeGpu]:
    """Return the GPU of this process; whoever used it has given everything back."""
    found = load(gpu_folder)
    found.reset()
    before = found.live, found.contexts[0]
    yield found
    assert (found.live, found.contexts[0]) == before


@pytest.fixture
def tensorrt(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process and its children find a TensorRT; ``HWNAS_FAKE_TENSORRT`` says which release."""
    monkeypatch.syspath_prepend(str(gpu.folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(gpu.folder), str(SOURCES.parents[1])]))  # and of `tests`
    packages = ("tensorrt", "tensorrt_rtx")
    hidden = {name: sys.modules.pop(name) for name in packages if name in sys.modules}
    yield
    for name in packages:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)
