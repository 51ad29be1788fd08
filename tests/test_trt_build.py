"""Building engines: for GPUs that are not here, with errors that say which op it was, in a child that may die."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from hwnas.errors import BuildError, HwnasError, MissingExtra
from hwnas.ops.onnx_graph import IR_VERSION, OPSET, OpExporter
from hwnas.ops.precision import to_half
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.engines.trt_build import Builder, BuildOptions
from hwnas.spaces import FPNHead, Lite, Scale, Space, darts_space, sample, trace_space
from tests.conftest import run

TARGETS = ((7, 5), (8, 6), (8, 9), (12, 0))
SPACES = {
    "segmentation": darts_space(Scale(16, 6, (96, 128)), 11),
    "cifar": darts_space(Scale(16, 8, (32, 32)), 10, "cifar", "classification"),
    "imagenet": darts_space(Scale(16, 6, (64, 64)), 20, "imagenet", "classification"),
}


# Padded unevenly, with ReLU up to 6.
PUBLISHED = Space(Lite(Scale(32, 7, (96, 128))), FPNHead(32, separable=True), 11)


def network(space: Space, seed: int = 0) -> ModelProto:
    return OpExporter().network(trace_space(space, sample(space, np.random.default_rng(seed))))


def saved(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    with Builder() as made:
        yield made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", SPACES)
def test_derived_networks_build_for_each_gpu(
    name: str, half: bool, target: tuple[int, int], tmp_path: Path, builder: Builder
) -> None:
    model = network(SPACES[name])
    path, options = saved(to_half(model) if half else model, tmp_path / "m.onnx"), BuildOptions(targets=(target,))
    out, told = tmp_path / "e.engine", []
    if SPACES[name].task == "classification" and not half and target == (7, 5):
        with pytest.raises(BuildError, match=r"head\.linear#\d+/Gemm_0.* FP32 GEMM is not supported"):
            builder.build(path, out, options)  # what TensorRT-RTX cannot do for Turing
        return
    builder.build(path, out, options, lambda phase, done, total: told.append((phase, done, total)))
    assert out.stat().st_size > 100_000
    assert all(0 <= done <= total for _, done, total in told)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("target", [pytest.param(t, marks=pytest.mark.slow if t != (8, 9) else ()) for t in TARGETS])
def test_a_published_encoder_builds_for_each_gpu(
    half: bool, target: tuple[int, int], tmp_path: Path, builder: Builder
) -> None:
    model = network(PUBLISHED)
    path = saved(to_half(model) if half else model, tmp_path / "m.onnx")
    builder.build(path, tmp_path / "e.engine", BuildOptions(targets=(target,)))
    assert (tmp_path / "e.engine").stat().st_size > 1_000_000


@pytest.mark.slow
def test_networks_of_paper_scale_build_for_each_gpu(tmp_path: Path) -> None:
    """All of them but float32 networks with a linear layer for Turing, which TensorRT-RTX does not know."""
    script = Path(__file__).resolve().parents[1] / "scripts/bench/rtx_builds.py"
    done = run(sys.executable, script, "--scale", "paper", cwd=tmp_path)
    found = json.loads(done.splitlines()[-1])
    refused = {(b["space"], b["precision"], b["sm"]): b["reason"] for b in found["builds"] if b["reason"]}
    assert refused.keys() == {("cifar", "fp32", 75), ("imagenet", "fp32", 75)}
    assert all("FP32 GEMM is not supported" in reason for reason in refused.values())
    assert (found["built"], found["of"]) == (22, 24)


class TestBuilder:
    """One process for many builds."""

    def test_it_goes_on_after_a_refusal_and_after_a_death(self, tmp_path: Path) -> None:
        model = saved(network(SPACES["cifar"]), tmp_path / "m.onnx")
        (tmp_path / "bad.onnx").write_text("no model")
        options = BuildOptions(targets=((8, 9),))
        with Builder() as builder:
            builder.build(model, tmp_path / "1.engine", options)
            first = builder._running()[0].pid
            with pytest.raises(BuildError, match="cannot read"):
                builder.build(tmp_path / "bad.onnx", tmp_path / "2.engine", options)
            builder.build(model, tmp_path / "3.engine", options)
            assert builder._running()[0].pid == first
            os.kill(first, signal.SIGKILL)
            with pytest.raises(BuildError, match=r"died while it built .*m\.onnx \(signal 9\)"):
                builder.build(model, tmp_path / "4.engine", options)
            builder.build(model, tmp_path / "5.engine", options)
        assert sorted(p.name for p in tmp_path.glob("*.engine")) == ["1.engine", "3.engine", "5.engine"]

    def test_what_is_refused_leaves_the_smallest_part_that_is(self, tmp_path: Path) -> None:
        """A float32 matrix product for Turing, out of a network of which all else could be built."""
        model, out = saved(network(SPACES["cifar"]), tmp_path / "m.onnx"), tmp_path / "m.engine"
        match = (
            r"FP32 GEMM is not supported.*; the smallest part that fails too is head\.linear, in .*m\.failing\.onnx$"
        )
        with Builder() as builder, pytest.raises(BuildError, match=match):
            builder.build_or_reduce(model, out, BuildOptions(targets=((7, 5),)))
        part = onnx.load(tmp_path / "m.failing.onnx")
        onnx.checker.check_model(part, full_check=True)
        assert [node.op_type for node in part.graph.node] == ["Gemm"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.failing.onnx", "m.onnx"]


class TestHalf:
    @pytest.mark.parametrize("name", [*SPACES, "published"])
    def test_computes_what_the_model_does(self, name: str) -> None:
        space = SPACES.get(name, PUBLISHED)
        traced = trace_space(space, sample(space, np.random.default_rng(1)), labels=False)
        model = OpExporter().network(traced)
        image = np.random.default_rng(0).standard_normal(traced.input_shape).astype(np.float32)
        outputs = []
        for m in (model, to_half(model)):
            with open_onnx(m.SerializeToString()) as runner:
                (out,) = runner.run({"image": image}).values()
            outputs.append(out)
        expected, got = outputs
        assert got.dtype == expected.dtype == np.float32
        assert 0 < np.abs(got - expected).max() < 0.02 * np.abs(expected).max()

    def test_inputs_outputs_and_names_stay(self) -> None:
        model = network(SPACES["segmentation"])
        half = to_half(model)
        assert half.graph.input == model.graph.input
        assert half.graph.output == model.graph.output
        assert {n.name for n in model.graph.node} < {n.name for n in half.graph.node}
        kinds = {t.data_type for t in half.graph.initializer if len(t.dims) > 1}
        assert kinds == {TensorProto.FLOAT16}
        assert len(half.SerializeToString()) < 0.6 * len(model.SerializeToString())
        assert model == network(SPACES["segmentation"])  # the one that was given is not changed

    def test_a_weight_that_does_not_fit_is_refused(self) -> None:
        model = network(SPACES["cifar"])
        kernel = next(t for t in model.graph.initializer if len(t.dims) > 1)
        values = onnx.numpy_helper.to_array(kernel).copy()
        values.flat[0] = 1e5
        kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
        with pytest.raises(HwnasError, match=re.escape(kernel.name) + " has the weight 1e\\+05, float16 ends at 65504"):
            to_half(model)


class TestRefused:
    def refuse(
        self, model: Path, folder: Path, match: str, kind: type[HwnasError] = BuildError, **more: object
    ) -> None:
        out = folder / "e.engine"
        options = BuildOptions(**{"targets": ((8, 9),), **more})  # type: ignore[arg-type]
        with Builder() as builder, pytest.raises(kind, match=match):
            builder.build(model, out, options)
        assert not out.exists()

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return saved(network(SPACES["cifar"]), tmp_path / "m.onnx")

    def test_an_op_the_engine_does_not_know_is_named_with_ours(self, tmp_path: Path) -> None:
        node = helper.make_node("Det", ["x"], ["y"], name="cells.1.edges.0-2.ops.odd#7/Det_0")
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 4, 8, 8]), ("y", [1, 4])))
        graph = helper.make_graph([node], "g", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        match = r"cannot read .*m\.onnx: node cells.1.edges.0-2.ops.odd#7/Det_0 \(Det\) of cells.1.edges.0-2.ops.odd: "
        self.refuse(saved(model, tmp_path / "m.onnx"), tmp_path, match)

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_text("no model")
        self.refuse(tmp_path / "m.onnx", tmp_path, r"tensorrt_rtx \d.* cannot read .*: .*[Ff]ailed to parse")
        self.refuse(tmp_path / "none.onnx", tmp_path, "there is no model .*none.onnx", HwnasError)

    def test_a_gpu_it_does_not_build_for(self, model: Path, tmp_path: Path) -> None:
        match = "tensorrt_rtx builds for SM120, .*SM89, got SM61"
        self.refuse(model, tmp_path, match, HwnasError, targets=((8, 9), (6, 1)))

    def test_a_package_that_is_not_there(self, model: Path, tmp_path: Path) -> None:
        self.refuse(model, tmp_path, r"pip install 'hwnas\[tensorrt\]'", MissingExtra, flavour="tensorrt")

    def test_a_builder_that_hangs(self, model: Path, tmp_path: Path) -> None:
        self.refuse(model, tmp_path, r"did not build .*m.onnx in 0\.05 s; it was ended", timeout_s=0.05)

    @pytest.mark.parametrize(
        ("does", "match"),
        [
            ("import os; os.abort()", r"died while it built .*m\.onnx \(signal 6\)"),
            ("import os; os._exit(3)", r"\(exit code 3\)"),
            ("print('words'); raise SystemExit(4)", r"\(exit code 4\); it was given 500 MiB; its last words: words"),
            ("x = bytearray(1 << 30)", "takes more than 500 MiB to build"),
        ],
    )
    def test_a_builder_that_dies(
        self, does: str, match: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "fakes").mkdir()
        (tmp_path / "fakes" / "tensorrt.py").write_text(does)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
        self.refuse(model, tmp_path, match, flavour="tensorrt", memory_mib=500)

    @pytest.mark.parametrize(
        ("more", "match"),
        [
            ({"flavour": "tensorflow"}, "expected one of tensorrt, tensorrt_rtx"),
            ({"timeout_s": 0.0}, "must be positive"),
        ],
    )
    def test_options_that_cannot_work(self, more: dict[str, object], match: str) -> None:
        with pytest.raises(HwnasError, match=match):
            BuildOptions(**more)  # type: ignore[arg-type]
