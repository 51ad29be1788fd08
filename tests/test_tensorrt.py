"""The TensorRT engine on a GPU that is not there: real bindings of CUDA, doubles of five releases that compute."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import BuildError, HwnasError
from hwnas.ops import OpSpec
from hwnas.ops.onnx_graph import OpExporter
from hwnas.profile import Calibration, make_plan
from hwnas.runtime.cuda import timing as cuda_timing
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.tensorrt import layers
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import Entry, load_plan
from hwnas.runtime.measuring.results import collect
from hwnas.runtime.measuring.supervise import supervise
from hwnas.spaces import Scale, darts_space, sample, trace_space
from tests.contracts import EngineContract
from tests.fake_gpu import FakeGpu
from tests.test_cuda import opened
from tests.test_engines import CASES
from tests.trt_double import RELEASES

SPACE = darts_space(Scale(4, 3, (24, 32)), 5, nodes=2, head_channels=8)
QUICK = StopRule(min_visits=3, max_visits=6, min_s=0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_timing, "SETTLE_S", (0.0, 0.02))
    monkeypatch.setattr(cuda_timing, "SETTLE_WINDOW_S", 0.002)


@pytest.fixture(params=["tensorrt-10.16.1"])
def engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu, tensorrt: None
) -> Iterator[Any]:
    """Return the engine of a release, on the GPU of this process."""
    monkeypatch.setenv("HWNAS_FAKE_TENSORRT", request.param)
    opened = open_engine(request.param.partition("-")[0])
    yield opened
    opened.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_plan(SPACE, [SPACE.scale], folder, Calibration(fit=1, test=1, isolated=False))
    return folder


every_release = pytest.mark.parametrize("engine", RELEASES, indirect=True)


class TestContract(EngineContract):
    @pytest.fixture(params=["conv_bn", "add", "resize", "argmax"])
    def op_case(self, request: pytest.FixtureRequest) -> OpSpec:
        return CASES[request.param]


@every_release
class TestReleases:
    def entry(self, folder: Path, engine: Any) -> Entry:
        return EngineContract().entry(engine, CASES["conv_bn"], folder)[0]

    def test_it_builds_computes_and_times(self, engine: Any, tmp_path: Path, gpu: FakeGpu) -> None:
        entry = self.entry(tmp_path, engine)
        with engine.load(entry, tmp_path) as runner:
            got = runner.run({"x0": np.ones(entry.inputs["x0"], np.float32)})
            assert got["y"].shape == entry.output_shapes()["y"]
            for n in range(engine.BUILDS):
                runner.time(1, visit=n)  # each is opened when it is its turn
            gpu.reset()
            visits = [runner.time(3, visit=n) for n in range(4)]
        assert [v.about["build"] for v in visits] == [n % engine.BUILDS for n in range(4)]
        assert all(v.about["launch"] == "graph" for v in visits)
        names = gpu.names()
        assert not [n for n in names if "Memcpy" in n]
        assert {number for name, number in gpu.log() if name == "execute_async_v3"}.isdisjoint({0, -1})
        engines = sorted(p.suffix for p in (tmp_path / "engines").iterdir())
        caches = [".cache"] * engine.BUILDS if engine.name == "tensorrt" else [".runtime-cache"]
        assert engines == sorted([".engine"] * engine.BUILDS + caches)

    def test_it_uses_what_the_release_has(self, engine: Any, tmp_path: Path) -> None:
        trt = engine.trt
        with engine.load(self.entry(tmp_path, engine), tmp_path) as runner:
            for visit in range(4):
                runner.time(1, visit)
        addresses = [a for _, a in trt.made("IExecutionContext", "set_tensor_address")]
        assert [name for name, _ in addresses] == ["x0", "y"] * engine.BUILDS
        assert len({address for _, address in addresses}) == 2 * engine.BUILDS
        assert not trt.made("IExecutionContext", "execute_v2", "execute_async_v2", "set_binding_shape")
        asked = bool(trt.made("IRuntimeConfig", "set_runtime_cache"))
        assert asked == hasattr(trt, "IRuntimeCache")

    def test_an_engine_of_another_release_is_refused(self, engine: Any, tmp_path: Path) -> None:
        entry = self.entry(tmp_path, engine)
        with engine.load(entry, tmp_path):
            pass
        for path in (tmp_path / "engines").glob("*.engine"):
            path.write_bytes(b"fake engine of another\n" + path.read_bytes())
        with pytest.raises(HwnasError, match=r"does not take .*\.engine: it does not say why; build it again here"):
            engine.load(entry, tmp_path).__enter__()


class TestEngine:
    def entry(self, folder: Path, engine: Any, case: str = "conv_bn") -> Entry:
        return EngineContract().entry(engine, CASES[case], folder)[0]

    def test_engines_that_are_there_are_not_built_again(self, engine: Any, tmp_path: Path) -> None:
        entry = self.entry(tmp_path, engine)
        names = []
        for visit in range(3):
            with engine.load(entry, tmp_path) as runner:
                runner.time(1, visit)
            names.append(len(list((tmp_path / "engines").glob("*.engine"))))
        assert names == [1, 2, 3]  # each when it is its turn
        before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "engines").iterdir()}
        with engine.load(entry, tmp_path) as runner:
            runner.time(1, 2)
        assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "engines").iterdir()} == before

    def test_a_model_it_cannot_read_names_the_op(self, engine: Any, tmp_path: Path) -> None:
        from onnx import TensorProto, helper

        from hwnas.files import sha256

        node = helper.make_node("Det", ["x0"], ["y"], name="head.odd#3/Det_0")
        x, y = (
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x0", [1, 4, 8, 8]), ("y", [1, 4]))
        )
        content = helper.make_model(helper.make_graph([node], "g", [x], [y])).SerializeToString()
        (tmp_path / "op.onnx").write_bytes(content)
        entry = replace(self.entry(tmp_path, engine), sha256=sha256(content))
        (tmp_path / "op.onnx").write_bytes(content)
        with pytest.raises(BuildError, match=r"node head\.odd#3/Det_0 \(Det\) of head\.odd: no such op"):
            engine.load(entry, tmp_path).__enter__()

    def test_everything_is_given_back_when_loading_fails(self, engine: Any, tmp_path: Path, gpu: FakeGpu) -> None:
        entry = self.entry(tmp_path, engine)
        with engine.load(entry, tmp_path):
            pass  # the timer is there
        before = gpu.live
        for name in ("cuMemAlloc", "cuMemcpyHtoDAsync", "cuStreamSynchronize"):
            gpu.fail(name, 2)
            with pytest.raises(HwnasError, match="out of memory"), engine.load(entry, tmp_path) as runner:
                runner.time(1)
            assert gpu.live == before

    def test_inputs_that_are_not_the_plans_are_refused(self, engine: Any, tmp_path: Path) -> None:
        entry = replace(self.entry(tmp_path, engine), inputs={"x0": (1, 4, 5, 5)})
        with pytest.raises(
            HwnasError, match=r"op\.onnx has the inputs .*, the plan says float32 \{'x0': \(1, 4, 5, 5\)"
        ):
            engine.load(entry, tmp_path).__enter__()

    def test_it_says_what_it_is(self, engine: Any) -> None:
        about = engine.provenance()
        assert about["device"] == {
            "kind": "gpu", "name": "Fake GPU 9000", "compute_capability": "8.9", "multiprocessors": 10,
            "memory_mib": 8192, "l2_kib": 1024, "max_sm_mhz": 2000,
        }  # fmt: skip
        options = about["options"]
        assert options["builds"] == 3
        assert (options["driver"], options["card"], options["power_limit_w"]) == ("570.1", "GPU-fake", 300.0)
        assert options["cuda"] == "12.8"
        assert options["binding"].startswith("cuda-bindings ")

    def test_precision_is_what_the_builder_is_told(self, engine: Any, tmp_path: Path) -> None:
        with pytest.raises(HwnasError, match="computes in fp32, tf32, fp16, got 'int8'"):
            open_engine("tensorrt", precision="int8")

    def test_layers_are_ours(self, engine: Any, tmp_path: Path) -> None:
        model = OpExporter().network(trace_space(SPACE, sample(SPACE, np.random.default_rng(0))))
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        path = engine.build(tmp_path / "m.onnx", "0" * 64, tmp_path)
        found = engine.inspect(path)
        assert len(found) == len(model.graph.node)
        assert all(layer["ops"] for layer in found)

    def test_layers_that_were_merged(self) -> None:
        told = {"Layers": [{"Name": "a.b#1/Conv_0 + a.c#2/Relu_0 + a.c#2/Relu_1"}, "Reformatting CopyNode", {}]}
        assert [layer["ops"] for layer in layers(json.dumps(told))] == [["a.b", "a.c"], [], []]


class TestScopes:
    """The same network alone, with its copies, and as a whole application."""

    @pytest.fixture
    def entries(self, engine: Any, tmp_path: Path) -> dict[str, Entry]:
        from hwnas.files import sha256
        from hwnas.profile import trace_entry

        traced = trace_space(SPACE, sample(SPACE, np.random.default_rng(0)))
        content = OpExporter().network(traced).SerializeToString()
        (tmp_path / "m.onnx").write_bytes(content)
        entry = trace_entry("net", "net/m", traced, "m.onnx", sha256(content))
        return {role: replace(entry, role=role) for role in ("net", "copies", "application")}

    def test_each_has_what_the_one_before_has(
        self, engine: Any, entries: dict[str, Entry], tmp_path: Path, gpu: FakeGpu
    ) -> None:
        took, calls = {}, {}
        for role, entry in entries.items():
            with engine.load(entry, tmp_path) as runner:
                runner.time(1)
                gpu.reset()
                with engine.gpu.cuda:
                    runner.loaded.build(0)[1]._work()
                    engine.gpu.stream().synchronize()
                calls[role] = [n for n in gpu.names() if n != "cuStreamSynchronize" and "Ctx" not in n]
                took[role] = runner.time(5).latency_ms.mean()
        assert calls["net"] == ["execute_async_v3"]
        assert calls["copies"] == ["cuMemcpyHtoDAsync", "execute_async_v3", "cuMemcpyDtoHAsync"]
        assert calls["application"] == ["cuMemcpyHtoDAsync", "preprocess_f32", "execute_async_v3", "cuMemcpyDtoHAsync"]
        assert took["net"] < took["application"]
        assert took["net"] < took["copies"]

    def test_an_application_without_an_image_is_refused(self, engine: Any, tmp_path: Path) -> None:
        entry = replace(EngineContract().entry(engine, CASES["conv_bn"], tmp_path)[0], role="application")
        with pytest.raises(HwnasError, match=r"an application needs one image \(1, 3, H, W\), and one result"):
            engine.load(entry, tmp_path).__enter__()


class TestMeasuring:
    """In child processes, as the verbs do it."""

    def test_a_lost_device_costs_the_entry_and_not_the_run(
        self, plan: Path, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An illegal address leaves the process without a device: it ends, another goes on, the entry is crashed."""
        chosen = load_plan(plan).entries[3]
        monkeypatch.setenv("HWNAS_FAKE_ILLEGAL", str(chosen.sha256))
        results = supervise(plan, "tensorrt", 1, QUICK, tmp_path / "r.jsonl")
        rows = {row.key: row for row in collect(results, load_plan(plan))[1]}
        same = {e.key for e in load_plan(plan).entries if e.sha256 == chosen.sha256}
        assert {key for key, row in rows.items() if row.status != "ok"} == same
        assert rows[chosen.key].status == "crashed"
        assert re.search(r"exit code 1 .*CUDA cannot .*ILLEGAL_ADDRESS", rows[chosen.key].reason)
        kinds = Counter(r["type"] for r in read_journal(results)[1])
        assert kinds["death"] == 2 * len(same)


def test_a_binding_without_graphs_is_enough(
    gpu: FakeGpu, tensorrt: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A box with a driver too old for cuda-bindings has PyCUDA, which captures nothing."""
    monkeypatch.setattr("hwnas.runtime.engines.gpu.open_cuda", lambda: opened("pycuda"))
    engine: Any = open_engine("tensorrt")
    entry, _ = EngineContract().entry(engine, CASES["conv_bn"], tmp_path)
    with engine.load(entry, tmp_path) as runner:
        got = runner.run({"x0": np.ones(entry.inputs["x0"], np.float32)})
        samples = runner.time(3)
    assert got["y"].shape == entry.output_shapes()["y"]
    assert samples.about["launch"] == "enqueue"
    assert not [name for name in gpu.names() if "Graph" in name or "Capture" in name]
    engine.close()
