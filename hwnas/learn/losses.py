"""What weights learn from: batches as tensors, and the losses of the tasks.

Cross-entropy, OHEM and focal loss are means over labels that are not void, each label weighted by its class. So OHEM
that keeps all and a focal loss of exponent 0 are the cross-entropy. All are 0 where every label is void, and none reads
anything from the device.

Where several processes have a part of the batch each, a loss is the share of this one: the sum over processes is the
loss of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, SegmentationData, Task, task_of
from hwnas.errors import DataError, HwnasError
from hwnas.learn.distributed import ALONE, World
from hwnas.learn.settings import TrainConfig

Batch = tuple[Tensor, Tensor]  # images and labels
Criterion = Callable[[Tensor, Tensor], Tensor]  # from scores and labels, as of `task_loss`, to a loss ()
NO_LABEL = -100  # torch's void, where images are classified: every number is a class there


def tensors(batch: tuple[NDArray[Any], NDArray[Any]]) -> Batch:
    """Return a batch of `hwnas.data.augment.batch_source` as torch has it, images in channels-last layout."""
    images, labels = batch
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)


def task_loss(
    scores: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    world: World = ALONE,
) -> Tensor:
    """Cross-entropy: mean over pixels that are not void, 0 where all are; or mean over images.

    Args:
        scores: (N, K, H, W), or (N, K) where images are classified.
        labels: (N, H, W), void is `IGNORE_LABEL`; or (N,), where every number is a class.
        class_weights: (K,) or None.
        smoothing: Share of each target that is spread over all classes (Szegedy et al. 2016, section 7).
        world: The processes that share the batch.
    """
    if world.shared:
        _, _, each, weights = _each(scores, labels, class_weights, smoothing)
        return _mean(each, weights, world)
    if scores.dim() == 2:
        return F.cross_entropy(scores, labels, weight=class_weights, label_smoothing=smoothing)
    loss = F.cross_entropy(scores, labels, weight=class_weights, ignore_index=IGNORE_LABEL, label_smoothing=smoothing)
    # The mean over no pixel is NaN, and one such batch would end a run. Asked on the device: no step waits for it.
    return torch.where((labels != IGNORE_LABEL).any(), loss, loss.new_zeros(()))


def ohem_loss(
    scores: Tensor,
    labels: Tensor,
    threshold: float,
    kept: float,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    world: World = ALONE,
) -> Tensor:
    """Cross-entropy of the hard pixels: those whose class has a probability below a threshold, or the hardest ones.

    Online hard example mining as in PIDNet (Xu et al. 2023, section 3.3, `OhemCrossEntropy` of
    XuJiacong/PIDNet@utils/criterion.py) and BiSeNet (Yu et al. 2018, whose least share is 1/16).

    Args:
        scores: As of `task_loss`.
        labels: As of `task_loss`.
        threshold: Of the probability.
        kept: Share of the labels that are not void that counts at least, the hardest ones; one of them in any case.
        class_weights: (K,) or None.
        smoothing: As of `task_loss`; which pixels are hard is decided without it.
        world: As of `task_loss`; the hardest ones are those of the whole batch.
    """
    known, surprise, each, weights = _each(scores, labels, class_weights, smoothing)
    # Void ones are last: below every true value of -log p. The count of labels is known on the device only, so the
    # hardest ones are taken for the case that there is no void, and the one at the end of its share looked up.
    surprise = torch.where(known, surprise, -1.0)
    most = max(1, int(kept * surprise.numel() * world.size))
    hardest = surprise.topk(min(most, surprise.numel())).values
    if world.shared:
        hardest = world.gathered(hardest).topk(most).values
    last = ((world.total(known.sum()).double() * kept).long() - 1).clamp(0, hardest.numel() - 1)
    bound = hardest.gather(0, last[None]).clamp_max(-math.log(threshold))
    return _mean(each, weights * ((surprise >= bound) & known), world)


def focal_loss(
    scores: Tensor,
    labels: Tensor,
    gamma: float,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
    world: World = ALONE,
) -> Tensor:
    """Cross-entropy times ``(1 - p) ** gamma``, with p the probability of the class (Lin et al. 2017, equation 5).

    Args:
        scores: As of `task_loss`.
        labels: As of `task_loss`.
        gamma: The exponent.
        class_weights: (K,) or None: the paper's alpha.
        smoothing: As of `task_loss`.
        world: As of `task_loss`.
    """
    _, surprise, each, weights = _each(scores, labels, class_weights, smoothing)
    # 1 - p of p near 1, where its power has no gradient: 0 is kept out of it
    return _mean(each * (-torch.expm1(-surprise)).clamp_min(1e-6) ** gamma, weights, world)


def dice_loss(scores: Tensor, labels: Tensor, world: World = ALONE) -> Tensor:
    """1 - Dice coefficient of probabilities and labels, mean over the classes that the batch has (Sudre et al. 2017).

    Args:
        scores: (N, K, H, W).
        labels: (N, H, W), void is `IGNORE_LABEL`.
        world: As of `task_loss`.
    """
    known = (labels != IGNORE_LABEL)[:, None]
    probs = torch.where(known, scores.softmax(1), 0.0)
    target = labels[:, None] == torch.arange(scores.shape[1], device=scores.device)[:, None, None]
    over = (0, 2, 3)
    size = world.total(target.sum(over))
    both, mass = world.summed(torch.where(target, probs, 0.0).sum(over)), world.summed(probs.sum(over))
    dice = 2 * both / (mass + size).clamp_min(1e-6)
    there = size > 0
    # Every process has the loss of the whole batch.
    return torch.where(there, 1 - dice, 0.0).sum() / there.sum().clamp_min(1) / world.size


def _each(
    scores: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what means are made of, all flat.

    Returns:
        Which labels are not void, bool; -log p of each label's class; its cross-entropy, weighted; its weight.
    """
    void = IGNORE_LABEL if scores.dim() == 4 else NO_LABEL
    known = labels != void
    surprise = F.cross_entropy(scores, labels, ignore_index=void, reduction="none")
    if class_weights is None:
        weights, each = known.to(scores.dtype), surprise
    else:
        weights = torch.where(known, class_weights[torch.where(known, labels, 0)], 0.0)
        each = surprise * weights
    if smoothing:
        each = F.cross_entropy(
            scores, labels, class_weights, ignore_index=void, reduction="none", label_smoothing=smoothing
        )
    return known.reshape(-1), surprise.reshape(-1), each.reshape(-1), weights.reshape(-1)


