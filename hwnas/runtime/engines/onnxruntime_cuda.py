"""ONNX Runtime on an NVIDIA GPU, timed by events on our own stream.

A run is put on our stream and not waited for, reads and writes memory of ours, and copies nothing. No node may be
computed by the CPU: a session with one is refused. Runs cannot be captured into a graph of ours: one may end with a
callback on the stream that frees memory of the host, which a graph would call again at each launch, and to capture it
from outside is not supported. So what is timed are launches one by one, as users of this provider have them.

Sources:

- https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html: options of the provider
- https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
- https://github.com/microsoft/onnxruntime/tree/main/include/onnxruntime/core/session: disable_cpu_ep_fallback in
  ``onnxruntime_session_options_config_keys.h``, disable_synchronize_execution_providers in
  ``onnxruntime_run_options_config_keys.h``
- https://github.com/microsoft/onnxruntime/issues/28539: what it takes for a run not to wait
- https://github.com/microsoft/onnxruntime/pull/32081 and ``CleanUpOnRunEnd`` in
  https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/core/providers/cuda/cuda_stream_handle.cc: capturing
"""

from __future__ import annotations

import io
import re
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import DeviceLost, HwnasError, MissingExtra
from hwnas.optional import require
from hwnas.runtime.cuda.driver import STICKY, Memory
from hwnas.runtime.deploy.bundle import Application, Bundle
from hwnas.runtime.engines.base import Capabilities, Runner, model_bytes
from hwnas.runtime.engines.gpu import Gpu
from hwnas.runtime.engines.gpu_runner import GpuApplication, gpu_runner
from hwnas.runtime.engines.onnxruntime import error_kinds, errors, input_shape, session_options
from hwnas.runtime.measuring.plan import Entry, Shape, checked_bytes

PROVIDER = "CUDAExecutionProvider"
OPTIONS = {
    "device_id": "0",
    "do_copy_in_default_stream": "1",  # which is ours: the stream it computes on
    "cudnn_conv_algo_search": "EXHAUSTIVE",  # convolutions are tried out in the first run, which is not timed
    "arena_extend_strategy": "kSameAsRequested",  # many sessions stay loaded: none takes more than it needs
}
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
ON_CPU = "assigned to the default CPU EP"  # in its message where it refuses to compute on the CPU
LOST = re.compile(r"\bCUDA failure (\d+)")  # with the code of the driver


class OnnxRuntimeCuda:
    """ONNX Runtime with the CUDA provider on the first GPU, which must be there."""

    capabilities = Capabilities(
        merges=True,  # identical nodes become one before any provider sees them
        precisions=("fp32", "tf32", "fp16"),
        on_host=False,
        load_s=1.0,  # and to try its convolutions out; guessed: it has not run on a GPU yet
        slowest_load_s=60.0,
        runs_files=True,
        runs_applications=True,
    )

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        """Import the package and find the GPU.

        Raises:
            MissingExtra: If onnxruntime, its CUDA provider, or a binding of CUDA is not installed.
            HwnasError: If there is no GPU.
        """
        self.name = "onnxruntime-cuda"
        self.clock = "device"
        self._threads, self._precision = threads, precision
        self.ort = require("onnxruntime", extra="gpu")
        if PROVIDER not in self.ort.get_available_providers():
            raise MissingExtra(
                f"onnxruntime {self.ort.__version__} has no {PROVIDER} here; onnxruntime and onnxruntime-gpu overwrite "
                "each other, run: pip uninstall onnxruntime onnxruntime-gpu, then pip install 'hwnas[gpu]'"
            )
        _preload(self.ort)
        self.kinds = error_kinds(self.ort)
        self.gpu = Gpu()

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, clock, options, and the GPU."""
        return {
            "name": self.name,
            "version": str(self.ort.__version__),
            "precision": self._precision,
            "threads": self._threads,
            "clock": self.clock,
            "options": {
                "provider": PROVIDER,
                **self._options(),
                "graph_optimization": "all",
                "execution": "sequential",
                "io_binding": True,
                **self.gpu.options(),
            },
            "device": self.gpu.device(),
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner for the entry's file; its checksum is checked again."""
        opener = partial(_Network, self, checked_bytes(entry, folder), str(entry.onnx))
        return gpu_runner(self.gpu, [opener], str(entry.onnx), entry.role, dict(entry.inputs))

    def open_model(self, model: Path) -> Runner:
        """Return a runner for a stand-alone ONNX file; input shapes are those in the file.

        Raises:
            HwnasError: If it cannot be read.
        """
        return gpu_runner(self.gpu, [partial(_Network, self, model_bytes(model), str(model))], str(model))

    def open_application(self, bundle: Bundle) -> Application:
        """Return all of it on the GPU, from image to labels; see `hwnas.runtime.deploy.bundle.OpensBundles`."""
        opener = partial(_Network, self, model_bytes(bundle.path), str(bundle.path))
        mean, std = bundle.input.mean, bundle.input.std
        return GpuApplication(self.gpu, opener, str(bundle.path), mean, std, self.close)

    def session(self, model: bytes, name: str) -> Any:
        """Return a session that computes on our stream and nowhere else; inside the context.

        Raises:
            HwnasError: If ONNX Runtime cannot load the model, or not all of it on the GPU.
        """
        options = session_options(self.ort, self._threads)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = {**self._options(), "user_compute_stream": str(self.gpu.stream().handle)}
        with errors(self.ort, name):
            try:
                # Its Python would try again with the CPU where the GPU fails.
                session = self.ort.InferenceSession(model, options, providers=[(PROVIDER, provider)], enable_fallback=0)
            except self.kinds as e:
                if ON_CPU in str(e):
                    raise self._refusal(name) from e
                raise
        if session.get_providers()[0] != PROVIDER:
            raise self._refusal(name)
        return session

    def free_memory_bytes(self) -> float:
        """Return how much memory of the device runners can still have."""
        return self.gpu.free_bytes()

    def close(self) -> None:
        """Give everything back."""
        self.gpu.close()

    def _refusal(self, name: str) -> HwnasError:
        return HwnasError(
            f"onnxruntime would run {name} on the CPU, it was asked for {PROVIDER}, which either lacks an op of it or "
            f"did not load; that needs the CUDA and the cuDNN that onnxruntime {self.ort.__version__} was built for"
        )

    def _options(self) -> dict[str, str]:
        return {**OPTIONS, "use_tf32": "1" if self._precision == "tf32" else "0"}


