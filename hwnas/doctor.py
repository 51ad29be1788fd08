"""What this machine can measure, and what to install for the rest."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping

from hwnas.errors import HwnasError
from hwnas.ops.fused import native
from hwnas.optional import require
from hwnas.runtime.cuda import nvrtc
from hwnas.runtime.cuda.driver import open_cuda
from hwnas.runtime.engines import ENGINES, using_engine
from hwnas.runtime.measuring.device import device_name, provenance
from hwnas.show.console import console, table

PACKAGES = ("numpy", "torch", "onnx", "scipy", "highspy", "safetensors", "fvcore", "pillow", "rich", "tyro")
BUSY = 0.5  # load per CPU above which measurements suffer
NVIDIA_INDEX = "--extra-index-url https://pypi.nvidia.com"


def show() -> None:
    """Print Python and packages, engines with what each lacks, parts for GPUs, and what would disturb a measurement."""
    rows = [["python", platform.python_version(), ""]]
    for name in PACKAGES:
        version = _version(name)
        rows.append([name, version or "missing", "" if version else "pip install 'hwnas[search]'"])
    table("packages", ("name", "version", ""), rows)
    found = native.compiler()
    how = "install g++ or clang++: it compiles the cells of supernets for this CPU, torch alone is slower"
    table(
        "for searches",
        ("part", "here", "what, or how to get it"),
        [["C++ compiler", "yes" if found else "no", found or how]],
    )
    parts = {name: check() for name, check in GPU_PARTS.items()}
    engines = []
    for name in ENGINES:
        ready, what = _engine(name, parts)
        engines.append([name, "yes" if ready else "no", what])
    table("engines", ("name", "ready", "device, or what is missing"), engines)
    table(
        "for GPUs",
        ("part", "here", "what, or how to get it"),
        [[n, "yes" if ok else "no", t] for n, (ok, t) in parts.items()],
    )
    for warning in warnings():
        console.print(f"warning: {warning}", style="yellow", markup=False)


def warnings() -> list[str]:
    """Return what would disturb or break a measurement here."""
    out = []
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        out.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install the one you need"
        )
    cpus = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY * cpus:
        out.append(f"the load is {os.getloadavg()[0]:.1f} on {cpus} CPUs: measurements will take longer and be noisier")
    return out


def _engine(name: str, parts: Mapping[str, tuple[bool, str]]) -> tuple[bool, str]:
    """Return whether an engine is ready, and its device or all that it lacks."""
    missing = [part for part in NEEDS.get(name, ()) if not parts[part][0]]
    if missing:
        return False, "; ".join(f"{part}: {parts[part][1]}" for part in missing)
    try:
        with using_engine(name) as engine:
            where = provenance(engine)
    except HwnasError as e:
        return False, str(e)
    return True, f"{device_name(where)}, clock {where['clock']}, {where['engine']['precision']}"


def _driver() -> tuple[bool, str]:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False, "install NVIDIA's driver; nvidia-smi shows that it is there"
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return True, f"for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}"


def _gpu() -> tuple[bool, str]:
    try:
        gpu = open_cuda()
    except HwnasError as e:
        return False, str(e)
    major, minor = gpu.facts.compute_capability
    gpu.close()
    return True, f"{gpu.facts.name}, SM {major}.{minor}, {gpu.facts.memory_bytes >> 30} GiB"


def _binding() -> tuple[bool, str]:
    found = [f"{name} {_version(name)}" for name in ("cuda-bindings", "pycuda") if _version(name)]
    return bool(found), ", ".join(found) or "pip install 'hwnas[cuda]', or 'hwnas[pycuda]' for a driver older than 525"


def _compiler() -> tuple[bool, str]:
    try:
        return True, "NVRTC {}.{}".format(*nvrtc.version())
    except HwnasError as e:
        return False, str(e)


def _clock() -> tuple[bool, str]:
    version = _version("nvidia-ml-py")
    return bool(version), version or "pip install 'hwnas[cuda]'; without, throttled samples cannot be told"


def _tensorrt() -> tuple[bool, str]:
    version = _version("tensorrt")
    return bool(version), version or f"pip install 'hwnas[tensorrt]' {NVIDIA_INDEX}"


def _tensorrt_rtx() -> tuple[bool, str]:
    version = _version("tensorrt-rtx")
    return bool(version), version or "pip install 'hwnas[tensorrt-rtx]'"


def _onnxruntime_cuda() -> tuple[bool, str]:
    try:
        package = require("onnxruntime", extra="gpu")
    except HwnasError as e:
        return False, str(e)
    there = "CUDAExecutionProvider" in package.get_available_providers()
    how = "this build has none: pip uninstall onnxruntime, then pip install 'hwnas[gpu]'"
    return there, str(package.__version__) if there else how


def _torch_cuda() -> tuple[bool, str]:
    try:
        package = require("torch", extra="search")
    except HwnasError as e:
        return False, str(e)
    cuda = package.version.cuda
    how = "this build has none: pip install torch from the package index (PyTorch's CPU index has builds without)"
    return bool(cuda), f"{package.__version__}, CUDA {cuda}" if cuda else how


GPU_PARTS: Mapping[str, Callable[[], tuple[bool, str]]] = {
    "NVIDIA driver": _driver,
    "binding of CUDA": _binding,
    "compiler of kernels": _compiler,
    "reader of clocks": _clock,
    "GPU": _gpu,
    "TensorRT": _tensorrt,
    "TensorRT-RTX": _tensorrt_rtx,
    "ONNX Runtime with CUDA": _onnxruntime_cuda,
    "PyTorch with CUDA": _torch_cuda,
}
_ALL = ("NVIDIA driver", "binding of CUDA", "compiler of kernels")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": (*_ALL, "TensorRT"),
    "tensorrt_rtx": (*_ALL, "TensorRT-RTX"),
    "onnxruntime-cuda": (*_ALL, "ONNX Runtime with CUDA"),
    "torch-cuda": (*_ALL, "PyTorch with CUDA"),
    "torch-cuda-graph": (*_ALL, "PyTorch with CUDA"),
    "torch-cuda-compiled": (*_ALL, "PyTorch with CUDA"),
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
