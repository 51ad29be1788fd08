"""Datasets on disk: every layout in its original form gives the right classes; damage gives an error or a note."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.data import (
    CLASSIFICATION,
    SEGMENTATION,
    ClassList,
    Descriptor,
    FolderData,
    LabelTable,
    layout_of,
    open_dataset,
    registered_layouts,
    task_of,
)
from hwnas.data.augment import batch_source
from hwnas.data.labels import colour_map
from hwnas.data.layouts import cityscapes as cityscapes_layout
from hwnas.data.lists import split_of
from hwnas.data.polygons import inside, paint, runs_of, unrolled
from hwnas.errors import DataError
from hwnas.metrics import ConfusionMatrix
from tests import layout_trees as trees
from tests.layout_trees import SIZE, TREES, Tree, colour_of, drawn, save_image, save_label, write

Spoil = Callable[[Path], object]


def test_every_layout_has_a_tree(tmp_path: Path) -> None:
    assert {make(tmp_path / name).layout for name, make in TREES.items()} == set(registered_layouts())


@pytest.mark.parametrize("kind", TREES)
class TestTrees:
    @pytest.fixture
    def tree(self, kind: str, tmp_path: Path) -> Tree:
        return TREES[kind](tmp_path)

    def test_each_sample_has_its_image_and_its_classes(self, tree: Tree, tmp_path: Path) -> None:
        assert layout_of(str(tmp_path)) == tree.layout
        for split, wanted in tree.wanted.items():
            size = (32, 32) if tree.layout == "cifar10" else SIZE
            data = open_dataset(str(tmp_path), split, size)
            assert len(data) == len(wanted)
            assert len(data.classes) == tree.n_classes
            assert len(set(data.classes.palette)) == tree.n_classes
            assert {i: data.classes.names[i] for i in tree.names} == tree.names
            got = {sample.name: sample for sample in (data[i] for i in range(len(data)))}
            assert set(got) == set(wanted)
            for name, label in wanted.items():
                image, found, _ = got[name]
                np.testing.assert_array_equal(found, label)
                assert found.dtype == np.uint8 or found.ndim == 0
                assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
                assert np.abs(image.reshape(-1, 3).mean(0) - colour_of(name)).max() < 5
                assert not image.flags.writeable
            assert task_of(data) is (SEGMENTATION if np.ndim(next(iter(wanted.values()))) else CLASSIFICATION)

    def test_splits_it_has_not_are_said(self, tree: Tree, tmp_path: Path) -> None:
        assert tree.refused.keys() | tree.wanted.keys() == {"train", "val", "test"}
        for split, why in tree.refused.items():
            with pytest.raises(DataError, match=why):
                open_dataset(str(tmp_path), split, SIZE)

    def test_labels_keep_their_own_size_if_asked(self, tree: Tree, tmp_path: Path) -> None:
        wanted = tree.wanted["val"]
        for own in (True, False):
            data = open_dataset(str(tmp_path), "val", (12, 10), own_labels=own)
            image, label, name = data[0]
            assert image.shape == (12, 10, 3)
            if np.ndim(wanted[name]) and not own:
                assert label.shape == (12, 10)
                assert set(np.unique(label)) <= set(np.unique(wanted[name]))
            else:
                np.testing.assert_array_equal(label, wanted[name])

    def test_nothing_is_decoded_when_it_is_opened(
        self, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("a picture was opened")

        if not tree.decodes:
            monkeypatch.setattr("PIL.Image.open", refuse)
        for split, wanted in tree.wanted.items():
            assert len(open_dataset(str(tmp_path), split, SIZE)) == len(wanted)

    def test_a_length_is_the_first_so_many(self, tree: Tree, tmp_path: Path) -> None:
        whole, part = (open_dataset(str(tmp_path), "val", SIZE, length=n) for n in (None, 1))
        assert len(part) == 1
        assert part[0].name == whole[0].name
        with pytest.raises(DataError, match=f"got length {len(whole) + 1}"):
            open_dataset(str(tmp_path), "val", SIZE, length=len(whole) + 1)


# damage and oddities: what is done to a tree, and the message, in the opening or in the first read of a sample


def put(path: str, text: str) -> Spoil:
    return lambda folder: write(folder / path, text)


def put_bytes(path: str, content: bytes) -> Spoil:
    return lambda folder: (folder / path).write_bytes(content)


def remove(path: str) -> Spoil:
    return lambda folder: (folder / path).unlink()


def label(path: str, values: np.ndarray, **options: Any) -> Spoil:
    return lambda folder: save_label(folder / path, values, **options)


def classes_json(**held: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "classes.txt").unlink()
        write(folder / "classes.json", json.dumps(held))

    return spoil


def annotations(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "annotations/instances_train2017.json"
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return spoil


def of_another_height(held: dict[str, Any]) -> None:
    held["annotations"] = held["annotations"][:2]
    held["images"][0]["height"] = 7


def first(**changes: Any) -> Spoil:
    return annotations(lambda held: held["annotations"][0].update(changes))


NAMES = ["a", "b", "c"]
CITY = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
CITY_LABEL = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
YOLO_LABEL = "labels/train/train_0.txt"
VOC_ROOT = "VOCdevkit/VOC2012"
DAMAGE: list[tuple[str, Spoil, str]] = [
    # cityscapes
    (
        "cityscapes",
        label(CITY_LABEL, np.full(SIZE, 34)),
        r"labelIds\.png holds label 34, expected 7\.\.8, 11\.\.13, 17, ",
    ),
    ("cityscapes", label(CITY_LABEL, np.zeros((6, 9), int)), r"is 6x9 \(height x width\) but its image is 6x8"),
    ("cityscapes", label(CITY_LABEL, np.zeros((*SIZE, 3), int), kind=2), r"must have one number a pixel.*got colours"),
    ("cityscapes", put_bytes(CITY, b"\x89PNG"), r"cannot decode .*leftImg8bit\.png"),
    ("cityscapes", lambda f: (f / "gtFine").rename(f / "gtfine"), r"has no labels: expected gtFine/SPLIT/CITY"),
    ("cityscapes", lambda f: (f / "leftImg8bit/train").rename(f / "x"), r"leftImg8bit/train is missing; unpack"),
    ("cityscapes", lambda f: (f / "gtFine/train").rename(f / "x"), r"has 3 images, and none has its label in"),
    # camvid
    ("camvid", put("train.txt", "train_0.jpg\ntrain_0\n"), r"lists 'train_0\.jpg' twice, as 'train_0' too"),
    ("camvid", put("train.txt", "../val/images/val_0\n"), r"lists '\.\./val/images/val_0', which may leave the folder"),
    (
        "camvid",
        remove("train/labels/train_2.png"),
        r"labels/train_2\.png is missing; restore it or take its name out of",
    ),
    ("camvid", lambda f: save_image(f / "train/images/train_0.png", "x"), r"train_0\.jpg and train_0\.png, which may"),
    ("camvid", label("train/labels/train_0.png", np.full(SIZE, 12)), r"label 12, expected 0\.\.10 for classes or 11"),
    (
        "camvid",
        label("train/labels/train_0.png", np.full((*SIZE, 3), 9), kind=2),
        r"colour \(9, 9, 9\), expected one of",
    ),
    ("segnet", put("train.txt", "/x/../y/a.png /x/b.png\n"), "which may leave the folder"),
    ("segnet", put("train.txt", "/x/none.png /x/noneannot.png\n"), r"none\.png is missing \(and 1 more\)"),
    (
        "camvid_release",
        lambda f: save_image(f / "701_StillsRaw_full/me.png", "x"),
        "frames of CamVid like 0001TP_006690",
    ),
    ("camvid_32", put("classes.txt", "Road\nRoad\n"), "each another printable text, got 2"),
    # voc
    ("voc", remove(f"{VOC_ROOT}/SegmentationClass/train_1.png"), r"SegmentationClass/train_1\.png is missing"),
    ("voc", label(f"{VOC_ROOT}/SegmentationClass/train_0.png", np.full(SIZE, 21)), r"label 21, expected 0\.\.20 for"),
    (
        "voc",
        lambda f: save_image(f / VOC_ROOT / "SegmentationClass/train_0.png", "x") or (f / "x").touch(),
        r"holds colour \(.*\), expected one of 22 colours",
    ),
    # ade20k
    (
        "ade20k",
        label("ADEChallengeData2016/annotations/training/ADE_train_00000000.png", np.full(SIZE, 151)),
        r"label 151, expected 1\.\.150 for classes or 0 for void",
    ),
    (
        "ade20k",
        put("ADEChallengeData2016/objectInfo150.txt", "Idx\tName\n1\twall\n"),
        r"names of 1 classes, expected Idx",
    ),
    (
        "ade20k",
        lambda f: (f / "ADEChallengeData2016/annotations/training").rename(f / "x"),
        "annotations/training is missing",
    ),
    # folder
    (
        "folder_of_splits",
        label("train/labels/train_0.png", np.full(SIZE, 3)),
        r"label 3, expected 0\.\.2 for classes or 255",
    ),
    ("folder_of_splits", put("classes.txt", " \n"), r"classes\.txt is empty; write one class name a line"),
    ("folder_of_splits", put("classes.txt", "a\nb\na\n"), "each another printable text, got 3"),
    ("folder_of_splits", put("classes.json", "{}"), r"has classes\.txt and classes\.json; keep one"),
    ("folder_of_splits", classes_json(name=NAMES), 'needs an object with "names"'),
    ("folder_of_splits", classes_json(names=NAMES, colour=[]), "unknown key 'colour'; did you mean 'colours'"),
    ("folder_of_splits", classes_json(names=NAMES, colours=[[1, 2, 3]]), r"one \[red, green, blue\] for each of its 3"),
    ("folder_of_splits", classes_json(names=NAMES, colours=[[1, 2, 3]] * 3), "gives two classes one colour"),
    ("folder_of_splits", classes_json(names=NAMES, colours=[[1, 2, 256]] * 3), "three whole numbers from 0 to 255"),
    ("folder_of_splits", classes_json(names=NAMES, values={"x": "a"}), 'values like "7" or "128,64,128", got \'x\''),
    ("folder_of_splits", classes_json(names=NAMES, values={"1": "d"}), "unknown class 'd'"),
    ("folder_of_splits", classes_json(names=NAMES, values={"1": None}), "maps no value to a class"),
    ("folder_of_splits", classes_json(names=NAMES, values={"99999": "a"}), "values from 0 to 65535"),
    ("folder_of_splits", classes_json(names=NAMES, rest="road"), 'needs "void" for "rest"'),
    ("folder_of_splits", put_bytes("train/labels/train_0.png", b"\xff\xd8\xff\xe0"), "must be a PNG.*got JPEG"),
    ("folder_of_splits", lambda f: (f / "train").rename(f / "training2"), r"has no train: .*; it has val, test"),
    (
        "folder_of_splits",
        lambda f: (f / "train/labels").rename(f / "x"),
        r"train/labels is missing: expected a label map",
    ),
    (
        "folder_of_splits",
        lambda f: [p.rename(p.with_name("x" + p.name)) for p in (f / "train/labels").iterdir()],
        r"has 3 images without labels in .*\(the first is train_0\), and none with one",
    ),
    (
        "folder_scanned",
        label("val/labels/val_0.png", np.full((*SIZE, 3), 9), kind=2),
        r"val_0\.png has colours \(RGB\) and the folder no classes\.json; write one",
    ),
    ("folder_scanned", label("val/labels/val_0.png", np.full(SIZE, 256), depth=16), "label 256, expected 0..254"),
    (
        "folder_listed",
        label("masks/train_0_mask.PNG", np.full(SIZE, 8), depth=16),
        "label 8, expected 7, 300 for classes",
    ),
    # coco
    ("coco", first(category_id=7), "annotation 0 is of image 10 and category 7, which are not both there"),
    ("coco", first(image_id="10"), "annotation 0 needs image_id as a whole number"),
    ("coco", first(segmentation=[[1, 2, 3]]), "annotation 0 needs polygons as lists of x and y in turn"),
    ("coco", first(segmentation={"size": list(SIZE), "counts": [47]}), "needs counts for an image of 6x8 pixels"),
    ("coco", first(segmentation={"size": list(SIZE), "counts": "\x00"}), "counts that cannot be read"),
    ("coco", first(segmentation=None), "needs a segmentation of polygons or counts, got NoneType"),
    ("coco", annotations(lambda held: held.pop("categories")), "needs images, annotations and categories"),
    ("coco", annotations(lambda held: held["images"][0].update(file_name="../x.jpg")), "names within the folder"),
    (
        "coco",
        annotations(of_another_height),
        "is 6x8 .* but its objects are drawn for 7x8",
    ),
    ("coco", annotations(lambda held: held["images"].append(held["images"][0])), "two images of id 10"),
    ("coco", remove("train2017/000000000001.jpg"), r"000000000001\.jpg is missing; restore it or take its name out of"),
    ("coco", put("annotations/instances_train2017.json", "{"), "is not annotations in COCO's form"),
    # yolo
    ("yolo", put(YOLO_LABEL, "2 0 0 1 0 1 1\n"), r"train_0\.txt line 1 has class 2, expected 0\.\.1"),
    ("yolo", put(YOLO_LABEL, "\n0 0.5 0.5 1 1\n"), r"train_0\.txt line 2 is a box, expected the outline"),
    ("yolo", put(YOLO_LABEL, "0 0 0 1 0 1\n"), "has 5 numbers, expected three or more corners"),
    ("yolo", put(YOLO_LABEL, "0 0 0 1.1 0 1 1\n"), "leaves the image: expected shares"),
    ("yolo", put(YOLO_LABEL, "car 0 0 1 0 1 1\n"), "is not of numbers, got 'car 0 0 1 0 1 1'"),
    ("yolo", put("data.yaml", "nc: 2\n"), "has no names; write names"),
    ("yolo", put("data.yaml", "names:\n  0: a\n  2: b\n"), "names that cannot be read"),
    ("yolo", lambda f: (f / "data.yaml").unlink(), r"cannot read the list .*classes\.txt: No such file"),
    # images to classify
    ("class_folders", lambda f: (f / "train").rename(f / "x"), "has no train with a folder for each class"),
    ("class_folders", put_bytes("train/n00000000/ILSVRC2012_train_0.JPEG", b"GIF89a"), "cannot decode .*train_0.JPEG"),
    ("cifar10", put_bytes("cifar-10-batches-bin/data_batch_2.bin", b"\0" * 3072), "3072 bytes, not a multiple of 3073"),
    ("cifar10", put_bytes("cifar-10-batches-bin/data_batch_2.bin", b"\x0a" * 3073), "it has the label 10, not 0 to 9"),
    (
        "cifar10",
        remove("cifar-10-batches-bin/data_batch_3.bin"),
        r"cannot read .*data_batch_3\.bin of CIFAR-10: No such",
    ),
]


def every_sample(folder: Path) -> None:
    data = open_dataset(str(folder), "train", SIZE)
    for i in range(len(data)):
        _ = data[i]


@pytest.mark.parametrize(("kind", "spoil", "message"), DAMAGE, ids=lambda v: v if isinstance(v, str) else "")
def test_damage_is_one_error_that_names_it(kind: str, spoil: Spoil, message: str, tmp_path: Path) -> None:
    TREES[kind](tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as refused:
        every_sample(tmp_path)
    assert "\n" not in str(refused.value)


# what is odd and can be used


def opened(folder: Path, split: str = "train") -> FolderData:
    data = open_dataset(str(folder), split, SIZE)
    assert isinstance(data, FolderData)
    return data


ODD: list[tuple[str, Spoil, int, str]] = [
    (
        "cityscapes",
        remove(CITY_LABEL),
        2,
        r"1 images in .*leftImg8bit/train have no label, left out: aachen/aachen_00000",
    ),
    ("folder_of_splits", remove("train/labels/train_1.png"), 2, "1 of 3 images in .* have no label, left out: train_1"),
    ("folder_of_splits", remove("train/images/train_1.png"), 2, "1 labels in .* have no image, left out: train_1"),
    (
        "ade20k",
        remove("ADEChallengeData2016/images/training/ADE_train_00000001.jpg"),
        2,
        "1 labels in .* have no image",
    ),
    ("ade20k", remove("ADEChallengeData2016/objectInfo150.txt"), 3, "so classes are numbered"),
    ("camvid_beside", remove("train_labels/train_0_L.png"), 2, "1 of 3 images in .* have no label"),
    ("coco", annotations(lambda held: held["annotations"].clear()), 3, "3 of 3 images have no object, all background"),
    ("coco", first(segmentation=[[1, 2, 3, 4]]), 3, "1 objects in .* have no area, left out"),
    ("yolo", remove(YOLO_LABEL), 3, "1 of 3 images have no label file, all background: train_0"),
    ("yolo", put("labels/train/other.txt", ""), 3, "1 label files in .* have no image, left out: other"),
    ("class_folders", remove("train/n00000001/ILSVRC2012_train_1.JPEG"), 2, "1 of 3 classes have no image in train"),
]


@pytest.mark.parametrize(("kind", "spoil", "n", "note"), ODD, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_left_out_is_counted(kind: str, spoil: Spoil, n: int, note: str, tmp_path: Path) -> None:
    before = TREES[kind](tmp_path)
    usual = opened(tmp_path).notes
    spoil(tmp_path)
    data = opened(tmp_path)
    (new,) = set(data.notes) - set(usual)
    assert re.search(note, new)
    assert len(data) == n
    for sample in (data[i] for i in range(n)):
        assert sample.name in before.wanted["train"]


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("cityscapes_coarse", "coarse labels of gtCoarse"),
        ("cityscapes_colours", "labels are read from colours"),
        ("camvid_release", "the split is that of SegNet"),
        ("voc_augmented", r"train is trainaug\.txt"),
        ("folder_scanned", r"classes are the numbers 0\.\.2 found in its labels, 255 is void"),
    ],
)
def test_what_was_chosen_is_said(kind: str, note: str, tmp_path: Path) -> None:
    TREES[kind](tmp_path)
    assert any(re.search(note, n) for n in opened(tmp_path).notes)


@pytest.mark.parametrize("kind", ["camvid", "segnet", "folder_of_splits", "voc", "coco", "yolo", "cifar10"])
def test_nothing_is_said_of_what_is_usual(kind: str, tmp_path: Path) -> None:
    tree = TREES[kind](tmp_path)
    assert all(getattr(open_dataset(str(tmp_path), split, SIZE), "notes", ()) == () for split in tree.wanted)


@pytest.mark.parametrize(
    "name",
    ["mit Leerzeichen", "Straße 1", "a.b.c", "x,y (2)", "10:30", "日本", "#1", "dir/in ner", "100%", "photo.jpg.x"],
)
@pytest.mark.parametrize("listed", ["", "{}", "{}.JPG", "train/images/{}.JPG"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_any_characters(name: str, listed: str, form: str, tmp_path: Path) -> None:
    """Files may compose accents in another way than a list does, as those of macOS do."""
    on_disk = unicodedata.normalize(form, name)
    save_image(tmp_path / "train/images" / f"{on_disk}.JPG", name)
    values = drawn(3, [0, 1, 255])
    save_label(tmp_path / "train/labels" / f"{on_disk}.PNG", values)
    write(tmp_path / "classes.txt", "a\nb\n")
    if listed:
        write(tmp_path / "train.txt", listed.format(name) + "\n")
    data = opened(tmp_path)
    assert [unicodedata.normalize("NFC", data[i].name) for i in range(len(data))] == [name]
    np.testing.assert_array_equal(data[0].label, values)


@pytest.mark.parametrize("listed", [False, True])
def test_a_label_called_like_another_image_is_of_that_one(listed: bool, tmp_path: Path) -> None:
    TREES["folder_of_splits"](tmp_path)
    save_image(tmp_path / "train/images/train_0_mask.png", "x")
    (tmp_path / "train/labels/train_0.png").rename(tmp_path / "train/labels/train_0_mask.png")
    if listed:
        write(tmp_path / "train.txt", "train_0_mask\ntrain_0\n")
        with pytest.raises(DataError, match=r"labels/train_0\.png is missing"):
            opened(tmp_path)
        return
    data = opened(tmp_path)
    assert [data[i].name for i in range(len(data))] == ["train_0_mask", "train_1", "train_2"]
    assert "left out: train_0" in data.notes[0]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lists_of_any_system(ends: str, mark: str, tmp_path: Path) -> None:
    tree = TREES["camvid"](tmp_path)
    (tmp_path / "train.txt").write_bytes((mark + ends.join(["train_2", " train_0 ", "", "train_1"])).encode())
    data = opened(tmp_path)
    assert [data[i].name for i in range(3)] == ["train_2", "train_0", "train_1"]
    np.testing.assert_array_equal(data[0].label, tree.wanted["train"]["train_2"])


def test_a_label_turned_like_its_image_fits_and_another_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    TREES["folder_of_splits"](tmp_path)
    held = Image.Exif()
    held[274] = 6
    path = tmp_path / "train/images/train_0.png"
    Image.new("RGB", SIZE[::-1]).save(path, exif=held.tobytes())
    with pytest.raises(DataError, match=r"train_0\.png is 6x8 \(height x width\) but its image is 8x6"):
        opened(tmp_path)[0]
    save_label(tmp_path / "train/labels/train_0.png", np.zeros((8, 6), int))
    assert opened(tmp_path)[0].image.shape == (*SIZE, 3)


# shares


def flat(folder: Path, n: int = 120) -> None:
    for i in range(n):
        save_image(folder / "images" / f"{i}.png", str(i), (2, 2))
        save_label(folder / "labels" / f"{i}.png", np.full((2, 2), i % 4))


def test_without_lists_a_hash_of_the_name_makes_splits(tmp_path: Path) -> None:
    flat(tmp_path)
    names = {}
    for split in ("train", "val", "test"):
        data = open_dataset(str(tmp_path), split, (2, 2))
        names[split] = {e.name for e in data.entries}  # type: ignore[attr-defined]
        assert len(data.classes) == 4
        assert any("a hash of the name puts 10% of the samples into test and 10% into val" in n for n in data.notes)  # type: ignore[attr-defined]
        assert names[split] == {str(i) for i in range(120) if split_of(str(i)) == split}
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 120
    assert all(4 < len(names[s]) < 24 for s in ("val", "test"))
    for part in ("images", "labels"):  # more samples move none
        save = save_image if part == "images" else None
        path = tmp_path / part / "new.png"
        save(path, "new", (2, 2)) if save else save_label(path, np.zeros((2, 2), int))
    again = open_dataset(str(tmp_path), "val", (2, 2))
    assert {e.name for e in again.entries} - {"new"} == names["val"]  # type: ignore[attr-defined]


def test_a_share_is_even_and_stays() -> None:
    shares = [split_of(f"frame_{i:06d}") for i in range(5000)]
    assert abs(shares.count("val") / 5000 - 0.1) < 0.02
    assert abs(shares.count("test") / 5000 - 0.1) < 0.02
    assert [split_of(n) for n in ("a", "b", "c", "d", "é", "e\u0301")][-2] == split_of("e\u0301")


def test_images_may_have_more_classes_than_label_maps(tmp_path: Path) -> None:
    tree = trees.class_folders(tmp_path, 300)
    train = open_dataset(str(tmp_path), "train", SIZE)
    labels = [int(train[i].label) for i in range(300)]
    assert labels == list(tree.wanted["train"].values()) == list(range(300))
    assert task_of(train) is CLASSIFICATION
    source = batch_source(train, range(250, 300), 50, SIZE, 0)
    assert sorted(source(0)[1].tolist()) == list(range(250, 300))
    counted = ConfusionMatrix(300)
    counted.update(np.array(labels), np.array(labels))
    assert counted.pixel_accuracy() == 1
    assert counted.counts.sum() == 300


def test_class_folders_without_val_hold_a_tenth_out(tmp_path: Path) -> None:
    for c in "xyz":
        for i in range(40):
            save_image(tmp_path / "train" / c / f"{i}.jpg", c, (2, 2))
    train, val = (open_dataset(str(tmp_path), s, (2, 2)) for s in ("train", "val"))
    assert len(train) + len(val) == 120
    assert 4 < len(val) < 24
    with pytest.raises(DataError, match="has no test: expected test/CLASS/ with images"):
        open_dataset(str(tmp_path), "test", (2, 2))
    save_image(tmp_path / "val" / "w" / "1.jpg", "w", (2, 2))
    with pytest.raises(DataError, match=r"val/w is no class of .*train"):
        open_dataset(str(tmp_path), "val", (2, 2))


def test_a_scan_sees_labels_that_change(tmp_path: Path) -> None:
    TREES["folder_scanned"](tmp_path)
    assert len(opened(tmp_path).classes) == 3
    save_label(tmp_path / "test/labels/test_0.png", np.full(SIZE, 9))
    assert len(opened(tmp_path).classes) == 10


# recognition


def test_what_no_layout_recognises_is_said(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    with pytest.raises(DataError, match=r"is laid out as no dataset that is known: it has stuff; known are ade20k: "):
        layout_of(str(tmp_path))
    assert layout_of("synthetic") == "synthetic"
    with pytest.raises(DataError, match="unknown dataset 'synthetik'; did you mean 'synthetic'"):
        layout_of("synthetik")


def test_a_class_file_makes_a_folder_of_camvids_form_one_of_its_own_classes(tmp_path: Path) -> None:
    TREES["camvid"](tmp_path)
    assert layout_of(str(tmp_path)) == "camvid"
    write(tmp_path / "classes.txt", "\n".join(f"c{i}" for i in range(12)))
    assert layout_of(str(tmp_path)) == "folder"
    assert len(opened(tmp_path).classes) == 12


def test_a_layout_is_one_function(tmp_path: Path) -> None:
    from hwnas.data import Entry, Split

    save_image(tmp_path / "a.png", "a")
    save_label(tmp_path / "b.png", np.full(SIZE, 40))
    held = Split((Entry("a", tmp_path / "a.png", tmp_path / "b.png"),), tmp_path)
    mine = Descriptor(ClassList(("one",), ((1, 2, 3),)), LabelTable({40: 0}), lambda _: held, ("odd",))
    data = FolderData(tmp_path, mine, "val", SIZE)
    assert (data[0].label == 0).all()
    assert data.notes == ("odd",)
    with pytest.raises(DataError, match="at most 255 classes of pixels, got 256"):
        Descriptor(ClassList(("x",) * 256, ((0, 0, 0),) * 256), LabelTable({0: 0}), lambda _: held)


# tables and colours


def test_class_lists_are_those_of_their_sources() -> None:
    classes = cityscapes_layout.CITYSCAPES_CLASSES
    assert len(classes) == 19
    assert list(classes.palette) == trees.cityscapes_palette()
    assert colour_map(7) == trees.VOC_COLOURS
    assert colour_map(1, 255) == ((224, 224, 192),)  # void, as the VOC development kit documents it
    assert colour_map(1, 20) == ((0, 64, 128),)  # tvmonitor
    assert len(set(colour_map(5000))) == 5000


@pytest.mark.parametrize(
    "table", [{}, {"values": {0: 256}}, {"values": {70000: 0}}, {"values": {-1: 0}}, {"colours": {(0, 0, 256): 0}}]
)
def test_tables_that_cannot_be_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected a table of values below 65536"):
        LabelTable(**table)


# outlines


def slow_inside(outline: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """The even-odd rule at each pixel's centre, by crossings of a ray to the right."""
    points = list(zip(outline[::2], outline[1::2], strict=True))
    out = np.zeros(size, bool)
    for row, column in np.ndindex(*size):
        x, y = column + 0.5, row + 0.5
        for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
            if (y1 <= y) != (y2 <= y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                out[row, column] = not out[row, column]
    return out


def test_outlines_fill_the_pixels_whose_centres_are_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        outline = tuple(rng.uniform(-4, 20, 2 * int(rng.integers(3, 9))).tolist())
        np.testing.assert_array_equal(inside(outline, (13, 17)), slow_inside(outline, (13, 17)))
    assert inside(tuple(map(float, trees.box(2, 3, 6, 9))), (10, 12)).sum() == 4 * 6


def compressed(runs: list[int]) -> str:
    """Write runs as COCO's maskApi.c does (rleToString)."""
    out = ""
    for i, run in enumerate(runs):
        x, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            bits = x & 31
            x >>= 5
            more = x != -1 if bits & 16 else x != 0
            out += chr((bits | 32 * more) + 48)
    return out


def test_runs_go_down_the_columns_and_may_be_compressed() -> None:
    np.testing.assert_array_equal(unrolled([1, 2, 2, 1], (3, 2)), [[False, False], [True, False], [True, True]])
    rng = np.random.default_rng(1)
    for _ in range(100):
        runs = rng.integers(0, 10 ** rng.integers(1, 6), rng.integers(1, 30)).tolist()
        assert runs_of(compressed(runs)) == tuple(runs)
    for text in ("P", "~"):
        with pytest.raises(ValueError, match=r"ends within|character"):
            runs_of(text)


def test_later_objects_cover_earlier_ones() -> None:
    from hwnas.data.polygons import Shape

    big, small = tuple(map(float, trees.box(0, 0, 4, 4))), tuple(map(float, trees.box(1, 1, 3, 3)))
    assert paint([Shape(1, (big,)), Shape(2, (small,))], (4, 4)).sum() == 12 + 2 * 4
    assert (paint([Shape(2, (small,)), Shape(1, (big,))], (4, 4)) == 1).all()
