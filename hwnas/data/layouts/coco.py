"""Objects in COCO's form (Lin et al. 2014) as classes of pixels; see `hwnas.data.polygons` for how they are drawn.

``annotations/instances_train2017.json`` with ``train2017/`` or ``images/train2017/``, ``annotations/train.json`` with
``images/``, or ``train/_annotations.coco.json`` beside its images; `val` and `test` alike. Classes are background and
the categories, in order of their ids. Crowds are objects of their class like others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from hwnas.data.base import IGNORE_LABEL, SPLITS, ClassList
from hwnas.data.descriptor import Descriptor, Split, folder_layout
from hwnas.data.labels import Entry, colour_map
from hwnas.data.lists import SPLIT_NAMES, some
from hwnas.data.polygons import BACKGROUND, Drawing, DrawnLabels, Outline, Shape, runs_of
from hwnas.errors import DataError, HwnasError
from hwnas.files import read_json

_ROBOFLOW = "_annotations.coco.json"


def _file(path: Path, split: str) -> Path | None:
    """Return the annotations of a split."""
    for name in SPLIT_NAMES[split]:
        inside = sorted((path / "annotations").glob(f"instances_{name}*.json"))
        for file in (*inside, path / "annotations" / f"{name}.json", path / f"{name}.json", path / name / _ROBOFLOW):
            if file.is_file():
                return file
    return None


@folder_layout(
    "coco",
    lambda path: path.is_dir() and any(_file(path, split) is not None for split in SPLITS),
    "annotations/instances_SPLIT*.json and SPLIT*/, or SPLIT/_annotations.coco.json",
)
def coco(path: Path) -> Descriptor:
    """Describe a folder of COCO annotations. The classes are those of `train`, else of the first split there is."""
    first = next(file for split in SPLITS if (file := _file(path, split)) is not None)
    stat = first.stat()
    categories = dict(_categories_of(first, stat.st_size, stat.st_mtime_ns))
    names = (BACKGROUND, *categories.values())
    return Descriptor(ClassList(names, colour_map(len(names))), None, lambda split: _split(path, split, categories))


@lru_cache
def _categories_of(file: Path, size: int, mtime_ns: int) -> tuple[tuple[int, str], ...]:
    """Return the categories of a file as it is now; large files take seconds to read."""
    return tuple(_categories(file, _read(file)).items())


def _read(file: Path) -> dict[str, Any]:
    try:
        held = read_json(file, "annotations in COCO's form")
    except HwnasError as e:
        raise DataError(str(e)) from e
    if not isinstance(held, dict) or not all(_objects(held.get(k)) for k in ("images", "annotations", "categories")):
        raise DataError(f"{file} needs images, annotations and categories, each a list of objects; export it again")
    return held


def _objects(held: Any) -> bool:
    return isinstance(held, list) and all(isinstance(item, dict) for item in held)


def _categories(file: Path, held: dict[str, Any]) -> dict[int, str]:
    """Return the names of the categories by their ids, in order of the ids."""
    pairs = [(c.get("id"), c.get("name")) for c in held["categories"]]
    good = all(type(i) is int and isinstance(n, str) and n for i, n in pairs)
    if not good or len({i for i, _ in pairs}) < len(pairs) or not 1 <= len(pairs) < IGNORE_LABEL:
        raise DataError(f"{file} needs 1 to {IGNORE_LABEL - 1} categories, each with an id and a name; correct it")
    return dict(sorted(pairs))


def _split(path: Path, split: str, categories: Mapping[int, str]) -> Split:
    file = _file(path, split)
    if file is None:
        raise DataError(f"{path} has no {split}: expected annotations/instances_{split}.json or the like")
    held = _read(file)
    if _categories(file, held) != categories:
        raise DataError(f"{file} has other categories than the first split of {path}; give all the same")
    drawn, empty = _drawings(file, held, {number: i + 1 for i, number in enumerate(categories)})
    entries = _entries(path, split, file, held["images"])
    drawings: dict[str, Drawing] = {}
    for entry, image in zip(entries, held["images"], strict=True):
        if entry.name in drawings:
            raise DataError(f"{file} has the image {entry.name} twice; keep one")
        drawings[entry.name] = drawn[image["id"]]
    bare = [name for name, drawing in drawings.items() if not drawing.shapes]
    notes = []
    if bare:
        notes.append(f"{len(bare)} of {len(entries)} images have no object, all background: {some(bare)}")
    if empty:
        notes.append(f"{empty} objects in {file} have no area, left out")
    return Split(tuple(entries), file, listed=True, notes=tuple(notes), labels=DrawnLabels(drawings))


def _drawings(file: Path, held: dict[str, Any], index: Mapping[int, int]) -> tuple[dict[int, Drawing], int]:
    """Return the objects of each image by its id, and how many cover nothing."""
    sizes: dict[int, tuple[int, int]] = {}
    for image in held["images"]:
        number, height, width = (_number(file, image, key, "an image") for key in ("id", "height", "width"))
        if number in sizes:
            raise DataError(f"{file} has two images of id {number}; give each its own")
        sizes[number] = (height, width)
    shapes: dict[int, list[Shape]] = {number: [] for number in sizes}
    empty = 0
    for k, annotation in enumerate(held["annotations"]):
        what = f"annotation {annotation.get('id', k)}"
        number, kind = (_number(file, annotation, key, what) for key in ("image_id", "category_id"))
        if number not in sizes or kind not in index:
            raise DataError(f"{file}: {what} is of image {number} and category {kind}, which are not both there")
        shape = _shape(file, what, annotation.get("segmentation"), index[kind], sizes[number])
        if shape is None:
            empty += 1
        else:
            shapes[number].append(shape)
    return {number: Drawing(sizes[number], tuple(found)) for number, found in shapes.items()}, empty


def _number(file: Path, held: dict[str, Any], key: str, what: str) -> int:
    value = held.get(key)
    if type(value) is not int or value < 0:
        raise DataError(f"{file}: {what} needs {key} as a whole number of 0 or more, got {value!r}; correct it")
    return value


def _entries(path: Path, split: str, file: Path, images: list[dict[str, Any]]) -> list[Entry]:
    names = []
    for image in images:
        name = image.get("file_name")
        if not isinstance(name, str) or not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise DataError(f"{file} has an image file {name!r}; give names within the folder")
        names.append(name)
    year = file.stem.removeprefix("instances_")
    parts = (year, *SPLIT_NAMES[split])
    roots = [file.parent] if file.name == _ROBOFLOW else []
    roots += [path / "images" / p for p in parts] + [path / p for p in parts] + [path / "images", path]
    root = next((r for r in roots if names and os.path.isfile(r / names[0])), roots[0])
    return [Entry(f"{split}/{name.rpartition('.')[0] or name}", root / name, None) for name in names]


def _shape(file: Path, what: str, held: Any, index: int, size: tuple[int, int]) -> Shape | None:
    """Return an object; None if it covers nothing."""
    if isinstance(held, list):
        outlines = tuple(_outline(file, what, part) for part in held)
        kept = tuple(o for o in outlines if len(o) >= 6)
        return Shape(index, kept) if kept else None
    if isinstance(held, dict):
        return _runs(file, what, held, index, size)
    raise DataError(f"{file}: {what} needs a segmentation of polygons or counts, got {type(held).__name__}; export it")


def _outline(file: Path, what: str, held: Any) -> Outline:
    good = isinstance(held, list) and len(held) % 2 == 0 and all(type(v) in (int, float) for v in held)
    if not good:
        raise DataError(f"{file}: {what} needs polygons as lists of x and y in turn; export it again")
    return tuple(map(float, held))


def _runs(file: Path, what: str, held: dict[str, Any], index: int, size: tuple[int, int]) -> Shape | None:
    """Return an object that is given by its runs; None if it covers nothing."""
    counts = held.get("counts")
    try:
        runs = runs_of(counts) if isinstance(counts, str) else tuple(counts) if isinstance(counts, list) else ()
    except ValueError as e:
        raise DataError(f"{file}: {what} has counts that cannot be read ({e}); export it again") from e
    good = all(type(n) is int and n >= 0 for n in runs) and held.get("size") == list(size)
    if not good or sum(runs) != math.prod(size):
        raise DataError(f"{file}: {what} needs counts for an image of {size[0]}x{size[1]} pixels; export it again")
    return Shape(index, runs=runs) if len(runs) > 1 else None
