"""What is in a dataset: counts against counts, what is odd is named, and the drawing is there and of use."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hwnas.data import IGNORE_LABEL, ClassList, open_dataset
from hwnas.data.identity import Identity, identity_of, is_drawn
from hwnas.data.survey import (
    Sizes,
    across,
    classes_in,
    count_labels,
    equal_pictures,
    evenly,
    header_size,
    outward,
)
from hwnas.errors import HwnasError
from hwnas.jobs import SurveyResult, SurveySettings, survey
from hwnas.jobs.surveying import telling
from hwnas.sheet import Legend, Tile, overlay, percent, sheet
from hwnas.show.surveying import CELLS, bar
from tests.five import FIVE, five_classes, five_folder, make_void, write_label
from tests.verbs import hwnas


@pytest.fixture
def five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sound dataset of five classes, ours to damage, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hwnas.sheet.GRID_WIDTH", 320)  # compressing a large drawing takes most of a survey
    with five_classes():
        yield five_folder(Path("hall"))


def look(place: str | Path = "hall", **settings: object) -> SurveyResult:
    return survey(SurveySettings(str(place), **settings))  # type: ignore[arg-type]


class TestNumbers:
    @given(st.integers(0, 300), st.integers(1, 40))
    def test_evenly_has_both_ends_and_no_gaps(self, n: int, most: int) -> None:
        chosen = evenly(n, most)
        assert len(chosen) == min(n, most)
        if len(chosen) > 1:
            assert (chosen[0], chosen[-1]) == (0, n - 1)
            gaps = np.diff(chosen)
            assert gaps.max() - gaps.min() <= 1

    @given(st.integers(0, 300))
    def test_outward_is_everything_once(self, n: int) -> None:
        assert sorted(outward(n)) == list(range(n))

    @given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1))
    def test_sizes_are_those_of_images(self, sizes: list[tuple[int, int]]) -> None:
        seen = Sizes.of(sizes)
        assert seen is not None
        assert {seen.least, seen.median, seen.most} <= set(sizes)
        area = [h * w for h, w in sizes]
        assert (np.prod(seen.least), np.prod(seen.most)) == (min(area), max(area))
        assert seen.kinds == len(set(sizes))

    def test_labels_are_counted_once_each(self) -> None:
        label = np.random.default_rng(0).integers(0, 6, (30, 40)).astype(np.uint8)
        label[label == 5] = IGNORE_LABEL
        counts = count_labels(label, 5)
        assert counts.tolist() == [(label == c).sum() for c in (0, 1, 2, 3, 4, IGNORE_LABEL)]

    @pytest.mark.parametrize("value", [0, 255, 999])
    def test_of_images_every_number_is_a_class(self, value: int) -> None:
        assert count_labels(np.array(value, np.int64), 1000).tolist().index(1) == value

    def test_the_header_says_the_size_as_the_image_is_seen(self, tmp_path: Path) -> None:
        picture, exif = Image.new("RGB", (40, 30)), Image.Exif()
        picture.save(tmp_path / "a.png")
        exif[0x0112] = 6  # a camera held upright: CIPA DC-008, 4.6.4 A
        picture.save(tmp_path / "b.jpg", exif=exif)
        assert header_size(tmp_path / "a.png") == (30, 40)
        assert header_size(tmp_path / "b.jpg") == (40, 30)

    @pytest.mark.parametrize(
        ("share", "text"), [(0, "0"), (0.00001, "<0.01 %"), (0.0004, "0.04 %"), (0.275, "27.5 %"), (1, "100.0 %")]
    )
    def test_shares(self, share: float, text: str) -> None:
        assert percent(share) == text

    def test_a_bar_is_as_long_as_its_share_and_never_empty(self) -> None:
        assert bar(1) == "█" * CELLS
        assert bar(0) == ""
        assert bar(1e-9) == "▏"
        assert bar(0.5) == "█" * (CELLS // 2)


class TestEqualPictures:
    def test_content_decides_and_not_the_name_or_the_number_of_bytes(self, five: Path) -> None:
        train, val = (five / s / "images" for s in ("train", "val"))
        content = (train / "train-0.png").read_bytes()
        (val / "val-1.png").write_bytes(content)
        (train / "train-2.png").write_bytes(content)
        (train / "train-3.png").write_bytes(content[:-1] + b"\0")  # as many bytes
        groups = equal_pictures({s: open_dataset(str(five), s, (48, 64)) for s in ("train", "val", "test")})
        assert groups == [(("train", "train-0"), ("train", "train-2"), ("val", "val-1"))]
        assert across(groups) == {
            ("train", "train"): ["train-0 = train-2"],
            ("train", "val"): ["train-0 = val-1"],
        }

    def test_what_is_drawn_has_no_files(self) -> None:
        assert equal_pictures({"train": open_dataset("synthetic", "train", (32, 32))}) == []


class TestIdentity:
    def test_is_that_of_a_copy_under_another_name(self, five: Path) -> None:
        shutil.copytree(five, "elsewhere")
        own, copy = identity_of("hall"), identity_of("elsewhere")
        assert own is not None
        assert copy is not None
        assert (own.name, copy.name) == ("hall", "elsewhere")
        assert own.splits == copy.splits
        assert own.unlike(copy) == ""
        assert all(s.startswith("4:") for s in own.splits.values())

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda f: (f / "val.txt").write_text("val-0 val-1"), "its val has 2 samples, not 4"),
            (lambda f: (f / "test.txt").unlink(), "it has no test that can be used"),
            (lambda f: (f / "train.txt").write_text("train-1\ntrain-0\ntrain-2\ntrain-3"), "are in its train"),
            (lambda f: write_label(f / "train/labels/train-0.png", np.zeros((48, 64))), "are in its train"),
        ],
    )
    def test_is_another_one_of_other_data(self, five: Path, change: Callable[[Path], object], said: str) -> None:
        own = identity_of("hall")
        change(five)
        new = identity_of("hall")
        assert own is not None
        assert new is not None
        assert said in own.unlike(new)

    def test_a_split_that_was_added_changes_nothing(self) -> None:
        assert Identity("a", {"train": "1:0"}).unlike(Identity("b", {"train": "1:0", "test": "2:1"})) == ""

    def test_of_what_is_drawn_is_its_name(self) -> None:
        assert is_drawn("synthetic")
        assert not is_drawn("camvid")  # that is a layout
        assert identity_of("synthetic") is None


class TestSurvey:
    def test_counts_what_is_there(self, five: Path) -> None:
        result = look()
        assert result.usable
        assert result.odd == ()
        assert result.classes == FIVE
        assert [(s.name, s.samples, s.read) for s in result.splits] == [(n, 4, 4) for n in ("train", "val", "test")]
        for split in result.splits:
            files = sorted((five / split.name / "labels").glob("*.png"))
            values = np.concatenate([np.asarray(Image.open(f)).ravel() for f in files])
            assert split.pixels == tuple(np.bincount(values, minlength=6).tolist())
            assert sum(split.shares) == pytest.approx(1)
            assert split.void == np.mean(values == 5)
            assert split.sizes == Sizes((48, 64), (48, 64), (48, 64), 1)

    def test_reads_no_more_labels_than_it_may(self, five: Path) -> None:
        assert [s.read for s in look(images=2).splits] == [2, 2, 2]

    def test_images_of_many_sizes(self, five: Path) -> None:
        for i, size in enumerate([(24, 32), (48, 64), (96, 128)]):
            for kind in ("images", "labels"):
                path = five / "train" / kind / f"train-{i}.png"
                Image.open(path).resize(size[::-1], Image.Resampling.NEAREST).save(path)
        sizes = look().splits[0].sizes
        assert sizes == Sizes((24, 32), (48, 64), (96, 128), 3)
        assert "24x32 to 96x128, median 48x64, 3 sizes" in hwnas("data", "hall").out

    def test_drawn_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        result = look("synthetic-shapes", images=30)
        assert result.usable
        assert result.task is not None
        assert result.task.name == "classification"
        assert [s.sizes for s in result.splits] == [None] * 3
        assert result.sheet == Path("data-synthetic-shapes.png")


def no_list(split: str) -> Callable[[Path], object]:
    return lambda folder: (folder / f"{split}.txt").unlink()


def shrunk_label(folder: Path) -> None:
    write_label(folder / "val/labels/val-2.png", np.zeros((24, 32)))


def half_an_image(folder: Path) -> None:
    path = folder / "train/images/train-1.png"
    path.write_bytes(b"\x89PNG")


def one_class(split: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in (folder / split / "labels").glob("*.png"):
            write_label(path, np.full((48, 64), 3))

    return change


def copied(folder: Path) -> None:
    shutil.copy(folder / "train/images/train-0.png", folder / "test/images/test-0.png")
    shutil.copy(folder / "train/images/train-1.png", folder / "train/images/train-2.png")


def no_person(folder: Path) -> None:
    for path in (folder / "train/labels").glob("*.png"):
        label = np.array(Image.open(path))
        label[label == 4] = 0
        write_label(path, label)


UNUSABLE = [
    (no_list("train"), "no train: .* has no train.txt.*; nothing can be searched or trained"),
    (no_list("val"), "no val: .*; hwnas train chooses the best weights by it"),
    (lambda f: make_void(f, "train"), "train has no labelled pixel: all of its labels are void; nothing can be"),
    (lambda f: make_void(f, "val"), "val has no labelled pixel: all of its labels are void; hwnas train"),
    (shrunk_label, "1 labels in val are of another size than their image, such as val-2: image 48x64, label 24x32"),
    (half_an_image, r"train: cannot read .*train-1\.png"),
    (lambda f: (f / "train.txt").write_text("train-0"), "train has 1 sample, a search needs 2 or more"),
]
ODD = [
    (no_list("test"), "no test: .*; hwnas validate scores the exported file on it"),
    (lambda f: make_void(f, "test"), "test has no labelled pixel"),
    (lambda f: make_void(f, "train", 1, 3), "2 labels in train are all void: train-1, train-3"),
    (one_class("test"), "test shows one class alone: belt"),
    (copied, "1 equal images in train and test: scores on test are too good: train-0 = test-0"),
    (copied, "1 equal images twice in train: train-1 = train-2"),
    (no_person, "1 classes do not occur in train, but in val or test: person"),
]


@pytest.mark.parametrize(("change", "said"), UNUSABLE)
def test_what_makes_a_dataset_unusable(five: Path, change: Callable[[Path], object], said: str) -> None:
    change(five)
    ended = hwnas("data", "hall")
    assert ended.code == 1
    assert re.search(f"^not usable: .*{said}", ended.out, re.MULTILINE)
    assert "next:" not in ended.out
    assert not ended.err


@pytest.mark.parametrize(("change", "said"), ODD)
def test_what_is_odd(five: Path, change: Callable[[Path], object], said: str) -> None:
    change(five)
    ended = hwnas("data", "hall")
    assert ended.code == 0
    assert re.search(f"^warning: .*{said}", ended.out, re.MULTILINE)
    assert ended.following.startswith("hwnas profile RECIPE --data hall")


def test_a_sound_dataset_has_nothing_odd(five: Path) -> None:
    ended = hwnas("data", "hall")
    assert ended.code == 0
    assert "warning" not in ended.out
    assert all(name in ended.out for name in FIVE.names)


@pytest.mark.parametrize("bound", ["0", "-3"])
def test_a_bound_that_is_none(five: Path, bound: str) -> None:
    assert "a survey needs --images of 1 or more" in hwnas("data", "hall", "--images", bound).err


class TestSheet:
    def test_is_not_overwritten_unasked(self, five: Path) -> None:
        assert "data-hall.png" in hwnas("data", "hall").out
        Path("data-hall.png").write_bytes(b"mine")
        ended = hwnas("data", "hall")
        assert ended.code == 0
        assert "data-hall.png is there already and stays; --overwrite draws it anew" in ended.out
        refused = hwnas("data", "hall", "--out", "data-hall.png")
        assert refused.code == 2
        assert "is there already; name another file, or add --overwrite" in refused.err
        assert Path("data-hall.png").read_bytes() == b"mine"
        hwnas("data", "hall", "--overwrite")
        with Image.open("data-hall.png") as picture:
            assert picture.format == "PNG"

    def test_is_a_png(self, five: Path) -> None:
        assert "ends in .png" in hwnas("data", "hall", "--out", "hall.jpg").err

    def test_shows_the_colour_of_every_class(self, five: Path) -> None:
        look()
        colours = {c for _, c in Image.open("data-hall.png").convert("RGB").getcolors(1 << 24) or ()}
        assert set(FIVE.palette) <= colours

    def test_an_overlay_keeps_the_picture_and_tells_classes_apart(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
        label = np.zeros((40, 60), np.uint8)
        label[:, 30:] = 4
        left, right = (overlay(image, label, FIVE)[:, half].mean((0, 1)) for half in (slice(0, 29), slice(32, 60)))
        for seen, colour in ((left, FIVE.palette[0]), (right, FIVE.palette[4])):
            assert np.corrcoef(seen - image.mean(), np.array(colour) - image.mean())[0, 1] > 0.9
        light = overlay(image, np.zeros_like(label), FIVE).mean(2).ravel()
        assert np.corrcoef(light, image.mean(2).ravel())[0, 1] > 0.95

    @pytest.mark.parametrize("classes", [1, 19, 150, 1000])
    @pytest.mark.parametrize("tiles", [1, 6, 24])
    def test_any_number_of_classes_and_tiles(self, classes: int, tiles: int) -> None:
        names = tuple(f"class number {i}" for i in range(classes))
        legend = Legend(ClassList(names[:255], ((10, 20, 30),) * min(classes, 255)), [1 / classes] * classes, "share")
        image = np.zeros((30, 40, 3), np.uint8)
        picture = sheet([Tile(image, np.zeros((30, 40), np.uint8), "a")] * tiles, legend, "title")
        assert picture.width < 3000
        assert picture.height < 2500

    def test_of_classification_says_the_class(self) -> None:
        image = np.zeros((30, 40, 3), np.uint8)
        one = sheet([Tile(image, np.array(1, np.uint8), "a")], Legend(FIVE, [0.2] * 5, "share", void=False), "title")
        two = sheet([Tile(image, np.array(2, np.uint8), "a")], Legend(FIVE, [0.2] * 5, "share", void=False), "title")
        assert np.asarray(one).shape == np.asarray(two).shape
        assert (np.asarray(one) != np.asarray(two)).any()


class TestTelling:
    def test_takes_the_picture_with_the_rare_class(self) -> None:
        pixels = np.tile([900, 100, 0], (40, 1))
        pixels[17] = [890, 100, 10]
        assert 17 in telling(pixels, 3)

    def test_neighbours_are_passed_over(self) -> None:
        pixels = np.random.default_rng(0).integers(1, 100, (120, 8))
        assert np.diff(telling(pixels, 6)).min() > 10

    @pytest.mark.parametrize("n", [1, 3, 6])
    def test_has_no_more_than_there_are(self, n: int) -> None:
        assert telling(np.ones((n, 4), np.int64), 6) == list(range(n))


def test_looking_for_a_label_ends_with_the_first(five: Path) -> None:
    data, read = open_dataset(str(five), "train", (48, 64)), []
    real = data.__class__.__getitem__

    class Counting(data.__class__):  # type: ignore[name-defined,misc]
        def __getitem__(self, index: int) -> object:
            read.append(index)
            return real(self, index)

    data.__class__ = Counting
    assert len(classes_in(data, 2)) >= 2
    assert read == [0]


def test_what_no_layout_recognises(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="nothing-here"):
        look(tmp_path / "nothing-here")