class _Network:
    """A session with its inputs and outputs bound to memory of the device; see `GpuNetwork`."""

    def __init__(self, owner: OnnxRuntimeCuda, model: bytes, name: str, stack: ExitStack) -> None:
        self.name = name
        self.capturable = False  # why: at the top
        self.inputs: dict[str, tuple[Shape, Any]] = {}
        self.outputs: dict[str, tuple[Shape, Any]] = {}
        self.memory: dict[str, Memory] = {}
        self._kinds = owner.kinds
        stack.callback(self._forget)
        self._session: Any = owner.session(model, name)
        self._binding: Any = self._session.io_binding()
        self._run_options = owner.ort.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for value in self._session.get_inputs():
            self.inputs[value.name] = input_shape(value, name), np.float32
        for value in self._session.get_outputs():
            self.outputs[value.name] = _result(value, name)
        self._bind(owner, self.inputs, self._binding.bind_input, stack)
        self._bind(owner, self.outputs, self._binding.bind_output, stack)

    def enqueue(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except self._kinds as e:
            said = " ".join(str(e).split())
            code = LOST.search(said)
            kind = DeviceLost if code and int(code[1]) in STICKY else HwnasError
            raise kind(f"onnxruntime cannot run {self.name}: {said}") from e

    def _bind(self, owner: OnnxRuntimeCuda, tensors: dict[str, tuple[Shape, Any]], bind: Any, stack: ExitStack) -> None:
        for name, (shape, dtype) in tensors.items():
            memory = self.memory[name] = owner.gpu.cuda.memory(int(np.prod(shape)) * np.dtype(dtype).itemsize)
            stack.callback(memory.close)
            with errors(owner.ort, self.name):
                bind(name, "cuda", 0, dtype, list(shape), memory.address)

    def _forget(self) -> None:
        self._binding = self._session = None


def _result(value: Any, name: str) -> tuple[Shape, Any]:
    """Return shape and type of an output of a session.

    Raises:
        HwnasError: If it has no fixed size, or a type that no network of ours gives.
    """
    if value.type not in TYPES or not all(isinstance(d, int) and d > 0 for d in value.shape):
        raise HwnasError(
            f"{name}: the result {value.name!r} is {value.type} {value.shape}; export float32 or labels, of fixed sizes"
        )
    return tuple(value.shape), TYPES[value.type]


def _preload(ort: Any) -> None:
    """Load CUDA and cuDNN where pip put them: the system does not look there.

    What is not there is printed; the provider may find it elsewhere, and says so if not.
    Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#preload-dlls.
    """
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with redirect_stdout(io.StringIO()):
            ort.preload_dlls()
