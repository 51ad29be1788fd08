"""The contract of `cuda` by PyCUDA: https://documen.tician.de/pycuda/driver.html.

For boxes whose driver is too old for cuda-bindings, such as that of a Titan Xp with TensorRT 8.6. It is never
initialised by itself (`pycuda.autoinit` makes a context of its own, which TensorRT and PyTorch do not share). PyCUDA
knows no graphs.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hwnas.errors import BrokenPackage, DeviceLost, HwnasError
from hwnas.optional import require
from hwnas.runtime.cuda.driver import Array, Facts, checked, typed
from hwnas.runtime.cuda.kernels import Grid, Kernel
from hwnas.runtime.cuda.nvrtc import compile_cubin

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


def open_gpu(ordinal: int = 0) -> _Gpu:
    """Return a GPU.

    Raises:
        MissingExtra: If PyCUDA is not installed.
        HwnasError: If there is no driver, or no such GPU.
    """
    return _Gpu(ordinal)


@cache
def _primary_context(drv: Any, ordinal: int) -> Any:
    """Return the primary context of a GPU, which this process then holds to its end.

    Given back sooner, PyCUDA would leave it on the driver's stack, and by its destructor alone it would be treated as a
    context of its own: so it is detached at the very end, while it is current.
    """
    context = drv.Device(ordinal).retain_primary_context()

    def give_back() -> None:
        context.push()
        context.detach()

    atexit.register(give_back)
    return context


class _Gpu:
    def __init__(self, ordinal: int) -> None:
        try:
            self._drv = drv = require("pycuda.driver", extra="pycuda")
        except BrokenPackage as e:  # it is linked to the driver's library
            raise HwnasError(f"CUDA cannot start: no NVIDIA driver here ({e})") from e
        self._functions: dict[str, _Function] = {}
        with self._errors("start"):
            drv.init()
        with self._errors(f"find GPU {ordinal}"):
            device = drv.Device(ordinal)
        self.binding = f"pycuda {require('pycuda', extra='pycuda').VERSION_TEXT}"
        self.captures = False
        with self._errors("describe the GPU"):
            self.facts = self._read_facts(device)
        with self._errors("open the primary context"):
            self._context: Any = _primary_context(drv, ordinal)

    def __enter__(self) -> _Gpu:
        if self._context is None:
            raise HwnasError("this GPU was closed; open it again")
        with self._errors("make its context current"):
            self._context.push()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._errors("restore the context"):
            self._drv.Context.pop()

    def close(self) -> None:
        self._functions = {}
        self._context = None

    def stream(self) -> _Stream:
        with self._errors("make a stream"):
            return _Stream(self, self._drv.Stream(NON_BLOCKING))

    def event(self) -> _Event:
        with self._errors("make an event"):
            return _Event(self, self._drv.Event())

    def memory(self, n_bytes: int) -> _Memory:
        with self._errors(f"allocate {n_bytes} bytes"):
            return _Memory(self._drv.mem_alloc(n_bytes), n_bytes)

    def free_bytes(self) -> int:
        with self._errors("tell its free memory"):
            return int(self._drv.mem_get_info()[0])

    def host(self, shape: Sequence[int], dtype: Any) -> _Host:
        with self._errors("allocate page-locked memory"):
            return _Host(self._drv.pagelocked_empty(tuple(shape), dtype))

    def function(self, kernel: Kernel) -> _Function:
        if kernel.name not in self._functions:
            cubin = compile_cubin(kernel.source(), kernel.file, self.facts.compute_capability)
            with self._errors(f"load {kernel.file}"):
                self._functions[kernel.name] = _Function(self._drv.module_from_buffer(cubin), kernel)
        return self._functions[kernel.name]

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._drv.Error as e:  # it has a text and no code
            lost = isinstance(e, self._drv.LaunchError) or "illegal" in str(e)
            kind = DeviceLost if lost else HwnasError
            raise kind(f"CUDA cannot {doing}: {type(e).__name__} ({' '.join(str(e).split())})") from e

    def _read_facts(self, device: Any) -> Facts:
        kinds = self._drv.device_attribute
        newest = self._drv.get_driver_version()
        return Facts(
            name=device.name().strip(),
            compute_capability=device.compute_capability(),
            multiprocessors=device.get_attribute(kinds.MULTIPROCESSOR_COUNT),
            memory_bytes=device.total_memory(),
            l2_bytes=device.get_attribute(kinds.L2_CACHE_SIZE),
            pci_bus_id=device.pci_bus_id(),
            driver_cuda=(newest // 1000, newest % 1000 // 10),
        )


class _Event:
    def __init__(self, gpu: _Gpu, it: Any) -> None:
        self._gpu, self.it = gpu, it

    def ms_since(self, earlier: _Event) -> float:
        with self._gpu._errors("read an event"):
            return float(self.it.time_since(earlier.it))

    def close(self) -> None:
        del self.it


class _Memory:
    def __init__(self, it: Any, n_bytes: int) -> None:
        self._it, self.n_bytes, self.address = it, n_bytes, int(it)

    def close(self) -> None:
        self._it.free()


class _Host:
    def __init__(self, array: Any) -> None:
        self.array: Array = array
        self._memory = array.base

    def close(self) -> None:
        del self.array
        self._memory.free()


class _Function:
    def __init__(self, module: Any, kernel: Kernel) -> None:
        self.kernel = kernel
        self.it = module.get_function(kernel.name)


class _Stream:
    def __init__(self, gpu: _Gpu, it: Any) -> None:
        self._gpu, self.it, self.handle = gpu, it, int(it.handle)
        self._drv = gpu._drv

    def synchronize(self) -> None:
        with self._gpu._errors("run what is on the stream"):
            self.it.synchronize()

    def record(self, event: _Event) -> None:
        with self._gpu._errors("record an event"):
            event.it.record(self.it)

    def copy_in(self, memory: _Memory, array: Array) -> None:
        with self._gpu._errors("copy to the device"):
            self._drv.memcpy_htod_async(memory.address, checked(array, memory), self.it)

    def copy_out(self, array: Array, memory: _Memory) -> None:
        with self._gpu._errors("copy from the device"):
            self._drv.memcpy_dtoh_async(checked(array, memory), memory.address, self.it)

    def launch(self, function: _Function, grid: Grid, *arguments: Any) -> None:
        given = typed(function.kernel, arguments)
        block = (function.kernel.threads, 1, 1)
        with self._gpu._errors(f"launch {function.kernel.name}"):
            function.it.prepare("".join(code for _, code, _ in given))
            function.it.prepared_async_call(grid, block, self.it, *(value for _, _, value in given))

    def capture(self, work: Callable[[], None]) -> Any:
        raise HwnasError(f"{self._gpu.binding} knows no CUDA graphs; install cuda-bindings: pip install 'hwnas[cuda]'")

    def close(self) -> None:
        del self.it
