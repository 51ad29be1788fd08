"""What `torch.cuda` is to our engines, on the GPU that is not there: torch computes on the CPU when the stream runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwnas.runtime.engines import torch_cuda
from tests.fake_gpu import FakeGpu

RUN_US = 80.0
DEFAULT = 0  # the handle of the default stream


class ExternalStream:
    """A stream of somebody else."""

    def __init__(self, handle: int, device: str) -> None:
        self.handle, self.device = handle, device


class TorchCuda:
    """The double.

    Attributes:
        current: Handle of the stream that torch puts work on.
        compiled: Arguments of each call of `torch.compile`, which compiles nothing.
        pools: Of each graph that was captured.
    """

    def __init__(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in the place of what is there."""
        self.gpu, self.current, self.compiled, self.pools = gpu, DEFAULT, list[dict[str, Any]](), list[Any]()
        module_of = torch_cuda.TorchCuda.module
        monkeypatch.setattr(torch_cuda, "DEVICE", "cpu")
        monkeypatch.setattr(torch_cuda.TorchCuda, "module", lambda own, entry: Deferred(self, module_of(own, entry)))
        monkeypatch.setattr(torch, "compile", self.compile)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        for name, value in {
            "is_available": lambda: True,
            "ExternalStream": ExternalStream,
            "set_stream": self.set_stream,
            "default_stream": lambda: ExternalStream(DEFAULT, "cpu"),
            "graph_pool_handle": object,
            "CUDAGraph": lambda: Graph(self),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def set_stream(self, stream: ExternalStream) -> None:
        self.current = stream.handle

    def compile(self, module: nn.Module, **options: Any) -> nn.Module:
        self.compiled.append(options)
        return module

    @contextmanager
    def graph(self, graph: Graph, pool: Any, stream: ExternalStream) -> Iterator[None]:
        """Capture a stream by the driver, as torch does."""
        from cuda.bindings import driver

        before, self.current = self.current, stream.handle
        self.pools.append(pool)
        (code,) = driver.cuStreamBeginCapture(stream.handle, driver.CUstreamCaptureMode(0))
        assert code == 0
        try:
            yield
        finally:
            code, captured = driver.cuStreamEndCapture(stream.handle)
            self.current = before
            if code != 0:
                raise RuntimeError(f"CUDA error: {code.name}\nSearch for it")
            code, graph.it = driver.cuGraphInstantiate(captured, 0)
            driver.cuGraphDestroy(captured)


class Graph:
    """A captured graph."""

    def __init__(self, owner: TorchCuda) -> None:
        self.owner, self.it = owner, None

    def replay(self) -> None:
        from cuda.bindings import driver

        driver.cuGraphLaunch(self.it, self.owner.current)

    def reset(self) -> None:
        from cuda.bindings import driver

        driver.cuGraphExecDestroy(self.it)


class Deferred(nn.Module):
    """A module that returns at once, with tensors that are filled when the stream gets there."""

    def __init__(self, owner: TorchCuda, module: nn.Module) -> None:
        super().__init__()
        self.owner, self.module = owner, module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = tuple(torch.full_like(value, 77) for value in self.module(*inputs))

        def compute() -> None:
            with torch.inference_mode():
                for there, value in zip(made, self.module(*inputs), strict=True):
                    there.copy_(value)

        assert self.owner.gpu.enqueue(self.owner.current, compute, RUN_US, "torch")
        return made
