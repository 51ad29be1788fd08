"""The confusion matrix against a brute force over sets of pixels."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hwnas.data.base import CLASSIFICATION, SEGMENTATION
from hwnas.errors import HwnasError
from hwnas.metrics import ConfusionMatrix, score_of, scores

N = 4
SHAPE = (3, 5)
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 1, 2, 3, 255]))
PREDICTIONS = hnp.arrays(np.int64, SHAPE, elements=st.integers(0, N - 1))


def brute_iou(pred: NDArray[Any], label: NDArray[Any]) -> list[float]:
    pixels = [p for p in np.ndindex(*label.shape) if label[p] != 255]
    out = []
    for c in range(N):
        predicted, true = {p for p in pixels if pred[p] == c}, {p for p in pixels if label[p] == c}
        out.append(len(predicted & true) / len(predicted | true) if predicted | true else math.nan)
    return out


@settings(max_examples=100, deadline=None)
@given(images=st.lists(st.tuples(PREDICTIONS, LABELS), min_size=1, max_size=3))
def test_equals_brute_force_over_the_whole_set(images: list[tuple[NDArray[Any], NDArray[Any]]]) -> None:
    matrix = ConfusionMatrix(N)
    for pred, label in images:
        matrix.update(pred, label)
    pred, label = (np.concatenate(arrays) for arrays in zip(*images, strict=True))
    expected = brute_iou(pred, label)
    np.testing.assert_allclose(matrix.iou(), expected)
    known = label != 255
    if known.any():
        assert matrix.miou() == pytest.approx(np.nanmean(expected))
        assert matrix.pixel_accuracy() == pytest.approx(np.mean(pred[known] == label[known]))
    else:
        with pytest.raises(HwnasError, match="no labelled pixel was counted"):
            matrix.miou()


def test_is_over_the_set_and_not_the_mean_over_images() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    matrix.update(np.array([1]), np.array([1]))
    # class 0: 3 of 4, class 1: 1 of 2; the mean over images would be (0.375 + 1) / 2
    assert matrix.miou() == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_class_absent_from_labels_and_predictions_is_nan_and_left_out() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 1]), np.array([0, 1]))
    assert math.isnan(matrix.iou()[2])
    assert matrix.miou() == 1.0


def test_class_only_predicted_counts_as_zero() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([0, 1]), np.array([0, 0]))
    assert matrix.iou().tolist() == [0.5, 0.0]


def test_wrong_predictions_on_void_do_not_count() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([0, 1], np.int32), np.array([0, 255], np.uint8))
    assert matrix.counts.tolist() == [[1, 0], [0, 0]]
    assert matrix.pixel_accuracy() == 1.0


@pytest.mark.parametrize(
    ("pred", "label", "message"),
    [
        (np.array([0, 1]), np.array([0]), r"shape \(2,\) against labels of shape \(1,\); resize"),
        (np.array([0, 2]), np.array([0, 1]), r"prediction 2 is outside 0\.\.1"),
        (np.array([0, 2]), np.array([0, 255]), r"prediction 2 is outside 0\.\.1"),
        (np.array([0, -1]), np.array([0, 1]), r"prediction -1 is outside 0\.\.1"),
        (np.array([0, 1]), np.array([0, 11]), r"label 11 is outside 0\.\.1"),
        (np.array([0, 1]), np.array([0, -1]), r"label -1 is outside 0\.\.1"),
        (np.array([0.0, 1.0]), np.array([0, 1]), "predictions as class numbers, got float64; take the argmax"),
        (np.array([0, 1]), np.array([False, True]), "labels as class numbers, got bool"),
    ],
)
def test_refuses(pred: NDArray[Any], label: NDArray[Any], message: str) -> None:
    matrix = ConfusionMatrix(2)
    with pytest.raises(HwnasError, match=message):
        matrix.update(pred, label)
    assert not matrix.counts.any()


@pytest.mark.parametrize("n", [0, -1])
def test_refuses_no_classes(n: int) -> None:
    with pytest.raises(HwnasError, match=f"expected 1 or more classes, got {n}"):
        ConfusionMatrix(n)


def test_of_more_classes_than_label_maps_have_none_is_void() -> None:
    matrix, label = ConfusionMatrix(300), np.array([3, 255, 299, 255])
    matrix.update(np.array([3, 255, 255, 7]), label)
    assert (matrix.counts[255, 255], matrix.counts[255, 7], matrix.counts.sum()) == (1, 1, 4)
    assert matrix.pixel_accuracy() == 0.5


def test_score_of_nothing_is_refused() -> None:
    with pytest.raises(HwnasError, match="no labelled pixel was counted"):
        ConfusionMatrix(2).pixel_accuracy()


@given(st.integers(1, 3), st.integers(0, 2**31))
def test_many_matrices_are_scored_as_each_alone(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    many = rng.integers(0, 4, (n, 2, N, N)) * rng.integers(0, 2, (n, 2, 1, N))
    for task in (SEGMENTATION, CLASSIFICATION):
        found = scores(task, many)
        for i in np.ndindex(n, 2):
            matrix = ConfusionMatrix(N)
            matrix.counts = many[i]
            assert found[i] == (score_of(matrix, task) if many[i].any() else 0.0)
