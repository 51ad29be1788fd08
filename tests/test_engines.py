"""Every engine under the engine contract, with every op of the registry."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from hwnas.errors import HwnasError, MissingExtra
from hwnas.files import sha256
from hwnas.ops import OpSpec, registered_ops
from hwnas.ops.onnx_graph import OpExporter, has_weights
from hwnas.profile import trace_entry
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.base import Engine
from hwnas.runtime.measuring.plan import Entry
from hwnas.spaces import Scale, darts_space, sample, trace_space
from tests.conftest import run
from tests.contracts import EngineContract

X = (1, 8, 13, 18)
# One small case per op; an op without one fails the test below.
CASES = {
    "relu": OpSpec("relu", (), (X,)),
    "conv_bn": OpSpec("conv_bn", (("c_in", 8), ("c_out", 6), ("kernel", 3), ("relu", True), ("stride", 2)), (X,)),
    "sep_conv": OpSpec("sep_conv", (("c", 8), ("kernel", 5), ("stride", 2)), (X,)),
    "dil_conv": OpSpec("dil_conv", (("c", 8), ("kernel", 3), ("stride", 1)), (X,)),
    "separable_conv": OpSpec(
        "separable_conv",
        (("c_in", 8), ("c_out", 6), ("dilation", 2), ("kernel", 3), ("relu", True), ("stride", 2)),
        (X,),
    ),
    "atrous_conv": OpSpec("atrous_conv", (("c_in", 8), ("c_out", 6), ("dilation", 2), ("kernel", 3)), (X,)),
    "conv_bn_relu6": OpSpec(
        "conv_bn_relu6", (("c_in", 8), ("c_out", 6), ("kernel", 3), ("same", True), ("stride", 2)), (X,)
    ),
    "inverted_residual": OpSpec(
        "inverted_residual", (("c_in", 8), ("c_out", 6), ("kernel", 5), ("same", True), ("stride", 2)), (X,)
    ),
    "factorized_reduce": OpSpec("factorized_reduce", (("c_in", 8), ("c_out", 7)), (X, (1, 8, 13, 17))),
    "shift": OpSpec("shift", (), (X,)),
    "max_pool": OpSpec("max_pool", (("stride", 2),), (X,)),
    "avg_pool": OpSpec("avg_pool", (("stride", 1),), (X,)),
    "batch_norm": OpSpec("batch_norm", (("c", 8),), (X,)),
    "add": OpSpec("add", (("after_conv", True),), (X, X)),
    "concat": OpSpec("concat", (), (X, (1, 4, 13, 18), X)),
    "resize": OpSpec("resize", (("height", 29), ("width", 35)), (X,)),
    "context": OpSpec("context", (("c_in", 8), ("c_out", 5)), (X,)),
    "classifier": OpSpec("classifier", (("c_in", 8), ("classes", 11)), (X,)),
    "image_pooling": OpSpec("image_pooling", (("c_in", 8), ("c_out", 5)), (X,)),
    "grid_pool": OpSpec("grid_pool", (("grid", 4), ("height", 13), ("width", 18)), (X,)),
    "global_pool": OpSpec("global_pool", (), (X,)),
    "linear": OpSpec("linear", (("c_in", 8), ("c_out", 10)), ((1, 8),)),
    "argmax": OpSpec("argmax", (), (X,)),
    "conv": OpSpec(
        "conv",
        (
            ("act", "prelu"),
            ("bias", True),
            ("c_in", 8),
            ("c_out", 16),
            ("dilation", 2),
            ("groups", 4),
            ("kernel", 3),
            ("stride", 2),
        ),
        (X,),
    ),
    "norm_act": OpSpec("norm_act", (("act", "prelu"), ("c", 8)), (X,)),
    "mean_conv": OpSpec("mean_conv", (("before", "bn_relu"), ("c_in", 8), ("c_out", 5)), (X,)),
    "pool": OpSpec("pool", (("kernel", 17), ("stride", 8)), (X,)),
    "nearest": OpSpec("nearest", (("height", 29), ("width", 35)), (X,)),
    "channel_slice": OpSpec("channel_slice", (("start", 2), ("stop", 7)), (X,)),
    "sigmoid": OpSpec("sigmoid", (), (X,)),
    "gate": OpSpec("gate", (), (X, X)),
    "weighted_add": OpSpec("weighted_add", (("complement", True),), (X, X, X)),
    "pixel_attention": OpSpec("pixel_attention", (), (X, X, (1, 4, 13, 18), (1, 4, 13, 18))),
    "channel_attention": OpSpec("channel_attention", (("c", 8), ("residual", True), ("squeeze", 3)), (X,)),
    "atrous_separable": OpSpec(
        "atrous_separable", (("c_in", 8), ("c_out", 6), ("rate_height", 6), ("rate_width", 21)), (X,)
    ),
    "window_pool": OpSpec("window_pool", (("height", 7), ("width", 9)), (X,)),
    "partition_attention": OpSpec("partition_attention", (("c", 8), ("reduction", 4)), (X,)),
}


def test_every_op_has_a_case() -> None:
    assert CASES.keys() == registered_ops().keys()


@pytest.fixture(params=sorted(CASES))
def op_case(request: pytest.FixtureRequest) -> OpSpec:
    return CASES[request.param]


class TestOnnxRuntime(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("onnxruntime")


class TestOpenVino(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("openvino")

    def refused(self, engine: Engine, entry: Entry, folder: Path, match: str) -> None:
        with pytest.raises(HwnasError, match=match) as refusal:
            engine.load(entry, folder).__enter__()
        assert "op.onnx" in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_provenance_names_the_properties(self, engine: Engine) -> None:
        about = engine.provenance()
        assert about["precision"] == "fp32"
        options = about["options"]
        assert isinstance(options, dict)
        assert options["INFERENCE_PRECISION_HINT"] == "f32"
        assert (options["INFERENCE_NUM_THREADS"], options["NUM_STREAMS"]) == (1, 1)

    def test_the_clock_of_one_thread_sees_all_the_work(self, engine: Engine, tmp_path: Path) -> None:
        attrs = (("c_in", 64), ("c_out", 64), ("kernel", 3))
        entry, _ = self.entry(engine, OpSpec("conv_bn", attrs, ((1, 64, 48, 64),)), tmp_path)
        with engine.load(entry, tmp_path) as runner:
            runner.time(3)
            start_ns = time.process_time_ns()
            seen_ms = runner.time(30).latency_ms.sum()
            assert seen_ms > 0.8 * (time.process_time_ns() - start_ns) / 1e6
        assert engine.clock == "thread_cpu"
        assert open_engine("openvino", threads=2).clock == "wall"

    def test_another_precision_is_refused(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ov = sys.modules["openvino"]
        real = ov.CompiledModel.get_property

        def get_property(self: Any, name: str) -> Any:
            return ov.Type.bf16 if name == "INFERENCE_PRECISION_HINT" else real(self, name)

        monkeypatch.setattr(ov.CompiledModel, "get_property", get_property)
        entry, _ = self.entry(engine, CASES["relu"], tmp_path)
        self.refused(engine, entry, tmp_path, "with INFERENCE_PRECISION_HINT bf16, it was asked for f32; use another")

    def test_fewer_threads_than_asked_for_are_refused(self, engine: Engine, tmp_path: Path) -> None:
        entry, _ = self.entry(engine, CASES["relu"], tmp_path)
        many = (os.cpu_count() or 1) + 1
        match = rf"with INFERENCE_NUM_THREADS \d+, it was asked for {many}; ask for \d+ threads"
        self.refused(open_engine("openvino", threads=many), entry, tmp_path, match)

    def test_equal_pools_are_merged(self, engine: Engine) -> None:
        pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes = [helper.make_node("MaxPool", ["x"], [f"p{i}"], **pool) for i in range(3)]
        nodes.append(helper.make_node("Concat", ["p0", "p1", "p2"], ["y"], axis=1))
        core = sys.modules["openvino"].Core()
        compiled = core.compile_model(core.read_model(graph(nodes, (1, 4, 8, 8), (1, 12, 8, 8))), "CPU")
        kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
        assert kinds.count("Pooling") == 1
        assert engine.capabilities.merges

    def test_a_run_leaves_earlier_results_alone(self, engine: Engine, tmp_path: Path) -> None:
        entry, _ = self.entry(engine, CASES["relu"], tmp_path)
        with engine.load(entry, tmp_path) as runner:
            ones = runner.run({"x0": np.ones(X, np.float32)})["y"]
            runner.time(2)
            assert (runner.run({"x0": np.full(X, 2, np.float32)})["y"] == 2).all()
            assert (ones == 1).all()

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"not a model", "openvino cannot run op.onnx: .*Unable to read the model"),
            (b"", "openvino cannot run op.onnx: "),
            ("Nope", "openvino cannot run op.onnx: .*No conversion rule found for operations: none.Nope"),
            (
                "dynamic",
                r"op.onnx has the inputs {'x0': 'f32\[\?,8,13,18\]'}, the plan says {'x0': 'f32\[1,8,13,18\]'}",
            ),
            ("integers", r"op.onnx has the inputs {'x0': 'i64\[1,8,13,18\]'}, the plan says"),
            ("renamed", r"op.onnx has the inputs {'x': 'f32\[1,8,13,18\]'}, the plan says"),
        ],
    )
    def test_errors_name_the_file(self, engine: Engine, tmp_path: Path, content: bytes | str, match: str) -> None:
        entry, _ = self.entry(engine, CASES["relu"], tmp_path)
        if isinstance(content, str):
            relu = helper.make_node("Relu", ["x0"], ["y"])
            content = {
                "Nope": lambda: graph([helper.make_node("Nope", ["x0"], ["y"], domain="none")], X, X, "x0"),
                "dynamic": lambda: graph([relu], ("n", *X[1:]), ("n", *X[1:]), "x0"),
                "integers": lambda: graph([helper.make_node("Abs", ["x0"], ["y"])], X, X, "x0", TensorProto.INT64),
                "renamed": lambda: graph([helper.make_node("Relu", ["x"], ["y"])], X, X),
            }[content]()
        (tmp_path / "op.onnx").write_bytes(content)
        self.refused(engine, replace(entry, sha256=sha256(content)), tmp_path, match)

    def test_an_output_that_is_not_there_is_named(self, engine: Engine, tmp_path: Path) -> None:
        entry, _ = self.entry(engine, CASES["relu"], tmp_path)
        with (
            engine.load(replace(entry, outputs=("z",)), tmp_path) as runner,
            pytest.raises(HwnasError, match=r"openvino cannot run op\.onnx: .*z"),
        ):
            runner.run({"x0": np.zeros(X, np.float32)})

    def test_without_the_package_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(MissingExtra, match=r"openvino is not installed; run: pip install 'hwnas\[openvino\]'"):
            open_engine("openvino")

    def test_opening_sends_and_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # where these are set, OpenVINO sends nothing by itself
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        code = (
            "import sys, threading; from hwnas.runtime.engines import open_engine; open_engine('openvino');"
            "assert threading.active_count() == 1, threading.enumerate();"
            "assert not [m for m in sys.modules if m.startswith('openvino_telemetry')]"
        )
        run(sys.executable, "-W", "error", "-c", code, cwd=Path(__file__).parents[1])
        assert list(tmp_path.iterdir()) == []


def graph(
    nodes: list[Any],
    shape: tuple[int | str, ...],
    out_shape: tuple[int | str, ...],
    name: str = "x",
    kind: int = TensorProto.FLOAT,
) -> bytes:
    """Return a model from one input to the output y."""
    ends = [helper.make_tensor_value_info(n, kind, s) for n, s in ((name, shape), ("y", out_shape))]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("none", 1)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString())


class TestTorch(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("torch")

    def test_a_network_computes_what_its_file_does(self, engine: Engine, tmp_path: Path) -> None:
        """Also where it calls the same op again, with other weights."""
        space = darts_space(Scale(4, 3, (24, 32)), 5, nodes=2, head="classification")
        traced = trace_space(space, sample(space, np.random.default_rng(0)), labels=False)
        assert max(Counter(c.spec for c in traced.calls if has_weights(c.module)).values()) > 1
        content = OpExporter().network(traced).SerializeToString()
        (tmp_path / "net.onnx").write_bytes(content)
        entry = trace_entry("net", "net", traced, "net.onnx", sha256(content))
        inputs = {k: np.random.default_rng(0).standard_normal(s, np.float32) for k, s in entry.inputs.items()}
        with engine.load(entry, tmp_path) as torch, open_engine("onnxruntime").load(entry, tmp_path) as ort:
            got, expected = torch.run(inputs), ort.run(inputs)
        assert got.keys() == expected.keys()
        for name, scores in expected.items():
            assert scores.dtype == np.float32
            np.testing.assert_allclose(got[name], scores, rtol=1e-4, atol=1e-5)


class TestFake(EngineContract):
    COMPUTES = False

    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("fake")
