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
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from hwnas import errors
from hwnas.errors import BrokenPackage, BuildError, HwnasError, MissingExtra, refusal
from hwnas.files import write_atomic
from hwnas.optional import require
from hwnas.runtime.engines.reduce import ops_in, smallest_failing
from hwnas.runtime.measuring.child import (
    channel,
    command,
    die_with_parent,
    environment,
    last_words,
    message_of,
    own_channel,
)

# Extra of each flavour, which is its package with a dash.
FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
COMPATIBLE = ("ampere_plus", "same_compute_capability")
ComputeCapability = tuple[int, int]
Update = Callable[[str, int, int], None]


def _silent(phase: str, done: int, total: int) -> None:
    """Tell nobody of progress."""


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is asked for.

    Attributes:
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        targets: Compute capabilities the engine is for, (8, 6) for SM 86; none for the GPU that is here. Only
            TensorRT-RTX builds for others.
        fp16: Whether the model is in float16: releases without strong typing must be told.
        tf32: Whether what is float32 in the file may be multiplied in TF32.
        version_compatible: Whether later releases are to take the engine too; it may be slower.
        hardware_compatible: Other GPUs that are to take it, one of `COMPATIBLE`; it may be slower. None for this kind.
        timing_cache: A file with what was timed in earlier builds, read and written; None for none. TensorRT-RTX
            times nothing.
        workspace_mib: Most memory of the GPU that an engine may use for intermediate results; None for its default.
        timeout_s: Time after which the builder is ended.
        memory_mib: Most memory of the host that it may take; None for no bound.
    """

    flavour: str = "tensorrt_rtx"
    targets: tuple[ComputeCapability, ...] = ()
    fp16: bool = False
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: str | None = None
    timing_cache: str | None = None
    workspace_mib: int | None = None
    timeout_s: float = 900.0
    memory_mib: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple((int(major), int(minor)) for major, minor in self.targets))
        if self.flavour not in FLAVOURS:
            raise HwnasError(f"expected one of {', '.join(FLAVOURS)}, got {self.flavour!r}")
        if self.hardware_compatible not in (None, *COMPATIBLE):
            raise HwnasError(f"expected one of {', '.join(COMPATIBLE)} or None, got {self.hardware_compatible!r}")
        if not self.timeout_s > 0:
            raise HwnasError(f"the time after which a build is ended must be positive, got {self.timeout_s}")


class _Child(NamedTuple):
    """A process that builds, what it tells by, and what else it prints."""

    process: subprocess.Popen[str]
    lines: IO[str]
    log: IO[bytes]


class Builder:
    """A child process that builds engines one after the other, and is started again if it dies.

    TensorRT takes seconds to load, so one process builds all there is. A context manager, usable again after its end.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._child: _Child | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Builder:
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End the child."""
        self.close()

    def build(self, model: Path, out: Path, options: BuildOptions = BuildOptions(), update: Update = _silent) -> None:
        """Build the engine of an ONNX file.

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
        child, lines, log = self._running()
        assert child.stdin is not None
        ended = threading.Event()

        def end() -> None:
            ended.set()
            child.kill()

        timer = threading.Timer(options.timeout_s, end)
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it is dead: what it said last is read below
                request = {"model": str(model), "out": str(out), "options": asdict(options)}
                print(json.dumps(request), file=child.stdin, flush=True)
            if any(_told(message, update) for message in map(message_of, lines) if message is not None):
                return
        except HwnasError:
            raise  # the child has said so, and can build the next one
        except BaseException:
            self.close()  # in the middle of something
            raise
        finally:
            timer.cancel()
        code = child.wait()
        words = last_words(log)
        self.close()
        if ended.is_set():
            raise BuildError(f"{options.flavour} did not build {model} in {options.timeout_s:g} s; it was ended")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        bound = "" if options.memory_mib is None else f"; it was given {options.memory_mib} MiB"
        raise BuildError(f"{options.flavour} died while it built {model} ({how}){bound}{words}")

    def build_or_reduce(
        self, model: Path, out: Path, options: BuildOptions = BuildOptions(), update: Update = _silent
    ) -> None:
        """Build the engine of an ONNX file; if it is refused, write the smallest part that is refused too beside it.

        Raises:
            HwnasError: As `build`; a refusal names the file with that part, and its ops.
        """
        try:
            self.build(model, out, options, update)
        except BuildError as e:
            if self._child is None:
                raise  # it died or hung: trying parts could take for ever
            try:
                part, names = self._reduced(model, out, options, str(e))
            except (MissingExtra, BrokenPackage) as missing:
                raise BuildError(f"{e}; for the smallest part that fails: {missing}") from e
            file = out.with_suffix(".failing.onnx")
            write_atomic(file, part)
            ops = ", ".join(ops_in(" ".join(names))) or ", ".join(names)
            raise BuildError(f"{e}; the smallest part that fails too is {ops}, in {file}") from e

    def _reduced(self, model: Path, out: Path, options: BuildOptions, said: str) -> tuple[bytes, list[str]]:
        def fails(part: bytes) -> bool:
            path = folder / "part.onnx"
            path.write_bytes(part)
            try:
                self.build(path, folder / "part.engine", options)
            except BuildError:
                return True
            return False

        with tempfile.TemporaryDirectory(dir=out.parent) as name:
            folder = Path(name)
            return smallest_failing(model.read_bytes(), fails, said)

    def close(self) -> None:
        """End the child."""
        self._stack.close()
        self._child = None

    def _running(self) -> _Child:
        if self._child is None:
            log = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 # it is closed with the stack
            told, telling = self._stack.enter_context(channel())
            child = subprocess.Popen(
                command("hwnas.runtime.engines.trt_build", str(telling)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(),
                pass_fds=[telling],
                text=True,
            )
            os.close(telling)
            self._stack.callback(child.communicate)  # its pipe is closed, and it is waited for
            self._stack.callback(child.kill)
            lines = self._stack.enter_context(os.fdopen(os.dup(told), encoding="utf-8", errors="replace"))
            self._child = _Child(child, lines, log)
        return self._child


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
    logger = make_logger(trt, said)
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
    cache = _timing_cache(config, options)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        why = "; ".join(said[-3:]) or "it does not say why"
        raise BuildError(f"{options.flavour} {trt.__version__} cannot build {name}: {why}")
    if cache is not None and options.timing_cache is not None:
        write_atomic(Path(options.timing_cache), bytes(cache.serialize()))
    return bytes(engine)


def _network_flags(trt: Any) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    if hasattr(kinds, "STRONGLY_TYPED"):
        return 1 << int(kinds.STRONGLY_TYPED)
    return 1 << int(kinds.EXPLICIT_BATCH)


def _configure(trt: Any, builder: Any, config: Any, options: BuildOptions) -> None:
    """Ask for what the options say, as far as the release knows it."""
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if hasattr(config, "max_aux_streams"):
        config.max_aux_streams = 0  # ops one after the other, as the latency model adds them
    if hasattr(trt, "ProfilingVerbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names of our ops in the engine
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.fp16 and not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        config.set_flag(trt.BuilderFlag.FP16)
    if options.version_compatible:
        config.set_flag(_member(trt, options, "BuilderFlag", "VERSION_COMPATIBLE"))
    if options.hardware_compatible is not None:
        level = _member(trt, options, "HardwareCompatibilityLevel", options.hardware_compatible.upper())
        config.hardware_compatibility_level = level
    _aim(trt, config, options)


def _aim(trt: Any, config: Any, options: BuildOptions) -> None:
    """Say for which GPUs the engine is."""
    if not hasattr(config, "num_compute_capabilities"):
        if not options.targets:
            return
        raise HwnasError(f"{options.flavour} builds for the GPU that is here alone; leave out the compute capabilities")
    known = {name: value for name, value in vars(trt.ComputeCapability).items() if name.startswith("SM")}
    wanted = [f"SM{major}{minor}" for major, minor in options.targets]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise HwnasError(f"{options.flavour} builds for {', '.join(sorted(known))}, got {', '.join(unknown)}")
    chosen = [known[name] for name in wanted] or [trt.ComputeCapability.CURRENT]
    config.num_compute_capabilities = len(chosen)
    for i, capability in enumerate(chosen):
        config.set_compute_capability(capability, i)


def _member(trt: Any, options: BuildOptions, kind: str, name: str) -> Any:
    """Return what a release calls a choice of the options.

    Raises:
        HwnasError: If it does not know it.
    """
    found = getattr(getattr(trt, kind, None), name, None)
    if found is None:
        raise HwnasError(f"{options.flavour} {trt.__version__} has no {kind}.{name}; leave that option out")
    return found


def _timing_cache(config: Any, options: BuildOptions) -> Any:
    """Return the timing cache of a build, filled with what is in its file; None without one."""
    if options.timing_cache is None:
        return None
    file = Path(options.timing_cache)
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(cache, False)  # one of another GPU or release is refused
    return config.get_timing_cache()


def _failed_node(error: Any) -> str:
    """Return what the parser says of one node, and which op of ours it is from."""
    what = " ".join(error.desc().split())
    node = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
    if not node:
        return what  # of the file as a whole
    kind = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
    ours = "".join(f" of {op}" for op in ops_in(node))
    return f"node {node}{kind}{ours}: {what}"


def make_logger(trt: Any, said: list[str]) -> Any:
    """Return a logger that adds to `said` what went wrong."""

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


def main() -> int:
    """Build what each line of standard input, a JSON object, asks for; tell the parent by lines of JSON."""
    die_with_parent()
    out = own_channel(int(sys.argv[1]) if sys.argv[1:] else None)

    def tell(**message: object) -> None:
        print(json.dumps(message), file=out, flush=True)

    with out:
        for line in sys.stdin:
            _serve(json.loads(line), tell)
    return 0


def _serve(request: dict[str, Any], tell: Callable[..., None]) -> None:
    """Build what one request asks for."""
    options = BuildOptions(**request["options"])
    last_s = 0.0

    def update(phase: str, done: int, total: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > 0.1 or done == total:
            last_s = time.monotonic()
            tell(phase=phase, done=done, total=total)

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = most if options.memory_mib is None else options.memory_mib << 20
    with suppress(OSError, ValueError):  # forbidden, or more than there is
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    try:
        path = Path(request["model"])
        write_atomic(Path(request["out"]), _build(path.read_bytes(), str(path), options, update))
    except MemoryError:
        tell(error="BuildError", message=f"{options.flavour} takes more than {options.memory_mib} MiB to build")
    except (HwnasError, OSError) as e:
        told = refusal(e) if isinstance(e, OSError) else e
        tell(error=type(told).__name__, message=str(told))
    else:
        tell(finished=True)


if __name__ == "__main__":
    sys.exit(main())