def _mean(each: Tensor, weights: Tensor, world: World) -> Tensor:
    """Return the mean of losses that are weighted already, over those of weight above 0; 0 where there are none."""
    total = world.total(weights.sum())
    return torch.where(weights > 0, each, 0.0).sum() / torch.where(total > 0, total, 1.0)


def criterion(config: TrainConfig, task: Task, class_weights: Tensor | None, world: World = ALONE) -> Criterion:
    """Return the loss that settings ask for, or the share of this process.

    Raises:
        HwnasError: If images are classified, which have no Dice coefficient.
    """
    if config.dice_weight and task is CLASSIFICATION:
        raise HwnasError(f"a training needs a dice_weight of 0 where images are classified, got {config.dice_weight}")
    return _Sum(config, class_weights, world)


class _Sum:
    """The loss of the settings, and Dice beside it."""

    def __init__(self, config: TrainConfig, class_weights: Tensor | None, world: World) -> None:
        self.config, self.class_weights, self.world = config, class_weights, world

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        c, common = self.config, (self.class_weights, self.config.smoothing, self.world)
        if c.loss == "ohem":
            own = ohem_loss(scores, labels, c.ohem_threshold, c.ohem_kept, *common)
        elif c.loss == "focal":
            own = focal_loss(scores, labels, c.focal_gamma, *common)
        else:
            own = task_loss(scores, labels, *common)
        return own + c.dice_weight * dice_loss(scores, labels, self.world) if c.dice_weight else own


def weights_of(config: TrainConfig, data: SegmentationData) -> Tensor | None:
    """Return what the loss of each class is multiplied by, (K,), or None.

    Raises:
        HwnasError: If it is a list of another length than there are classes.
        DataError: If it needs labels and there are none.
    """
    asked, n = config.class_weights, len(data.classes)
    if not isinstance(asked, str):
        if len(asked) != n:
            raise HwnasError(f"a training on {data.name} needs class_weights for {n} classes, got {len(asked)}")
        return torch.tensor(asked, dtype=torch.float32)
    if asked == "none" or task_of(data) is CLASSIFICATION:
        return None
    return class_weights(data) if asked == "enet" else balanced_weights(data)


def class_weights(data: SegmentationData, sample: int = 64) -> Tensor:
    """Return ``1 / ln(1.02 + share of pixels)`` per class (ENet, section 4), from up to `sample` images.

    Returns:
        (K,), scaled to mean 1 over pixels, so that the loss keeps its size.

    Raises:
        DataError: If none of these images has a labelled pixel.
    """
    share = _counts(data, sample).sum(0)
    share = share / share.sum()
    return _scaled(1 / np.log(1.02 + share), share)


def balanced_weights(data: SegmentationData, sample: int = 64) -> Tensor:
    """Return the median of class frequencies over each class's own (Eigen and Fergus 2015, section 6.3.2).

    The frequency of a class is its share of the pixels of those images that have it. A class that none has gets the
    greatest weight of the others.

    Returns:
        (K,), scaled to mean 1 over pixels.

    Raises:
        DataError: If none of these images has a labelled pixel.
    """
    counts = _counts(data, sample)
    total = counts.sum(0)
    there = total > 0
    among = (counts.sum(1, keepdims=True) * (counts > 0)).sum(0)  # pixels of the images that have the class
    frequency = total[there] / among[there]
    weights = np.empty(len(total))
    weights[there] = np.median(frequency) / frequency
    weights[~there] = weights[there].max()
    return _scaled(weights, total / total.sum())


def _counts(data: SegmentationData, sample: int) -> NDArray[np.float64]:
    """Return the pixels of each class in each of up to `sample` images, (images, K)."""
    n = len(data.classes.names)
    chosen = np.linspace(0, len(data) - 1, min(sample, len(data))).astype(int)
    labels = [data[int(i)].label for i in chosen]
    counts = np.stack([np.bincount(x[x != IGNORE_LABEL].reshape(-1), minlength=n) for x in labels])
    if not counts.any():
        raise DataError(f"expected labels in {data.name}, got void pixels only; check the label files")
    return counts.astype(np.float64)


def _scaled(weights: NDArray[np.float64], share: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(weights / (weights @ share)).float()
