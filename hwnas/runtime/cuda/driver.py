"""What is needed of CUDA, behind one contract: a context, streams, events, memory, graphs, kernels.

Two bindings fulfil it: cuda-bindings, which needs a driver of CUDA 12 (525) or newer, and pycuda for older ones. Both
use the primary context of the GPU, which PyTorch, TensorRT and ONNX Runtime use too, and leave current what was.

A `Cuda` is a context manager that can be entered again and again: inside, its context is current. Everything is used
inside. Work is put on a stream and runs later; only `Stream.synchronize` waits for it.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from hwnas.errors import DeviceLost, HwnasError, MissingExtra, unknown
from hwnas.runtime.cuda.kernels import Grid, Kernel

Array = npt.NDArray[Any]

# What a kernel's parameters are called in C, in `ctypes` and in `struct`.
C_TYPES: Mapping[str, tuple[Any, str]] = {
    "int": (ctypes.c_int, "i"),
    "int64_t": (ctypes.c_int64, "q"),
    "uint32_t": (ctypes.c_uint32, "I"),
    "float": (ctypes.c_float, "f"),
    "*": (ctypes.c_void_p, "P"),
}
# Codes after which a context is of no more use: an illegal address, a failed launch, an uncorrectable memory error.
STICKY = (214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999)


@dataclass(frozen=True)
class Facts:
    """What a GPU is.

    Attributes:
        name: As the driver calls it.
        compute_capability: (9, 0) for SM 90.
        multiprocessors: How many.
        memory_bytes: Of the device.
        l2_bytes: Size of its second-level cache.
        pci_bus_id: Where it sits, as NVML wants it.
        driver_cuda: The newest (major, minor) of CUDA that the driver serves.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    pci_bus_id: str
    driver_cuda: tuple[int, int]


class Event(Protocol):
    """A point in a stream."""

    def ms_since(self, earlier: Any) -> float:
        """Return the milliseconds between an earlier event and this one; the stream must have passed both."""

    def close(self) -> None:
        """Give it back."""


class Memory(Protocol):
    """Memory of the device.

    Attributes:
        address: Where.
        n_bytes: How much.
    """

    address: int
    n_bytes: int

    def close(self) -> None:
        """Give it back."""


class Host(Protocol):
    """Page-locked memory of the host, which copies reach without a detour.

    Attributes:
        array: Over it; of no use after `close`.
    """

    array: Array

    def close(self) -> None:
        """Give it back."""


class Graph(Protocol):
    """Work that was captured, to be put on the stream as a whole."""

    def launch(self) -> None:
        """Put it on the stream it was captured from."""

    def close(self) -> None:
        """Give it back."""


class Stream(Protocol):
    """A queue of work.

    Attributes:
        handle: What other libraries are told.
    """

    handle: int

    def synchronize(self) -> None:
        """Wait until everything on it is done."""

    def record(self, event: Any) -> None:
        """Put an event on it."""

    def copy_in(self, memory: Any, array: Array) -> None:
        """Put a copy to the device on it; the array must stay as it is until that is done."""

    def copy_out(self, array: Array, memory: Any) -> None:
        """Put a copy from the device on it."""

    def launch(self, function: Any, grid: Grid, *arguments: Any) -> None:
        """Put a kernel on it; memory is given as `Memory`."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Return what `work` puts on this stream, as a graph, without running it.

        Raises:
            HwnasError: If the binding cannot, or the work contains what cannot be captured.
        """

    def close(self) -> None:
        """Give it back."""


class Cuda(AbstractContextManager["Cuda"], Protocol):
    """One GPU through one binding.

    Attributes:
        binding: Name and version.
        facts: What the GPU is.
        captures: Whether streams can capture.
    """

    binding: str
    facts: Facts
    captures: bool

    def stream(self) -> Stream:
        """Return a new stream that does not wait for the default one."""

    def event(self) -> Event:
        """Return a new event."""

    def memory(self, n_bytes: int) -> Memory:
        """Return new memory of the device."""

    def free_bytes(self) -> int:
        """Return how much memory of the device can still be had; inside the context."""

    def host(self, shape: Sequence[int], dtype: Any) -> Host:
        """Return new page-locked memory."""

    def function(self, kernel: Kernel) -> Any:
        """Return a kernel of ours, compiled for this GPU, for `Stream.launch`."""

    def close(self) -> None:
        """Give the context back."""


BINDINGS: Mapping[str, str] = {
    "cuda-bindings": "hwnas.runtime.cuda.bindings:open_gpu",
    "pycuda": "hwnas.runtime.cuda.pycuda:open_gpu",
}


def open_cuda(binding: str | None = None, ordinal: int = 0) -> Cuda:
    """Return a GPU.

    Args:
        binding: One of `BINDINGS`; None for the first one that works here.
        ordinal: Which GPU.

    Raises:
        MissingExtra: If no binding is installed.
        HwnasError: If there is no driver, no such GPU, or no such binding.
    """
    if binding is not None and binding not in BINDINGS:
        raise unknown("binding", binding, BINDINGS)
    errors: list[HwnasError] = []
    for name in BINDINGS if binding is None else (binding,):
        module, _, function = BINDINGS[name].partition(":")
        try:
            gpu: Cuda = getattr(importlib.import_module(module), function)(ordinal)
            return gpu
        except HwnasError as e:
            errors.append(e)
    # What is installed and fails says more than what is not there.
    raise next((e for e in errors if not isinstance(e, MissingExtra)), errors[0])


def failure(code: int, name: str, text: str, doing: str) -> HwnasError:
    """Return the error for a code of the driver."""
    kind = DeviceLost if code in STICKY else HwnasError
    return kind(f"CUDA cannot {doing}: {name} ({text})")


def typed(kernel: Kernel, arguments: Sequence[Any]) -> list[tuple[Any, str, Any]]:
    """Return (ctypes type, struct code, value) of each argument of a kernel.

    Raises:
        HwnasError: If they are not as many as the kernel has parameters.
    """
    if len(arguments) != len(kernel.parameters):
        raise HwnasError(f"{kernel.name} takes {len(kernel.parameters)} arguments, got {len(arguments)}")
    out = []
    for kind, value in zip(kernel.parameters, arguments, strict=True):
        ctype, code = C_TYPES["*" if kind.endswith("*") else kind]
        out.append((ctype, code, value.address if code == "P" else value))
    return out


def checked(array: Array, memory: Memory) -> Array:
    """Return an array that may be copied to or from some memory.

    Raises:
        HwnasError: If it is not contiguous or has another size.
    """
    if not array.flags.c_contiguous or array.nbytes != memory.n_bytes:
        raise HwnasError(f"expected {memory.n_bytes} contiguous bytes to copy, got an array of {array.nbytes}")
    return array
