"""Quality over a whole set: intersection over union per class, its mean, and the share of labels that are right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import IGNORE_LABEL, SEGMENTATION, Task
from hwnas.errors import HwnasError


class ConfusionMatrix:
    """Counts pixels, or whole images, by (label, prediction) over a set; void ones (IGNORE_LABEL) do not count.

    Attributes:
        counts: int64 (n_classes, n_classes); rows are labels, columns predictions.

    Args:
        n_classes: 1 to IGNORE_LABEL.

    Raises:
        HwnasError: If `n_classes` is out of that range.
    """

    def __init__(self, n_classes: int) -> None:
        if not 1 <= n_classes <= IGNORE_LABEL:
            raise HwnasError(f"expected 1 to {IGNORE_LABEL} classes, got {n_classes}; {IGNORE_LABEL} is void")
        self.n_classes = n_classes
        self.counts: NDArray[np.int64] = np.zeros((n_classes, n_classes), np.int64)

    def update(self, pred: NDArray[Any], label: NDArray[Any]) -> None:
        """Add predictions and labels: integer arrays of one shape, whatever that is.

        Raises:
            HwnasError: If shapes differ, an array is not of integers, a label is neither a class nor IGNORE_LABEL, or a
                prediction is no class, on void pixels too. Nothing is counted then.
        """
        if pred.shape != label.shape:
            raise HwnasError(
                f"predictions of shape {pred.shape} against labels of shape {label.shape}; "
                "resize the predictions to the labels"
            )
        for what, values in (("predictions", pred), ("labels", label)):
            if values.dtype.kind not in "iu":
                raise HwnasError(f"expected {what} as class numbers, got {values.dtype}; take the argmax over classes")
        known = label != IGNORE_LABEL
        self._refuse_outside(pred, "prediction")
        self._refuse_outside(label[known], "label")
        cell = label[known].astype(np.int64) * self.n_classes + pred[known].astype(np.int64)
        self.counts += np.bincount(cell, minlength=self.n_classes**2).reshape(self.counts.shape)

    def iou(self) -> NDArray[np.float64]:
        """Return intersection over union (n_classes,), NaN for classes in neither labels nor predictions."""
        hit = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        out = np.full(self.n_classes, np.nan)
        np.divide(hit, union, out=out, where=union > 0)
        return out

    def miou(self) -> float:
        """Return the mean IoU over classes that occur in labels or predictions, 0..1.

        Raises:
            HwnasError: If no labelled pixel was counted.
        """
        self._refuse_empty()
        return float(np.nanmean(self.iou()))

    def pixel_accuracy(self) -> float:
        """Return the share of labelled pixels, or images, predicted right, 0..1.

        Raises:
            HwnasError: If no labelled pixel was counted.
        """
        self._refuse_empty()
        return float(np.trace(self.counts) / self.counts.sum())

    def recall(self) -> NDArray[np.float64]:
        """Return the share of each class's labels predicted right (n_classes,), NaN for classes without labels."""
        total = self.counts.sum(1)
        out = np.full(self.n_classes, np.nan)
        np.divide(np.diag(self.counts), total, out=out, where=total > 0)
        return out

    def _refuse_empty(self) -> None:
        if not self.counts.any():
            raise HwnasError("no labelled pixel was counted, so there is no score; give labels that are not all void")

    def _refuse_outside(self, values: NDArray[Any], what: str) -> None:
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < self.n_classes:
            bad = int(values.min()) if int(values.min()) < 0 else int(values.max())
            raise HwnasError(
                f"{what} {bad} is outside 0..{self.n_classes - 1}; use the class list of the dataset "
                f"and {IGNORE_LABEL} for void labels"
            )


def score_of(confusion: ConfusionMatrix, task: Task) -> float:
    """Return what a task is judged by, 0..1: mIoU of segmentation, top-1 accuracy of classification.

    Raises:
        HwnasError: If nothing labelled was counted.
    """
    return confusion.miou() if task is SEGMENTATION else confusion.pixel_accuracy()
