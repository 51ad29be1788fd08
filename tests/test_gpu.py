"""On a real NVIDIA GPU, with what is installed for it: ``pytest -m gpu``. Nothing here is a double."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from hwnas.errors import MissingExtra
from hwnas.files import sha256
from hwnas.ops import OpSpec
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.precision import to_half
from hwnas.profile import trace_entry
from hwnas.runtime.engines import open_engine
from hwnas.runtime.measuring.plan import Entry
from hwnas.spaces import Scale, darts_space, sample, trace_space
from tests.contracts import ENDINGS, EngineContract
from tests.test_engines import CASES


def there_is_a_driver() -> bool:
    """Return whether NVIDIA's driver is here and finds a GPU; asked before any test can load another."""
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuInit(0)) == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not there_is_a_driver(), reason="there is no NVIDIA driver here, or no GPU"),
    # of inductor's own making
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    # float32 is what was asked for
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores .* available but not enabled:UserWarning"),
]
LAUNCHES = {
    "torch-cuda": "enqueue",
    "torch-cuda-graph": "graph",
    "torch-cuda-compiled": "graph",
    "onnxruntime-cuda": "enqueue",
    "tensorrt": "graph",
}
LOOSE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2}


def opened(name: str, precision: str = "fp32") -> Any:
    """Return an engine; where its packages are not installed, skip."""
    try:
        return open_engine(name, precision=precision)
    except MissingExtra as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module", params=LAUNCHES)
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = opened(request.param)
    yield made
    made.close()


def inputs_of(entry: Entry, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in entry.inputs.items()}


def a_convolution(engine: Any, folder: Path, height: int, width: int) -> Entry:
    """Return an entry that takes longer than its launch."""
    spec = OpSpec("conv_bn", (("c_in", 64), ("c_out", 64), ("kernel", 3)), ((1, 64, height, width),))
    return EngineContract().entry(engine, spec, folder)[0]


class TestContract(EngineContract):
    @pytest.fixture(params=sorted(CASES))
    def op_case(self, request: pytest.FixtureRequest) -> OpSpec:
        return CASES[request.param]


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
@pytest.mark.parametrize("name", LAUNCHES)
def test_other_precisions_compute_nearly_the_same(name: str, precision: str, tmp_path: Path) -> None:
    engine = opened(name, precision)
    for case in ("conv_bn", "sep_conv", "factorized_reduce", "avg_pool", "resize", "context", "linear"):
        entry, op = EngineContract().entry(engine, CASES[case], tmp_path)
        if precision == "fp16":
            model = to_half(onnx.load_model_from_string((tmp_path / "op.onnx").read_bytes())).SerializeToString()
            (tmp_path / "op.onnx").write_bytes(model)
            entry = replace(entry, sha256=sha256(model))
        inputs = inputs_of(entry)
        with engine.load(entry, tmp_path) as runner, torch.no_grad():
            got = runner.run(inputs)["y"]
            expected = op(*map(torch.from_numpy, inputs.values())).numpy()
        assert got.dtype == np.float32, case
        np.testing.assert_allclose(got, expected, rtol=LOOSE[precision], atol=LOOSE[precision], err_msg=case)
    engine.close()


def test_a_network_computes_what_torch_does_on_the_cpu(engine: Any, tmp_path: Path) -> None:
    space = darts_space(Scale(8, 3, (48, 64)), 5, nodes=2, head="classification")
    traced = trace_space(space, sample(space, np.random.default_rng(0)), labels=False)
    content = OpExporter().network(traced).SerializeToString()
    (tmp_path / "net.onnx").write_bytes(content)
    entry = trace_entry("net", "net", traced, "net.onnx", sha256(content))
    inputs = inputs_of(entry)
    with open_engine("torch").load(entry, tmp_path) as reference, engine.load(entry, tmp_path) as runner:
        expected, got = reference.run(inputs), runner.run(inputs)
    for name, scores in expected.items():
        np.testing.assert_allclose(got[name], scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("role", ["net", "copies", "application"])
def test_a_graph_computes_what_a_run_does(engine: Any, tmp_path: Path, role: str) -> None:
    if LAUNCHES[engine.name] != "graph":
        pytest.skip("launches kernel by kernel")
    entry = replace(EngineContract().entry(engine, ENDINGS["scores"], tmp_path)[0], role=role)
    with engine.load(entry, tmp_path) as runner, engine.gpu.cuda:
        assert runner.time(2).about["launch"] == "graph"
        network, stream, x = runner._build(0)[0], engine.gpu.stream(), inputs_of(entry)["x0"]
        graph = getattr(engine, "capture", stream.capture)(network.enqueue)
        made = []
        for times in (1, 3):
            got = np.empty(*network.outputs["y"])
            stream.copy_in(network.memory["x0"], times * x)
            graph.launch()
            stream.copy_out(got, network.memory["y"])
            stream.synchronize()
            made.append(got)
        graph.close()
        for times, got in zip((1, 3), made, strict=True):
            np.testing.assert_allclose(got, runner.run({"x0": times * x})["y"], rtol=1e-5, atol=1e-6)
    assert abs(made[0] - made[1]).max() > 0.1


def test_events_see_the_work(engine: Any, tmp_path: Path) -> None:
    """What ran on another stream would take no time; what is four times the work takes some four times as long."""
    took_ms = []
    for height, width in ((256, 512), (512, 1024)):
        with engine.load(a_convolution(engine, tmp_path, height, width), tmp_path) as runner:
            runner.time(5)
            samples = runner.time(20)
        about = samples.about
        assert about["launch"] == LAUNCHES[engine.name]
        assert min(about["enqueue_ms"], about["cold_ms"]) > 0
        took_ms.append(float(np.median(samples.latency_ms)))
        assert 0.3 * np.median(samples.wall_ms) < took_ms[-1] < 1.05 * np.median(samples.wall_ms)
    assert 2 < took_ms[1] / took_ms[0] < 8


def test_a_run_is_not_waited_for(engine: Any, tmp_path: Path) -> None:
    with engine.load(a_convolution(engine, tmp_path, 1024, 2048), tmp_path) as runner, engine.gpu.cuda:
        network, stream = runner._build(0)[0], engine.gpu.stream()
        runner.time(3)
        start_s = time.perf_counter()
        for _ in range(20):
            network.enqueue()
        returned_s = time.perf_counter() - start_s
        stream.synchronize()
        assert returned_s < 0.5 * (time.perf_counter() - start_s)
