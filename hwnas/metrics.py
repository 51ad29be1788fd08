"""Quality over a whole set: IoU by class and its means, accuracy, and IoU near boundaries; see docs/evaluation.md.

Everything is a quotient of counts over the set, so that counts of parts add up to those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, SEGMENTATION, Task
from hwnas.errors import HwnasError, check_ranges

DILATION = 0.02  # width of a boundary as a share of the diagonal of the image: boundary-iou-api@boundary_utils.py


class Measure(Protocol):
    """What is told the predictions over a set, one batch or image after the other."""

    def update(self, pred: NDArray[Any], label: NDArray[Any]) -> None:
        """Add predictions and labels, integer arrays of one shape."""


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
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    return _quotients(hit, counts.sum(-2) + counts.sum(-1) - hit)


def _quotients(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return part / whole, NaN where there is nothing."""
    out = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def mean_of(values: NDArray[np.float64]) -> float:
    """Return the mean of those of a value per class that are there, 0 if none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else 0.0


def by_class(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return a value per class by its name, as JSON can hold it: None, not NaN, for classes that do not occur."""
    return {name: None if np.isnan(v) else float(v) for name, v in zip(names, values, strict=True)}


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
        return _quotients(np.diag(self.counts), self.counts.sum(1))

    def mean_accuracy(self) -> float:
        """Return the mean recall over classes that occur in labels, 0..1.

        Raises:
            HwnasError: If no labelled pixel was counted.
        """
        self._refuse_empty()
        return mean_of(self.recall())

    def frequency_weighted_iou(self) -> float:
        """Return the mean IoU where each class counts as its share of the labelled pixels, 0..1.

        Raises:
            HwnasError: If no labelled pixel was counted.
        """
        self._refuse_empty()
        occurs, each = self.counts.sum(1), self.iou()
        return float(np.where(occurs > 0, each, 0) @ occurs / occurs.sum())

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


class BoundaryIoU:
    """IoU of what lies near contours, summed over a set: Cheng et al., Boundary IoU, CVPR 2021.

    Of the pixels of a class in the labels, those within a distance d of the contour count, and in the same way of those
    in the predictions: their intersection over their union. As in the authors' code (boundary-iou-api) the distance is
    that of d erosions by 3x3 pixels, and the edge of the image is a contour. Void pixels are void in predictions too,
    so that both have the contour that void cuts.

    Attributes:
        intersections: Pixels (n_classes,), int64.
        unions: The same.

    Args:
        n_classes: 1 to IGNORE_LABEL.
        dilation: d as a share of the diagonal of an image, rounded to pixels, 1 or more.

    Raises:
        HwnasError: If one of these is out of range.
    """

    def __init__(self, n_classes: int, dilation: float = DILATION) -> None:
        check_ranges(
            "a boundary IoU",
            (f"1 to {IGNORE_LABEL} classes", n_classes, 1 <= n_classes <= IGNORE_LABEL),
            ("a dilation of more than 0, at most 1", dilation, 0 < dilation <= 1),
        )
        self.n_classes, self.dilation = n_classes, dilation
        self.intersections: NDArray[np.int64] = np.zeros(n_classes, np.int64)
        self.unions: NDArray[np.int64] = np.zeros(n_classes, np.int64)

    def update(self, pred: NDArray[Any], label: NDArray[Any]) -> None:
        """Add predictions and labels of classes: (H, W), or (N, H, W) of several images; `ConfusionMatrix` checks them.

        Raises:
            HwnasError: If shapes differ, or are no label maps.
        """
        if pred.shape != label.shape or label.ndim not in (2, 3):
            raise HwnasError(f"expected two label maps (H, W), got {pred.shape} and {label.shape}; resize one of them")
        if label.ndim == 3:
            for one in zip(pred, label, strict=True):
                self.update(*one)
            return
        void = label == IGNORE_LABEL
        cut = np.where(void, IGNORE_LABEL, pred)
        width = boundary_width(label.shape, self.dilation)
        truth, found = near_contours(label, width) & ~void, near_contours(cut, width) & ~void
        in_truth, in_found = self._by_class(label[truth]), self._by_class(cut[found])
        both = self._by_class(label[truth & found & (label == cut)])
        self.intersections += both
        self.unions += in_truth + in_found - both

    def _by_class(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(labels, minlength=self.n_classes)

    def iou(self) -> NDArray[np.float64]:
        """Return boundary IoU (n_classes,), NaN for classes in neither labels nor predictions."""
        return _quotients(self.intersections, self.unions)

    def miou(self) -> float:
        """Return the mean over classes that occur in labels or predictions, 0..1; 0 where nothing was counted."""
        return mean_of(self.iou())


def boundary_width(size: tuple[int, ...], dilation: float = DILATION) -> int:
    """Return how many pixels wide the boundary of regions is in an image of `size` (height, width), 1 or more."""
    return max(1, round(dilation * math.hypot(*size)))


def near_contours(labels: NDArray[Any], width: int) -> NDArray[np.bool_]:
    """Return where a label map (H, W) has another label, or the edge of the image, within `width` pixels.

    The distance is the larger of that in rows and that in columns. Sums over windows are differences of running sums,
    so that the work does not grow with `width`, nor with the number of classes.
    """
    side = 2 * width + 1
    height, length = labels.shape
    near = np.ones(labels.shape, bool)
    if min(height, length) < side:
        return near
    # A square is of one label if its rows are, and its middle column is.
    row_changes = _windows(labels[:, 1:] != labels[:, :-1], side - 1, axis=1)  # (H, W - 2 width)
    rows_alike = _windows(row_changes == 0, side, axis=0) == side
    column_changes = _windows(labels[1:] != labels[:-1], side - 1, axis=0)[:, width : length - width]
    near[width : height - width, width : length - width] = ~(rows_alike & (column_changes == 0))
    return near


def _windows(there: NDArray[np.bool_], length: int, axis: int) -> NDArray[np.int32]:
    """Return how many of each `length` neighbours along an axis are true."""
    before = np.zeros([n + (i == axis) for i, n in enumerate(there.shape)], np.int32)
    first, last, past = (
        (slice(None),) * axis + (slice(*part),) for part in ((1, None), (None, -length), (length, None))
    )
    np.cumsum(there, axis=axis, out=before[first])
    out: NDArray[np.int32] = before[past] - before[last]
    return out
