"""Export: the file computes what the network does, says what it is, and is refused where it does not."""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from safetensors.torch import save_file
from torch import nn

import hwnas.export
from hwnas.data import ClassList, SegmentationData, Synthetic
from hwnas.errors import HwnasError
from hwnas.export import export, load_weights
from hwnas.files import sha256
from hwnas.images import normalise
from hwnas.ops.onnx_graph import (
    OPSET,
    OpExporter,
    export_network,
    export_op,
    factor,
    has_weights,
    stand_in,
    stitch,
)
from hwnas.ops.registry import OpSpec
from hwnas.ops.trace import Trace, trace
from hwnas.problem import Architecture
from hwnas.runtime.cuda.kernels import upsample, upsample_argmax
from hwnas.runtime.deploy.bundle import KINDS
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.engines.scopes import to_labels
from hwnas.spaces import Scale, Space, darts_space, sample, trace_space

EVEN, ODD = (32, 48), (37, 51)


def space_at(size: tuple[int, int]) -> Space:
    return darts_space(Scale(4, 3, size), 11, nodes=2, head_channels=8)


ARCHS = [sample(space_at(EVEN), np.random.default_rng(seed)) for seed in range(3)]


def trained(space: Space, arch: Architecture, seed: int = 0) -> nn.Module:
    """Return a network with weights and statistics that are not those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    network = space.build(arch, form="deploy")
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.normal_(generator=generator).div_(m.weight[0].numel() ** 0.5)
                if m.bias is not None:
                    m.bias.zero_()  # so that the image decides about the classes
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_(0, 0.3, generator=generator)
                m.running_var.uniform_(0.5, 1.5, generator=generator)
                m.bias.normal_(0, 0.3, generator=generator)
    return network.eval()


def whole_export(network: nn.Module, size: tuple[int, int]) -> bytes:
    """Return torch's own export of the network in one piece: the oracle."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 3, *size),),
            cast(Any, buffer),
            opset_version=OPSET,
            dynamo=False,
            input_names=["image"],
            output_names=["y"],
        )
    return buffer.getvalue()


def run(model: bytes | Path, image: np.ndarray) -> np.ndarray:
    """Return the one output of a model."""
    with open_onnx(model) as runner:
        (out,) = runner.run({"image": image}).values()
    return out


class TestStitched:
    @pytest.mark.parametrize(("arch", "size"), [*zip(ARCHS, (EVEN, ODD, ODD), strict=True)])
    def test_with_stand_in_weights_equals_torchs_own_export(self, arch: Architecture, size: tuple[int, int]) -> None:
        space = space_at(size)
        network = space.build(arch, form="deploy").eval()
        traced = trace(network, (1, 3, *size))
        calls: Counter[OpSpec] = Counter()
        with torch.no_grad():
            for call in traced.calls:
                call.module.load_state_dict(stand_in(call.spec).state_dict())
                for kernel in (p for p in call.module.parameters() if p.dim() > 1):
                    kernel.mul_(factor(calls[call.spec]))
                calls[call.spec] += 1
        image = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
        got = run(OpExporter().network(traced).SerializeToString(), image)
        expected = run(whole_export(network, size), image)
        assert got.shape == expected.shape == (1, 11, *size)
        assert got.std() > 1e-3
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    def test_with_its_own_weights_equals_torchs_own_export(self) -> None:
        space = space_at(ODD)
        network = trained(space, ARCHS[0])
        image = np.random.default_rng(0).standard_normal((1, 3, *ODD)).astype(np.float32)
        got = run(export_network(trace(network, (1, 3, *ODD)), "scores", {}).SerializeToString(), image)
        expected = run(whole_export(network, ODD), image)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    def test_stand_in_weights_are_the_same_every_time(self) -> None:
        spec = trace_space(space_at(EVEN), ARCHS[0]).calls[0].spec
        states = []
        for seed in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                states.append(stand_in(spec).state_dict())
        assert states[0]["conv.weight"].std() > 0.05
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())

    def test_no_two_calls_have_the_same_weights(self) -> None:
        """An engine that compares constants would compute calls of the same input and weights once."""
        traced = trace_space(space_at(EVEN), ARCHS[0])
        repeated = {s for s, n in Counter(c.spec for c in traced.calls if has_weights(c.module)).items() if n > 1}
        assert repeated
        kernels = [
            t.raw_data for t in OpExporter().network(traced).graph.initializer if len(t.dims) > 1 and t.data_type == 1
        ]
        assert len(set(kernels)) == len(kernels) > len(traced.calls) / 4

    def test_each_unique_op_is_exported_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[object] = []

        def spy(op: Any, in_shapes: Any) -> ModelProto:
            seen.append(op.spec(in_shapes))
            return export_op(op, in_shapes)

        monkeypatch.setattr("hwnas.ops.onnx_graph.export_op", spy)
        exporter = OpExporter()
        traces = [trace_space(space_at(EVEN), a) for a in ARCHS]
        for traced in traces:
            exporter.network(traced)
        assert len(seen) == len(set(seen))
        assert set(seen) == {c.spec for t in traces for c in t.calls}

    def test_names_of_nodes_tell_the_module(self) -> None:
        traced = trace_space(space_at(EVEN), ARCHS[0])
        model = OpExporter().network(traced)
        names = [n.name for n in model.graph.node]
        assert len(set(names)) == len(names)
        modules = {c.name for c in traced.calls}
        assert {n.partition("#")[0] for n in names} == modules
        assert any(m.startswith("cells.0.edges.") for m in modules)

    def test_a_network_with_open_decisions_has_no_graph(self) -> None:
        with pytest.raises(AssertionError, match="open decisions"):
            stitch(trace_space(space_at(EVEN)), [])


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("val", EVEN, length=2)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(trained(space_at(EVEN), ARCHS[0]).state_dict(), path)
    return path


