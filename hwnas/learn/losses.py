"""What weights learn from: batches as tensors, and the loss of the task."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data.base import IGNORE_LABEL

Batch = tuple[Tensor, Tensor]  # images and labels


def tensors(batch: tuple[NDArray[Any], NDArray[Any]]) -> Batch:
    """Return a batch of `hwnas.data.augment.batch_source` as torch has it, images in channels-last layout."""
    images, labels = batch
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)


def task_loss(scores: Tensor, labels: Tensor, class_weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy: mean over pixels that are not void, 0 where all are; or mean over images.

    Args:
        scores: (N, K, H, W), or (N, K) where images are classified.
        labels: (N, H, W), void is `IGNORE_LABEL`; or (N,), where every number is a class.
        class_weights: (K,) or None.
        smoothing: Share of each target that is spread over all classes (Szegedy et al. 2016, section 7).
    """
    if scores.dim() == 2:
        return F.cross_entropy(scores, labels, weight=class_weights, label_smoothing=smoothing)
    loss = F.cross_entropy(scores, labels, weight=class_weights, ignore_index=IGNORE_LABEL, label_smoothing=smoothing)
    # The mean over no pixel is NaN, and one such batch would end a run. Asked on the device: no step waits for it.
    return torch.where((labels != IGNORE_LABEL).any(), loss, loss.new_zeros(()))
