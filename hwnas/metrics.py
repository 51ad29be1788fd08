"""Quality over a whole set: intersection over union per class, its mean, and the share of labels that are right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, SEGMENTATION, Task
from hwnas.errors import HwnasError


def labelled(label: NDArray[Any], n_classes: int) -> NDArray[np.bool_]:
    """Return which labels are not void. Of more classes than a label map can have, every number is a class."""
    known: NDArray[np.bool_] = label != IGNORE_LABEL
    return known | (n_classes > IGNORE_LABEL)


def confusion(pred: NDArray[Any], label: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Count (label, prediction) in arrays of one shape: (n_classes, n_classes). Void ones do not count."""
    known = labelled(label, n_classes)
    cells = label[known].astype(np.int64) * n_classes + pred[known].astype(np.int64)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def iou(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return intersection over union of each class, (..., K, K) -> (..., K); NaN for those that do not occur."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(-2) + counts.sum(-1) - hit
    out = np.full(hit.shape, np.nan)
    np.divide(hit, union, out=out, where=union > 0)
    return out


def scores(task: Task, counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return what a task is judged by, of each confusion matrix, (..., K, K) -> (...): mIoU, or accuracy.

    The mean is over classes that occur in labels or predictions. Where nothing was counted it is 0.
    """
    if task is SEGMENTATION:
        each = iou(counts)
        there = ~np.isnan(each)
        mean: NDArray[np.float64] = np.where(there, each, 0).sum(-1) / np.maximum(1, there.sum(-1))
        return mean
    right: NDArray[np.float64] = np.trace(counts, axis1=-2, axis2=-1) / np.maximum(1, counts.sum((-2, -1)))
    return right


class ConfusionMatrix:
    """Counts pixels, or whole images, by (label, prediction) over a set; void ones (IGNORE_LABEL) do not count.

    Attributes:
        counts: int64 (n_classes, n_classes); rows are labels, columns predictions.

    Args:
        n_classes: 1 or more; of more than IGNORE_LABEL, which only images can have, none is void.

    Raises:
        HwnasError: If `n_classes` is less.
    """

    def __init__(self, n_classes: int) -> None:
        if n_classes < 1:
            raise HwnasError(f"expected 1 or more classes, got {n_classes}; give the number of a dataset's classes")
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
        self._refuse_outside(pred, "prediction")
        self._refuse_outside(label[labelled(label, self.n_classes)], "label")
        self.counts += confusion(pred, label, self.n_classes)

    def iou(self) -> NDArray[np.float64]:
        """Return intersection over union (n_classes,), NaN for classes in neither labels nor predictions."""
        return iou(self.counts)

    def miou(self) -> float:
        """Return the mean IoU over classes that occur in labels or predictions, 0..1.

        Raises:
            HwnasError: If no labelled pixel was counted.
        """
        self._refuse_empty()
        return float(scores(SEGMENTATION, self.counts))

    def pixel_accuracy(self) -> float:
        """Return the share of labelled pixels, or images, predicted right, 0..1.

        Raises:
            HwnasError: If no labelled pixel was counted.
        """
        self._refuse_empty()
        return float(scores(CLASSIFICATION, self.counts))

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
