"""A small tree of each layout in its original form, and what reading it must give."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.png import png
from tests.test_cifar import python_2_pickle

SIZE = (6, 8)
PER_SPLIT = {"train": 3, "val": 2, "test": 2}
Label = NDArray[Any] | int
Wanted = dict[str, dict[str, Label]]  # by split and name


class Tree(NamedTuple):
    """A dataset on disk.

    Attributes:
        layout: The name it must be recognised by.
        wanted: The label of each sample of each split, 255 void.
        names: Some class names by index.
        n_classes: How many there are.
        refused: What is said of splits that it has not.
        decodes: Whether a file is decoded when a split is opened.
    """

    layout: str
    wanted: Wanted
    names: dict[int, str]
    n_classes: int
    refused: dict[str, str] = {}  # noqa: RUF012 - it is never changed
    decodes: bool = False


def colour_of(name: str) -> tuple[int, int, int]:
    """Return the colour of a sample's image: pairs that are mixed up show."""
    seed = sum(ord(c) * (i + 7) for i, c in enumerate(name))
    return 40 + seed % 200, 40 + seed * 7 % 200, 40 + seed * 13 % 200


def save_image(path: Path, name: str, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], colour_of(name)).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")


def save_label(
    path: Path, values: NDArray[Any], depth: int = 8, kind: int = 0, palette: tuple[tuple[int, int, int], ...] = ()
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(values, depth, kind, palette))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def drawn(seed: int, values: list[int], size: tuple[int, int] = SIZE) -> NDArray[Any]:
    """Return a label map that has each of these values."""
    n = size[0] * size[1]
    return np.random.default_rng(seed).permutation(np.resize(np.array(values), n)).reshape(size)


def samples() -> Iterator[tuple[str, int, str]]:
    """Yield split, number and name of the samples of most trees."""
    for split, n in PER_SPLIT.items():
        for i in range(n):
            yield split, i, f"{split}_{i}"


def looked_up(stored: NDArray[Any], table: dict[int, int]) -> NDArray[np.uint8]:
    return np.vectorize(lambda v: table.get(int(v), 255))(stored).astype(np.uint8)


CITYSCAPES_IDS = {  # id to trainId, cityscapesScripts helpers/labels.py
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}


def cityscapes_palette() -> list[tuple[int, int, int]]:
    """Return the colours of the 19 classes in labels.py, in the order of trainId."""
    flat = [(128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153)]
    signs = [(250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60)]
    moving = [(255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)]
    return flat + signs + moving


def cityscapes(folder: Path, form: str = "labelIds", truth: str = "gtFine") -> Tree:
    wanted: Wanted = {s: {} for s in ("train", "val")}
    for split, i, _ in samples():
        name = f"aachen/aachen_00000{i}_000019"
        save_image(folder / "leftImg8bit" / split / f"{name}_leftImg8bit.png", name)
        path = folder / truth / split / f"{name}_{truth}_{form}.png"
        if split == "test":  # the release has void there
            stored = drawn(i, [0, 1, 3])
            save_label(path, stored if form == "labelIds" else np.full(SIZE, 255))
            continue
        ids = drawn(i, list(range(34)))
        wanted[split][name] = looked_up(ids, CITYSCAPES_IDS)
        if form == "labelIds":
            save_label(path, ids)
        elif form == "labelTrainIds":
            save_label(path, wanted[split][name])
        else:
            colours = np.array([*cityscapes_palette(), (111, 74, 0)])
            rgb = colours[np.minimum(wanted[split][name], 19)]
            save_label(path, np.dstack([rgb, np.full(SIZE, 255)]), kind=6)  # the release has RGBA
    if form == "color":
        for path in (folder / truth / "test").rglob("*.png"):
            save_label(path, np.zeros((*SIZE, 4), int), kind=6)
    names = {0: "road", 5: "pole", 13: "car", 16: "train", 18: "bicycle"}
    return Tree("cityscapes", wanted, names, 19, {"test": "no labels for test: those of Cityscapes"}, decodes=True)


def camvid(folder: Path, ending: str = ".jpg") -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    for split, i, name in samples():
        save_image(folder / split / "images" / f"{name}{ending}", name)
        stored = drawn(i, list(range(12)))
        save_label(folder / split / "labels" / f"{name}.png", stored)
        wanted[split][name] = np.where(stored == 11, 255, stored)
    for split, held in wanted.items():
        write(folder / f"{split}.txt", "\n".join(held) + "\n")
    return Tree("camvid", wanted, {0: "sky", 4: "pavement", 10: "bicyclist"}, 11)


