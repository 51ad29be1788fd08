"""Networks made by hand: parameters and arithmetic of their sources, any size of image, exports, prices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from hwnas import recipes
from hwnas.complexity import Complexity, complexity
from hwnas.errors import HwnasError
from hwnas.jobs import Network, find_network, price_network
from hwnas.ops.general import Conv, MeanConv
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.precision import to_half
from hwnas.problem import Architecture
from hwnas.profile import Calibration, make_plan
from hwnas.profile.build import build_table
from hwnas.recipes.baselines import recipe_name
from hwnas.run import Run
from hwnas.runtime.engines.trt_build import Builder, BuildOptions
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.work import measure_plan
from hwnas.spaces import Scale, Space, alone_names, own_space, published, registered_encoders, trace_space
from hwnas.spaces.encoders import STDC, BiSeNetV2, DDRNet, FastSCNN, LMFFNet, PIDNet
from hwnas.spaces.encoders.stdc import STDC2
from hwnas.spaces.heads import (
    BoundaryHead,
    ContextHead,
    DualHead,
    FusionHead,
    GuidedHead,
    MultiAttentionHead,
    RefinementHead,
)
from hwnas.spaces.heads import fastnas as fast_nas

from .contracts import NetworkContract, _stir, roofline_table
from .verbs import done, hwnas

SIZE = (1024, 2048)
CLASSES = 19


def only(space: Space) -> Architecture:
    """Return the architecture of a space of one network."""
    return Architecture.of(space.name, {})


@cache
def full(name: str, size: tuple[int, int] = SIZE) -> Space:
    """Return the space of a published network for Cityscapes."""
    space = own_space(name, size, CLASSES)
    assert space is not None
    return space


@cache
def counts(name: str, size: tuple[int, int] = SIZE) -> Complexity:
    """Return what fvcore counts of a published network."""
    return complexity(full(name, size), only(full(name, size)))


# Parameters, counted layer by layer from the public codes: convolutions, their biases, BatchNorms. What is trained
# beside a network, auxiliary heads, is left out; so is what a class of the code has and its forward pass does not use.


def conv(c_in: int, c_out: int, kernel: int = 3, groups: int = 1, bias: bool = False, bn: bool = True) -> int:
    return c_in // groups * c_out * kernel**2 + bias * c_out + 2 * bn * c_out


def separable(c_in: int, c_out: int) -> int:
    return conv(c_in, c_in, groups=c_in) + conv(c_in, c_out, 1)


def count_fast_scnn() -> int:
    """Tramac/Fast-SCNN-pytorch, models/fast_scnn.py, with aux=False."""

    def bottleneck(c_in: int, c_out: int) -> int:
        return conv(c_in, 6 * c_in, 1) + conv(6 * c_in, 6 * c_in, groups=6 * c_in) + conv(6 * c_in, c_out, 1)

    downsample = conv(3, 32) + separable(32, 48) + separable(48, 64)
    blocks = [(64, 64), (64, 64), (64, 64), (64, 96), (96, 96), (96, 96), (96, 128), (128, 128), (128, 128)]
    pyramid = 4 * conv(128, 32, 1) + conv(256, 128, 1)
    fusion = conv(128, 128, groups=128) + conv(128, 128, 1, bias=True) + conv(64, 128, 1, bias=True)
    classifier = 2 * separable(128, 128) + conv(128, CLASSES, 1, bias=True, bn=False)
    return downsample + sum(bottleneck(*b) for b in blocks) + pyramid + fusion + classifier


def count_bisenetv2() -> int:
    """CoinCheung/BiSeNet, lib/models/bisenetv2.py, with aux_mode='eval'."""

    def expand(c: int) -> int:  # GELayerS1
        return conv(c, c) + conv(c, 6 * c, groups=c) + conv(6 * c, c, 1)

    def down(c: int, c_out: int) -> int:  # GELayerS2
        inner = conv(c, c) + conv(c, 6 * c, groups=c) + conv(6 * c, 6 * c, groups=6 * c) + conv(6 * c, c_out, 1)
        return inner + conv(c, c, groups=c) + conv(c, c_out, 1)

    detail = conv(3, 64) + 4 * conv(64, 64) + conv(64, 128) + 2 * conv(128, 128)
    stem = conv(3, 16) + conv(16, 8, 1) + conv(8, 16) + conv(32, 16)
    semantic = down(16, 32) + expand(32) + down(32, 64) + expand(64) + down(64, 128) + 3 * expand(128)
    embedding = 2 * 128 + conv(128, 128, 1) + conv(128, 128)
    depthwise = conv(128, 128, groups=128) + conv(128, 128, 1, bn=False)
    aggregation = 2 * depthwise + 3 * conv(128, 128)
    head = conv(128, 1024) + conv(1024, CLASSES, 1, bias=True, bn=False)
    return detail + stem + semantic + embedding + aggregation + head


def count_stdc(modules: tuple[int, int, int]) -> int:
    """MichaelFan01/STDC-Seg, nets/stdcnet.py, without conv_last and the classifier of images."""

    def module(c_in: int, c: int, strided: bool) -> int:  # CatBottleneck of four blocks
        inner = conv(c_in, c // 2, 1) + conv(c // 2, c // 4) + conv(c // 4, c // 8) + conv(c // 8, c // 8)
        return inner + strided * conv(c // 2, c // 2, groups=c // 2)

    total, c = conv(3, 32) + conv(32, 64), 64
    for width, n in zip((256, 512, 1024), modules, strict=True):
        total += module(c, width, True) + (n - 1) * module(width, width, False)
        c = width
    return total


def count_stdc1() -> int:
    """The same, models/model_stages.py: arm16, arm32, conv_head16 and 32, conv_avg, ffm, conv_out."""
    refinement = conv(512, 128) + conv(1024, 128) + 2 * conv(128, 128, 1)
    fusion = conv(384, 256, 1) + 2 * conv(256, 64, 1, bn=False)
    head = conv(256, 256) + conv(256, CLASSES, 1, bn=False)
    return count_stdc((2, 2, 2)) + refinement + 2 * conv(128, 128) + conv(1024, 128, 1) + fusion + head


def basic(c_in: int, c: int, strided: bool = False) -> int:
    """BasicBlock of DDRNet and PIDNet."""
    return conv(c_in, c) + conv(c, c) + (strided or c_in != c) * conv(c_in, c, 1)


def bottleneck(c_in: int, c: int) -> int:
    """Bottleneck of both, expansion 2."""
    return conv(c_in, c, 1) + conv(c, c) + conv(c, 2 * c, 1) + (c_in != 2 * c) * conv(c_in, 2 * c, 1)


def pre(c_in: int, c_out: int, kernel: int = 1, groups: int = 1) -> int:
    """BatchNorm, ReLU, convolution."""
    return 2 * c_in + conv(c_in, c_out, kernel, groups, bn=False)


def segment_head(c: int, hidden: int) -> int:
    """segmenthead of both."""
    return 2 * c + conv(c, hidden) + conv(hidden, CLASSES, 1, bias=True, bn=False)


def count_ddrnet_23_slim() -> int:
    """ydhongHIT/DDRNet, segmentation/DDRNet_23_slim.py, with augment=False: 32 planes, spp 128, head 64."""
    stem = conv(3, 32, bias=True) + conv(32, 32, bias=True)
    low = sum(basic(a, b, a != b) + basic(b, b) for a, b in ((32, 32), (32, 64), (64, 128), (128, 256)))
    low += bottleneck(256, 256)
    high = 4 * basic(64, 64) + bottleneck(64, 64)
    exchange = conv(128, 64, 1) + conv(256, 64, 1) + 2 * conv(64, 128) + conv(128, 256)
    pyramid = 5 * pre(512, 128) + 4 * pre(128, 128, 3) + pre(5 * 128, 128) + pre(512, 128)
    return stem + low + high + exchange + pyramid + segment_head(128, 64)


def count_pidnet_s() -> int:
    """XuJiacong/PIDNet, models/pidnet.py, get_pred_model('pidnet_s'): m 2, n 3, 32 planes, ppm 96, head 128."""
    stem = conv(3, 32, bias=True) + conv(32, 32, bias=True)
    shared = 2 * basic(32, 32) + basic(32, 64, True) + basic(64, 64)
    context = basic(64, 128, True) + 2 * basic(128, 128) + basic(128, 256, True) + 2 * basic(256, 256)
    context += bottleneck(256, 256) + bottleneck(512, 256)
    detail = 4 * basic(64, 64) + bottleneck(64, 64) + conv(128, 64, 1) + conv(256, 64, 1) + 4 * conv(64, 32, 1)
    boundary = basic(64, 32) + bottleneck(32, 32) + bottleneck(64, 64) + conv(128, 32) + conv(256, 64)
    pyramid = 5 * pre(512, 96) + pre(384, 384, 3, 4) + pre(480, 128) + pre(512, 128)
    return stem + shared + context + detail + boundary + pyramid + 2 * conv(128, 128, 1) + segment_head(128, 128)


def count_lmffnet() -> int:
    """Greak-1124/LMFFNet, model/LMFFNet.py: 3 and 8 SEM-B blocks; a PReLU has a number for each channel."""

    def activated(c_in: int, c: int, kernel: int = 3, groups: int = 1) -> int:
        return conv(c_in, c, kernel, groups) + c

    def block(c: int) -> int:
        split = 2 * activated(c // 4, c // 4, groups=c // 4)
        return activated(c, c // 2) + split + activated(c // 2, c // 2) + conv(c // 2, c, 1, bn=False) + 3 * c

    def attention(c: int) -> int:  # PMCA; the PReLU of its gate has one number
        return 4 * c + 2 * c * (c // 8) + 1

    def fusion(c: int) -> int:
        return 3 * c + c * c

    def down(c_in: int, c: int) -> int:
        return conv(c_in, c - c_in if c_in < c else c, bn=False) + 3 * c

    encoder = activated(3, 32) + 2 * activated(32, 32) + fusion(35)
    encoder += down(35, 64) + 3 * block(64) + attention(64) + fusion(131)
    encoder += down(131, 128) + 8 * block(128) + attention(128) + fusion(259)
    gate = conv(131, 16, 1, bn=False) + conv(259, 32, 1, bn=False) + activated(48, 48, groups=48) + 48 * CLASSES
    return encoder + gate + activated(259, 259, groups=259) + 259 * CLASSES


def count_mobilenetv2() -> int:
    """Table 2 of Sandler et al. 2018, without its head; the first block has no convolution to more channels."""
    rows = (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    )  # expand, channels, times
    total, c = conv(3, 32), 32
    for expand, channels, times in rows:
        for _ in range(times):
            wide = expand * c
            total += (expand > 1) * conv(c, wide, 1) + conv(wide, wide, groups=wide) + conv(wide, channels, 1)
            c = channels
    return total


def count_fast_nas(index: int) -> int:
    """DrSleep/nas-segm-pytorch, src/nn/micro_decoders.py, ops by index in src/rl/genotypes.py, agg_size 64."""
    first, steps, blocks = fast_nas.PUBLISHED[index]
    c, kernels = 64, {0: 1, 1: 3, 4: 1, 5: 3, 6: 3}  # of full convolutions, the one of a mean over the image among them

    def op(i: int) -> int:
        if i in kernels:
            return conv(c, c, kernels[i])
        kernel = {2: 3, 3: 5, 7: 3, 8: 5}[i]
        return 2 * (conv(c, c, kernel, groups=c, bn=False) + conv(c, c, 1))

    cell = op(first) + sum(op(i) for step in steps for i in step[2:])
    loose = 3 - len({i - 4 for block in blocks for i in block if i >= 4})
    adapters = sum(conv(width, c, 1) for width in (24, 32, 96, 320))
    end = conv(loose * c, c, 1) + conv(c, CLASSES, bias=True, bn=False)
    return count_mobilenetv2() + adapters + 6 * (cell + conv(c, c, 1)) + end


COUNTS: dict[str, tuple[Callable[[], int], int]] = {
    "FAST_SCNN": (count_fast_scnn, 1_138_051),  # which pytorchcv asserts too: models/fastscnn.py of osmr/imgclsmob
    "BISENETV2": (count_bisenetv2, 3_358_627),
    "STDC1": (count_stdc1, 8_275_104),
    "PIDNET_S": (count_pidnet_s, 7_625_715),
    "DDRNET_23_SLIM": (count_ddrnet_23_slim, 5_695_987),
    "LMFFNET": (count_lmffnet, 1_346_692),
    "FAST_NAS_0": (lambda: count_fast_nas(0), 2_627_667),
    "FAST_NAS_1": (lambda: count_fast_nas(1), 2_807_891),
    "FAST_NAS_2": (lambda: count_fast_nas(2), 2_850_899),
}
# Millions as printed in the papers; that of DDRNet-23-slim also in the comparison of Xu et al. The public code of
# Fast-SCNN has 2.5 % more than its paper says, which does not tell where.
PRINTED_PARAMS = {
    "FAST_SCNN": (1.11, 0.03),
    "PIDNET_S": (7.6, 0.05),
    "DDRNET_23_SLIM": (5.7, 0.05),
    "LMFFNET": (1.4, 0.06),
}
# Multiply-adds in 10^9 as printed, at which size, and the relative tolerance. PIDNet-S and DDRNet-23-slim: comparison
# on Cityscapes of Xu et al. BiSeNetV2: that of Yu et al., who do not say how wide the network is before the classifier;
# 1024 channels, as in public codes, take 9.7 of the 24.6 that are counted here.
PRINTED_MACS = {
    "PIDNET_S": (47.6, SIZE, 0.01),
    "DDRNET_23_SLIM": (36.3, SIZE, 0.01),
    "BISENETV2": (21.15, (512, 1024), 0.17),
}


@pytest.mark.parametrize("name", alone_names())
class TestPublished:
    """What the networks are in their sources."""

    def test_parameters_are_those_of_the_public_code(self, name: str) -> None:
        counted, literal = COUNTS[name]
        assert counts(name).params == counted() == literal

    def test_parameters_are_near_what_the_paper_prints(self, name: str) -> None:
        if name not in PRINTED_PARAMS:
            pytest.skip("the paper prints none of this network")
        millions, tolerance = PRINTED_PARAMS[name]
        assert COUNTS[name][1] / 1e6 == pytest.approx(millions, abs=tolerance)

    def test_multiply_adds_are_near_what_papers_print(self, name: str) -> None:
        if name not in PRINTED_MACS:
            pytest.skip("no paper prints those of this network as it is here")
        billions, size, tolerance = PRINTED_MACS[name]
        assert counts(name, size).macs / 1e9 == pytest.approx(billions, rel=tolerance)

    def test_the_trace_counts_the_same(self, name: str) -> None:
        space = full(name, (97, 129))
        counted = complexity(space, only(space))
        assert trace_space(space).cost().macs == counted.macs
        modules = {c.module for c in trace_space(space).calls}
        assert sum(p.numel() for m in modules for p in m.parameters()) == counted.params

    def test_it_is_the_only_architecture_of_its_space(self, name: str) -> None:
        assert published(name, full(name)) == only(full(name))
        other = full(next(n for n in alone_names() if n != name))
        for space in (other, replace(full(name), head=ContextHead())):
            with pytest.raises(HwnasError, match=f"{name} is a space of its own"):
                published(name, space)

    def test_its_recipe_is_of_it(self, name: str) -> None:
        recipe = recipes.get(recipe_name(name))
        assert recipe.space == own_space(name, (360, 480), 11)
        assert recipe.widths == (recipe.space.scale.channels,)


@pytest.mark.parametrize(("deeper", "mega", "millions"), [((0, 0, 0), 813, 8.44), (STDC2, 1446, 12.47)])
def test_stdc_classifies_with_the_arithmetic_it_is_named_after(
    deeper: tuple[int, int, int], mega: int, millions: float
) -> None:
    """STDCNet813 and 1446: million multiply-adds at 224x224; parameters of table 3 of the paper, in millions.

    With the classifier of images, which no encoder has here: a 1x1 convolution with BatchNorm, two linear layers of
    1024x1024 and 1024x1000, and a BatchNorm that is not used.
    """
    space = Space(STDC(Scale(32, 2, (224, 224)), deeper), ContextHead(), 1000)
    with torch.device("meta"):
        net = space.encoder.build(only(space), "deploy")
    params = sum(p.numel() for p in net.parameters())
    assert params == count_stdc(tuple(2 + d for d in deeper))  # type: ignore[arg-type]
    linear = 1024 * 1024 + 1024 * 1000
    assert (params + conv(1024, 1024, 1) + linear + 2 * 1024) / 1e6 == pytest.approx(millions, abs=0.01)
    own = sum(c.cost.macs for c in trace_space(space).calls if not c.name.startswith("head"))
    # Tools that count BatchNorms and pools too find up to 1 % more.
    assert (own + 1024 * 1024 * 7 * 7 + linear) / 1e6 == pytest.approx(mega, rel=0.01)


@pytest.mark.parametrize("name", alone_names())
def test_the_page_has_these_figures(name: str) -> None:
    """docs/baselines.md: parameters, and 10^9 multiply-adds at the size beside them."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "baselines.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    parameters, macs, first, second = re.findall(r"\| ([\d,]+) \| [^|]*\| ([\d.]+) at (\d+)x(\d+) \|", row)[0]
    assert int(parameters.replace(",", "")) == COUNTS[name][1]
    size = (min(int(first), int(second)), max(int(first), int(second)))
    assert float(macs) == pytest.approx(counts(name, size).macs / 1e9, abs=0.06)


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    pytest.importorskip("tensorrt_rtx")
    with Builder() as made:
        yield made


