"""OpenVINO on the CPU.

Left alone it computes in bfloat16 where the CPU can: seen on networks of darts-quick (OpenVINO 2026.4, AVX-512 with
bfloat16), logits were off by up to 1 % of the largest and up to 0.4 % of the labels were others, at 0.85 to 1.15 times
the latency; in float32 logits agree with ONNX Runtime to 1e-6.

Sources: https://docs.openvino.ai/2025/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
and https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from hwnas.errors import HwnasError
from hwnas.optional import require
from hwnas.runtime.engines.base import (
    EXPORTED,
    HOST_CLOCKS,
    Array,
    Capabilities,
    OnceRunner,
    Runner,
    host_clock,
    model_bytes,
    random_inputs,
)
from hwnas.runtime.engines.denormals import can_flush, flushed
from hwnas.runtime.engines.scopes import scoped
from hwnas.runtime.measuring.device import DENORMALS
from hwnas.runtime.measuring.measure import Samples, timed
from hwnas.runtime.measuring.plan import Entry, Shape, checked_bytes

FLUSH = "CPU_DENORMALS_OPTIMIZATION"  # the plugin's name of what is recorded as `DENORMALS`
_TELEMETRY = "openvino_telemetry"


class OpenVino:
    """OpenVINO's CPU plugin in float32, one stream, synchronous, threads not bound to cores by the plugin.

    With one thread it computes in the thread that asks, and the clock is the CPU time of that thread: work of others on
    the machine does not count. With more threads no CPU clock reads the latency, so it is the wall: with two, thread,
    process and wall time of one network read 4.3, 8.5 and 4.3 ms.
    """

    # Seen in the runtime model: of three equal max-pools, average pools, ReLUs, resizes or sums one is left.
    capabilities = Capabilities(merges=True, runs_files=True)

    def __init__(self, threads: int = 1) -> None:
        """Import the package.

        Raises:
            MissingExtra: If openvino is not installed.
        """
        self.name = "openvino"
        self.clock = host_clock(threads)
        self.threads = threads
        self._ov = _silent_import()
        self.core = self._ov.Core()

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, threads, clock and options."""
        return {
            "name": self.name,
            "version": str(self._ov.__version__),
            "precision": "fp32",
            "threads": self.threads,
            "clock": self.clock,
            "options": {
                "device": "CPU",
                "cache": False,
                "copies_outputs": False,
                DENORMALS: can_flush(),
                **_properties(self.threads),
            },
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner for the entry's file; its checksum is checked again."""
        content, name = checked_bytes(entry, folder), str(entry.onnx)
        opener = scoped(lambda _: _Compiled(self, content, name, entry.inputs, entry.outputs), entry, self.clock)
        return OnceRunner(name, opener)

    def open_model(self, model: Path | bytes) -> Runner:
        """Return a runner for a model outside any plan, a file or its content."""
        content, name = (model, EXPORTED) if isinstance(model, bytes) else (model_bytes(model), str(model))
        return OnceRunner(name, lambda _: _Compiled(self, content, name))

    def close(self) -> None:
        """Nothing is held beyond the runners."""


class _Compiled:
    """A compiled model and a request, which has its inputs and outputs in memory that is allocated once."""

    def __init__(
        self,
        owner: OpenVino,
        content: bytes,
        name: str,
        wanted: Mapping[str, Shape] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        """Load a model; `wanted` and `outputs` are those of a plan, else those of the file are taken."""
        self._name, self._clock_ns = name, HOST_CLOCKS[owner.clock]
        with _errors(name), flushed():
            properties = _properties(owner.threads)
            model = owner.core.read_model(content)
            self._compiled: Any = owner.core.compile_model(model, "CPU", {**properties, FLUSH: True})
            self._check_properties({**properties, FLUSH: True})
            self.inputs: Mapping[str, Shape] = self._fixed(model) if wanted is None else self._planned(wanted)
            self._outputs = list(outputs) or [str(value.get_any_name()) for value in model.outputs]
            self._request: Any = self._compiled.create_infer_request()
            for key, array in random_inputs(self.inputs).items():
                self._request.get_tensor(key).data[...] = array

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with _errors(self._name), flushed():
            # By a request of its own, so that what is timed keeps its inputs.
            outputs = self._compiled(dict(inputs), share_inputs=False, share_outputs=False)
            return {name: outputs[self._compiled.output(name)] for name in self._outputs}

    def time(self, repeats: int, visit: int) -> Samples:
        infer = self._request.infer
        with _errors(self._name), flushed():
            # Not shared, every output is copied to a new array: seen, 0.12 ms instead of 0.02 ms for a ReLU.
            return timed(lambda: infer(share_outputs=True), repeats, self._clock_ns)

    def _check_properties(self, wanted: Mapping[str, object]) -> None:
        """Raise HwnasError unless the plugin does as asked: it lowers the number of threads and says nothing."""
        for name, value in wanted.items():
            got = self._compiled.get_property(name)
            got = got.get_type_name() if name == "INFERENCE_PRECISION_HINT" else got
            if got != value:
                todo = f"ask for {got} threads" if name == "INFERENCE_NUM_THREADS" else "use another engine here"
                raise HwnasError(f"openvino runs {self._name} with {name} {got}, it was asked for {value}; {todo}")

    def _fixed(self, model: Any) -> dict[str, Shape]:
        """Return the shapes of a file's inputs, which must be float32 of fixed sizes."""
        out: dict[str, Shape] = {}
        for value in model.inputs:
            name, kind, shape = str(value.get_any_name()), value.element_type.get_type_name(), value.partial_shape
            if kind != "f32":
                raise HwnasError(f"{self._name}: input {name!r} is {kind}; export with float32 inputs")
            if not shape.is_static:
                raise HwnasError(f"{self._name}: input {name!r} has the shape {shape}; export with fixed sizes")
            out[name] = tuple(shape.to_shape())
        return out

    def _planned(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return `shapes`, those of a plan, if the inputs are float32 of these."""
        inputs = self._compiled.inputs
        got = {_input_name(i, shapes): f"{i.element_type.get_type_name()}{i.partial_shape}" for i in inputs}
        wanted = {name: f"f32[{','.join(map(str, shape))}]" for name, shape in shapes.items()}
        if got != wanted:
            raise HwnasError(f"{self._name} has the inputs {got}, the plan says {wanted}; write the plan again")
        return dict(shapes)


def _input_name(value: Any, known: Mapping[str, Shape]) -> str:
    names = sorted(str(name) for name in value.get_names())  # the compiler may know one tensor by several
    return next((name for name in names if name in known), names[0])


def _properties(threads: int) -> dict[str, object]:
    """Return what the CPU plugin is asked for."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # whoever measures has chosen the CPUs
        "ENABLE_HYPER_THREADING": False,
    }


def _silent_import() -> ModuleType:
    """Import openvino without its telemetry.

    On import it would send an event over the network, from a thread and a process of its own, and write to the home
    directory. It does without where the package openvino_telemetry is missing: for the time of the import, it is.
    """
    modules = cast(dict[str, ModuleType | None], sys.modules)
    hide = _TELEMETRY not in modules
    if hide:
        modules[_TELEMETRY] = None  # Python's own way to say that there is no such module
    try:
        return require("openvino", extra="openvino")
    finally:
        if hide:
            del modules[_TELEMETRY]


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn what OpenVINO raises into an error that names the file."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        raise HwnasError(f"openvino cannot run {name}: {' '.join(str(e).split()) or 'out of memory'}") from e
