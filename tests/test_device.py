"""Steps on a device that is not the host: nothing lies in the wrong place, and nothing is read that need not be.

There is no such device here, so one is made: tensors without data, on torch's name `lazy`. What is on the host computes
as ever beside them. A value that leaves the device otherwise than by `hwnas.learn.device.read` is an error, as is an
operation on tensors of both.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hwnas.data import Sample, SegmentationData, Shapes, Synthetic
from hwnas.data.base import SEGMENTATION
from hwnas.errors import HwnasError
from hwnas.images import resize_labels
from hwnas.learn import device as learn_device
from hwnas.learn.device import CPU, Context, open_device, title
from hwnas.learn.distill import Distillation, Renormalised
from hwnas.learn.evaluation import PLAIN, Inference, evaluate
from hwnas.learn.scaling import LossScaler
from hwnas.learn.training import TrainConfig, Training
from hwnas.search.bilevel import Order
from hwnas.search.costs import Bound, CostConfig
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.guards import Guards
from hwnas.search.relax import GumbelSoftmax, SinglePath, Softmax
from hwnas.search.rerank import Supernet
from hwnas.search.widths import count
from hwnas.spaces import Scale, autodeeplab_space, darts_space, sample

LAZY = torch.device("lazy")
FAKE = FakeTensorMode(allow_non_fake_inputs=False)  # one for all tests: indices are kept for each device
ROOT = Path(__file__).parents[1]
SIZE = (32, 48)
SPACE = darts_space(
    Scale(4, 3, SIZE),
    11,
    ops=("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3"),
    nodes=1,
    head_channels=8,
)
TRELLIS = autodeeplab_space(Scale(2, 2, (33, 49)), 11, nodes=1)
CONFIG = SearchConfig(SPACE.scale, steps=14, warmup=0, batch=2, crop=SIZE, w_lr=0.1, alpha_lr=0.02)


class Device(TorchDispatchMode):
    """Computes what is on the host as ever, and shapes of what is on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(isinstance(t, FakeTensor) for t in pytree.arg_tree_leaves(*args, **kwargs))
        to = kwargs.get("device")
        if to is not None and torch.device(to).type == LAZY.type:
            kwargs = {**kwargs, "device": LAZY}  # without the number that torch adds
        elif not there:
            return func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and not there:
            args = (FAKE.from_tensor(args[0].detach()),)
        with FAKE:
            out = func(*args, **kwargs)
        for tensor in pytree.tree_leaves(out):
            assert not isinstance(tensor, Tensor) or tensor.device == LAZY, f"{func} took a value from the device"
        return out


READERS = ("learn.device", "learn.loop", "learn.evaluation", "search.bilevel", "search.gradient", "search.rerank")


