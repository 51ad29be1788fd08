"""Outlines in the text files of YOLO as classes of pixels; see `hwnas.data.polygons` for how they are drawn.

``images/SPLIT/`` and ``labels/SPLIT/``, or ``SPLIT/images/`` and ``SPLIT/labels/``; ``data.yaml`` or ``classes.txt``
names the classes, to which background is added as class 0. A line of a label file is a class and the corners of one
object, x and y in turn as shares of width and height. An image without a label file has no object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import IGNORE_LABEL, SPLITS, ClassList
from hwnas.data.classfile import TEXT, read_names
from hwnas.data.descriptor import Descriptor, Split, folder_layout
from hwnas.data.labels import Entry, colour_map
from hwnas.data.lists import IMAGE_ENDINGS, SPLIT_NAMES, Files, has_files, read_lines, read_text, some
from hwnas.data.polygons import BACKGROUND, Shape, paint
from hwnas.errors import DataError

_YAML = ("data.yaml", "dataset.yaml", "data.yml")
_SLACK = 1e-3  # by how much of a side an outline may leave the image


@dataclass(frozen=True)
class OutlineFiles:
    """Labels in text files.

    Attributes:
        classes: How many classes there are, background not counted.
    """

    classes: int

    def read(self, entry: Entry, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the label map of an entry, uint8 (H, W).

        Raises:
            DataError: If its file has a line that is no object.
        """
        if entry.label is None:
            return np.zeros(size, np.uint8)
        text = read_text(entry.label, str(entry.label), "replace the file")
        lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
        return paint([self._shape(f"{entry.label} line {k}", line, size) for k, line in lines], size)

    def _shape(self, where: str, line: str, size: tuple[int, int]) -> Shape:
        try:
            index, *numbers = (float(word) for word in line.split())
        except ValueError as e:
            raise DataError(f"{where} is not of numbers, got {line[:40]!r}; export it again") from e
        if index not in range(self.classes):
            raise DataError(
                f"{where} has class {index:g}, expected 0..{self.classes - 1}; correct it or the class names"
            )
        if len(numbers) == 4:
            raise DataError(f"{where} is a box, expected the outline of an object; export polygons")
        if len(numbers) < 6 or len(numbers) % 2:
            raise DataError(f"{where} has {len(numbers)} numbers, expected three or more corners of x and y")
        if not all(-_SLACK <= v <= 1 + _SLACK for v in numbers):
            raise DataError(f"{where} leaves the image: expected shares of its sides from 0 to 1; export it again")
        height, width = size
        scaled = (v * (width, height)[k % 2] for k, v in enumerate(numbers))
        return Shape(int(index) + 1, (tuple(scaled),))


def _folders(path: Path, split: str) -> tuple[Path, Path] | None:
    for name in SPLIT_NAMES[split]:
        for images, labels in (
            (path / "images" / name, path / "labels" / name),
            (path / name / "images", path / name / "labels"),
        ):
            if images.is_dir():
                return images, labels
    return None


def _is_yolo(path: Path) -> bool:
    """Tell whether labels are text files and not pictures."""
    parts = [p for split in SPLITS if (p := _folders(path, split)) is not None]
    return any(has_files(labels, (".txt",)) and not has_files(labels, (".png",)) for _, labels in parts)


@folder_layout("yolo", _is_yolo, "data.yaml, images/SPLIT/*.jpg and labels/SPLIT/*.txt")
def yolo(path: Path) -> Descriptor:
    """Describe a folder of outlines in text files."""
    described = next((path / n for n in _YAML if (path / n).is_file()), None)
    own = _yaml_names(described) if described is not None else read_names(path / TEXT)
    if len(own) >= IGNORE_LABEL:
        raise DataError(f"{path} names {len(own)} classes, expected at most {IGNORE_LABEL - 1} beside background")
    names = (BACKGROUND, *own)
    return Descriptor(ClassList(names, colour_map(len(names))), OutlineFiles(len(own)), lambda s: _split(path, s))


def _split(path: Path, split: str) -> Split:
    parts = _folders(path, split)
    if parts is None:
        raise DataError(f"{path} has no {split}: expected images/{split}/ or {split}/images/")
    images, labels = Files(parts[0], IMAGE_ENDINGS), Files(parts[1], (".txt",))
    names, there = images.names(), labels.names()
    entries = tuple(Entry(n, images.find(n), labels.find(n) if labels.has(n) else None) for n in names)
    bare = [e.name for e in entries if e.label is None]
    if bare and len(bare) == len(entries):
        raise DataError(f"{parts[1]} has no label file for any image of {parts[0]}; name them alike")
    alone = [n for n in there if not images.has(n) and n != "classes"]
    notes = []
    if bare:
        notes.append(f"{len(bare)} of {len(entries)} images have no label file, all background: {some(bare)}")
    if alone:
        notes.append(f"{len(alone)} label files in {parts[1]} have no image, left out: {some(alone)}")
    return Split(entries, parts[0], notes=tuple(notes))


def _yaml_names(path: Path) -> tuple[str, ...]:
    """Return ``names`` of a data.yaml, in the three forms it is written in; other keys do not matter here.

    Raises:
        DataError: If there are none, or a form is not known.
    """
    lines = read_lines_indented(path)
    start = next((k for k, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if start is None:
        raise DataError(f"{path} has no names; write names: [first, second] into it")
    inline = lines[start].partition(":")[2].strip()
    found: Mapping[int, str]
    if inline:
        inner = re.fullmatch(r"\[(.*)\]", inline)
        found = dict(enumerate(_unquoted(w) for w in inner[1].split(",") if w.strip())) if inner else {}
    else:
        found = {}
        for line in lines[start + 1 :]:
            item = re.fullmatch(r"\s*(?:-\s+(.+)|\s+(\d+)\s*:\s*(.+))", line)
            if item is None:
                break
            found[len(found) if item[1] else int(item[2])] = _unquoted(item[1] or item[3])
    names = tuple(found[i] for i in sorted(found))
    if not names or sorted(found) != list(range(len(names))) or len(set(names)) < len(names):
        raise DataError(f"{path} has names that cannot be read; write names: [first, second], each once, into it")
    return names


def read_lines_indented(path: Path) -> list[str]:
    """Return the lines of a YAML file with their indents, without comments and blank ones."""
    read_lines(path, "names: [first, second]")  # for its errors
    text = path.read_bytes().decode("utf-8-sig")
    lines = (re.sub(r"(^|\s)#.*$", "", line).rstrip() for line in text.splitlines())
    return [line for line in lines if line]


def _unquoted(word: str) -> str:
    word = word.strip()
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word
