"""The engines, by name; each is imported only when it is opened."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from hwnas.errors import BrokenPackage, HwnasError, MissingExtra, unimportable, unknown
from hwnas.runtime.engines.base import Capabilities, Engine
from hwnas.runtime.measuring.device import provenance

ENGINES = {
    "onnxruntime": "hwnas.runtime.engines.onnxruntime:OnnxRuntime",
    "onnxruntime-cuda": "hwnas.runtime.engines.onnxruntime_cuda:OnnxRuntimeCuda",
    "openvino": "hwnas.runtime.engines.openvino:OpenVino",
    "tensorrt": "hwnas.runtime.engines.tensorrt:TensorRt",
    "tensorrt_rtx": "hwnas.runtime.engines.tensorrt:TensorRtRtx",
    "fake": "hwnas.runtime.engines.fake:Fake",
    "torch": "hwnas.runtime.engines.torch:TorchEager",
    "torch-cuda": "hwnas.runtime.engines.torch_cuda:TorchCuda",
    "torch-cuda-graph": "hwnas.runtime.engines.torch_cuda:TorchCudaGraph",
    "torch-cuda-compiled": "hwnas.runtime.engines.torch_cuda:TorchCudaCompiled",
}


def open_engine(name: str, threads: int = 1, precision: str = "fp32") -> Engine:
    """Return an engine.

    Args:
        name: A key of `ENGINES`, or ``"module:class"`` for an engine from elsewhere.
        threads: Threads the engine computes with, where that is the host.
        precision: What it computes in, one of its `Capabilities.precisions`.

    Raises:
        HwnasError: If there is no such engine, it does not know the precision, or `threads` is less than one.
        MissingExtra: If a package it needs is not installed.
    """
    if threads < 1:
        raise HwnasError(f"threads must be at least 1, got {threads}")
    known = capabilities(name).precisions
    if precision not in known:
        raise HwnasError(
            f"engine {name!r} computes in {', '.join(known)}, got {precision!r}; use another engine for it"
        )
    more = {} if precision == "fp32" else {"precision": precision}
    return cast(Engine, _kind(name)(threads=threads, **more))


def capabilities(name: str) -> Capabilities:
    """Return what an engine can do, without opening it.

    Args:
        name: As of `open_engine`.

    Raises:
        HwnasError: If there is no such engine, or it does not declare it.
        MissingExtra: If the module of it is not installed.
    """
    kind = _kind(name)
    try:
        declared = kind.capabilities
    except AttributeError:
        declared = None
    if not isinstance(declared, Capabilities):
        raise HwnasError(
            f"engine {name!r} does not say what it can do; add to its class: capabilities = Capabilities(merges=...), "
            f"with the Capabilities of {Capabilities.__module__}"
        )
    return declared


def _kind(name: str) -> Any:
    target = name if ":" in name else ENGINES.get(name)
    if target is None:
        raise unknown("engine", name, ENGINES)
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise MissingExtra(f"engine {name!r} needs the module {e.name}, which is not installed; install it") from e
    except Exception as e:  # of a package that it imports, or of the module itself
        reason = unimportable(e)
        if reason is None:
            raise
        raise BrokenPackage(f"engine {name!r} cannot be used: {reason}") from e
    if not hasattr(module, attribute):
        raise unknown("engine", name, ENGINES)
    return getattr(module, attribute)


@contextmanager
def using_engine(name: str, threads: int = 1, precision: str = "fp32") -> Iterator[Engine]:
    """Open an engine, and give back what it holds at the end: a GPU's context, a builder's process."""
    engine = open_engine(name, threads, precision)
    try:
        yield engine
    finally:
        engine.close()


def provenance_here(where: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance that the engine of another provenance has on this machine.

    Raises:
        HwnasError: If it cannot be opened here.
    """
    engine = where["engine"]
    with using_engine(str(engine["name"]), int(engine["threads"]), str(engine["precision"])) as opened:
        return provenance(opened)