SMALL = {
    "fast-scnn": Space(FastSCNN(Scale(8, 1, (49, 67))), FusionHead(32), 5),
    "bisenetv2": Space(BiSeNetV2(Scale(8, 2, (49, 67))), GuidedHead(16, 24), 5),
    "stdc": Space(STDC(Scale(4, 1, (49, 67))), RefinementHead(8), 5),
    "pidnet": Space(PIDNet(Scale(4, 1, (49, 67))), BoundaryHead(16, 8), 5),
    "ddrnet": Space(DDRNet(Scale(4, 1, (49, 67))), DualHead(16, 8), 5),
    "lmffnet": Space(LMFFNet(Scale(8, 2, (49, 67))), MultiAttentionHead(67), 5),
}


@pytest.mark.parametrize("space", SMALL.values(), ids=SMALL)
class TestSmall(NetworkContract):
    """Narrow ones: traced, computed, trained and exported as all networks are."""

    @pytest.mark.parametrize("size", [(1, 1), (2, 33), (64, 95)])
    def test_any_size_of_image(self, space: Space, size: tuple[int, int]) -> None:
        net = space.build(form="deploy", labels=True).eval()
        with torch.no_grad():
            assert net(torch.randn(1, 3, *size)).shape == (1, *size)
        found = trace_space(space.at(replace(space.scale, size=size)))
        assert next(c for c in found.calls if c.output == found.output).out_shape == (1, *size)

    def test_no_feature_is_projected_to_what_it_is(self, space: Space) -> None:
        """Else a network would have convolutions that the published one has not."""
        assert not [c.name for c in trace_space(space).calls if "project" in c.name and c.name.startswith("head")]

    @pytest.mark.parametrize("batch", [1, 2])
    def test_every_weight_gets_a_gradient(self, space: Space, batch: int) -> None:
        """Also where a map has one pixel and the batch one image, which has no statistics."""
        net = space.build()
        out = net(torch.randn(batch, 3, 49, 67), {})
        (out * torch.randn_like(out)).sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())

    def test_its_price_is_the_sum_of_its_ops(self, space: Space) -> None:
        table = roofline_table(space)
        found = price_network(find_small(space), table)
        assert found.ms == pytest.approx(sum(table[c.spec] for c in trace_space(space).calls), rel=1e-12)
        assert found.searched_ms == 0

    @pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
    def test_tensorrt_rtx_builds_it(self, space: Space, precision: str, tmp_path: Path, builder: Builder) -> None:
        model = OpExporter().network(trace_space(space))
        path, out = tmp_path / "m.onnx", tmp_path / "e.engine"
        path.write_bytes((to_half(model) if precision == "fp16" else model).SerializeToString())
        builder.build(path, out, BuildOptions(targets=((8, 9),)))
        assert out.stat().st_size > 0

    @pytest.mark.slow
    def test_its_ops_are_measured_in_context(self, space: Space, tmp_path: Path) -> None:
        """The sum of the ops, each measured between neighbours by the fake engine, is within 5 % of the network.

        One network to fit on gives no correction.
        """
        scales = [space.scale, replace(space.scale, channels=2 * space.scale.channels)]
        make_plan(space, scales, tmp_path, Calibration(fit=1, test=1, derived=0, isolated=False))
        table = build_table(tmp_path, measure_plan(tmp_path, "fake", stop=StopRule(1, 1, 0.0)))
        for scale in scales:
            found = price_network(replace(find_small(space), scale=scale), table)
            net = next(n for n in table.nets if n.key.endswith(f"-c{scale.channels}"))
            assert found.ms == pytest.approx(net.latency_ms, rel=0.05)


