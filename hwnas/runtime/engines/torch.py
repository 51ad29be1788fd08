"""PyTorch eager on the CPU as an engine, for comparison and for doubt; and the calls of an entry as a module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwnas.runtime.engines.base import HOST_CLOCKS, Capabilities, OnceRunner, Runner, host_clock, random_inputs
from hwnas.runtime.engines.denormals import can_flush, flushed
from hwnas.runtime.engines.scopes import scoped
from hwnas.runtime.measuring.device import DENORMALS
from hwnas.runtime.measuring.measure import Samples, timed
from hwnas.runtime.measuring.plan import Entry

Convert = Callable[[Tensor], Tensor]


def entry_module(entry: Entry, read: Convert | None = None, give: Convert | None = None) -> fx.GraphModule:
    """Return the calls of an entry as a module in inference mode, with the weights that its ONNX file has.

    It takes the entry's inputs in order and returns a tuple of its outputs. Its forward pass is generated, so it keeps
    no tensor longer than it is needed, and `torch.compile` compiles each module for itself.

    Args:
        entry: Of a plan.
        read: What is done to each input before the calls; a function of a module.
        give: What is done to each output after them.
    """
    # The one import of the runtime that points up: this engine computes with the ops themselves and not with a file of
    # them. Whoever opens it has torch and so has the ops.
    from hwnas.ops.onnx_graph import stand_in
    from hwnas.ops.registry import OpSpec

    graph, ops, repeats = fx.Graph(), dict[str, nn.Module](), Counter[OpSpec]()
    values = {name: graph.placeholder(name) for name in entry.inputs}
    if read is not None:
        values = {name: graph.call_function(read, (value,)) for name, value in values.items()}
    for i, c in enumerate(entry.calls):
        spec, name = OpSpec(c.op, tuple(sorted(c.attrs.items())), c.in_shapes), f"{c.op}_{i}"
        ops[name] = stand_in(spec, repeats[spec])
        repeats[spec] += 1
        values[c.output] = graph.call_module(name, tuple(values[n] for n in c.inputs))
    outputs = [values[name] for name in entry.outputs]
    graph.output(tuple(outputs if give is None else (graph.call_function(give, (value,)) for value in outputs)))
    return fx.GraphModule(ops, graph).eval()


class TorchEager:
    """Runs the calls of an entry one by one, with stand-in weights; merges nothing and needs no ONNX file."""

    capabilities = Capabilities(merges=False)

    def __init__(self, threads: int = 1) -> None:
        """Set torch's threads for this process, which does nothing but measure."""
        self.name = "torch"
        self.clock = host_clock(threads)
        self._threads = threads

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, threads, clock and options."""
        return {
            "name": self.name,
            "version": str(torch.__version__),
            "precision": "fp32",
            "threads": self._threads,
            "clock": self.clock,
            "options": {"mode": "eager", "memory_format": "contiguous", DENORMALS: can_flush()},
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner that builds the entry's ops; `folder` is not read."""
        return OnceRunner(entry.key, scoped(lambda _: _Network(entry, self._threads, self.clock), entry, self.clock))

    def close(self) -> None:
        """Nothing is held beyond the runners."""


class _Network:
    def __init__(self, entry: Entry, threads: int, clock: str) -> None:
        torch.set_num_threads(threads)
        self.inputs, self._outputs, self._clock_ns = entry.inputs, entry.outputs, HOST_CLOCKS[clock]
        self._module: nn.Module = entry_module(entry)
        self._timed = [torch.from_numpy(v) for v in random_inputs(entry.inputs).values()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        made = self._forward([torch.from_numpy(inputs[name]) for name in self.inputs])
        return {name: value.numpy() for name, value in zip(self._outputs, made, strict=True)}

    def time(self, repeats: int, visit: int) -> Samples:
        with flushed():
            return timed(lambda: self._forward(self._timed), repeats, self._clock_ns)

    def _forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            made: tuple[Tensor, ...] = self._module(*inputs)
        return made
