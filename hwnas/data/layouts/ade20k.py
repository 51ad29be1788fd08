"""ADE20K for scene parsing (Zhou et al. 2017, ADEChallengeData2016): 150 classes, 0 in files is void.

``images/{training,validation}/*.jpg`` and ``annotations/{training,validation}/*.png``. Names are the first ones of
``objectInfo150.txt`` where that lies in the folder. The labels of ``test`` are not public.
"""

from __future__ import annotations

from pathlib import Path

from hwnas.data.base import ClassList
from hwnas.data.classfile import has_classes
from hwnas.data.descriptor import Descriptor, Split, folder_layout, paired_split
from hwnas.data.labels import LabelTable, colour_map, numbered
from hwnas.data.lists import LABEL_ENDINGS, Files, read_lines
from hwnas.errors import DataError

N_CLASSES = 150
_TABLE = LabelTable(numbered(N_CLASSES, void=(0,), first=1))
_PARTS = {"train": "training", "val": "validation"}
_INFO = "objectInfo150.txt"


def _root(path: Path) -> Path | None:
    if has_classes(path):
        return None  # a folder with other classes
    candidates = (path, path / "ADEChallengeData2016")
    parts = [f"{kind}/{part}" for kind in ("images", "annotations") for part in _PARTS.values()]
    return next((p for p in candidates if sum((p / part).is_dir() for part in parts) > 1), None)


@folder_layout(
    "ade20k", lambda path: _root(path) is not None, "images/{training,validation} and annotations/ with the same"
)
def ade20k(folder: Path) -> Descriptor:
    """Describe ADE20K at a folder, or one level above: 150 classes."""
    root = _root(folder)
    assert root is not None, "it was recognised"
    names, notes = _names(root / _INFO)
    return Descriptor(ClassList(names, colour_map(N_CLASSES, 1)), _TABLE, lambda s: _split(root, s), notes)


def _names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the classes, and a note if there is no list of them.

    Raises:
        DataError: If the list is not that of 150 classes.
    """
    if not path.is_file():
        return tuple(f"class {i + 1}" for i in range(N_CLASSES)), (f"there is no {path}, so classes are numbered",)
    rows = [line.split("\t") for line in read_lines(path, "the names of the classes")]
    names: dict[int, str] = {}
    for row in rows:
        if row[0].strip().isdecimal() and len(row) > 1:
            words = row[-1].strip()
            short = words.split(",")[0].strip()
            names[int(row[0])] = words if short in names.values() else short
    if sorted(names) != list(range(1, N_CLASSES + 1)):
        raise DataError(f"{path} has names of {len(names)} classes, expected Idx 1..{N_CLASSES}; unpack it again")
    return tuple(names[i] for i in range(1, N_CLASSES + 1)), ()


def _split(root: Path, split: str) -> Split:
    if split not in _PARTS:
        raise DataError(f"{root} has no labels for {split}: those of ADE20K are not public; take val")
    images, labels = (root / kind / _PARTS[split] for kind in ("images", "annotations"))
    for part in (images, labels):
        if not part.is_dir():
            raise DataError(f"{part} is missing; unpack ADEChallengeData2016.zip again")
    return paired_split(images, Files(images, (".jpg", ".jpeg", ".png")), Files(labels, LABEL_ENDINGS))