def find_small(space: Space) -> Network:
    """Return what `find_network` would of a network that has no name."""
    return Network("small", space, space.scale, only(space))


class TestPricing:
    """``hwnas price NAME``: a published network that is a space of its own needs no recipe."""

    def test_size_and_classes(self) -> None:
        own, there = find_network("STDC1"), find_network("STDC1", "darts-camvid")
        assert (own.space, own.scale, own.recipe) == (full("STDC1"), full("STDC1").scale, None)
        assert (there.scale.size, there.space.classes, there.recipe) == ((360, 480), 11, "darts-camvid")
        assert there.scale.channels == own.scale.channels
        compared = find_network("BISENETV2", like=replace(there, scale=replace(there.scale, size=(33, 65))))
        assert (compared.scale.size, compared.space.classes) == ((33, 65), 11)
        assert compared.scale.channels == full("BISENETV2").scale.channels

    def test_the_verb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        tables = [roofline_table(full(name)) for name in ("FAST_SCNN", "STDC1")]
        rows = {k: row for table in tables for k, row in table.rows.items()}
        replace(tables[0], rows=rows).save(tmp_path / "t.json")
        said = done("price", "FAST_SCNN", "--table", "t.json", "--foreign-table", "--compare", "STDC1", "--json").out
        found = json.loads(said.splitlines()[-1])
        assert (found["network"], found["recipe"], found["params"]) == ("FAST_SCNN", None, COUNTS["FAST_SCNN"][1])
        assert found["scale"]["size"] == [1024, 2048]
        assert found["compare"]["params"] == COUNTS["STDC1"][1]
        assert sum(op["count"] * op["ms"] for op in found["ops"]) == pytest.approx(found["predicted_ms"])


