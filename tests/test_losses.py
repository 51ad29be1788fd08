"""Losses: against formulas in numpy and other implementations, and the laws that hold between them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data import IGNORE_LABEL, Shapes
from hwnas.data.base import CLASSIFICATION, SEGMENTATION
from hwnas.errors import DataError, HwnasError
from hwnas.learn.distill import Distillation
from hwnas.learn.losses import (
    balanced_weights,
    class_weights,
    criterion,
    dice_loss,
    focal_loss,
    ohem_loss,
    task_loss,
    weights_of,
)
from hwnas.learn.settings import TrainConfig
from tests.fixed import Fixed

CONFIG = TrainConfig(steps=1, batch=1, crop=(6, 5), class_weights="none")
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0])
pytestmark = pytest.mark.usefixtures("one_thread")


def batch(seed: int = 0, void: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return scores (2, 4, 6, 5) and labels (2, 6, 5), a share of them void."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (2, 6, 5))
    labels[rng.random(labels.shape) < void] = IGNORE_LABEL
    return torch.from_numpy(2 * rng.standard_normal((2, 4, 6, 5))).requires_grad_(), torch.from_numpy(labels)


def number(loss: Tensor) -> float:
    return float(loss.detach())


def known_pixels(scores: Tensor, labels: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return probabilities (pixels, K) and labels (pixels,) of what is not void, by numpy."""
    raw = scores.detach().numpy().transpose(0, 2, 3, 1).reshape(-1, scores.shape[1])
    p = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    flat = labels.numpy().reshape(-1)
    return p[flat != IGNORE_LABEL], flat[flat != IGNORE_LABEL]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("kept", [0.0, 1 / 16, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_ohem_is_that_of_a_sorted_list(threshold: float, kept: float, weighted: bool) -> None:
    """All below the threshold; where these are too few, the pixels of least probability."""
    scores, labels = batch()
    p, y = known_pixels(scores, labels)
    right = p[np.arange(len(y)), y]
    order = np.argsort(right)
    n = max(int((right < threshold).sum()), int(kept * len(y)), 1)
    hard = order[:n]
    w = WEIGHTS.numpy().astype(float)[y[hard]] if weighted else np.ones(n)
    expected = (w * -np.log(right[hard])).sum() / w.sum()
    weights = WEIGHTS.double() if weighted else None
    assert number(ohem_loss(scores, labels, threshold, kept, weights)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_the_formula_of_the_paper(gamma: float) -> None:
    scores, labels = batch()
    p, y = known_pixels(scores, labels)
    right = p[np.arange(len(y)), y]
    expected = (-((1 - right) ** gamma) * np.log(right)).mean()
    assert number(focal_loss(scores, labels, gamma)) == pytest.approx(expected, rel=1e-9)


def test_dice_is_twice_the_overlap_over_the_sizes() -> None:
    scores, labels = batch(void=0.5)
    labels[labels == 3] = 1  # a class that is not there does not count
    p, y = known_pixels(scores, labels)
    one_hot = np.eye(4)[y]
    dice = 2 * (p * one_hot).sum(0) / (p.sum(0) + one_hot.sum(0))
    assert number(dice_loss(scores, labels)) == pytest.approx(1 - dice[:3].mean(), rel=1e-9)
    perfect = 100 * F.one_hot(labels.where(labels != IGNORE_LABEL, 0), 4).permute(0, 3, 1, 2).double()
    assert number(dice_loss(perfect, labels)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS.double()], ids=["even", "weighted"])
def test_all_hard_and_a_focus_of_0_are_the_cross_entropy(smoothing: float, weights: Tensor | None) -> None:
    scores, labels = batch()
    expected = task_loss(scores, labels, weights, smoothing)
    for same in (
        ohem_loss(scores, labels, 1.0, 0.0, weights, smoothing),
        ohem_loss(scores, labels, 0.01, 1.0, weights, smoothing),
        focal_loss(scores, labels, 0.0, weights, smoothing),
    ):
        torch.testing.assert_close(same, expected)
        mine, own = (torch.autograd.grad(x, scores, retain_graph=True)[0] for x in (same, expected))
        torch.testing.assert_close(mine, own)


LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "ohem": {"loss": "ohem"},
    "focal": {"loss": "focal"},
    "ce + dice": {"dice_weight": 0.5},
    "ohem + dice": {"loss": "ohem", "dice_weight": 0.5},
    "smoothed focal": {"loss": "focal", "smoothing": 0.1},
}


@pytest.mark.parametrize("change", LOSSES.values(), ids=LOSSES)
class TestEvery:
    def test_gradient_is_that_of_differences(self, change: dict[str, Any]) -> None:
        scores, labels = batch(1)
        loss = criterion(replace(CONFIG, ohem_kept=1.0, **change), SEGMENTATION, WEIGHTS.double())
        assert torch.autograd.gradcheck(lambda s: loss(s, labels), scores)

    def test_void_pixels_do_not_count(self, change: dict[str, Any]) -> None:
        scores, labels = batch()
        loss = criterion(replace(CONFIG, **change), SEGMENTATION, None)
        (gradient,) = torch.autograd.grad(loss(scores, labels), scores)
        void = (labels == IGNORE_LABEL)[:, None].expand_as(gradient)
        assert void.any()
        assert (gradient[void] == 0).all()
        assert gradient.abs().sum() > 0
        other = torch.where(void, 7.0, scores.detach())
        assert number(loss(other, labels)) == number(loss(scores, labels))

    def test_a_batch_of_void_is_0_and_teaches_nothing(self, change: dict[str, Any]) -> None:
        scores, labels = batch(void=1.1)
        loss = criterion(replace(CONFIG, **change), SEGMENTATION, WEIGHTS.double())(scores, labels)
        assert number(loss) == 0
        (gradient,) = torch.autograd.grad(loss, scores)
        assert (gradient == 0).all()

    def test_scores_far_off_give_a_finite_loss(self, change: dict[str, Any]) -> None:
        scores, labels = batch()
        loss = criterion(replace(CONFIG, **change), SEGMENTATION, None)
        for factor in (1e-6, 1e4):
            far = (factor * scores.detach().float()).requires_grad_()
            value = loss(far, labels)
            assert math.isfinite(number(value))
            assert torch.isfinite(torch.autograd.grad(value, far)[0]).all()

    def test_of_images_every_label_is_a_class(self, change: dict[str, Any]) -> None:
        config = replace(CONFIG, **change)
        if config.dice_weight:
            with pytest.raises(HwnasError, match=r"a dice_weight of 0 where images are classified, got 0\.5"):
                criterion(config, CLASSIFICATION, None)
            return
        scores, labels = torch.randn(3, 300), torch.tensor([0, 299, IGNORE_LABEL])
        alone = [
            number(criterion(replace(config, ohem_kept=1.0), CLASSIFICATION, None)(scores[[i]], labels[[i]]))
            for i in range(3)
        ]
        both = number(criterion(replace(config, ohem_kept=1.0), CLASSIFICATION, None)(scores, labels))
        assert both == pytest.approx(np.mean(alone), rel=1e-5)


class TestClassWeights:
    #: class 0: 4 of 8 pixels; 1: 3 of 8; 2: 1 of the 4 pixels of the second image; 3: nowhere
    DATA = Fixed(
        (np.array([[0, 0], [0, 1]]), np.array([[0, 1, IGNORE_LABEL], [1, 2, IGNORE_LABEL]])), 4, "labels/train"
    )

    def test_median_frequency_by_hand(self) -> None:
        frequency = np.array([4 / 8, 3 / 8, 1 / 4])
        raw = np.array([*(0.375 / frequency), 0.375 / 0.25])
        mean = (raw * np.array([4, 3, 1, 0])).sum() / 8
        assert balanced_weights(self.DATA).tolist() == pytest.approx((raw / mean).tolist(), rel=1e-6)

    def test_settings_choose(self) -> None:
        def of(asked: Any) -> Tensor | None:
            return weights_of(replace(CONFIG, class_weights=asked), self.DATA)

        enet, balanced, listed = of("enet"), of("balanced"), of((1.0, 0.0, 2.0, 0.5))
        assert enet is not None
        assert balanced is not None
        assert listed is not None
        assert torch.equal(enet, class_weights(self.DATA))
        assert torch.equal(balanced, balanced_weights(self.DATA))
        assert listed.tolist() == [1.0, 0.0, 2.0, 0.5]
        assert of("none") is None
        with pytest.raises(HwnasError, match="a training on labels/train needs class_weights for 4 classes, got 2"):
            of((1.0, 1.0))

    def test_images_have_equal_classes_unless_listed(self) -> None:
        data = Shapes("train", (32, 32), length=4)
        assert [weights_of(replace(CONFIG, class_weights=w), data) for w in ("enet", "balanced")] == [None, None]
        assert weights_of(replace(CONFIG, class_weights=(2.0,) * 10), data) is not None

    def test_no_labels(self) -> None:
        with pytest.raises(DataError, match="got void pixels only"):
            balanced_weights(Fixed((np.full((2, 2), IGNORE_LABEL),), 2))


class TestDistillation:
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_is_the_divergence_of_softened_scores(self, temperature: float) -> None:
        scores, _ = batch()
        target = batch(9)[0].detach()
        p, q = (np.exp(x.detach().numpy() / temperature) for x in (scores, target))
        p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
        expected = 3.0 * temperature**2 * (q * np.log(q / p)).sum(1).mean()
        loss = Distillation(lambda images: target, 3.0, temperature)(torch.zeros(2, 3, 6, 5), scores)
        # the teacher's scores are taken in float32
        assert number(loss) == pytest.approx(expected, rel=1e-5)

    def test_is_0_for_the_teacher_itself_and_falls_on_the_way_there(self) -> None:
        target = batch(9)[0].detach().float()
        loss = Distillation(lambda images: target, 1.0, 2.0)
        images = torch.zeros(2, 3, 6, 5)
        assert number(loss(images, target)) == pytest.approx(0, abs=1e-6)
        scores = torch.zeros_like(target).requires_grad_()
        optimizer, values = torch.optim.SGD([scores], 5.0), []
        for _ in range(20):
            optimizer.zero_grad()
            value = loss(images, scores)
            value.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            optimizer.step()
            values.append(number(value))
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.9 * values[0]

    def test_scores_of_another_size_are_resized_and_give_the_teacher_no_gradient(self) -> None:
        small = torch.randn(2, 4, 3, 3, requires_grad=True)
        big = F.interpolate(small.detach(), (6, 5), mode="bilinear", align_corners=False)
        scores = batch()[0].float()
        a, b = (Distillation(lambda images, t=t: t, 1.0, 1.0)(torch.zeros(2, 3, 6, 5), scores) for t in (small, big))
        assert number(a) == number(b)
        a.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        assert small.grad is None