def segnet(folder: Path) -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    rows: dict[str, str] = dict.fromkeys(PER_SPLIT, "")
    for split, i, name in samples():
        save_image(folder / split / f"{name}.png", name)
        stored = drawn(i, list(range(12)))
        save_label(folder / f"{split}annot" / f"{name}.png", stored)
        wanted[split][name] = np.where(stored == 11, 255, stored)
        rows[split] += f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\r\n"
    for split, text in rows.items():
        write(folder / f"{split}.txt", text)
    return Tree("camvid", wanted, {2: "pole"}, 11)


CAMVID_COLOURS = {  # MATLAB's camvidPixelLabelIDs, "following the original SegNet training methodology"
    (128, 128, 128): 0,
    (0, 128, 64): 1,
    (128, 0, 0): 1,
    (64, 192, 0): 1,
    (64, 0, 64): 1,
    (192, 0, 128): 1,
    (192, 192, 128): 2,
    (0, 0, 64): 2,
    (128, 64, 128): 3,
    (128, 0, 192): 3,
    (192, 0, 64): 3,
    (0, 0, 192): 4,
    (64, 192, 128): 4,
    (128, 128, 192): 4,
    (128, 128, 0): 5,
    (192, 192, 0): 5,
    (192, 128, 128): 6,
    (128, 128, 64): 6,
    (0, 64, 64): 6,
    (64, 64, 128): 7,
    (64, 0, 128): 8,
    (64, 128, 192): 8,
    (192, 128, 192): 8,
    (192, 64, 128): 8,
    (128, 64, 64): 8,
    (64, 64, 0): 9,
    (192, 128, 64): 9,
    (64, 0, 192): 9,
    (64, 128, 64): 9,
    (0, 128, 192): 10,
    (192, 0, 192): 10,
    (0, 0, 0): 255,
}
FRAMES = {  # of SegNet's lists
    "train": ("0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_00390", "0016E5_07920", "0016E5_08640"),
    "val": ("0016E5_07959", "0016E5_08159"),
    "test": ("0001TP_008550", "0001TP_010380", "Seq05VD_f00000", "Seq05VD_f05100"),
}


def camvid_release(folder: Path) -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    colours = np.array(list(CAMVID_COLOURS))
    for split, frames in FRAMES.items():
        for i, name in enumerate(frames):
            save_image(folder / "701_StillsRaw_full" / f"{name}.png", name)
            stored = drawn(i, list(range(32)))
            save_label(folder / "LabeledApproved_full" / f"{name}_L.png", colours[stored], kind=2)
            wanted[split][name] = looked_up(stored, dict(enumerate(CAMVID_COLOURS.values())))
    return Tree("camvid", wanted, {8: "car"}, 11)


def camvid_32(folder: Path) -> Tree:
    tree = camvid_release(folder)
    write(folder / "classes.txt", "Animal\nRoad\nCar\n")
    index = {list(CAMVID_COLOURS).index(c): i for i, c in enumerate(((64, 128, 64), (128, 64, 128), (64, 0, 128)))}
    for frames in FRAMES.values():
        for i, name in enumerate(frames):
            split = next(s for s in FRAMES if name in FRAMES[s])
            tree.wanted[split][name] = looked_up(drawn(i, list(range(32))), index)
    return tree._replace(names={0: "Animal", 2: "Car"}, n_classes=3)


def camvid_beside(folder: Path) -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    colours = np.array(list(CAMVID_COLOURS))
    for split, i, name in samples():
        save_image(folder / split / f"{name}.png", name)
        stored = drawn(i, list(range(32)))
        save_label(folder / f"{split}_labels" / f"{name}_L.png", colours[stored], kind=2)
        wanted[split][name] = looked_up(stored, dict(enumerate(CAMVID_COLOURS.values())))
    return Tree("camvid", wanted, {8: "car"}, 11)


# The first colours of VOClabelcolormap, as the VOC development kit documents them, and the void one.
VOC_COLOURS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128))


