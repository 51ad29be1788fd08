"""PyTorch eager on the CPU as an engine: the one engine that needs torch, for comparison and for doubt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwnas.ops.onnx_graph import stand_in
from hwnas.ops.registry import OpSpec
from hwnas.runtime.engines.base import Once, Runner, check_inputs, random_inputs
from hwnas.runtime.measure import Samples, timed
from hwnas.runtime.plan import Entry


class TorchEager:
    """Runs the calls of an entry one by one, with stand-in weights; merges nothing and needs no ONNX file."""

    def __init__(self, threads: int = 1) -> None:
        """Set torch's threads for this process, which does nothing but measure."""
        self.name = "torch"
        self.clock = "thread_cpu" if threads == 1 else "wall"
        self.merges = False
        self._threads = threads

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, threads, clock and options."""
        return {
            "name": self.name,
            "version": str(torch.__version__),
            "precision": "fp32",
            "threads": self._threads,
            "clock": self.clock,
            "options": {"mode": "eager", "memory_format": "contiguous"},
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner that builds the entry's ops; `folder` is not read."""
        return _Runner(entry, self._threads)


class _Runner:
    def __init__(self, entry: Entry, threads: int) -> None:
        self._entry, self._threads = entry, threads
        self._steps: list[tuple[torch.nn.Module, tuple[str, ...], str]] = []
        self._inputs: dict[str, Tensor] = {}
        self._once = Once(entry.key)

    def __enter__(self) -> _Runner:
        self._once.open()
        torch.set_num_threads(self._threads)
        for c in self._entry.calls:
            spec = OpSpec(c.op, tuple(sorted(c.attrs.items())), c.in_shapes)
            self._steps.append((stand_in(spec), c.inputs, c.output))
        self._inputs = {k: torch.from_numpy(v) for k, v in random_inputs(self._entry.inputs).items()}
        return self

    def __exit__(self, *exc: object) -> None:
        self._once.close()
        self._steps, self._inputs = [], {}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        self._once.check()
        check_inputs(inputs, self._entry.inputs, self._entry.key)
        values = self._forward({k: torch.from_numpy(v) for k, v in inputs.items()})
        return {name: values[name].numpy() for name in self._entry.outputs}

    def time(self, repeats: int, visit: int = 0) -> Samples:
        self._once.check()
        clock_ns = time.thread_time_ns if self._threads == 1 else time.perf_counter_ns
        return timed(lambda: self._forward(self._inputs), repeats, clock_ns)

    def _forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = dict(inputs)
        with torch.inference_mode():
            for module, names, output in self._steps:
                values[output] = module(*(values[n] for n in names))
        return values
