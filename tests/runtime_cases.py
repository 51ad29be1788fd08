"""Small plans and scripted runners for the tests of the runtime."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from hwnas.files import sha256
from hwnas.runtime.measuring.measure import Samples
from hwnas.runtime.measuring.plan import Call, Entry, write_plan

SHAPE = (1, 4, 9, 8)
OUT_SHAPE = (1, 6, 9, 8)


def conv_relu(folder: Path, name: str = "conv", height: int | str = 9) -> tuple[str, np.ndarray]:
    """Write an ONNX file of a 1x1 convolution and a ReLU; return its path in the folder and the weights."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(1).standard_normal((6, 4, 1, 1)).astype(np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x0", "w"], ["c"]), onnx.helper.make_node("Relu", ["c"], ["v1"])],
        name,
        [value("x0", onnx.TensorProto.FLOAT, [1, 4, height, 8])],
        [value("v1", onnx.TensorProto.FLOAT, [1, 6, height, 8])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / f"{name}.onnx")
    return f"{name}.onnx", weight


def conv_entry(key: str, folder: Path | None = None, file: str | None = None, macs: int = 1728) -> Entry:
    call = Call("conv", {"kernel": 1}, (SHAPE,), ("x0",), "v1", OUT_SHAPE, macs, 2976)
    digest = sha256((folder / file).read_bytes()) if folder is not None and file is not None else None
    return Entry(key, "op", file, digest, (call,), {"x0": SHAPE}, ("v1",))


def four_ops(folder: Path) -> Path:
    """Write a plan of four entries without files."""
    write_plan(folder, [conv_entry(f"op{i}", macs=10**6 * (i + 1)) for i in range(4)])
    return folder


def spells(rng: np.random.Generator, visits: int, slow_share: float) -> np.ndarray:
    """Return the factor on the time of each visit, (visits,): in spells, some `slow_share` of them 15 to 60 % slow."""
    factors: list[float] = []
    while len(factors) < visits:
        slow = rng.random() < slow_share
        factors += [1 + slow * rng.uniform(0.15, 0.6)] * int(rng.integers(1, 6))
    return np.array(factors[:visits])


class Scripted:
    """A runner that gives times from a list, over and over."""

    def __init__(self, latency_ms: list[float], wall_factor: float = 1.0, sleep_s: float = 0.0) -> None:
        self._times = itertools.cycle(latency_ms)
        self._wall_factor, self._sleep_s = wall_factor, sleep_s
        self.batches: list[int] = []

    def time(self, repeats: int, visit: int = 0) -> Samples:
        self.batches.append(repeats)
        time.sleep(self._sleep_s * repeats)
        latency_ms = np.array([next(self._times) for _ in range(repeats)])
        return Samples(latency_ms, latency_ms * self._wall_factor)
