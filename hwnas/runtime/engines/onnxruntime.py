"""ONNX Runtime on the CPU.

Sources: https://onnxruntime.ai/docs/performance/tune-performance/threading.html and
https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


class OnnxRuntime:
    """ONNX Runtime with the CPU provider, sequential, all graph optimisations, no spinning threads.

    Denormal numbers are taken for zero, so that weights do not decide about the latency.

    With one thread the clock is the CPU time of that thread: work of others on the machine does not count. With
    more threads no CPU clock reads the latency, so it is the wall.
    """

    capabilities = Capabilities(merges=True, runs_files=True)  # seen: three max-pools of one tensor became one

    def __init__(self, threads: int = 1) -> None:
        """Import the package.

        Raises:
            MissingExtra: If onnxruntime is not installed.
        """
        self.name = "onnxruntime"
        self.clock = host_clock(threads)
        self.threads = threads
        self.ort = require("onnxruntime", extra="cpu")

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, threads, clock and options."""
        return {
            "name": self.name,
            "version": str(self.ort.__version__),
            "precision": "fp32",
            "threads": self.threads,
            "clock": self.clock,
            "options": {
                "provider": "CPUExecutionProvider",
                "graph_optimization": "all",
                "execution": "sequential",
                "inter_op_threads": 1,
                "allow_spinning": False,
                "io_binding": True,
                DENORMALS: can_flush(),
            },
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner for the entry's file; its checksum is checked again."""
        model, name = checked_bytes(entry, folder), str(entry.onnx)
        return OnceRunner(name, scoped(lambda _: _Session(self, model, name, entry.inputs), entry, self.clock))

    def open_model(self, model: Path | bytes) -> OnceRunner:
        """Return a runner for a model outside any plan, a file or its content."""
        content, name = (model, EXPORTED) if isinstance(model, bytes) else (model_bytes(model), str(model))
        return OnceRunner(name, lambda _: _Session(self, content, name, None))

    def close(self) -> None:
        """Nothing is held beyond the runners."""


def open_onnx(model: Path | bytes, threads: int = 1) -> Runner:
    """Return a runner for a stand-alone ONNX file, or its content; input shapes are those in the file.

    Raises:
        HwnasError: If it cannot be read; on entering, if it cannot be loaded or a dimension has no fixed size.
        MissingExtra: If onnxruntime is not installed.
    """
    return OnnxRuntime(threads).open_model(model)


class _Session:
    """A session with its inputs and outputs bound to memory that is allocated once."""

    def __init__(self, owner: OnnxRuntime, model: bytes, name: str, wanted: Mapping[str, Shape] | None) -> None:
        """Load a model; `wanted` is the shape of each input, None if any will do."""
        self._ort, self._name, self._clock_ns = owner.ort, name, HOST_CLOCKS[owner.clock]
        with errors(self._ort, name), flushed():
            options, providers = session_options(self._ort, owner.threads), ["CPUExecutionProvider"]
            # Of its own threads; the first session of a process would set the calling one for good.
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
            self._session: Any = self._ort.InferenceSession(model, options, providers=providers)
            self.inputs: Mapping[str, Shape] = {i.name: input_shape(i, name) for i in self._session.get_inputs()}
            if wanted is not None and self.inputs != wanted:
                raise HwnasError(f"{name} has the inputs {self.inputs}, the plan says {dict(wanted)}")
            self._binding, self._bound = self._bind()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with errors(self._ort, self._name), flushed():
            outputs = self._session.run(None, dict(inputs))
        return {o.name: value for o, value in zip(self._session.get_outputs(), outputs, strict=True)}

    def time(self, repeats: int, visit: int) -> Samples:
        session, binding = self._session, self._binding
        with errors(self._ort, self._name), flushed():
            return timed(lambda: session.run_with_iobinding(binding), repeats, self._clock_ns)

    def _bind(self) -> tuple[Any, list[Any]]:
        """Bind inputs and outputs, so that a timed run copies and allocates nothing; one run tells output shapes.

        Returns:
            The binding, and its buffers, which it does not keep alive.
        """
        binding, bound = self._session.io_binding(), []
        inputs = random_inputs(self.inputs)
        for arrays, bind in ((inputs, binding.bind_ortvalue_input), (self.run(inputs), binding.bind_ortvalue_output)):
            for name, array in arrays.items():
                bound.append(self._ort.OrtValue.ortvalue_from_numpy(array))
                bind(name, bound[-1])
        return binding, bound


def session_options(ort: Any, threads: int) -> Any:
    """Return the options of all our sessions: sequential, all graph optimisations, no spinning threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; they are raised as well
    return options


def input_shape(value: Any, name: str) -> Shape:
    """Return the shape of an input of a session; `name` is the file's in messages.

    Raises:
        HwnasError: If it is not float32 of a fixed size.
    """
    if value.type != "tensor(float)":
        raise HwnasError(f"{name}: input {value.name!r} is {value.type}; export with float32 inputs")
    if not all(isinstance(d, int) and d > 0 for d in value.shape):
        raise HwnasError(f"{name}: input {value.name!r} has the shape {value.shape}; export with fixed sizes")
    return tuple(value.shape)


def error_kinds(ort: Any) -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises."""
    state = vars(ort.capi.onnxruntime_pybind11_state).values()
    return (RuntimeError, *(v for v in state if isinstance(v, type) and issubclass(v, Exception)))


@contextmanager
def errors(ort: Any, name: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises into an error that names the file."""
    try:
        yield
    except error_kinds(ort) as e:
        raise HwnasError(f"onnxruntime cannot run {name}: {' '.join(str(e).split())}") from e