@dataclass
class Reads:
    """How often values were read from the device."""

    count: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, tensor: Tensor) -> NDArray[Any]:
        if tensor.device == LAZY:
            self.count += 1
            self.shapes.append(tuple(tensor.shape))
            return np.full(tuple(tensor.shape), 1, np.dtype(str(tensor.dtype).removeprefix("torch.")))
        return tensor.detach().cpu().numpy()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """The device, and what counts reads from it."""
    counted = Reads()
    for module in READERS:
        monkeypatch.setattr(f"hwnas.{module}.read", counted)
    torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device=)` comes by here too
    with Device():
        yield counted
    torch._C._set_only_lift_cpu_tensors(False)


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


def linear(probs: Any) -> Tensor:
    return torch.stack([p[:, 1:].sum() for p in probs.values()]).sum()


BOUNDS = [Bound("ms", linear, 3.0)]
ORDERS: tuple[Order, ...] = ("first", "second", "second-exact")
# What is read in a step: the gradient of the logits, once for each pass that has one. The exact second order has two,
# that by differences three and a norm to divide by. A cost that multiplies the loss asks for it.
OF_ORDER = {"first": 1, "second": 4, "second-exact": 2}
SEARCHES: dict[str, tuple[dict[str, Any], int]] = {
    **{
        f"{order}-{evaluation}": (
            {"order": order, "evaluation": evaluation},
            {"second": 4, "second-exact": 2}.get(order, 1),
        )
        for order in ORDERS
        for evaluation in ("plain", "fast", "lean")
        if order != "second-exact" or evaluation == "plain"
    },
    "warm-up": ({"warmup": 5}, 0),
    "single": ({"level": "single"}, 1),
    "single-gumbel": ({"level": "single", "relaxation": GumbelSoftmax()}, 1),
    "gumbel": ({"relaxation": GumbelSoftmax()}, 1),
    "single-path": ({"relaxation": SinglePath()}, 1),
    "single-path-second": ({"relaxation": SinglePath(), "order": "second"}, 4),
    "accumulate": ({"accumulate": 2, "batch": 1}, 2),
    "log": ({"cost": CostConfig("log", 0.1)}, 1),
    "two-sided": ({"cost": CostConfig("two-sided", 0.1)}, 1),
    "product": ({"cost": CostConfig("product", 0.5)}, 2),
    "guards": ({"guards": Guards(auxiliary_skip=1.0, stable_checks=9, check_every=1, most_skips=9)}, 1),
}


QUICK = ("first-fast", "second-plain", "single-gumbel", "single-path", "product", "warm-up")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SEARCHES])
def test_a_search_step_reads_the_gradient_of_the_logits_and_nothing_else(
    data: SegmentationData, reads: Reads, name: str
) -> None:
    change, expected = SEARCHES[name]
    s = BilevelSearch(SPACE, replace(CONFIG, **change), data, BOUNDS, device=LAZY)
    assert {p.device for p in s.net.parameters()} == {LAZY}
    before = s.findings().logits
    for step in range(2 if name == "first-fast" else 1):  # a second one has momenta
        metrics = s.advance()
        assert metrics["train_loss"].device == LAZY
        assert reads.count == (step + 1) * expected, reads.shapes
    moved = [not np.array_equal(a, before[k]) for k, a in s.findings().logits.items()]
    assert all(moved) == (name != "warm-up")
    assert {v.device for state in s.w_optimizer.state.values() for v in state.values() if v is not None} == {LAZY}


@pytest.mark.parametrize("relaxation", [Softmax(), SinglePath()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("weighting", ["step", "path"])
def test_so_does_that_of_a_trellis(reads: Reads, weighting: Any, relaxation: Any) -> None:
    space = replace(TRELLIS, encoder=replace(TRELLIS.encoder, weighting=weighting))
    config = replace(CONFIG, scale=space.scale, crop=space.scale.size, relaxation=relaxation)
    (macs,) = count(space, [space.scale], "macs")
    s = BilevelSearch(space, config, Synthetic("train", (33, 49), length=5), [Bound("macs", macs, 1e5)], device=LAZY)
    s.advance()
    assert reads.count == 1


def test_a_relaxation_that_reads_is_caught(data: SegmentationData, reads: Reads) -> None:
    """That these tests see a read: each of the ways in which one is made by mistake."""
    del reads
    for way in (Tensor.item, Tensor.tolist, float, bool, Tensor.cpu, lambda t: t.detach().numpy()):
        s = BilevelSearch(SPACE, CONFIG, data, device=LAZY)
        forward = s.net.forward

        def reading(image: Tensor, probs: Any, way: Any = way, forward: Any = forward) -> Tensor:
            way(next(iter(probs.values())).sum())
            return forward(image, probs)

        s.net.forward = reading
        with pytest.raises((RuntimeError, AssertionError)):
            s.advance()


def test_a_tensor_left_on_the_host_is_caught(data: SegmentationData, reads: Reads) -> None:
    del reads
    s = BilevelSearch(SPACE, CONFIG, data, device=LAZY)
    s.context = Context()
    with pytest.raises(AssertionError, match="convert all Tensors"):
        s.advance()


TRAINING = TrainConfig(steps=10, batch=2, crop=SIZE)
STREETS = darts_space(Scale(4, 3, SIZE), 11, head_channels=8)


TRAININGS: dict[str, dict[str, Any]] = {
    "default": {},
    "sgd": {"optimizer": "sgd", "accumulate": 2, "schedule": "poly"},
    "all": {"aux_weight": 0.4, "drop_path": 0.3, "smoothing": 0.1, "average": 0.9},
    "ohem": {"loss": "ohem", "dice_weight": 0.5, "class_weights": "balanced"},
    "focal": {"loss": "focal", "smoothing": 0.1, "class_weights": "none"},
    "fine-tuning": {"encoder_lr": 0.1, "freeze_norm": True, "schedule": "constant", "clip": 0.0},
    "calibrated": {"recalibrate": 2, "average": 0.9},
    "plain": {"channels_last": False, "class_weights": (1.0,) * 11, "scale_range": (1.0, 1.0), "flip": False},
}


@pytest.mark.parametrize("change", TRAININGS.values(), ids=TRAININGS)
def test_a_training_step_reads_nothing(data: SegmentationData, reads: Reads, change: dict[str, Any]) -> None:
    taught: list[torch.Size] = []

    def teacher(images: Tensor, scores: Tensor) -> Tensor:
        taught.append(scores.shape)
        return (scores - images.mean()).square().mean()

    space = STREETS if "aux_weight" in change else SPACE
    t = Training(
        space, sample(space, np.random.default_rng(0)), replace(TRAINING, **change), data, LAZY, teacher=teacher
    )
    for _ in range(2):
        assert t.advance()["loss"].device == LAZY
    assert len(taught) == 2 * t.config.accumulate
    assert reads.count == 0
    val = Synthetic("val", SIZE, length=2)
    t.judge(val)
    assert reads.count == len(val)  # labels, once for each image
    assert {v.device for v in t.best.values()} == {LAZY}


def test_scaling_and_distillation_read_nothing(data: SegmentationData, reads: Reads) -> None:
    """Loss scaling beside float32: this device knows no autocast."""
    arch = sample(SPACE, np.random.default_rng(0))
    teacher = Training(SPACE, arch, replace(TRAINING, seed=1), data, LAZY).net.eval()
    learnt = Distillation(Renormalised(teacher, data, data, LAZY), 1.0, 2.0)
    t = Training(SPACE, arch, TRAINING, data, LAZY, teacher=learnt)
    t.scaler = LossScaler(LAZY)
    for _ in range(2):
        t.advance()
    assert t.scaler.scale.device == LAZY
    assert reads.count == 0


def test_a_classifier_trains_without_a_read(reads: Reads) -> None:
    space = darts_space(Scale(4, 3, (32, 32)), 10, stem="cifar", head="classification")
    shapes = Shapes("train", (32, 32), length=10)
    arch = sample(space, np.random.default_rng(0))
    t = Training(space, arch, replace(TRAINING, crop=(32, 32), cutout=8), shapes, LAZY)
    t.advance()
    assert reads.count == 0
    evaluate(t.net.eval(), shapes, device=LAZY)
    assert reads.count == 1


class Enlarged(Synthetic):
    """Labels have twice the height of their images, and more than their width."""

    def __getitem__(self, index: int) -> Sample:
        image, label, name = super().__getitem__(index)
        return Sample(image, resize_labels(label, (2 * SIZE[0], SIZE[1] + 9)), name)


INFERENCES = (PLAIN, Inference((0.5, 1.0), flip=True), Inference(window=(24, 32)), Inference((1.5,), True, (24, 32)))


@pytest.mark.parametrize("inference", INFERENCES, ids=str)
@pytest.mark.parametrize("kind", [Synthetic, Enlarged])
def test_an_evaluation_reads_labels_once_for_each_image(
    reads: Reads, inference: Inference, kind: type[Synthetic]
) -> None:
    test = kind("test", SIZE, length=2)
    net = Context(LAZY).module(STREETS.build(sample(STREETS, np.random.default_rng(0)), form="deploy"))
    confusion = evaluate(net.eval(), test, device=LAZY, inference=inference)
    assert confusion.counts.sum() > 0
    assert reads.shapes == [(1, *test[i].label.shape) for i in range(len(test))]


@pytest.mark.parametrize("mixed", [False, True])
def test_judging_reads_scores_once_for_each_batch(data: SegmentationData, reads: Reads, mixed: bool) -> None:
    weights = {k: v.clone() for k, v in SPACE.build(form="search").state_dict().items()}
    supernet = Supernet(SPACE, CONFIG, weights, data, device=LAZY)
    arch = None if mixed else sample(SPACE, np.random.default_rng(0))
    found = supernet.judge(arch, SPACE.problem.uniform() if mixed else None)
    assert found.task is SEGMENTATION
    assert reads.count == len(supernet.batches)


def test_a_latency_model_goes_to_a_device(reads: Reads) -> None:
    for space in (SPACE, TRELLIS):
        (model,) = count(space, [space.scale], "macs")
        probs = space.problem.uniform()
        expected = model(probs)
        there = model.to(LAZY)(probs.with_vector(probs.vector.to(LAZY)))
        assert (there.device, there.shape) == (LAZY, expected.shape)
        assert model.state_dict() == {}
    assert reads.count == 0


class TestOpen:
    def test_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert open_device() == open_device("cpu") == CPU
        assert title(CPU) == "cpu"
        for name in ("cuda", "cuda:1"):
            with pytest.raises(HwnasError, match=f"there is no device '{name}' here: .*; use --device cpu"):
                open_device(name)

    def test_with_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("is_available", True), ("device_count", 2), ("current_device", 0)):
            monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
        assert open_device() == open_device("cuda") == torch.device("cuda", 0)
        assert open_device("cuda:1") == torch.device("cuda", 1)
        with pytest.raises(HwnasError, match="no device 'cuda:2' here, only cuda:0 to cuda:1; use one of these"):
            open_device("cuda:2")

    @pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
    def test_what_is_no_name_is_refused(self, name: str) -> None:
        with pytest.raises(HwnasError, match="unknown device .*; use auto, cpu, cuda or cuda:N"):
            open_device(name)


OURS = {"probs", "probabilities", "self.alphas", "bilevel.alphas"}  # whose `numpy` is a method of ours


def hidden_reads(source: str) -> list[int]:
    """Return the lines where the values of a tensor are taken without `cpu`, which a device does not allow."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "numpy":
            continue
        inside = node.func.value
        if ast.unparse(inside) not in OURS and ".cpu()" not in ast.unparse(inside):
            found.append(node.lineno)
    return found


def test_no_array_is_made_of_what_may_be_on_a_device() -> None:
    assert hidden_reads("x.cpu().numpy()\nx.detach().numpy()\nx.cpu().double().numpy()") == [2]
    files = [p for p in (ROOT / "hwnas").rglob("*.py") if "runtime" not in p.relative_to(ROOT / "hwnas").parts]
    assert {str(p): lines for p in files if (lines := hidden_reads(p.read_text(encoding="utf-8")))} == {}


def test_everything_is_read_by_one_function() -> None:
    assert learn_device.read(torch.tensor([1.0, 2.0], requires_grad=True)).tolist() == [1.0, 2.0]