def voc(folder: Path, augmented: bool = False) -> Tree:
    root, wanted = folder / "VOCdevkit" / "VOC2012", {s: {} for s in ("train", "val")}  # type: Path, Wanted
    palette = tuple((i, i, i) for i in range(256))  # what a colour looks like does not matter
    for split, i, name in samples():
        if split == "test":
            continue
        save_image(root / "JPEGImages" / f"{name}.jpg", name)
        wanted[split][name] = drawn(i, [*range(21), 255])
        save_label(root / "SegmentationClass" / f"{name}.png", wanted[split][name], kind=3, palette=palette)
        if augmented:
            wanted[split][name] = drawn(i + 9, [*range(21), 255]) if split == "train" else wanted[split][name]
            save_label(root / "SegmentationClassAug" / f"{name}.png", wanted[split][name])
    lists = root / "ImageSets" / "Segmentation"
    for split, held in wanted.items():
        write(lists / f"{split}.txt", "".join(f"{n}\n" for n in held))
    write(lists / "trainval.txt", "".join(f"{n}\n" for held in wanted.values() for n in held))
    if augmented:
        write(lists / "train.txt", "train_0\n")
        rows = (f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\n" for n in wanted["train"])
        write(lists / "trainaug.txt", "".join(rows))
    names = {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}
    return Tree("voc", wanted, names, 21, {"test": "no test.txt: the test labels of Pascal VOC 2012 are not public"})


def ade20k(folder: Path) -> Tree:
    root, wanted = folder / "ADEChallengeData2016", {s: {} for s in ("train", "val")}  # type: Path, Wanted
    for split, part in (("train", "training"), ("val", "validation")):
        for i in range(PER_SPLIT[split]):
            name = f"ADE_{split}_0000000{i}"
            save_image(root / "images" / part / f"{name}.jpg", name)
            stored = drawn(i, [0, 1, 2, 75, 150])
            save_label(root / "annotations" / part / f"{name}.png", stored)
            wanted[split][name] = looked_up(stored, {v: v - 1 for v in range(1, 151)})
    rows = [f"{i}\t0.1\t10\t1\tthing {i}, object {i} " for i in range(1, 151)]
    rows[0] = "1\t0.1576\t11664\t1172\twall"
    rows[1] = "2\t0.1072\t6046\t612\tbuilding, edifice"
    write(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows) + "\n")
    names = {0: "wall", 1: "building", 149: "thing 150"}
    return Tree("ade20k", wanted, names, 150, {"test": "no labels for test: those of ADE20K are not public"})


def folder_of_splits(folder: Path, images: str = "{split}/images", labels: str = "{split}/labels") -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    for split, i, name in samples():
        save_image(folder / images.format(split=split) / f"{name}.png", name)
        wanted[split][name] = drawn(i, [0, 1, 2, 255])
        save_label(folder / labels.format(split=split) / f"{name}.png", wanted[split][name])
    write(folder / "classes.txt", "\ufefflawn\r\nstone path\r\nPfütze\r\n")
    return Tree("folder", wanted, {0: "lawn", 1: "stone path", 2: "Pfütze"}, 3)


def folder_inside(folder: Path) -> Tree:
    return folder_of_splits(folder, "images/{split}", "masks/{split}")


def folder_scanned(folder: Path) -> Tree:
    tree = folder_of_splits(folder)
    (folder / "classes.txt").unlink()
    return tree._replace(names={0: "0", 2: "2"}, decodes=True)


def folder_listed(folder: Path) -> Tree:
    """Numbers of 16 bits, mapped to classes; lists with endings, a byte order mark and line ends of Windows."""
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    for split, i, name in samples():
        save_image(folder / "images" / f"{name}.JPG", name)
        stored = drawn(i, [0, 7, 300, 65535])
        save_label(folder / "masks" / f"{name}_mask.PNG", stored, depth=16)
        wanted[split][name] = looked_up(stored, {7: 1, 300: 0})
    for split, held in wanted.items():
        write(folder / f"{split}.txt", "\ufeff" + "".join(f"images/{n}.JPG\r\n" for n in held))
    classes = {"names": ["leaf", "stem"], "values": {"300": "leaf", "7": "stem", "0": None}, "void": [65535]}
    write(folder / "classes.json", json.dumps(classes))
    return Tree("folder", wanted, {0: "leaf", 1: "stem"}, 2)


def folder_of_colours(folder: Path) -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    colours = np.array([(9, 8, 7), (250, 0, 250), (0, 0, 0), (1, 2, 3)])
    for split, i, name in samples():
        save_image(folder / split / "images" / f"{name}.jpg", name)
        stored = drawn(i, [0, 1, 2, 3])
        save_label(folder / split / "annotations" / f"{name}.png", colours[stored], kind=2)
        wanted[split][name] = looked_up(stored, {0: 0, 1: 1})
    classes = {"names": ["leaf", "stem"], "colours": [[9, 8, 7], [250, 0, 250]], "void": [[0, 0, 0]], "rest": "void"}
    write(folder / "classes.json", json.dumps(classes))
    return Tree("folder", wanted, {0: "leaf", 1: "stem"}, 2)


def box(top: int, left: int, bottom: int, right: int) -> list[int]:
    """Return the outline of a box in COCO's form."""
    return [left, top, right, top, right, bottom, left, bottom]


