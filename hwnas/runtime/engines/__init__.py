"""The engines, by name; each is imported only when it is opened."""

from __future__ import annotations

import importlib
from typing import cast

from hwnas.errors import HwnasError, MissingExtra, unknown
from hwnas.runtime.engines.base import Engine

ENGINES = {
    "onnxruntime": "hwnas.runtime.engines.onnxruntime:OnnxRuntime",
    "openvino": "hwnas.runtime.engines.openvino:OpenVino",
    "fake": "hwnas.runtime.engines.fake:Fake",
    "torch": "hwnas.latency.torch_engine:TorchEager",
}


def open_engine(name: str, threads: int = 1) -> Engine:
    """Return an engine.

    Args:
        name: A key of `ENGINES`, or ``"module:class"`` for an engine from elsewhere.
        threads: Threads the engine computes with.

    Raises:
        HwnasError: If there is no such engine, or `threads` is less than one.
        MissingExtra: If a package it needs is not installed.
    """
    if threads < 1:
        raise HwnasError(f"threads must be at least 1, got {threads}")
    target = name if ":" in name else ENGINES.get(name)
    if target is None:
        raise unknown("engine", name, ENGINES)
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise MissingExtra(f"engine {name!r} needs the module {e.name}, which is not installed; install it") from e
    if not hasattr(module, attribute):
        raise unknown("engine", name, ENGINES)
    return cast(Engine, getattr(module, attribute)(threads=threads))
