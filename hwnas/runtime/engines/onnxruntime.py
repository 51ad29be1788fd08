"""ONNX Runtime on the CPU.

Sources: https://onnxruntime.ai/docs/performance/tune-performance/threading.html and
https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.optional import require
from hwnas.runtime.engines.base import Array, Capabilities, Once, Runner, check_inputs, random_inputs
from hwnas.runtime.engines.scopes import scoped
from hwnas.runtime.measuring.measure import Samples, timed
from hwnas.runtime.measuring.plan import Entry, Shape, checked_bytes


class OnnxRuntime:
    """ONNX Runtime with the CPU provider, sequential, all graph optimisations, no spinning threads.

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
        self.clock = "thread_cpu" if threads == 1 else "wall"
        self._threads = threads
        self._ort = require("onnxruntime", extra="cpu")

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, threads, clock and options."""
        return {
            "name": self.name,
            "version": str(self._ort.__version__),
            "precision": "fp32",
            "threads": self._threads,
            "clock": self.clock,
            "options": {
                "provider": "CPUExecutionProvider",
                "graph_optimization": "all",
                "execution": "sequential",
                "inter_op_threads": 1,
                "allow_spinning": False,
                "io_binding": True,
            },
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner for the entry's file; its checksum is checked again."""
        runner = _Runner(self._ort, checked_bytes(entry, folder), str(entry.onnx), self._threads, entry.inputs)
        return scoped(runner, entry, self.clock)

    def open_model(self, model: Path | bytes) -> Runner:
        """Return a runner for a model outside any plan, a file or its content."""
        if isinstance(model, bytes):
            return _Runner(self._ort, model, "the exported model", self._threads, None)
        return _Runner(self._ort, model_bytes(model), str(model), self._threads, None)

    def close(self) -> None:
        """Nothing is held beyond the runners."""


def open_onnx(model: Path | bytes, threads: int = 1) -> Runner:
    """Return a runner for a stand-alone ONNX file, or its content; input shapes are those in the file.

    Raises:
        HwnasError: If it cannot be read; on entering, if it cannot be loaded or a dimension has no fixed size.
        MissingExtra: If onnxruntime is not installed.
    """
    return OnnxRuntime(threads).open_model(model)


class _Runner:
    """A session with its inputs and outputs bound to memory that is allocated once."""

    def __init__(self, ort: Any, model: bytes, name: str, threads: int, inputs: Mapping[str, Shape] | None) -> None:
        self._ort, self._model, self._name, self._threads = ort, model, name, threads
        self._wanted = None if inputs is None else dict(inputs)
        self._shapes: dict[str, Shape] = {}
        self._session: Any = None
        self._binding: Any = None
        self._bound: list[Any] = []  # a binding does not keep its buffers alive
        self._once = Once(name)

    def __enter__(self) -> _Runner:
        self._once.open()
        try:
            with errors(self._ort, self._name):
                self._session = self._ort.InferenceSession(
                    self._model, session_options(self._ort, self._threads), providers=["CPUExecutionProvider"]
                )
                self._shapes = {i.name: input_shape(i, self._name) for i in self._session.get_inputs()}
                if self._wanted is not None and self._shapes != self._wanted:
                    raise HwnasError(f"{self._name} has the inputs {self._shapes}, the plan says {self._wanted}")
                self._bind()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._once.close()
        self._session = self._binding = None
        self._bound = []
        self._model = b""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._once.check()
        check_inputs(inputs, self._shapes, self._name)
        with errors(self._ort, self._name):
            outputs = self._session.run(None, dict(inputs))
        return {o.name: value for o, value in zip(self._session.get_outputs(), outputs, strict=True)}

    def time(self, repeats: int, visit: int = 0) -> Samples:
        self._once.check()
        session, binding = self._session, self._binding
        clock_ns = time.thread_time_ns if self._threads == 1 else time.perf_counter_ns
        with errors(self._ort, self._name):
            return timed(lambda: session.run_with_iobinding(binding), repeats, clock_ns)

    def _bind(self) -> None:
        """Bind inputs and outputs, so that a timed run copies and allocates nothing; one run tells output shapes."""
        inputs = random_inputs(self._shapes)
        outputs = self.run(inputs)
        self._binding = self._session.io_binding()
        for name, array in inputs.items():
            self._bound.append(self._ort.OrtValue.ortvalue_from_numpy(array))
            self._binding.bind_ortvalue_input(name, self._bound[-1])
        for name, array in outputs.items():
            self._bound.append(self._ort.OrtValue.ortvalue_from_numpy(array))
            self._binding.bind_ortvalue_output(name, self._bound[-1])


def model_bytes(path: Path) -> bytes:
    """Return the content of an ONNX file.

    Raises:
        HwnasError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as e:
        raise HwnasError(f"cannot read an ONNX file at {path}: {e.strerror}") from e


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
