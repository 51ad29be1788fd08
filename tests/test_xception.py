"""DeepLabv3+ on Xception: figures of the papers and of an independent count, shapes, traces and exports."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from hwnas.data.synthetic import Synthetic
from hwnas.errors import HwnasError
from hwnas.export import export
from hwnas.latency import LatencyModel
from hwnas.ops.trace import Trace, trace
from hwnas.problem import Architecture
from hwnas.profile import Calibration, build_table, make_plan
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.work import measure_plan
from hwnas.spaces import Scale, Space, SpaceNet, Xception, check, sample, trace_space, xception_space
from hwnas.spaces.encoders.xception import ENTRY_65, ENTRY_71, Entry, XceptionNet

from .contracts import NetworkContract, _stir, roofline_table

CITYSCAPES, VOC = (1025, 2049), (513, 513)
SMALL = xception_space(Scale(2, 2, (65, 97)), 5, head_channels=8)


def paper(entry: Entry, stride: int, size: tuple[int, int] = CITYSCAPES, classes: int = 19) -> Space:
    return xception_space(Scale(32, 16, size), classes, entry, stride)


@cache
def traced(space: Space) -> tuple[SpaceNet, Trace]:
    with torch.device("meta"):
        net = space.build(form="deploy").eval()
    assert isinstance(net, SpaceNet)
    return net, trace(net, (1, 3, *space.scale.size))


def encoder_of(space: Space) -> Xception:
    """Return the encoder of a space."""
    assert isinstance(space.encoder, Xception)
    return space.encoder


def only(space: Space) -> Architecture:
    """Return the one architecture, which answers nothing."""
    return Architecture.of(space.name, {})


def count(layers: int, stride: int, size: tuple[int, int], classes: int) -> tuple[int, float]:
    """Return parameters and multiply-adds, written down from xception.py and model.py of tensorflow/models."""
    area = {s: -(-size[0] // s) * -(-size[1] // s) for s in (2, 4, 8, 16, 32)}
    at = {s: area[min(s, stride)] for s in area}  # what is nominally at stride s
    parameters = macs = 0

    def conv(c_in: int, c_out: int, pixels: int, kernel: int = 1, bias: bool = False) -> None:
        nonlocal parameters, macs
        parameters += kernel**2 * c_in * c_out + (c_out if bias else 2 * c_out)
        macs += kernel**2 * c_in * c_out * pixels

    def separable(c_in: int, c_out: int, pixels: int) -> None:
        nonlocal parameters, macs
        parameters, macs = parameters + 9 * c_in + 2 * c_in, macs + 9 * c_in * pixels
        conv(c_in, c_out, pixels)

    def block(c_in: int, widths: tuple[int, int, int], before: int, after: int, shortcut: bool) -> None:
        a, b, c = widths
        separable(c_in, a, at[before])
        separable(a, b, at[before])
        separable(b, c, at[after])
        if shortcut:
            conv(c_in, c, at[after])

    conv(3, 32, at[2], 3)
    conv(32, 64, at[2], 3)
    block(64, (128, 128, 128), 2, 4, True)
    if layers == 71:
        block(128, (256, 256, 256), 4, 4, True)
        block(256, (256, 256, 256), 4, 8, True)
        block(256, (728, 728, 728), 8, 8, True)
        block(728, (728, 728, 728), 8, 16, True)
    else:
        block(128, (256, 256, 256), 4, 8, True)
        block(256, (728, 728, 728), 8, 16, True)
    for _ in range(16):
        block(728, (728, 728, 728), 16, 16, False)
    block(728, (728, 1024, 1024), 16, 32, True)
    block(1024, (1536, 1536, 2048), 32, 32, False)
    conv(2048, 256, 1)  # image pooling
    conv(2048, 256, at[32])
    for _ in range(3):
        separable(2048, 256, at[32])
    conv(5 * 256, 256, at[32])
    conv(256, 48, at[4])
    separable(256 + 48, 256, at[4])
    separable(256, 256, at[4])
    conv(256, classes, at[4], bias=True)
    return parameters, macs


class TestGolden:
    """Figures of the papers and of the public models."""

    @pytest.mark.parametrize(
        ("layers", "entry", "stride", "size", "classes"),
        [
            (65, ENTRY_65, 16, CITYSCAPES, 19),
            (65, ENTRY_65, 8, CITYSCAPES, 19),
            (71, ENTRY_71, 8, CITYSCAPES, 19),
            (71, ENTRY_71, 16, CITYSCAPES, 19),
            (65, ENTRY_65, 16, VOC, 21),
            (65, ENTRY_65, 8, (96, 130), 7),
        ],
    )
    def test_parameters_and_multiply_adds_are_those_of_an_independent_count(
        self, layers: int, entry: Entry, stride: int, size: tuple[int, int], classes: int
    ) -> None:
        net, found = traced(paper(entry, stride, size, classes))
        parameters, macs = count(layers, stride, size, classes)
        assert sum(p.numel() for p in net.parameters()) == parameters
        assert found.cost().macs == macs
        assert sum(block.stride > 1 for block in encoder_of(paper(entry, stride)).blocks()) == {8: 2, 16: 3}[stride]

    def test_what_auto_deeplab_is_compared_with(self) -> None:
        """Auto-DeepLab, Table 5: 43.48 M parameters and 1551.05 B multiply-adds, of DeepLabv3+ at 1025x2049.

        These parameters are those of Xception-71 to all digits; Xception-65 has 41.05 M. The multiply-adds of the graph
        are 3.8 % fewer at an output stride of 8. So are those of the paper's own networks: 320.45 B of 333.25 B for S,
        run in tensorflow/models; see `TestGolden` of the trellis.
        """
        net, found = traced(paper(ENTRY_71, 8))
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 43.48
        assert found.cost().macs == pytest.approx(1491.546e9, abs=5e5)
        assert found.cost().macs / 1551.05e9 == pytest.approx(320.450 / 333.25, abs=1e-3)

    @pytest.mark.parametrize(
        ("entry", "stride", "size", "classes", "macs"),
        [
            (ENTRY_65, 16, CITYSCAPES, 19, 418.64e9),  # xception_cityscapes_trainfine
            (ENTRY_65, 16, VOC, 21, 54.17e9),  # xception_coco_voc_trainaug
            # xception71_dpc_cityscapes, whose dense prediction cell has 6.84 B where an ASPP has 18.12 B (Chen et al.
            # 2018, Searching for Efficient Multi-Scale Architectures).
            (ENTRY_71, 16, CITYSCAPES, 19, 502.07e9 + (18.12e9 - 6.84e9)),
        ],
    )
    def test_multiply_adds_of_the_public_models(
        self, entry: Entry, stride: int, size: tuple[int, int], classes: int, macs: float
    ) -> None:
        """Of tensorflow/models, research/deeplab/g3doc/model_zoo.md; TensorFlow pads atrous convolutions."""
        assert traced(paper(entry, stride, size, classes))[1].cost().macs == pytest.approx(macs, rel=3e-3)

    @pytest.mark.parametrize(
        ("size", "scales", "classes", "macs"),
        [
            (CITYSCAPES, (0.75, 1, 1.25), 19, 8677.92e9),  # xception_cityscapes_trainfine
            (VOC, (0.5, 0.75, 1, 1.25, 1.5, 1.75), 21, 3055.35e9),  # xception_coco_voc_trainaug
        ],
    )
    def test_multiply_adds_at_stride_8_over_scales_and_flips(
        self, size: tuple[int, int], scales: tuple[float, ...], classes: int, macs: float
    ) -> None:
        """Of the same page."""
        sizes = [(int((size[0] - 1) * s + 1), int((size[1] - 1) * s + 1)) for s in scales]
        found = sum(2 * traced(paper(ENTRY_65, 8, s, classes))[1].cost().macs for s in sizes)
        assert found == pytest.approx(macs, rel=1e-3)

    def test_the_backbone_alone(self) -> None:
        """Ports to torch have some 37.8 M; to the last one by the count above."""
        net, _ = traced(paper(ENTRY_65, 16))
        assert sum(p.numel() for part in (net.stem, net.blocks) for p in part.parameters()) == 37_867_312

    def test_how_many_layers_there_are(self) -> None:
        """Two of the stem and three of each block; 41 has half the middle flow."""
        for cells, entry, layers in ((16, ENTRY_65, 65), (16, ENTRY_71, 71), (8, ENTRY_65, 41)):
            assert 2 + 3 * len(Xception(Scale(32, cells, VOC), entry).blocks()) == layers


class TestShapes:
    """What comes out where."""

    @pytest.mark.parametrize("stride", [8, 16])
    @pytest.mark.parametrize(("size", "sides"), [(513, (257, 129, 65, 33, 17)), (512, (256, 128, 64, 32, 16))])
    @pytest.mark.parametrize("entry", [ENTRY_65, ENTRY_71])
    def test_of_all_blocks(self, entry: Entry, size: int, sides: tuple[int, ...], stride: int) -> None:
        net, found = traced(paper(entry, stride, (size, size)))
        with torch.device("meta"):
            assert isinstance(net.encoder, XceptionNet)
            states, low = net.encoder.states(torch.empty(1, 3, size, size))
        of = {s: sides[i] if s <= stride else sides[(8, 16).index(stride) + 2] for i, s in enumerate((2, 4, 8, 16, 32))}
        expected = [
            (128, of[4]),
            *([(256, of[4]), (256, of[8]), (728, of[8])] if entry == ENTRY_71 else [(256, of[8])]),
        ]
        expected += 17 * [(728, of[16])] + [(1024, of[32]), (2048, of[32])]
        assert [tuple(s.shape[1:]) for s in states] == [(c, n, n) for c, n in expected]
        assert tuple(low.shape) == (1, 256, of[4], of[4])
        assert next(c for c in found.calls if c.output == found.output).out_shape == (1, 19, size, size)

    def test_dilations_start_where_the_stride_is_reached(self) -> None:
        """stack_blocks_dense of tensorflow/models: the block that is not strided keeps its rate."""
        assert [b.dilation for b in encoder_of(paper(ENTRY_65, 8)).blocks()] == [1, 1, 1] + 16 * [2] + [2, 4]
        assert [b.dilation for b in encoder_of(paper(ENTRY_65, 16)).blocks()] == [1, 1, 1] + 16 * [1] + [1, 2]
        rates = {
            c.name: dict(c.spec.attrs)["dilation"]
            for c in traced(paper(ENTRY_65, 16))[1].calls
            if "aspp.atrous" in c.name
        }
        assert list(rates.values()) == [6, 12, 18]

    def test_where_relus_are(self) -> None:
        """Before the convolutions, but in the last block after them; the low-level map and shortcuts have none."""
        made_by = {c.output: c for c in traced(SMALL)[1].calls}
        for call in made_by.values():
            before = [made_by[v].spec.kind for v in call.inputs if v in made_by]
            if call.spec.kind == "separable_conv" and call.name.startswith("blocks"):
                last = call.name.startswith("blocks.6")
                assert dict(call.spec.attrs)["relu"] is last
                assert last or before == ["relu"]
            if call.name == "head.low":
                assert before == ["separable_conv"]
            if call.name.endswith("shortcut"):
                assert "relu" not in before

    @pytest.mark.parametrize("stride", [4, 12, 64])
    def test_other_strides_are_refused(self, stride: int) -> None:
        with pytest.raises(HwnasError, match=f"8, 16, 32 was expected, got {stride}"):
            xception_space(Scale(32, 16, VOC), 19, stride=stride)


SPACES = {
    "65, odd": SMALL,
    "65, even": SMALL.at(Scale(2, 2, (64, 96))),
    "71, stride 8": xception_space(Scale(2, 1, (49, 66)), 5, ENTRY_71, 8, 8),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
class TestSpace(NetworkContract):
    """A space of one network: traced, priced, computed and exported as others are."""

    def test_it_has_one_architecture(self, space: Space) -> None:
        used: Space = space
        used.draw(Figure(), only(space), {}, {"stem": 1.0, "blocks.0": 2.0})
        arch = sample(used, np.random.default_rng(0))
        assert arch == only(space) == Architecture.from_json(arch.to_json())
        check(used, arch)
        assert hash(used.at(space.scale)) == hash(space)
        assert used.at(space.scale) == space
        with pytest.raises(HwnasError):
            check(used, Architecture.of(space.name, {"normal/0-2": "none"}))
        assert used.genotype(arch) == encoder_of(space).blocks()
        assert used.dot(arch).count("->") == len(encoder_of(space).blocks())

    def test_its_price_is_the_sum_of_its_ops(self, space: Space) -> None:
        table, calls = roofline_table(space), trace_space(space).calls
        model = LatencyModel(trace_space(space).terms(), table, space.problem)
        expected = sum(table[c.spec] for c in calls)
        assert model.predict_ms(only(space)) == pytest.approx(expected, rel=1e-12)

    def test_the_trace_is_what_runs(self, space: Space) -> None:
        net = space.build(form="deploy").eval()
        found, ran = trace(net, (1, 3, *space.scale.size), merge=False), []

        def note(module: torch.nn.Module, _: object, out: torch.Tensor) -> None:
            if hasattr(module, "kind"):
                ran.append((module.kind, tuple(out.shape)))

        hook = torch.nn.modules.module.register_module_forward_hook(note)
        try:
            with torch.no_grad():
                out = net(torch.randn(1, 3, *space.scale.size))
        finally:
            hook.remove()
        assert [(c.spec.kind, c.out_shape) for c in found.calls] == ran
        assert tuple(out.shape) == (1, space.classes, *space.scale.size)

    def test_every_weight_gets_a_gradient(self, space: Space) -> None:
        net = space.build()
        out = net(torch.randn(2, 3, *space.scale.size), {})
        (out * torch.randn_like(out)).sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_its_table_is_measured_and_prices_it(tmp_path: Path) -> None:
    """The way of `hwnas profile` and `hwnas price`; two widths are the networks that a correction needs."""
    space = SMALL.at(Scale(2, 1, (33, 49)))
    scales = [space.scale, Scale(4, 1, (33, 49))]
    make_plan(space, scales, tmp_path, Calibration(fit=1, test=1, derived=0, isolated=False))
    table = build_table(tmp_path, measure_plan(tmp_path, "fake", stop=StopRule(1, 1, 0.0)))
    for scale in scales:
        model = LatencyModel(trace_space(space.at(scale)).terms(), table, space.problem)
        net = next(n for n in table.nets if n.key.endswith(f"-c{scale.channels}"))
        assert model.predict_ms(only(space)) == pytest.approx(net.latency_ms, rel=0.02)
        assert float(model({})) == pytest.approx(model.predict_ms(only(space)), rel=1e-6)


def test_a_trained_network_is_exported(tmp_path: Path) -> None:
    """The way of `hwnas export`, parity checked in it."""
    data = Synthetic("val", SMALL.scale.size, length=1)
    space = xception_space(SMALL.scale, len(data.classes.names), head_channels=8)
    net = space.build()
    _stir(net)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    _, facts = export(space, only(space), tmp_path / "weights.safetensors", data, tmp_path / "net.onnx")
    assert facts["shape"] == (1, *SMALL.scale.size)
