"""The confusion matrix against a brute force over sets of pixels and against torchmetrics; boundary IoU by erosion."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
    multiclass_stat_scores,
)

from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, SEGMENTATION
from hwnas.errors import HwnasError
from hwnas.metrics import (
    BoundaryIoU,
    ConfusionMatrix,
    Measure,
    boundary_width,
    by_class,
    mean_of,
    near_contours,
    score_of,
    scores,
)

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


def maps(seed: int, n_classes: int = 6, void: float = 0.1) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return predictions and labels of some images: blocks, some classes in neither, in one only, and void."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(n_classes)
    size = rng.integers(2, 6, 2)
    in_label, in_pred = classes[: rng.integers(1, n_classes)], classes[: rng.integers(1, n_classes + 1)]
    label = np.kron(rng.choice(in_label, (3, *size)), np.ones((1, 5, 4), int))
    pred = np.where(rng.random(label.shape) < 0.6, label, rng.choice(in_pred, label.shape))
    return pred, np.where(rng.random(label.shape) < void, IGNORE_LABEL, label).astype(np.uint8)


SEEDS = range(30)


@pytest.mark.parametrize("seed", SEEDS)
def test_equals_torchmetrics(seed: int) -> None:
    """Its counts are exact; its quotients are in float32."""
    pred, label = maps(seed)
    matrix = ConfusionMatrix(6)
    matrix.update(pred, label)
    given = torch.from_numpy(pred), torch.from_numpy(label.astype(np.int64))
    settings = {"num_classes": 6, "ignore_index": IGNORE_LABEL}
    np.testing.assert_array_equal(matrix.counts, multiclass_confusion_matrix(*given, **settings).numpy())
    right, wrong, _, missed, there = multiclass_stat_scores(*given, average=None, **settings).double().T
    union, occurs = right + wrong + missed, there > 0
    iou, recall = right / union, right / there
    assert matrix.miou() == pytest.approx(float(iou[union > 0].mean()), abs=1e-9)
    assert matrix.pixel_accuracy() == pytest.approx(float(right.sum() / there.sum()), abs=1e-9)
    assert matrix.mean_accuracy() == pytest.approx(float(recall[occurs].mean()), abs=1e-9)
    weighted = float((iou * there)[occurs].sum() / there.sum())
    assert matrix.frequency_weighted_iou() == pytest.approx(weighted, abs=1e-9)
    np.testing.assert_allclose(matrix.iou(), iou.numpy(), atol=1e-9)
    np.testing.assert_allclose(matrix.recall(), recall.numpy(), atol=1e-9)
    theirs = {
        matrix.miou: multiclass_jaccard_index(*given, average="macro", **settings),
        matrix.frequency_weighted_iou: multiclass_jaccard_index(*given, average="weighted", **settings),
        matrix.pixel_accuracy: multiclass_accuracy(*given, average="micro", **settings),
    }
    for ours, expected in theirs.items():
        assert ours() == pytest.approx(float(expected), abs=1e-6)


def test_means_by_hand() -> None:
    """Class 0: 6 of 8 right, class 1: 1 of 2; class 2 is predicted once, class 3 is nowhere."""
    matrix = ConfusionMatrix(4)
    label = np.array([0] * 8 + [1] * 2)
    matrix.update(np.array([0] * 6 + [1, 2, 1, 0]), label)
    ious = [6 / 9, 1 / 3, 0.0]
    assert matrix.miou() == pytest.approx(sum(ious) / 3)
    assert matrix.mean_accuracy() == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert matrix.frequency_weighted_iou() == pytest.approx(0.8 * ious[0] + 0.2 * ious[1])
    assert by_class("abcd", matrix.recall()) == {"a": 0.75, "b": 0.5, "c": None, "d": None}
    assert by_class("abcd", matrix.iou()) == {"a": 6 / 9, "b": 1 / 3, "c": 0.0, "d": None}


@pytest.mark.parametrize("name", ["mean_accuracy", "frequency_weighted_iou"])
def test_means_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(HwnasError, match="no labelled pixel was counted"):
        getattr(ConfusionMatrix(2), name)()
    assert BoundaryIoU(2).miou() == mean_of(np.array([math.nan])) == 0.0


COUNTED = {"confusion": (ConfusionMatrix, ("counts",)), "boundary": (BoundaryIoU, ("intersections", "unions"))}


@pytest.mark.parametrize("kind", COUNTED)
@pytest.mark.parametrize("seed", SEEDS[:5])
def test_parts_add_up_to_the_whole(kind: str, seed: int) -> None:
    make, names = COUNTED[kind]
    pred, label = maps(seed)

    def of(*images: int) -> Any:
        measure: Measure = make(6)
        for i in images:
            measure.update(pred[i], label[i])
        return measure

    whole = make(6)
    whole.update(pred, label)
    parts = of(0), of(1, 2)
    for name in names:
        np.testing.assert_array_equal(getattr(whole, name), getattr(of(2, 0, 1), name))
        np.testing.assert_array_equal(getattr(whole, name), sum(getattr(p, name) for p in parts))
    np.testing.assert_array_equal(whole.iou(), of(0, 1, 2).iou())


def eroded(mask: NDArray[Any], width: int) -> NDArray[Any]:
    """Return what is farther than `width` pixels from all that is not in a mask, and from the edge of the image."""
    outside = np.pad(~mask, 1, constant_values=True)
    distance = ndimage.distance_transform_cdt(~outside, metric="chessboard")[1:-1, 1:-1]
    return np.asarray(distance > width)


@pytest.mark.parametrize("seed", SEEDS)
def test_boundary_iou_against_distances_of_each_class(seed: int) -> None:
    """One mask at a time, as the paper defines it; void cuts both."""
    rng = np.random.default_rng(seed)
    dilation = float(rng.choice([0.02, 0.05, 0.1, 0.4]))
    boundary = BoundaryIoU(6, dilation)
    expected = np.zeros((2, 6))
    for image in range(2):
        size = rng.integers(1, 60, 2)
        blobs = ndimage.zoom(rng.integers(0, 5, -(-size // 7)), 8, order=0)[: size[0], : size[1]]
        label = np.where(ndimage.zoom(rng.random(-(-size // 7)), 8, order=0)[: size[0], : size[1]] < 0.15, 255, blobs)
        pred = np.roll(blobs, rng.integers(-3, 4, 2), axis=(0, 1)) if image else rng.integers(0, 5, label.shape)
        boundary.update(pred, label.astype(np.uint8))
        for c in range(6):
            truth, found = label == c, (pred == c) & (label != 255)
            width = boundary_width(label.shape, dilation)
            rims = truth & ~eroded(truth, width), found & ~eroded(found, width)
            expected[:, c] += (rims[0] & rims[1]).sum(), (rims[0] | rims[1]).sum()
    np.testing.assert_array_equal(boundary.intersections, expected[0])
    np.testing.assert_array_equal(boundary.unions, expected[1])
    there = expected[1] > 0
    assert boundary.miou() == pytest.approx((expected[0][there] / expected[1][there]).mean())
    assert math.isnan(boundary.iou()[5])


@pytest.mark.parametrize("width", [1, 2, 5, 9, 40])
def test_contours_by_the_distance_to_each_pixel(width: int) -> None:
    rng = np.random.default_rng(width)
    labels = np.kron(rng.integers(0, 3, (4, 3)), np.ones((6, 8), int))
    height, length = labels.shape
    for (i, j), near in np.ndenumerate(near_contours(labels, width)):
        square = labels[max(0, i - width) : i + width + 1, max(0, j - width) : j + width + 1]
        inside = min(i, j, height - 1 - i, length - 1 - j) >= width
        assert near == (not inside or (square != labels[i, j]).any())


def test_boundary_iou_by_hand() -> None:
    """A square of 6x6 in 100x100, found one pixel to the right: with d = 3 (0.02 * 141) all of it is boundary."""
    label, pred = np.zeros((2, 100, 100), np.uint8)
    label[40:46, 40:46], pred[40:46, 41:47] = 1, 1
    boundary = BoundaryIoU(2)
    boundary.update(pred, label)
    assert boundary_width(label.shape) == 3
    assert boundary.iou()[1] == pytest.approx(30 / 42)
    rim, around = 100**2 - 94**2, 12**2 - 6**2  # the edge of the image, and 3 pixels around the square
    both = rim + around - 6 - 12  # a column within the other square, and one that is 4 pixels away from it
    assert boundary.iou()[0] == pytest.approx(both / (2 * (rim + around) - both))


def test_a_perfect_prediction_has_perfect_boundaries_whatever_it_says_of_void() -> None:
    _, label = maps(3, void=0.3)
    boundary = BoundaryIoU(6)
    boundary.update(np.where(label == IGNORE_LABEL, 2, label), label)
    there = boundary.unions > 0
    assert there.any()
    assert (boundary.iou()[there] == 1).all()
    assert boundary.miou() == 1


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((4,), (4,)), ((), ())])
def test_boundaries_are_of_label_maps(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(HwnasError, match="expected two label maps"):
        BoundaryIoU(2).update(*(np.zeros(shape, int) for shape in shapes))


@pytest.mark.parametrize(("n", "dilation"), [(0, 0.02), (256, 0.02), (2, 0.0), (2, 1.5), (2, math.nan)])
def test_boundaries_of_settings_that_cannot_be(n: int, dilation: float) -> None:
    with pytest.raises(HwnasError, match="a boundary IoU needs"):
        BoundaryIoU(n, dilation)
