"""What the doctor says of GPUs: every part that is missing and how to get it, and what is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from hwnas import doctor
from hwnas.runtime.engines import ENGINES, capabilities
from tests.conftest import run
from tests.fake_gpu import FakeGpu
from tests.verbs import done

PARTS = {
    "NVIDIA driver": "install NVIDIA's driver",
    "GPU": "CUDA cannot start: no usable NVIDIA driver here",
    "TensorRT": r"pip install 'hwnas\[tensorrt\]' --extra-index-url https://pypi.nvidia.com",
    "ONNX Runtime with CUDA": r"this build has none: pip uninstall onnxruntime, then pip install 'hwnas\[gpu\]'",
    "PyTorch with CUDA": "this build has none: pip install torch from the package index",
}


def row(out: str, name: str) -> str:
    """Return the line of a table that begins with a name."""
    return next(line.rstrip() for line in out.splitlines() if re.match(rf"{re.escape(name)} {{2,}}", line))


def test_every_engine_of_gpus_says_what_it_needs() -> None:
    assert doctor.NEEDS.keys() == {name for name in ENGINES if not capabilities(name).on_host}
    assert {part for needs in doctor.NEEDS.values() for part in needs} <= doctor.GPU_PARTS.keys()


def test_without_a_gpu_every_part_that_is_missing_is_named(tmp_path: Path) -> None:
    """In a process of its own, which has no driver."""
    out = run(sys.executable, "-m", "hwnas", "doctor", cwd=tmp_path)
    for part, how in PARTS.items():
        assert re.search(rf"^{re.escape(part)} +no +{how}", row(out, part)), row(out, part)
    for part in ("binding of CUDA", "compiler of kernels", "reader of clocks", "TensorRT-RTX"):
        assert re.match(rf"{part} +yes +\S", row(out, part))
    lacks = row(out, "tensorrt")
    assert re.search(r"no +NVIDIA driver: install NVIDIA's driver.*; TensorRT: pip install 'hwnas\[tensorrt\]'", lacks)
    assert re.search(r"no +NVIDIA driver: install [^:]*$", row(out, "tensorrt_rtx"))  # and nothing else
    for name in ("torch-cuda", "torch-cuda-graph", "torch-cuda-compiled", "onnxruntime-cuda"):
        assert re.search(r" no +NVIDIA driver: .*: this build has none", row(out, name))


def test_with_one_it_is_named(gpu: FakeGpu, tensorrt: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "10.16.1" if name == "tensorrt" else real(name))
    before = gpu.contexts
    out = done("doctor").out
    assert re.search("^NVIDIA driver +yes +for CUDA up to 12.8$", row(out, "NVIDIA driver"))
    assert "Fake GPU 9000, SM 8.9, 8 GiB" in row(out, "GPU")
    assert re.search(r"^tensorrt +yes +fake-gpu-9000, clock device, fp32$", row(out, "tensorrt"))
    assert gpu.contexts == before
