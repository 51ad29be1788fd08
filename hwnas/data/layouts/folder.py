"""Any folder of images and label maps: ``images/`` and ``labels/``, or the same in a folder for each split.

What its classes are, ``classes.txt`` or ``classes.json`` says; without either the labels are looked through.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from hwnas.data.base import IGNORE_LABEL, SPLITS, ClassList
from hwnas.data.classfile import ClassFile, read_classes
from hwnas.data.descriptor import Descriptor, Split, folder_layout, listed_split, paired_split
from hwnas.data.labels import LabelTable, colour_map, numbered
from hwnas.data.lists import (
    IMAGE_ENDINGS,
    IMAGE_FOLDERS,
    LABEL_ENDINGS,
    LABEL_FOLDERS,
    SPLIT_NAMES,
    TEST_SHARE,
    VAL_SHARE,
    Files,
    first_folder,
    first_list,
    split_of,
    walk,
)
from hwnas.decode import decode_label
from hwnas.errors import DataError

_SUFFIXES = ("", "_mask", "_label", "_L", "_gt")  # of labels
_SCANNED: dict[tuple[tuple[str, int, int], ...], int] = {}  # the number of classes, by what the files are


class _Parts(NamedTuple):
    images: Path
    labels: Path


def _pair(*roots: Path) -> _Parts | None:
    """Return the folders of images and labels in the first of these that has images."""
    for root in roots:
        images = first_folder(root / n for n in IMAGE_FOLDERS)
        if images is not None:
            return _Parts(images, first_folder(root / n for n in LABEL_FOLDERS) or root / LABEL_FOLDERS[0])
    return None


def _own_parts(path: Path, split: str) -> _Parts | None:
    """Return the folders that a split has for itself: ``train/images`` or ``images/train``."""
    inside = _pair(*(path / n for n in SPLIT_NAMES[split]))
    if inside is not None:
        return inside
    whole = _pair(path)
    if whole is None:
        return None
    images = first_folder(whole.images / n for n in SPLIT_NAMES[split])
    labels = first_folder(whole.labels / n for n in SPLIT_NAMES[split])
    return None if images is None else _Parts(images, labels or whole.labels / split)


@folder_layout(
    "folder",
    lambda path: _pair(path, *(path / n for names in SPLIT_NAMES.values() for n in names)) is not None,
    "images/ and labels/, or SPLIT/images/ and SPLIT/labels/",
    general=True,
)
def folder(path: Path) -> Descriptor:
    """Describe a folder of images and label maps."""
    described = read_classes(path)
    notes: tuple[str, ...] = ()
    if described is None:
        n = _scan(path)
        described = ClassFile(ClassList(tuple(map(str, range(n))), colour_map(n, 1)), LabelTable(numbered(n)))
        note = f"classes are the numbers 0..{n - 1} found in its labels, {IGNORE_LABEL} is void"
        notes = (f"{path} has no classes.txt or classes.json: {note}",)
    return Descriptor(described.classes, described.labels, lambda split: _split(path, split), notes)


def _split(path: Path, split: str) -> Split:
    listed, own = first_list(path, split), _own_parts(path, split)
    parts = own or _pair(path)
    if parts is None or (own is None and listed is None and _is_divided(path)):
        have = [s for s in SPLITS if first_list(path, s) or _own_parts(path, s)]
        raise DataError(
            f"{path} has no {split}: expected {split}.txt, {split}/images/ or images/{split}/; it has {', '.join(have)}"
        )
    if not parts.labels.is_dir():
        raise DataError(f"{parts.labels} is missing: expected a label map beside each image of {parts.images}")
    images, labels = Files(parts.images, IMAGE_ENDINGS), Files(parts.labels, LABEL_ENDINGS, _SUFFIXES)
    if listed is not None:
        return listed_split(listed, path, images, labels)
    if own is not None:
        return paired_split(parts.images, images, labels)
    found = paired_split(parts.images, images, labels, lambda name: split_of(name) == split)
    note = (
        f"{path} has no lists of splits: a hash of the name puts {TEST_SHARE:.0%} of the samples into test and "
        f"{VAL_SHARE:.0%} into val"
    )
    return Split(found.entries, parts.images, notes=(*found.notes, note))


def _is_divided(path: Path) -> bool:
    """Tell whether any split has a list or folders of its own, so that no share is drawn."""
    return any(first_list(path, s) or _own_parts(path, s) for s in SPLITS)


def _scan(path: Path) -> int:
    """Return how many classes the labels of all splits have: one more than the largest number that is not void.

    Raises:
        DataError: If a label cannot be decoded, is of colours, or has a number that is no class.
    """
    files: list[Path] = []
    for split in SPLITS if _is_divided(path) else SPLITS[:1]:
        parts = _own_parts(path, split) or _pair(path)
        if parts is not None and parts.labels.is_dir():
            files += [parts.labels / name for name in walk(parts.labels, LABEL_ENDINGS)]
    unique = sorted(set(files))
    if not unique:
        raise DataError(f"{path} has no label maps: expected PNG files of class numbers in {LABEL_FOLDERS[0]}/")
    key = tuple((str(f), (stat := os.stat(f)).st_size, stat.st_mtime_ns) for f in unique)
    if key not in _SCANNED:
        _SCANNED[key] = 1 + max(map(_largest, unique))
    return _SCANNED[key]


def _largest(file: Path) -> int:
    stored = decode_label(file)
    if stored.ndim == 3:
        raise DataError(
            f"{file} has colours (RGB) and the folder no classes.json; write one with names and colours of the classes"
        )
    numbers = stored[stored != IGNORE_LABEL]
    largest = int(numbers.max(initial=0))
    if largest > IGNORE_LABEL:
        raise DataError(
            f"{file} holds label {largest}, expected 0..{IGNORE_LABEL - 1} for classes or {IGNORE_LABEL} for void; "
            "map its values in classes.json"
        )
    return largest
