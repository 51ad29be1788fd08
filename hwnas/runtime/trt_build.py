"""Building TensorRT engines, in a child process: a builder that crashes, hangs or takes too much memory is an error.

One code for TensorRT 8.6 to 11 and TensorRT-RTX: what a release can do is asked by attribute, never by version.
TensorRT-RTX builds for GPUs that are not here, and needs none.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwnas import errors
from hwnas.errors import BuildError, HwnasError
from hwnas.files import write_atomic
from hwnas.optional import require
from hwnas.runtime.child import environment, last_words

# Extra of each flavour, which is its package with a dash.
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
ComputeCapability = tuple[int, int]
Update = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is asked for.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        targets: Compute capabilities the engine is for, (8, 6) for SM 86; none for the GPU that is here. Only
            TensorRT-RTX builds for others.
        fp16: Whether the model is in float16: releases without strong typing must be told.
        workspace_mib: Most memory of the GPU that an engine may use for intermediate results; None for its default.
        timeout_s: Time after which the builder is ended.
        memory_mib: Most memory of the host that it may take; None for no bound.
    """

    flavour: str = "tensorrt_rtx"
    targets: tuple[ComputeCapability, ...] = ()
    fp16: bool = False
    workspace_mib: int | None = None
    timeout_s: float = 900.0
    memory_mib: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple((int(major), int(minor)) for major, minor in self.targets))
        if self.flavour not in FLAVOURS:
            raise HwnasError(f"expected one of {', '.join(FLAVOURS)}, got {self.flavour!r}")
        if not self.timeout_s > 0:
            raise HwnasError(f"the time after which a build is ended must be positive, got {self.timeout_s}")


def build_engine(
    model: Path, out: Path, options: BuildOptions = BuildOptions(), update: Update = lambda phase, done, total: None
) -> None:
    """Build the engine of an ONNX file in a child process.

    Args:
        model: The file; precision is that of its types.
        out: Where the engine is written, whole or not at all.
        options: What the builder is asked for.
        update: Told of progress: phase, steps done and steps in all.

    Raises:
        MissingExtra: If the package is not installed.
        BuildError: If it could not be built; names the node, and the op of ours it is from.
        HwnasError: If the file cannot be read.
    """
    if not model.is_file():
        raise HwnasError(f"there is no model {model} to build an engine of; export one first")
    request = {"model": str(model), "out": str(out), "options": asdict(options)}
    command = [sys.executable, "-m", "hwnas.runtime.trt_build", json.dumps(request)]
    ended = threading.Event()

    def end() -> None:
        ended.set()
        child.kill()

    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment(), text=True) as child,
    ):
        timer = threading.Timer(options.timeout_s, end)
        timer.start()
        try:
            assert child.stdout is not None
            finished = any(_told(json.loads(line), update) for line in child.stdout)
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
        if ended.is_set():
            raise BuildError(f"{options.flavour} did not build {model} in {options.timeout_s:g} s; it was ended")
        if not finished:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            bound = "" if options.memory_mib is None else f"; it was given {options.memory_mib} MiB"
            raise BuildError(f"{options.flavour} died while it built {model} ({how}){bound}{last_words(log)}")


def _told(message: dict[str, Any], update: Update) -> bool:
    """Handle one message of the child; return whether it was the last."""
    if "error" in message:
        kind = getattr(errors, message["error"], HwnasError)
        raise kind(message["message"])
    if "phase" in message:
        update(message["phase"], message["done"], message["total"])
    return "finished" in message


def _build(model: bytes, name: str, options: BuildOptions, update: Update) -> bytes:
    """Build in this process; return the engine."""
    trt = require(options.flavour, extra=FLAVOURS[options.flavour])
    said: list[str] = []
    logger = _logger(trt, said)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        found = [_failed_node(parser.get_error(i)) for i in range(parser.num_errors)] or said[-1:]
        raise BuildError(f"{options.flavour} {trt.__version__} cannot read {name}: {'; '.join(found)}")
    config = builder.create_builder_config()
    _configure(trt, builder, config, options)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, update)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        why = "; ".join(said[-3:]) or "it does not say why"
        raise BuildError(f"{options.flavour} {trt.__version__} cannot build {name}: {why}")
    return bytes(engine)


def _network_flags(trt: Any) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    if hasattr(kinds, "STRONGLY_TYPED"):
        return 1 << int(kinds.STRONGLY_TYPED)
    return 1 << int(kinds.EXPLICIT_BATCH)


def _configure(trt: Any, builder: Any, config: Any, options: BuildOptions) -> None:
    """Ask for what the options say, as far as the release knows it."""
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if hasattr(config, "max_aux_streams"):
        config.max_aux_streams = 0  # ops one after the other, as the latency model adds them
    if hasattr(trt, "ProfilingVerbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of our ops in the engine
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.fp16 and not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        config.set_flag(trt.BuilderFlag.FP16)
    if not options.targets:
        return
    if not hasattr(config, "num_compute_capabilities"):
        raise HwnasError(f"{options.flavour} builds for the GPU that is here alone; leave out the compute capabilities")
    known = {name: value for name, value in vars(trt.ComputeCapability).items() if name.startswith("SM")}
    wanted = [f"SM{major}{minor}" for major, minor in options.targets]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise HwnasError(f"{options.flavour} builds for {', '.join(sorted(known))}, got {', '.join(unknown)}")
    config.num_compute_capabilities = len(wanted)
    for i, name in enumerate(wanted):
        config.set_compute_capability(known[name], i)


def _failed_node(error: Any) -> str:
    """Return what the parser says of one node, and which op of ours it is from."""
    what = " ".join(error.desc().split())
    node = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
    if not node:
        return what  # of the file as a whole
    kind = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
    module, mark, _ = node.partition("#")
    ours = f" of {module}" if mark else ""
    return f"node {node}{kind}{ours}: {what}"


def _logger(trt: Any, said: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # the package is optional
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                said.append(" ".join(message.split()))

    return Logger()


def _monitor(trt: Any, update: Update) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            update(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            update(phase, step + 1, self.steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            update(phase, self.steps[phase], self.steps.pop(phase))

    return Monitor()


def main(argv: Sequence[str]) -> int:
    """Build what the one argument, a JSON object, asks for; tell the parent by lines of JSON."""
    request = json.loads(argv[0])
    options = BuildOptions(**request["options"])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a builder that prints must not write between the lines

    def tell(**message: object) -> None:
        print(json.dumps(message), file=out, flush=True)

    last_s = 0.0

    def update(phase: str, done: int, total: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > 0.1 or done == total:
            last_s = time.monotonic()
            tell(phase=phase, done=done, total=total)

    if options.memory_mib is not None:
        limit = options.memory_mib << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    with out:
        try:
            path = Path(request["model"])
            write_atomic(Path(request["out"]), _build(path.read_bytes(), str(path), options, update))
        except MemoryError:
            tell(error="BuildError", message=f"{options.flavour} takes more than {options.memory_mib} MiB to build")
            return 2
        except (HwnasError, OSError) as e:
            tell(error=type(e).__name__, message=str(e))
            return 2
        tell(finished=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
