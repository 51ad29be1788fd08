"""Evaluation: at the resolution of the labels, over scales and flips, in windows; and what a report says of it."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from hwnas.data import IGNORE_LABEL, ClassList, Sample, SegmentationData, Shapes, open_dataset
from hwnas.data.base import CLASSIFICATION, SEGMENTATION
from hwnas.errors import HwnasError
from hwnas.export import load_weights
from hwnas.images import normalise, resize_labels
from hwnas.jobs import validation
from hwnas.learn.evaluation import PLAIN, Inference, as_labels, evaluate, starts
from hwnas.metrics import BoundaryIoU, ConfusionMatrix
from hwnas.records import signed, text_of
from hwnas.run import Run
from tests.verbs import RECIPE, camvid_folder, done, hwnas

K = 5
CLASSES = ClassList(tuple("abcde"), ((0, 0, 0),) * K)
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Sized:
    """Images of one size with labels of others."""

    size: tuple[int, int] = (12, 17)
    label_sizes: tuple[tuple[int, int], ...] = ((24, 34), (7, 9), (12, 17), (31, 17))
    name: str = "sized/test"
    mean: tuple[float, float, float] = (0.5, 0.4, 0.3)
    std: tuple[float, float, float] = (0.2, 0.3, 0.4)
    classes: ClassList = CLASSES

    def __len__(self) -> int:
        return len(self.label_sizes)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.size, 3), np.uint8)
        label = rng.integers(0, K, self.label_sizes[index]).astype(np.uint8)
        label[rng.random(label.shape) < 0.2] = IGNORE_LABEL
        return Sample(image, label, str(index))

    def input(self, index: int) -> Tensor:
        return torch.from_numpy(normalise(self[index].image, self.mean, self.std))[None]


DATA = Sized()


def convolution(kernel: int) -> Callable[[Tensor], Tensor]:
    """Return a network from images to scores of their size; with a kernel of 1 pixels do not see each other."""
    weight = torch.randn(K, 3, kernel, kernel, generator=torch.Generator().manual_seed(kernel))
    return lambda x: F.conv2d(x, weight, padding=kernel // 2)


NETWORK, POINTWISE = convolution(5), convolution(1)


def interpolated(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_at_the_resolution_of_labels_it_equals_torchmetrics() -> None:
    settings: dict[str, Any] = {"num_classes": K, "ignore_index": IGNORE_LABEL}
    miou, accuracy = MulticlassJaccardIndex(**settings), MulticlassAccuracy(average="micro", **settings)
    for i, sample in enumerate(DATA):
        pred = interpolated(NETWORK(DATA.input(i)), sample.label.shape).argmax(1)
        for metric in (miou, accuracy):
            metric.update(pred, torch.from_numpy(sample.label.astype(np.int64))[None])
    found = evaluate(NETWORK, DATA)
    assert found.miou() == pytest.approx(float(miou.compute()), abs=1e-6)
    assert found.pixel_accuracy() == pytest.approx(float(accuracy.compute()), abs=1e-6)
    assert found.counts.sum() == sum((s.label != IGNORE_LABEL).sum() for s in DATA)


def test_a_network_of_labels_is_resized_by_nearest() -> None:
    expected = ConfusionMatrix(K)
    for i, sample in enumerate(DATA):
        pred = NETWORK(DATA.input(i)).argmax(1)
        resized = F.interpolate(pred[None].double(), size=sample.label.shape, mode="nearest-exact")
        expected.update(resized[0, 0].numpy().astype(int), sample.label)
    found = evaluate(as_labels(NETWORK), DATA)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert (found.counts != evaluate(NETWORK, DATA).counts).any()


@pytest.mark.parametrize("old", [(1, 1), (5, 8), (16, 3)])
@pytest.mark.parametrize("new", [(1, 2), (5, 8), (9, 31), (32, 6)])
def test_nearest_is_that_of_half_pixels(old: tuple[int, int], new: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 255, (2, *old), np.uint8)
    expected = F.interpolate(torch.from_numpy(labels)[None], size=new, mode="nearest-exact")[0]
    np.testing.assert_array_equal(resize_labels(labels, new), expected.numpy())


def test_measures_are_told_what_is_counted() -> None:
    boundary, again = BoundaryIoU(K), ConfusionMatrix(K)
    found = evaluate(NETWORK, DATA, measures=(boundary, again))
    np.testing.assert_array_equal(found.counts, again.counts)
    expected = BoundaryIoU(K)
    for i, sample in enumerate(DATA):
        expected.update(interpolated(NETWORK(DATA.input(i)), sample.label.shape)[0].argmax(0).numpy(), sample.label)
    np.testing.assert_array_equal(boundary.unions, expected.unions)


IMAGES = torch.randn(2, 3, 19, 26, generator=torch.Generator().manual_seed(9))
SIZES = [(19, 26), (40, 31), (10, 13)]


@pytest.mark.parametrize("size", SIZES)
def test_one_pass_gives_the_scores_of_the_network(size: tuple[int, int]) -> None:
    torch.testing.assert_close(PLAIN.scores(NETWORK, IMAGES, size), interpolated(NETWORK(IMAGES), size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75), (2.0, 1.0)])
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_of_scales_and_flips_are_averaged(
    size: tuple[int, int], scales: tuple[float, ...], flip: bool
) -> None:
    expected = []
    for scale in scales:
        scaled = interpolated(IMAGES, (round(19 * scale), round(26 * scale)))
        expected.append(interpolated(NETWORK(scaled), size))
        if flip:
            expected.append(interpolated(NETWORK(scaled.flip(-1)).flip(-1), size))
    mean = torch.stack([e.softmax(1) for e in expected]).mean(0) if len(expected) > 1 else expected[0]
    torch.testing.assert_close(Inference(scales, flip).scores(NETWORK, IMAGES, size), mean)


def test_a_flipped_pass_says_nothing_new_of_a_network_that_sees_single_pixels() -> None:
    alone = POINTWISE(IMAGES)
    torch.testing.assert_close(Inference(flip=True).scores(POINTWISE, IMAGES, (19, 26)), alone.softmax(1))


WINDOWS = [((7, 9), None), ((7, 26), (1, 5)), ((19, 8), (3, 8)), ((18, 25), (18, 25)), ((40, 5), None), ((1, 1), None)]


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
@pytest.mark.parametrize("size", SIZES[:2])
def test_windows_over_a_network_that_sees_single_pixels_change_nothing(
    window: tuple[int, int], stride: tuple[int, int] | None, size: tuple[int, int]
) -> None:
    found = Inference(window=window, stride=stride).scores(POINTWISE, IMAGES, size)
    torch.testing.assert_close(found, interpolated(POINTWISE(IMAGES), size))


@pytest.mark.parametrize(("window", "stride"), WINDOWS[:-1])
def test_where_windows_overlap_each_counts_the_same(window: tuple[int, int], stride: tuple[int, int] | None) -> None:
    inference = Inference(window=window, stride=stride)
    height, width = min(window[0], 19), min(window[1], 26)
    assert inference.strides is not None
    there: list[list[list[Tensor]]] = [[[] for _ in range(26)] for _ in range(19)]
    for top, left in itertools.product(*map(starts, (19, 26), (height, width), inference.strides)):
        out = NETWORK(IMAGES[:, :, top : top + height, left : left + width])
        for i, j in np.ndindex(height, width):
            there[top + i][left + j].append(out[:, :, i, j])
    expected = torch.stack([torch.stack([torch.stack(p).mean(0) for p in row], -1) for row in there], -2)
    torch.testing.assert_close(inference.scores(NETWORK, IMAGES, (19, 26)), expected)


@pytest.mark.parametrize("window", [(19, 26), (100, 26), (30, 30)])
def test_a_window_as_large_as_the_image_is_the_image(window: tuple[int, int]) -> None:
    expected = NETWORK(IMAGES)
    assert torch.equal(Inference(window=window).scores(NETWORK, IMAGES, (19, 26)), expected)


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(10, 10, 4), (10, 4, 4), (10, 3, 1), (101, 33, 22), (7, 6, 6)]
)
def test_windows_cover_all_and_end_with_it(length: int, window: int, stride: int) -> None:
    found = starts(length, window, stride)
    assert found == sorted(set(found))
    assert (found[0], found[-1] + window) == (0, length)
    assert max(np.diff(found), default=0) <= stride
    assert len(found) == math.ceil((length - window) / stride) + 1


def test_the_default_stride_is_two_thirds_of_the_window() -> None:
    assert Inference(window=(768, 1)).strides == (512, 1)
    assert PLAIN.strides is None


def test_an_evaluation_takes_its_inference() -> None:
    inference = Inference((0.5, 1.5), flip=True, window=(8, 8))
    expected = ConfusionMatrix(K)
    for i, sample in enumerate(DATA):
        size = (sample.label.shape[0], sample.label.shape[1])
        expected.update(inference.scores(NETWORK, DATA.input(i), size).argmax(1)[0].numpy(), sample.label)
    found = evaluate(NETWORK, DATA, inference=inference)
    np.testing.assert_array_equal(found.counts, expected.counts)


@pytest.mark.parametrize("inference", [Inference(flip=True), Inference((2.0,)), Inference(window=(3, 3))])
def test_what_needs_scores_refuses_labels_and_whole_images(inference: Inference) -> None:
    with pytest.raises(HwnasError, match="average scores, and the network gives labels"):
        evaluate(as_labels(NETWORK), DATA, inference=inference)
    with pytest.raises(HwnasError, match="are for segmentation; classify images as they are"):
        evaluate(lambda x: x.mean((2, 3)), Shapes("test", (16, 16), length=2), inference=inference)
    for task in (SEGMENTATION, CLASSIFICATION):
        PLAIN.check(task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "one or more scales"),
        ({"scales": (1.0, 0.0)}, "one or more scales, finite and more than 0"),
        ({"scales": (math.inf,)}, ".* finite"),
        ({"scales": (math.nan,)}, ".* finite"),
        ({"scales": (1.0, 1.0)}, "scales that differ"),
        ({"window": (0, 4)}, r"a window \(height, width\) of 1 or more"),
        ({"stride": (1, 1)}, "a stride only with a window"),
        ({"window": (4, 4), "stride": (0, 1)}, "a stride .* of 1 or more"),
        ({"window": (4, 4), "stride": (4, 5)}, r"a stride of at most the window \(4, 4\), got \(4, 5\)"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HwnasError, match=f"an evaluation needs {message}"):
        Inference(**settings)


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ({}, PLAIN, "single scale"),
        (
            {"scales": "0.75, 1,1.25", "flip": True},
            Inference((0.75, 1, 1.25), flip=True),
            "scales 0.75, 1, 1.25, with flips",
        ),
        ({"window": "30x60"}, Inference(window=(30, 60)), "single scale, windows of 30x60 every 20x40"),
    ],
)
def test_texts_of_a_command_line(given: dict[str, Any], expected: Inference, said: str) -> None:
    assert Inference.of(**given) == expected
    assert str(expected) == said


@pytest.mark.parametrize(
    "given", [{"scales": "half"}, {"scales": ""}, {"window": "30"}, {"window": "30x"}, {"window": "3,4"}]
)
def test_texts_that_are_neither_scales_nor_windows(given: dict[str, Any]) -> None:
    with pytest.raises(HwnasError, match=f"^expected .* such as .*, got {next(iter(given.values()))!r}$"):
        Inference.of(**given)


@dataclass(frozen=True)
class Larger:
    """A split whose labels have another size than its images."""

    data: SegmentationData
    size: tuple[int, int]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        image, label, name = self.data[index]
        return Sample(image, resize_labels(label, self.size), name)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of a run have few images."""
    monkeypatch.setattr("hwnas.run.open_dataset", partial(open_dataset, length=3))


