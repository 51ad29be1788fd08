"""The contract of `cuda` by NVIDIA's cuda-bindings: https://nvidia.github.io/cuda-python/cuda-bindings/latest/."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.optional import require
from hwnas.runtime.cuda.driver import Array, Facts, checked, failure, typed
from hwnas.runtime.cuda.kernels import Grid, Kernel
from hwnas.runtime.cuda.nvrtc import compile_cubin


def open_gpu(ordinal: int = 0) -> _Gpu:
    """Return a GPU.

    Raises:
        MissingExtra: If cuda-bindings is not installed.
        HwnasError: If there is no driver that it can use, or no such GPU.
    """
    return _Gpu(ordinal)


class _Driver:
    """Calls of the driver, with errors as exceptions."""

    def __init__(self) -> None:
        self.api = require("cuda.bindings.driver", extra="cuda")

    def __call__(self, name: str, doing: str, *arguments: Any) -> Any:
        try:
            code, *values = getattr(self.api, name)(*arguments)
        except RuntimeError as e:  # there is no library, or an old one without this function
            raise HwnasError(f"CUDA cannot {doing}: no usable NVIDIA driver here ({' '.join(str(e).split())})") from e
        if code != self.api.CUresult.CUDA_SUCCESS:
            _, text = self.api.cuGetErrorString(code)
            raise failure(int(code), code.name, (text or b"").decode(), doing)
        return values[0] if len(values) == 1 else values


class _Gpu:
    def __init__(self, ordinal: int) -> None:
        self._cu = cu = _Driver()
        self._functions: dict[str, Any] = {}
        cu("cuInit", "start", 0)
        self._device = cu("cuDeviceGet", f"find GPU {ordinal}", ordinal)
        self.binding = f"cuda-bindings {require('cuda.bindings', extra='cuda').__version__}"
        self.captures = True
        self.facts = self._read_facts()
        self._context: Any = cu("cuDevicePrimaryCtxRetain", "open the primary context", self._device)

    def __enter__(self) -> _Gpu:
        if self._context is None:
            raise HwnasError("this GPU was closed; open it again")
        self._cu("cuCtxPushCurrent", "make its context current", self._context)
        return self

    def __exit__(self, *exc: object) -> None:
        self._cu("cuCtxPopCurrent", "restore the context")

    def close(self) -> None:
        if self._context is not None:
            self._context = None
            self._functions = {}
            self._cu("cuDevicePrimaryCtxRelease", "give the context back", self._device)

    def stream(self) -> _Stream:
        return _Stream(self._cu)

    def event(self) -> _Event:
        return _Event(self._cu)

    def memory(self, n_bytes: int) -> _Memory:
        return _Memory(self._cu, n_bytes)

    def free_bytes(self) -> int:
        free, _ = self._cu("cuMemGetInfo", "tell its free memory")
        return int(free)

    def host(self, shape: Sequence[int], dtype: Any) -> _Host:
        return _Host(self._cu, shape, dtype)

    def function(self, kernel: Kernel) -> _Function:
        if kernel.name not in self._functions:
            cubin = compile_cubin(kernel.source(), kernel.file, self.facts.compute_capability)
            self._functions[kernel.name] = _Function(self._cu, cubin, kernel)
        found: _Function = self._functions[kernel.name]
        return found

    def _read_facts(self) -> Facts:
        cu, kinds = self._cu, self._cu.api.CUdevice_attribute

        def attribute(name: str) -> int:
            kind = getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(cu("cuDeviceGetAttribute", "describe the GPU", kind, self._device))

        version = int(cu("cuDriverGetVersion", "tell its version"))
        return Facts(
            name=_text(cu("cuDeviceGetName", "name the GPU", 256, self._device)),
            compute_capability=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
            multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
            memory_bytes=int(cu("cuDeviceTotalMem", "describe the GPU", self._device)),
            l2_bytes=attribute("L2_CACHE_SIZE"),
            pci_bus_id=_text(cu("cuDeviceGetPCIBusId", "find the GPU", 64, self._device)),
            driver_cuda=(version // 1000, version % 1000 // 10),
        )


class _Event:
    def __init__(self, cu: _Driver) -> None:
        self._cu, self.it = cu, cu("cuEventCreate", "make an event", 0)

    def ms_since(self, earlier: _Event) -> float:
        return float(self._cu("cuEventElapsedTime", "read an event", earlier.it, self.it))

    def close(self) -> None:
        self._cu("cuEventDestroy", "give an event back", self.it)


class _Memory:
    def __init__(self, cu: _Driver, n_bytes: int) -> None:
        self._cu, self.n_bytes = cu, n_bytes
        self.address = int(cu("cuMemAlloc", f"allocate {n_bytes} bytes", n_bytes))

    def close(self) -> None:
        self._cu("cuMemFree", "free memory", self.address)


class _Host:
    def __init__(self, cu: _Driver, shape: Sequence[int], dtype: Any) -> None:
        self._cu = cu
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._address = int(cu("cuMemHostAlloc", f"allocate {n_bytes} bytes of page-locked memory", n_bytes, 0))
        self.array: Array = np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(self._address), dtype).reshape(shape)

    def close(self) -> None:
        del self.array
        self._cu("cuMemFreeHost", "free memory", self._address)


class _Function:
    def __init__(self, cu: _Driver, cubin: bytes, kernel: Kernel) -> None:
        self.kernel = kernel
        self._module = cu("cuModuleLoadData", f"load {kernel.file}", cubin)
        self.it = cu("cuModuleGetFunction", f"find {kernel.name}", self._module, kernel.name.encode())


class _Graph:
    def __init__(self, cu: _Driver, graph: Any, stream: _Stream) -> None:
        self._cu, self._stream = cu, stream
        try:
            self._it = cu("cuGraphInstantiate", "make a graph", graph, 0)
        finally:
            cu("cuGraphDestroy", "give a graph back", graph)

    def launch(self) -> None:
        self._cu("cuGraphLaunch", "launch a graph", self._it, self._stream.it)

    def close(self) -> None:
        self._cu("cuGraphExecDestroy", "give a graph back", self._it)


class _Stream:
    def __init__(self, cu: _Driver) -> None:
        self._cu = cu
        flags = cu.api.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.it = cu("cuStreamCreate", "make a stream", flags)
        self.handle = int(self.it)

    def synchronize(self) -> None:
        self._cu("cuStreamSynchronize", "run what is on the stream", self.it)

    def record(self, event: _Event) -> None:
        self._cu("cuEventRecord", "record an event", event.it, self.it)

    def copy_in(self, memory: _Memory, array: Array) -> None:
        address = checked(array, memory).ctypes.data
        self._cu("cuMemcpyHtoDAsync", "copy to the device", memory.address, address, memory.n_bytes, self.it)

    def copy_out(self, array: Array, memory: _Memory) -> None:
        address = checked(array, memory).ctypes.data
        self._cu("cuMemcpyDtoHAsync", "copy from the device", address, memory.address, memory.n_bytes, self.it)

    def launch(self, function: _Function, grid: Grid, *arguments: Any) -> None:
        given = typed(function.kernel, arguments)
        packed = (tuple(value for _, _, value in given), tuple(ctype for ctype, _, _ in given))
        block = (function.kernel.threads, 1, 1)
        doing = f"launch {function.kernel.name}"
        self._cu("cuLaunchKernel", doing, function.it, *grid, *block, 0, self.it, packed, 0)

    def capture(self, work: Callable[[], None]) -> _Graph:
        mode = self._cu.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._cu("cuStreamBeginCapture", "capture a stream", self.it, mode)
        try:
            work()
        except BaseException:
            code, graph = self._cu.api.cuStreamEndCapture(self.it)  # whatever became of it, the stream works again
            if code == self._cu.api.CUresult.CUDA_SUCCESS:
                self._cu.api.cuGraphDestroy(graph)
            raise
        return _Graph(self._cu, self._cu("cuStreamEndCapture", "capture a stream", self.it), self)

    def close(self) -> None:
        self._cu("cuStreamDestroy", "give a stream back", self.it)


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace").strip()