def coco(folder: Path, years: str = "2017") -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    for split, n in PER_SPLIT.items():
        images, annotations = [], []
        for i in range(n):
            name = f"{split}/{i:012d}"
            save_image(folder / f"{split}{years}" / f"{i:012d}.jpg", name)
            images.append({"id": 10 + i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]})
            label = np.zeros(SIZE, np.uint8)
            label[1:4, 0:5] = 2  # category 90
            label[2:6, 3 : 6 + i % 2] = 1  # category 3, over it
            label[0, 6:8] = 2
            counts = [6 * 6, 1, 5, 1, 5]  # the first pixel of columns 6 and 7
            annotations += [
                {"image_id": 10 + i, "category_id": 90, "segmentation": [box(1, 0, 4, 5)], "iscrowd": 0},
                {"image_id": 10 + i, "category_id": 3, "segmentation": [box(2, 3, 6, 6 + i % 2)], "iscrowd": 0},
                {"image_id": 10 + i, "category_id": 90, "segmentation": {"size": list(SIZE), "counts": counts}},
            ]
            wanted[split][name] = label
        categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
        held = {"images": images, "annotations": annotations, "categories": categories}
        write(folder / "annotations" / f"instances_{split}{years}.json", json.dumps(held))
    return Tree("coco", wanted, {0: "background", 1: "car", 2: "toothbrush"}, 3)


def roboflow(folder: Path) -> Tree:
    tree = coco(folder, "")
    for split in PER_SPLIT:
        part = "valid" if split == "val" else split
        (folder / split).rename(folder / part)
        (folder / "annotations" / f"instances_{split}.json").rename(folder / part / "_annotations.coco.json")
    (folder / "annotations").rmdir()
    return tree


def yolo(folder: Path) -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    height, width = SIZE
    for split, i, name in samples():
        save_image(folder / "images" / split / f"{name}.jpg", name)
        label, lines = np.zeros(SIZE, np.uint8), ""
        for index, (top, left, bottom, right) in ((1, (0, 0, 3, 8)), (0, (1, 2 + i, 6, 5 + i))):
            label[top:bottom, left:right] = index + 1
            corners = box(top, left, bottom, right)
            shares = (v / (width, height)[k % 2] for k, v in enumerate(corners))
            lines += f"{index} {' '.join(f'{v:.6f}' for v in shares)}\n"
        write(folder / "labels" / split / f"{name}.txt", lines)
        wanted[split][name] = label
    write(
        folder / "data.yaml",
        "path: ../x\ntrain: images/train\nnc: 2 # two\nnames:\n  0: 'car'\n  1: \"traffic light\"\n",
    )
    return Tree("yolo", wanted, {0: "background", 1: "car", 2: "traffic light"}, 3)


def class_folders(folder: Path, n_classes: int = 3) -> Tree:
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    for split in PER_SPLIT:
        for c in range(n_classes):
            name = f"n{c:08d}/ILSVRC2012_{split}_{c}"
            save_image(folder / split / f"{name}.JPEG", name)
            wanted[split][name] = c
    return Tree("class-folders", wanted, {0: "n00000000", 2: "n00000002"}, n_classes)


def cifar10(folder: Path, binary: bool = True) -> Tree:
    root = folder / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    root.mkdir(parents=True)
    wanted: Wanted = {s: {} for s in PER_SPLIT}
    for k, file in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(k + j) % 10 for j in range(4)]
        pixels = np.zeros((4, 3, 32 * 32), np.uint8)
        for j in range(4):
            at = 4 * k + j
            split = "test" if k == 5 else "val" if at >= 18 else "train"  # of 20 images the last tenth is val
            name = f"{split}-{at - {'train': 0, 'val': 18, 'test': 20}[split]:05d}"
            pixels[j] = np.array(colour_of(name), np.uint8)[:, None]
            wanted[split][name] = labels[j]
        rows = pixels.reshape(4, -1)
        if binary:
            content = np.hstack([np.array(labels, np.uint8)[:, None], rows]).tobytes()
        else:
            content = python_2_pickle(rows, labels)
        (root / (file + ".bin" * binary)).write_bytes(content)
    return Tree("cifar10", wanted, {0: "airplane", 9: "truck"}, 10)


def cifar10_python(folder: Path) -> Tree:
    return cifar10(folder, binary=False)


def cityscapes_train_ids(folder: Path) -> Tree:
    return cityscapes(folder, "labelTrainIds")


def cityscapes_colours(folder: Path) -> Tree:
    return cityscapes(folder, "color")


def cityscapes_coarse(folder: Path) -> Tree:
    return cityscapes(folder, "labelIds", "gtCoarse")


def camvid_png(folder: Path) -> Tree:
    return camvid(folder, ".PNG")


def voc_augmented(folder: Path) -> Tree:
    return voc(folder, augmented=True)


TREES: dict[str, Callable[[Path], Tree]] = {
    f.__name__: f
    for f in (
        *(cityscapes, cityscapes_train_ids, cityscapes_colours, cityscapes_coarse),
        *(camvid, camvid_png, segnet, camvid_release, camvid_32, camvid_beside),
        *(voc, voc_augmented, ade20k),
        *(folder_of_splits, folder_inside, folder_scanned, folder_listed, folder_of_colours),
        *(coco, roboflow, yolo),
        *(class_folders, cifar10, cifar10_python),
    )
}
