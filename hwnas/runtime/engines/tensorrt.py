"""TensorRT 8.6 to 11 and TensorRT-RTX on an NVIDIA GPU, timed by events on the engine's own stream.

One code for all releases: what one can do is asked by attribute, never by version. Engines are built in a child process
and kept beside the plan, so a killed run does not build them again.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, sha256, write_atomic
from hwnas.optional import require
from hwnas.runtime.cuda.driver import Memory
from hwnas.runtime.deploy.bundle import BUNDLE_FILE, Application, Bundle
from hwnas.runtime.engines.base import Capabilities, Runner, model_bytes
from hwnas.runtime.engines.gpu import Gpu
from hwnas.runtime.engines.gpu_runner import GpuApplication, gpu_runner
from hwnas.runtime.engines.reduce import ops_in
from hwnas.runtime.engines.trt_build import FLAVOURS, Builder, BuildOptions, Update, make_logger
from hwnas.runtime.measuring.plan import Entry, Shape, checked_bytes

DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8, "INT32": np.int32, "BOOL": np.bool_}
ENGINES_FOLDER = "engines"  # beside the plan


class TensorRt:
    """TensorRT on the first GPU, which must be there."""

    capabilities = Capabilities(
        merges=True,
        precisions=("fp32", "tf32", "fp16"),
        on_host=False,
        load_s=3.0,  # all builds of an entry; guessed: it has not run on a GPU yet
        slowest_load_s=2 * BuildOptions.timeout_s,  # where memory is short, a visit may open two
        runs_files=True,
        runs_applications=True,
        builds=True,
    )
    FLAVOUR = "tensorrt"
    BUILDS = 3  # of each entry: the same file built again is another engine

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        """Import the package and find the GPU.

        Raises:
            MissingExtra: If TensorRT or a binding of CUDA is not installed.
            HwnasError: If there is no GPU.
        """
        self.name = self.FLAVOUR
        self.clock = "device"
        self._threads, self._precision = threads, precision
        self.trt = require(self.FLAVOUR, extra=FLAVOURS[self.FLAVOUR])
        self.gpu = Gpu()
        self._builder = Builder()
        self._said: list[str] = []
        self._runtime = self.trt.Runtime(make_logger(self.trt, self._said))

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, clock, options, and the GPU."""
        return {
            "name": self.name,
            "version": str(self.trt.__version__),
            "precision": self._precision,
            "threads": self._threads,
            "clock": self.clock,
            "options": {
                "builds": self.BUILDS,
                "aux_streams": 0,
                "timing_cache": self._times_tactics(),
                **self.gpu.options(),
            },
            "device": self.gpu.device(),
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner for the entry's file, with `BUILDS` engines of it, each built when it is its turn.

        That way a run whose time is bounded has one engine of every entry before it has a second of any.
        """
        checked_bytes(entry, folder)
        model, kept = folder / str(entry.onnx), folder / ENGINES_FOLDER
        shipped = self._shipped(entry, folder)
        build = partial(self._open_built, model, str(entry.sha256), kept)
        openers = [partial(self.open, shipped)] if shipped else [partial(build, n) for n in range(self.BUILDS)]
        return gpu_runner(self.gpu, openers, str(entry.onnx), entry.role, dict(entry.inputs))

    def open_model(self, model: Path) -> Runner:
        """Return a runner for a stand-alone ONNX file, whose engine is built beside it.

        Raises:
            HwnasError: If the file cannot be read.
            BuildError: If it cannot be built.
        """
        path = self.build(model, sha256(model_bytes(model)), model.parent / ENGINES_FOLDER)
        return gpu_runner(self.gpu, [partial(self.open, path)], str(model))

    def build(
        self, model: Path, digest: str, folder: Path, number: int = 0, update: Update = lambda phase, done, total: None
    ) -> Path:
        """Return the file of an engine, built unless it is there: one for each model, GPU, release and build.

        Args:
            model: The ONNX file.
            digest: Of its content.
            folder: Where engines are kept.
            number: Which of several builds; each has a timing cache of its own, shared by all models, so that an op
                is computed the same way alone and in networks.
            update: Told of the builder's progress.

        Raises:
            BuildError: If it cannot be built.
        """
        facts = self.gpu.cuda.facts
        key = canonical_json([digest, self._precision, self.trt.__version__, facts.name, facts.compute_capability])
        out = folder / f"{sha256(key)[:16]}-{number}.engine"
        if not out.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._builder.build_or_reduce(model, out, self._options(folder / f"timing-{number}.cache"), update)
        return out

    def _options(self, timing_cache: Path) -> BuildOptions:
        cache = str(timing_cache) if self._times_tactics() else None
        half, tf32 = self._precision == "fp16", self._precision == "tf32"
        return BuildOptions(flavour=self.FLAVOUR, fp16=half, tf32=tf32, timing_cache=cache)

    def _shipped(self, entry: Entry, folder: Path) -> Path | None:
        """Return the engine that a bundle in the folder has for an entry: that one is to be measured."""
        if not (folder / BUNDLE_FILE).exists():
            return None
        bundle = Bundle.load(folder)
        own = (bundle.engine, bundle.precision, bundle.onnx_sha256) == (self.name, self._precision, entry.sha256)
        return folder / str(bundle.built["file"]) if own and bundle.built is not None else None

    def build_bundle(self, onnx: Path, folder: Path, update: Update, compatible: str | None = None) -> dict[str, Any]:
        """Build the engine that ships in a bundle; see `hwnas.runtime.deploy.bundle.BuildsBundles`."""
        out, cache = folder / "model.engine", folder / "timing.cache"
        gpus = None if compatible == "version" else compatible
        options = replace(self._options(cache), version_compatible=compatible == "version", hardware_compatible=gpus)
        self._builder.build_or_reduce(onnx, out, options, update)
        found = self.inspect(out)
        return {
            "file": out.name,
            "sha256": sha256(out.read_bytes()),
            "timing_cache_sha256": sha256(cache.read_bytes()) if cache.exists() else None,
            "inspector": {"layers": len(found), "without_ops": sum(not layer["ops"] for layer in found)},
        }

    def open_application(self, bundle: Bundle) -> Application:
        """Return all of it on the GPU, from image to labels; see `hwnas.runtime.deploy.bundle.OpensBundles`.

        Raises:
            HwnasError: If the bundle has no engine of this kind.
        """
        if bundle.built is None:
            raise HwnasError(f"{bundle.folder} has no engine; export it on this GPU: hwnas export --engine {self.name}")
        path = bundle.folder / str(bundle.built["file"])
        mean, std = bundle.input.mean, bundle.input.std
        return GpuApplication(self.gpu, partial(self.open, path), str(path), mean, std, self.close)

    def open(self, path: Path, stack: ExitStack) -> _Network:
        """Open a built engine; an `Opener`."""
        return _Network(self, path, stack)

    def _open_built(self, model: Path, digest: str, kept: Path, number: int, stack: ExitStack) -> _Network:
        return self.open(self.build(model, digest, kept, number), stack)

    def deserialize(self, path: Path) -> Any:
        """Return the engine in a file.

        Raises:
            HwnasError: If it cannot be read, or TensorRT does not take it: it is damaged, or of another GPU or release.
        """
        self._said.clear()
        try:
            content = path.read_bytes()
        except OSError as e:
            raise HwnasError(f"cannot read an engine at {path}: {e.strerror}") from e
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            why = "; ".join(self._said[-2:]) or "it does not say why"
            raise HwnasError(f"{self.name} {self.trt.__version__} does not take {path}: {why}; build it again here")
        return engine

    def inspect(self, path: Path) -> list[dict[str, object]]:
        """Return the layers of a built engine: ``layer``, its name, and ``ops``, the ops of ours that it is made of."""
        with self.gpu.cuda:
            engine = self.deserialize(path)
            inspector = engine.create_engine_inspector()
            told = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return layers(told)

    def free_memory_bytes(self) -> float:
        """Return how much memory of the device runners can still have."""
        return self.gpu.free_bytes()

    def close(self) -> None:
        """Give everything back."""
        self._builder.close()
        self.gpu.close()

    def _times_tactics(self) -> bool:
        """Return whether the builder has a timing cache: TensorRT-RTX times nothing, and its cache asks for a GPU."""
        return not hasattr(self.trt, "IRuntimeCache")


class TensorRtRtx(TensorRt):
    """TensorRT-RTX: the same interface; the kernels of an engine are finished when it is loaded."""

    capabilities = replace(TensorRt.capabilities, precisions=("fp32", "fp16"), load_s=1.0)
    FLAVOUR = "tensorrt_rtx"
    BUILDS = 1  # its builder times nothing, so it builds the same again


class _Network:
    """An engine with its tensors in memory of the device; see `GpuNetwork`."""

    def __init__(self, owner: TensorRt, path: Path, stack: ExitStack) -> None:
        self.name = str(path)
        self._stream = owner.gpu.stream()
        self._engine = owner.deserialize(path)
        self._context = _execution_context(owner.trt, self._engine, path)
        stack.callback(self._forget)
        if self._context is None:
            raise HwnasError(f"{owner.name} gives no execution context for {path}; is the GPU's memory used up?")
        self.inputs: dict[str, tuple[Shape, Any]] = {}
        self.outputs: dict[str, tuple[Shape, Any]] = {}
        self.memory: dict[str, Memory] = {}
        for i in range(self._engine.num_io_tensors):
            self._bind(owner, self._engine.get_tensor_name(i), stack)
        # Releases that cannot tell always can.
        tell = getattr(self._context, "is_stream_capturable", None)
        self.capturable = tell is None or bool(tell(self._stream.handle))

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise HwnasError(f"{self.name} could not be put on the stream")

    def _bind(self, owner: TensorRt, name: str, stack: ExitStack) -> None:
        trt, engine = owner.trt, self._engine
        shape, kind = tuple(int(d) for d in engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
        dtype = next((v for k, v in DTYPES.items() if getattr(trt.DataType, k) == kind), None)
        if dtype is None or any(d <= 0 for d in shape):
            raise HwnasError(f"{self.name}: the tensor {name!r} is {kind} {shape}; export float32 with fixed sizes")
        reads = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (self.inputs if reads else self.outputs)[name] = (shape, dtype)
        memory = self.memory[name] = owner.gpu.cuda.memory(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        stack.callback(memory.close)
        if not self._context.set_tensor_address(name, memory.address):
            raise HwnasError(f"{owner.name} does not take an address for {name!r} of {self.name}")

    def _forget(self) -> None:
        self._context = None
        self._engine = None  # second: a context must not outlive its engine


def layers(told: str) -> list[dict[str, object]]:
    """Return the layers that TensorRT's inspector tells of, each with the ops of ours that it is made of."""
    found = json.loads(told).get("Layers", [])
    names = [layer if isinstance(layer, str) else str(layer.get("Name", "")) for layer in found]
    return [{"layer": name, "ops": ops_in(name)} for name in names]


def _execution_context(trt: Any, engine: Any, path: Path) -> Any:
    """Return an execution context; kernels that TensorRT-RTX finishes for it are kept in a file for the next time."""
    if not hasattr(trt, "IRuntimeCache"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    cache, file = config.create_runtime_cache(), path.with_suffix(".runtime-cache")
    if file.exists():
        cache.deserialize(file.read_bytes())  # one of another driver is not taken: all is made anew
    config.set_runtime_cache(cache)
    context = engine.create_execution_context(config)
    if context is not None and not file.exists():
        write_atomic(file, bytes(cache.serialize()))
    return context