def test_from_a_recipe_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole job of a recipe whose space is one network, and the same network by name at its size."""
    monkeypatch.chdir(tmp_path)
    name = "fast-scnn-tiny"
    done("profile", name, "--engine", "fake")
    for verb in ("search", "train", "export", "validate"):
        done(verb, name)
    derived = Run(name).derived()
    assert (derived.scale, derived.architecture) == (recipes.get(name).space.scale, only(recipes.get(name).space))
    assert f"{derived.predicted_ms:.4g} ms" in done("price", name).out
    assert "has no row for" in hwnas("price", "FAST_SCNN", "--recipe", name, "--table", name).err


def test_a_head_says_how_many_features_it_reads() -> None:
    with pytest.raises(HwnasError, match="the head 'boundary' reads 3 features, the encoder 'xception' gives 2; take"):
        Space(registered_encoders()["xception"](Scale(4, 1, (33, 33))), BoundaryHead(), 5)  # type: ignore[call-arg]
    with pytest.raises(HwnasError, match="the head 'refinement' reads 3 features, the encoder 'ddrnet' gives 2"):
        Space(DDRNet(Scale(4, 1, (33, 33))), RefinementHead(), 5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FastSCNN(Scale(3, 1, (33, 33))).width(48), "48 channels of 32 cannot be scaled to 3: "),
        (lambda: LMFFNet(Scale(8, 9, (33, 33))), "cells from 1 to 8, got 9"),
        (lambda: LMFFNet(Scale(7, 1, (33, 33))), "an even number of channels, got 7"),
        (lambda: STDC(Scale(8, 1, (33, 33)), (1, 2)), "a number for each of three strides"),  # type: ignore[arg-type]
        (lambda: GuidedHead(0), "channels of 1 or more, got 0"),
        (lambda: DualHead(4, 0), "hidden of 1 or more, got 0"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises(HwnasError, match=match):
        make()


def test_normalisation_of_a_single_value_uses_running_statistics() -> None:
    for op, x in ((Conv(2, 3), torch.randn(1, 2, 1, 1)), (MeanConv(2, 3, before="bn"), torch.randn(1, 2, 4, 5))):
        _stir(op)
        torch.testing.assert_close(op.train()(x), op.eval()(x))