def read_report(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


SHARES = ("test_miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "boundary_miou")


def means_are_of(content: dict[str, Any], miou: str) -> None:
    """Hold the means of a record against its values by class: null for those that do not occur, and no NaN."""
    for mean, each in ((miou, "iou"), ("mean_accuracy", "recall"), ("boundary_miou", "boundary_iou")):
        there = [v for v in content[each].values() if v is not None]
        assert content[mean] == pytest.approx(np.mean(there))
        assert len(content[each]) == 11
        assert all(0 <= v <= 1 for v in there)


def test_a_report_has_what_the_field_states(finished: Path) -> None:
    report = read_report(finished)
    means_are_of(report, "test_miou")
    assert all(0 <= report[name] <= 1 for name in SHARES)
    assert report["frequency_weighted_iou"] <= report["pixel_accuracy"]
    assert report["label_size"] == list(Run(RECIPE).recipe.space.scale.size)
    assert "resized" not in report
    assert report["evaluated"] == []
    said = done("validate", RECIPE).out
    assert f"boundary mIoU {report['boundary_miou']:.2%}" in said
    for name, iou in report["iou"].items():
        shown = "none" if iou is None else f"{iou:.2%}"
        assert re.search(rf"^{re.escape(name)} +{re.escape(shown)} ", said, re.MULTILINE)


@pytest.mark.usefixtures("few")
def test_scales_and_flips_are_added_to_a_report_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_report(finished)
    monkeypatch.setattr(validation, "_prove", None)  # nothing is measured for it
    said = done("validate", RECIPE, "--scales", "0.5,1", "--flip").out
    after = read_report(finished)
    (first,) = after["evaluated"]
    assert after | {"evaluated": [], "sha256": ""} == before | {"sha256": ""}
    assert first["inference"] == {"scales": [0.5, 1.0], "flip": True}
    means_are_of(first, "miou")
    assert re.search(rf"^evaluated +{first['miou']:.2%} ", said, re.MULTILINE)
    assert "scales 0.5, 1, with flips; what is timed is the plain network" in said
    done("validate", RECIPE, "--window", "24x32")
    second = read_report(finished)["evaluated"][1]
    assert second["inference"] == {"scales": [1.0], "flip": False, "window": [24, 32]}
    both = (finished / "report.json").read_bytes()
    for options in ((), ("--scales", "0.5,1", "--flip"), ("--window", "24x32")):
        assert "nothing to do" in done("validate", RECIPE, *options).out
    assert (finished / "report.json").read_bytes() == both
    assert not (finished / "report-1.json").exists()
    assert hwnas("validate", RECIPE, "--scales", "1,x").code == 2


@pytest.mark.usefixtures("few")
def test_a_report_from_before_these_numbers_stays_readable(finished: Path) -> None:
    new = {"mean_accuracy", "frequency_weighted_iou", "boundary_miou", "boundary_iou", "label_size", "evaluated"}
    old = {k: v for k, v in read_report(finished).items() if k not in new | {"recall"}}
    (finished / "report.json").write_text(text_of(signed(old), 1))
    said = done("validate", RECIPE).out
    assert "nothing to do" in said
    assert "boundary" not in said
    assert read_report(finished) == signed(old)
    done("validate", RECIPE, "--flip")
    assert read_report(finished)["evaluated"][0]["inference"]["flip"] is True


def test_a_file_is_held_against_labels_at_their_own_resolution(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(RECIPE)
    derived = run.derived()
    network = run.space(derived).build(derived.architecture, form="deploy")
    load_weights(network, finished / "train" / "model.safetensors")
    size, opened = (90, 101), list[bool]()

    def open_larger(*args: Any, own_labels: bool = False, **settings: Any) -> Any:
        opened.append(own_labels)
        return Larger(open_dataset(*args, **settings, length=3), size)

    monkeypatch.setattr("hwnas.run.open_dataset", open_larger)
    test = run.data("test")
    by_nearest = "the file gives labels, which were resized to them by nearest"
    expected = {
        "scores": (("--scores",), evaluate(network.eval(), test), "the network's scores were resized to them"),
        "labels": ((), evaluate(as_labels(network), test), by_nearest),
    }
    for ending, (options, confusion, how) in expected.items():
        shutil.rmtree(finished / "deploy")
        done("export", RECIPE, *options)
        said = done("validate", RECIPE, "--again").out
        report = read_report(finished)
        assert (report["label_size"], report["resized"], opened[-1]) == (list(size), ending, True)
        assert re.search(rf"^label size +90x101; {how}$", said, re.MULTILINE)
        assert report["torch_miou"] == pytest.approx(confusion.miou())
        assert report["test_miou"] == pytest.approx(confusion.miou(), abs=1e-3)
        with Image.open(finished / "predictions.png") as picture:
            picture.verify()


def test_labels_of_a_folder_can_be_had_as_they_are(tmp_path: Path) -> None:
    folder = camvid_folder(tmp_path / "camvid")
    plain, own = (open_dataset(str(folder), "test", (12, 20), own_labels=own)[0] for own in (False, True))
    assert own.image.shape == plain.image.shape == (12, 20, 3)
    assert (plain.label.shape, own.label.shape) == ((12, 20), (48, 64))
    assert open_dataset("synthetic", "test", (16, 20), length=1, own_labels=True)[0].label.shape == (16, 20)