class TestExport:
    @pytest.mark.parametrize("size", [EVEN, ODD])
    @pytest.mark.parametrize("kind", ["labels", "logits"])
    def test_the_file_computes_what_the_network_does(self, tmp_path: Path, size: tuple[int, int], kind: str) -> None:
        space, images = space_at(size), Synthetic("val", size, length=2)
        network = trained(space, ARCHS[1])
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        path = tmp_path / "deploy" / "model.onnx"
        traced, facts = export(space, ARCHS[1], tmp_path / "w.safetensors", images, path, kind)
        image = normalise(images[1].image, images.mean, images.std)[None]  # not the one it was compared on
        with torch.no_grad():
            scores = network(torch.from_numpy(image)).numpy()
        got = run(path, image)
        if kind == "labels":
            assert got.dtype == np.uint8
            assert got.shape == (1, *size)
            top = np.sort(scores, axis=1)
            sure = top[:, -1] - top[:, -2] > 1e-4 * np.abs(scores).max()
            assert sure.mean() > 0.95
            assert np.array_equal(got[sure], scores.argmax(1)[sure])
            assert len(np.unique(got)) > 1
            assert facts["parity"]["label_ties"] <= 0.05 * got.size
        else:
            assert got.dtype == np.float32
            assert got.shape == (1, 11, *size)
            np.testing.assert_allclose(got, scores, atol=1e-4 * np.abs(scores).max())
            assert "label_ties" not in facts["parity"]
        assert traced.calls[-1].spec.kind == ("argmax" if kind == "labels" else "resize")
        assert (facts["shape"], facts["dtype"]) == (got.shape, str(got.dtype))
        assert 0 <= facts["parity"]["score_error"] <= 1e-4
        content = path.read_bytes()
        assert (facts["bytes"], facts["sha256"]) == (len(content), sha256(content))

    @pytest.mark.parametrize("size", [EVEN, ODD])
    def test_scores_are_those_before_the_network_upsamples_them(self, tmp_path: Path, size: tuple[int, int]) -> None:
        space, images = space_at(size), Synthetic("val", size, length=2)
        network = trained(space, ARCHS[1])
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        path = tmp_path / "model.onnx"
        traced, facts = export(space, ARCHS[1], tmp_path / "w.safetensors", images, path, "scores")
        image = normalise(images[1].image, images.mean, images.std)[None]
        with torch.no_grad():
            logits = network(torch.from_numpy(image)).numpy()
        got = run(path, image)
        reduced = (1, 11, *(-(-n // 8) for n in size))
        assert facts["shape"] == got.shape == reduced
        np.testing.assert_allclose(upsample(got, size), logits, atol=1e-4 * np.abs(logits).max())
        top = np.sort(logits, axis=1)
        sure = top[:, -1] - top[:, -2] > 1e-4 * np.abs(logits).max()
        assert np.array_equal(upsample_argmax(got, size)[sure], logits.argmax(1)[sure])
        assert traced.calls[-1].spec.kind == "add"
        assert facts["parity"].keys() == {"score_error", "label_ties"}

    @pytest.mark.parametrize("kind", KINDS)
    def test_in_float16_labels_are_almost_those_of_the_network(
        self, data: SegmentationData, weights: Path, tmp_path: Path, kind: str
    ) -> None:
        path = tmp_path / "model.onnx"
        _, facts = export(space_at(EVEN), ARCHS[0], weights, data, path, kind, "fp16")
        model = onnx.load(path)
        assert {t.data_type for t in model.graph.initializer if len(t.dims) > 1} == {onnx.TensorProto.FLOAT16}
        assert "hwnas.classes" in {p.key for p in model.metadata_props}
        assert [o.name for o in model.graph.output] == [kind]
        assert facts["dtype"] == ("uint8" if kind == "labels" else "float32")
        image = normalise(data[0].image, data.mean, data.std)[None]
        with torch.no_grad():
            expected = trained(space_at(EVEN), ARCHS[0])(torch.from_numpy(image)).numpy().argmax(1)
        assert facts["parity"] == {"label_difference": (to_labels(run(path, image), EVEN) != expected).mean()}
        assert facts["parity"]["label_difference"] <= 0.01

    def test_float16_that_changes_labels_is_refused(
        self, data: SegmentationData, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def other(model: ModelProto) -> ModelProto:
            stranger = space_at(EVEN).build(ARCHS[0], form="deploy", labels=True)
            stranger.load_state_dict(trained(space_at(EVEN), ARCHS[0], seed=1).state_dict())
            return export_network(trace(stranger.eval(), (1, 3, *EVEN)), "labels", {})

        monkeypatch.setattr(hwnas.export, "to_half", other)
        with pytest.raises(HwnasError, match=r"in float16 \d.*% of the labels differ .* more than 1%; export .* fp32"):
            export(space_at(EVEN), ARCHS[0], weights, data, tmp_path / "model.onnx", "labels", "fp16")
        assert not (tmp_path / "model.onnx").exists()

    @pytest.mark.parametrize("output", KINDS)
    def test_the_file_says_what_it_is(self, data: SegmentationData, weights: Path, tmp_path: Path, output: str) -> None:
        path = tmp_path / "model.onnx"
        _, facts = export(space_at(EVEN), ARCHS[0], weights, data, path, output)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        said = {p.key: json.loads(p.value) for p in model.metadata_props}
        assert Architecture.from_json(said["hwnas.architecture"]) == ARCHS[0]
        assert said["hwnas.classes"] == list(data.classes.names)
        assert said["hwnas.palette"] == [list(c) for c in data.classes.palette]
        assert said["hwnas.mean"] == list(data.mean)
        assert said["hwnas.std"] == list(data.std)
        assert [i.name for i in model.graph.input] == ["image"]
        assert [o.name for o in model.graph.output] == [output]
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        assert facts["opset"] == 17

    def test_the_same_weights_give_the_same_bytes(self, data: SegmentationData, weights: Path, tmp_path: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            export(space_at(EVEN), ARCHS[0], weights, data, tmp_path / name, "logits")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_file_that_computes_other_scores_is_refused(
        self, data: SegmentationData, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        def other(traced: Trace, output: str, metadata: Mapping[str, str]) -> ModelProto:
            stranger = trained(space_at(EVEN), ARCHS[0], seed=1)
            return export_network(trace(stranger, traced.input_shape), output, metadata)

        monkeypatch.setattr(hwnas.export, "export_network", other)
        with pytest.raises(HwnasError, match=r"scores differ from the network's by .* of the largest; do not use it"):
            export(space_at(EVEN), ARCHS[0], weights, data, tmp_path / "model.onnx", kind)
        assert not (tmp_path / "model.onnx").exists()

    def test_a_file_that_computes_other_labels_is_refused(
        self, data: SegmentationData, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Scores are right; what ends in labels is another network."""

        def other(traced: Trace, output: str, metadata: Mapping[str, str]) -> ModelProto:
            if output == "labels":
                stranger = space_at(EVEN).build(ARCHS[0], form="deploy", labels=True)
                stranger.load_state_dict(trained(space_at(EVEN), ARCHS[0], seed=1).state_dict())
                traced = trace(stranger.eval(), traced.input_shape)
            return export_network(traced, output, metadata)

        monkeypatch.setattr(hwnas.export, "export_network", other)
        with pytest.raises(HwnasError, match=r"labels differ from the network's in \d+ pixels; do not use it"):
            export(space_at(EVEN), ARCHS[0], weights, data, tmp_path / "model.onnx")
        assert not (tmp_path / "model.onnx").exists()

    @pytest.mark.parametrize(("seed", "match"), [(1, "scores differ"), (None, r"labels differ .* in \d+ pixels")])
    def test_low_scores_of_another_network_are_refused(
        self,
        data: SegmentationData,
        weights: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        seed: int | None,
        match: str,
    ) -> None:
        """The logits are right; the scores before them are another network's, or are not what is upsampled."""

        def other(traced: Trace, output: str, metadata: Mapping[str, str]) -> ModelProto:
            if output == "scores" and seed is not None:
                stranger = trained(space_at(EVEN), ARCHS[0], seed=seed)
                traced = trace(stranger, traced.input_shape).before_last()
            return export_network(traced, output, metadata)

        monkeypatch.setattr(hwnas.export, "export_network", other)
        if seed is None:
            monkeypatch.setattr(hwnas.export, "to_labels", lambda out, size: 0 * to_labels(out, size) + 200)
        with pytest.raises(HwnasError, match=match):
            export(space_at(EVEN), ARCHS[0], weights, data, tmp_path / "model.onnx", "scores")
        assert not (tmp_path / "model.onnx").exists()

    def test_a_network_of_nan_is_refused(self, data: SegmentationData, tmp_path: Path) -> None:
        network = trained(space_at(EVEN), ARCHS[0])
        with torch.no_grad():
            next(network.parameters()).fill_(float("nan"))
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        with pytest.raises(HwnasError, match="scores differ from the network's by nan"):
            export(space_at(EVEN), ARCHS[0], tmp_path / "w.safetensors", data, tmp_path / "model.onnx")

    def test_images_of_another_size_are_refused(self, weights: Path, tmp_path: Path) -> None:
        images = Synthetic("val", ODD, length=1)
        with pytest.raises(HwnasError, match="takes the inputs"):
            export(space_at(EVEN), ARCHS[0], weights, images, tmp_path / "model.onnx")


class TestWeights:
    def test_damaged_weights_are_refused(self, weights: Path) -> None:
        network = space_at(EVEN).build(ARCHS[0], form="deploy")
        content = weights.read_bytes()
        for bad in (b"", b"not weights", content[:-1], content[: len(content) // 2], b"\xff" + content[1:]):
            weights.write_bytes(bad)
            with pytest.raises(
                HwnasError, match=r"model\.safetensors (is not a file of|has other) weights.*train it again"
            ):
                load_weights(network, weights)

    @pytest.mark.parametrize("change", ["architecture", "width", "one missing", "one too many"])
    def test_weights_of_another_network_are_refused(self, weights: Path, change: str) -> None:
        space, arch = space_at(EVEN), ARCHS[0]
        state = trained(space, arch).state_dict()
        if change == "architecture":
            arch = ARCHS[1]
        elif change == "width":
            space = space.at(replace(space.scale, channels=6))
        elif change == "one missing":
            state.popitem()
        else:
            state["stranger"] = torch.zeros(1)
        save_file(state, weights)
        with pytest.raises(HwnasError, match=r"model\.safetensors does not hold weights of this network"):
            load_weights(space.build(arch, form="deploy"), weights)

    def test_missing_weights_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(HwnasError, match=r"cannot read weights at .*none\.safetensors: there is no such file"):
            load_weights(space_at(EVEN).build(ARCHS[0], form="deploy"), tmp_path / "none.safetensors")


def test_more_classes_than_a_byte_has_values_are_refused(tmp_path: Path) -> None:
    class Many(Synthetic):
        classes = ClassList(tuple(map(str, range(257))), ((0, 0, 0),) * 257)

    with pytest.raises(HwnasError, match="has 257 classes, and labels that ship are bytes, at most 256"):
        export(space_at(EVEN), ARCHS[0], tmp_path / "none", Many("val", EVEN), tmp_path / "model.onnx")
