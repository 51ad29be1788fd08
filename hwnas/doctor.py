"""What this machine can measure, and what to install for the rest."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress

from hwnas.errors import HwnasError, broken
from hwnas.optional import require
from hwnas.runtime.cuda import nvrtc
from hwnas.runtime.cuda.driver import open_cuda
from hwnas.runtime.engines import ENGINES, using_engine
from hwnas.runtime.measuring import limits
from hwnas.runtime.measuring.device import device_name, provenance
from hwnas.show.console import console, table

# Of the command line, by the modules that are imported of them: what is installed need not be usable.
PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "onnx": "onnx",
    "scipy": "scipy.sparse",
    "highspy": "highspy",
    "safetensors": "safetensors.torch",
    "fvcore": "fvcore.nn",
    "pillow": "PIL.Image",
    "rich": "rich",
    "tyro": "tyro",
}
BUSY = 0.5  # load per CPU above which measurements suffer
NVIDIA_INDEX = "--extra-index-url https://pypi.nvidia.com"


def show() -> None:
    """Print Python and packages, engines with what each lacks, parts for GPUs, and what would disturb a measurement."""
    rows = [["python", platform.python_version(), ""]]
    for name, module in PACKAGES.items():
        version, fault = _package(name, module, "pip install 'hwnas[search]'")
        rows.append([name, version or "missing", fault])
    table("packages", ("name", "version", ""), rows)
    found, what = _guarded(_cpp_compiler)
    table(
        "for searches", ("part", "here", "what, or how to get it"), [["C++ compiler", "yes" if found else "no", what]]
    )
    parts = {name: _guarded(check) for name, check in GPU_PARTS.items()}
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
    cpus, load = len(limits.allowed_cpus()), 0.0
    if cpus < (os.cpu_count() or 1):
        out.append(f"this process may use {cpus} of {os.cpu_count()} CPUs: --threads takes no more")
    if (quota := limits.cpu_quota()) is not None:
        out.append(f"this process may have the time of {quota:g} CPUs: what is measured in moments does not last")
    with suppress(OSError, AttributeError):  # not every system tells
        load = os.getloadavg()[0]
    if load > BUSY * (os.cpu_count() or 1):
        out.append(f"the load is {load:.1f} on {os.cpu_count()} CPUs: measurements will take longer and be noisier")
    return out


def _engine(name: str, parts: Mapping[str, tuple[bool, str]]) -> tuple[bool, str]:
    """Return whether an engine is ready, and its device or all that it lacks."""
    missing = [part for part in NEEDS.get(name, ()) if not parts[part][0]]
    if missing:
        return False, "; ".join(f"{part}: {parts[part][1]}" for part in missing)

    def opened() -> tuple[bool, str]:
        with using_engine(name) as engine:
            where = provenance(engine)
        return True, f"{device_name(where)}, clock {where['clock']}, {where['engine']['precision']}"

    return _guarded(opened)


def _guarded(check: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    """Return what a check says, or why it cannot: one that fails, however it does, is the news of its own row alone."""
    try:
        return check()
    except HwnasError as e:
        return False, str(e)
    except Exception as e:  # noqa: BLE001 - of packages of others, which may do anything
        return False, " ".join(f"{type(e).__name__}: {e}".split())


def _package(name: str, module: str, how: str) -> tuple[str | None, str]:
    """Return the version of a package, None without it, and why a module of it cannot be imported, empty if it can.

    Args:
        name: That pip knows it by; what came otherwise, with the system, is there as well.
        module: Of it.
        how: To get it.
    """
    version = _version(name)
    try:
        found = importlib.import_module(module)
    except Exception as e:  # noqa: BLE001 - an import may fail with any, and that is the news
        missing = version is None and isinstance(e, ModuleNotFoundError)
        return version, how if missing else str(broken(module, e))
    return version or str(getattr(found, "__version__", "of the system")), ""


def _part(name: str, module: str, how: str) -> tuple[bool, str]:
    version, fault = _package(name, module, how)
    return not fault, fault or str(version)


def _cpp_compiler() -> tuple[bool, str]:
    from hwnas.ops.fused import native  # it needs torch, which may be what is broken

    how = "install g++ or clang++: it compiles the cells of supernets for this CPU, torch alone is slower"
    found = native.compiler()
    return found is not None, found or how


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
    modules = {"cuda-bindings": "cuda.bindings.driver", "pycuda": "pycuda.driver"}
    parts = {name: _package(name, module, "") for name, module in modules.items()}
    found = [f"{name} {version}" for name, (version, fault) in parts.items() if version and not fault]
    faults = [fault for _, fault in parts.values() if fault]
    how = "pip install 'hwnas[cuda]', or 'hwnas[pycuda]' for a driver older than 525"
    return bool(found), ", ".join(found or faults) or how


def _compiler() -> tuple[bool, str]:
    try:
        return True, "NVRTC {}.{}".format(*nvrtc.version())
    except HwnasError as e:
        return False, str(e)


def _clock() -> tuple[bool, str]:
    return _part("nvidia-ml-py", "pynvml", "pip install 'hwnas[cuda]'; without, throttled samples cannot be told")


def _tensorrt() -> tuple[bool, str]:
    return _part("tensorrt", "tensorrt", f"pip install 'hwnas[tensorrt]' {NVIDIA_INDEX}")


def _tensorrt_rtx() -> tuple[bool, str]:
    return _part("tensorrt-rtx", "tensorrt_rtx", "pip install 'hwnas[tensorrt-rtx]'")


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
    except (importlib.metadata.PackageNotFoundError, KeyError, OSError, ValueError):  # also where that is damaged
        return None
