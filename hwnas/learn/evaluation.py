"""Evaluation of a network over a whole split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hwnas.data.base import CLASSIFICATION, SegmentationData, task_of
from hwnas.images import normalise
from hwnas.learn.device import CPU, Context, read
from hwnas.metrics import ConfusionMatrix
from hwnas.progress import Update, ignore

EVALUATED = 64  # images at once, where they are classified: all of one size, and small


def evaluate(
    network: Callable[[Tensor], Tensor], data: SegmentationData, update: Update = ignore, device: torch.device = CPU
) -> ConfusionMatrix:
    """Run a network over a whole split: one image at a time at its own size, or `EVALUATED` where they are classified.

    Args:
        network: From (N, 3, H, W) to labels (N, H, W) or (N,), or to scores (N, K, H, W) or (N, K).
        data: The split.
        update: Told after each batch.
        device: Where the network computes; labels are read once for each batch.
    """
    confusion, context = ConfusionMatrix(len(data.classes.names)), Context(device)
    n = EVALUATED if task_of(data) is CLASSIFICATION else 1
    with torch.no_grad():
        for first in range(0, len(data), n):
            samples = [data[i] for i in range(first, min(first + n, len(data)))]
            images = np.stack([normalise(s.image, data.mean, data.std) for s in samples])
            out = network(context.tensor(torch.from_numpy(images)))
            labels = out.argmax(1) if out.is_floating_point() else out
            confusion.update(read(labels), np.stack([s.label for s in samples]))
            update(first + len(samples))
    return confusion
