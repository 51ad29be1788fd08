"""PyTorch on an NVIDIA GPU as engines: eager, as a CUDA graph, and compiled; timed by our events on our stream.

The calls of an entry run with stand-in weights and need no ONNX file. In float16 all of it is half, weights and inputs,
and tensors lie in memory channels last, as tensor cores want them; inputs and results are float32 and dense in the
order of their shapes, as those of files are, and what that takes is a part of the entry.

Our own stream cannot capture torch: its allocator must know that memory belongs to a graph. So `torch.cuda.CUDAGraph`
captures our stream, together with the copies and kernels of ours that a scope adds, and is launched on it.

Sources: https://docs.pytorch.org/docs/stable/notes/cuda.html (TF32, streams, memory, graphs),
https://docs.pytorch.org/docs/stable/generated/torch.cuda.ExternalStream.html and
https://docs.pytorch.org/docs/stable/generated/torch.compile.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import DeviceLost, HwnasError, MissingExtra
from hwnas.runtime.cuda.driver import STICKY, Graph, Memory
from hwnas.runtime.cuda.timing import Work
from hwnas.runtime.engines.base import Capabilities, Runner
from hwnas.runtime.engines.gpu import Gpu
from hwnas.runtime.engines.gpu_runner import gpu_runner
from hwnas.runtime.engines.torch import entry_module
from hwnas.runtime.measuring.plan import Entry, Shape

DEVICE = "cuda:0"
COMPILE_MODE = "max-autotune-no-cudagraphs"  # the graph is ours


class TorchCuda:
    """Eager: launches kernel by kernel, as a script does. Merges nothing."""

    capabilities = Capabilities(
        merges=False,  # Inductor removes equal nodes only where it trains; equal ops may share a kernel, not a result
        precisions=("fp32", "tf32", "fp16"),
        on_host=False,
        load_s=0.5,  # and to try its convolutions out; guessed: it has not run on a GPU yet
        slowest_load_s=60.0,
    )
    NAME = "torch-cuda"
    GRAPH = False
    COMPILED = False

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        """Find the GPU.

        Raises:
            MissingExtra: If this PyTorch is one without CUDA, or no binding of CUDA is installed.
            HwnasError: If there is no GPU that it can use.
        """
        self.name = self.NAME
        self.clock = "device"
        self._threads, self._precision, self._half = threads, precision, precision == "fp16"
        _check_torch(self.name)
        self.gpu = Gpu()
        self._pool: Any = None

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, clock, options, and the GPU."""
        cudnn: Any = torch.backends.cudnn
        mode = f"compiled: {COMPILE_MODE}" if self.COMPILED else "eager"
        return {
            "name": self.name,
            "version": str(torch.__version__),
            "precision": self._precision,
            "threads": self._threads,
            "clock": self.clock,
            "options": {
                "mode": f"{mode}, graph" if self.GRAPH else mode,
                "memory_format": "channels_last" if self._half else "contiguous",
                "cudnn_benchmark": True,
                "torch_cuda": torch.version.cuda,
                "cudnn": cudnn.version(),
                **self.gpu.options(),
            },
            "device": self.gpu.device(),
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner that builds the entry's ops; `folder` is not read."""
        capture = self.capture if self.GRAPH else None
        opener = partial(_Network, self, entry)
        return gpu_runner(self.gpu, [opener], entry.key, entry.role, dict(entry.inputs), capture)

    def module(self, entry: Entry) -> nn.Module:
        """Return the calls of an entry on the GPU, in the precision of this engine, compiled if it compiles."""
        module: Any = entry_module(entry, to_half if self._half else None, to_dense).to(DEVICE)
        if self._half:
            module = module.to(dtype=torch.float16, memory_format=torch.channels_last)
        if self.COMPILED:
            module = torch.compile(module, mode=COMPILE_MODE, dynamic=False, fullgraph=True)
        return cast(nn.Module, module)

    def stream(self) -> torch.cuda.Stream:
        """Return our stream, as torch has it; inside the context."""
        external: Any = torch.cuda.ExternalStream
        return cast(torch.cuda.Stream, external(self.gpu.stream().handle, device=DEVICE))

    def capture(self, work: Work) -> Graph:
        """Return what `work` puts on our stream, as a graph, without running it.

        Raises:
            HwnasError: If it contains what cannot be captured.
        """
        # All graphs share their memory: they are launched one after the other, and none reads what another made.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), self.stream()
        with _errors("a graph"), torch.cuda.graph(graph, pool=self._pool, stream=stream):
            work()
        return _Graph(graph, stream)

    def set_precision(self) -> None:
        """Tell torch how to compute, for this process, which does nothing but measure."""
        backends: Any = torch.backends
        backends.cudnn.benchmark = True  # convolutions are tried out in the first run, which is not timed
        for settings in (backends.cuda.matmul, backends.cudnn, backends.cudnn.conv):
            settings.fp32_precision = "tf32" if self._precision == "tf32" else "ieee"

    def free_memory_bytes(self) -> float:
        """Return how much memory of the device runners can still have, with what torch keeps without need."""
        return self.gpu.free_bytes() + torch.cuda.memory_reserved(DEVICE) - torch.cuda.memory_allocated(DEVICE)

    def close(self) -> None:
        """Give everything back."""
        self._pool = None
        torch.cuda.empty_cache()  # what it keeps for a stream that will be gone
        self.gpu.close()


class TorchCudaGraph(TorchCuda):
    """The same forward pass as one CUDA graph: without what launching each kernel takes."""

    NAME = "torch-cuda-graph"
    GRAPH = True


class TorchCudaCompiled(TorchCudaGraph):
    """Compiled by Inductor, which fuses and chooses kernels by trying them, and then one CUDA graph."""

    capabilities = replace(TorchCuda.capabilities, load_s=30.0, slowest_load_s=1800.0)
    NAME = "torch-cuda-compiled"
    COMPILED = True


def to_half(x: Tensor) -> Tensor:
    """Return an input in float16, a map channels last."""
    return x.to(torch.float16, memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def to_dense(x: Tensor) -> Tensor:
    """Return a result as whoever reads it wants it: float32 unless it is labels, dense in the order of its shape."""
    x = x.to(torch.float32 if x.is_floating_point() else x.dtype, memory_format=torch.contiguous_format)
    return x.contiguous()  # of a part of a tensor, the line above may think that it is


@dataclass
class _Lent:
    """Memory of torch; see `Memory`."""

    address: int
    n_bytes: int

    def close(self) -> None:
        """Torch gives it back."""


def _kind(tensor: Tensor) -> tuple[Shape, Any]:
    """Return shape and numpy type."""
    return tuple(tensor.shape), np.dtype(str(tensor.dtype).removeprefix("torch.")).type


class _Graph:
    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        self._graph, self._stream = graph, stream

    def launch(self) -> None:
        torch.cuda.set_stream(self._stream)
        self._graph.replay()

    def close(self) -> None:
        self._graph.reset()


class _Network:
    """The calls of an entry with its tensors on the device; see `GpuNetwork`."""

    def __init__(self, owner: TorchCuda, entry: Entry, stack: ExitStack) -> None:
        self.name = entry.key
        self.capturable = owner.GRAPH
        self._stream = owner.stream()
        stack.callback(self._forget)
        with _errors(self.name):
            torch.cuda.set_stream(self._stream)
            owner.set_precision()
            self._module = owner.module(entry)
            self._inputs = [torch.zeros(shape, device=DEVICE) for shape in entry.inputs.values()]
        self._made = self._run()
        tensors = dict(zip((*entry.inputs, *entry.outputs), (*self._inputs, *self._made), strict=True))
        kinds = {name: _kind(tensor) for name, tensor in tensors.items()}
        self.inputs = {name: kinds[name] for name in entry.inputs}
        self.outputs = {name: kinds[name] for name in entry.outputs}
        lent = {name: _Lent(tensor.data_ptr(), tensor.nbytes) for name, tensor in tensors.items()}
        self.memory: dict[str, Memory] = {**lent}
        self._results = [lent[name] for name in entry.outputs]

    def enqueue(self) -> None:
        self._made = self._run()
        for memory, tensor in zip(self._results, self._made, strict=True):
            memory.address = tensor.data_ptr()  # each run makes its results anew

    def _run(self) -> tuple[Tensor, ...]:
        torch.cuda.set_stream(self._stream)  # nor is it set back: that would take longer than many a kernel
        try:
            with torch.inference_mode():
                made: tuple[Tensor, ...] = self._module(*self._inputs)
        except RuntimeError as e:
            raise _failure(self.name, e) from e
        return made

    def _forget(self) -> None:
        self._module, self._inputs, self._made = nn.Identity(), [], ()
        torch.cuda.set_stream(torch.cuda.default_stream())


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn what torch raises into an error that names the entry."""
    try:
        yield
    except RuntimeError as e:
        raise _failure(name, e) from e


def _failure(name: str, error: RuntimeError) -> HwnasError:
    """Return the error for one of torch, whose beginning says what it is."""
    kind = DeviceLost if getattr(error, "error_code", None) in STICKY else HwnasError
    return kind(f"torch cannot run {name}: {' '.join(str(error).split())[:300]}")


def _check_torch(name: str) -> None:
    """Raise HwnasError unless this PyTorch can use a GPU."""
    version = f"PyTorch {torch.__version__}"
    if torch.version.cuda is None:
        raise MissingExtra(
            f"engine {name!r} needs a PyTorch with CUDA, got {version}; install the one from PyPI with pip install "
            "--force-reinstall torch, for a GPU before Turing the one from https://download.pytorch.org/whl/cu126"
        )
    if not torch.cuda.is_available():
        raise HwnasError(
            f"{version} with CUDA {torch.version.cuda} finds no GPU that it can use; update NVIDIA's driver, or "
            "install a PyTorch for an older CUDA from https://download.pytorch.org/whl"
        )
