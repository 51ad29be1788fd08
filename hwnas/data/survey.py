"""What is in the splits of a dataset: sizes from file headers, pixels of each class, pictures that are there twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import IGNORE_LABEL, SegmentationData
from hwnas.data.identity import files_of
from hwnas.errors import DataError
from hwnas.files import sha256
from hwnas.images import DAMAGE
from hwnas.optional import require
from hwnas.progress import Update, ignore

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = require("PIL.Image", "search")

_ORIENTATION = 0x0112  # of EXIF; from 5 on width and height are exchanged
_TURNED = 5

Size = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """Sizes (height, width) of images, by their number of pixels; all three are of an image that is there.

    Attributes:
        least: The smallest.
        median: In the middle.
        most: The largest.
        kinds: How many different ones there are.
    """

    least: Size
    median: Size
    most: Size
    kinds: int

    @classmethod
    def of(cls, sizes: Iterable[Size]) -> Sizes | None:
        """Return those of some images, None if there are none."""
        ordered = sorted(sizes, key=lambda s: (s[0] * s[1], s))
        if not ordered:
            return None
        return cls(ordered[0], ordered[len(ordered) // 2], ordered[-1], len(set(ordered)))


def evenly(n: int, most: int) -> list[int]:
    """Return at most so many indices of ``range(n)``, evenly spread, with both ends."""
    return sorted(set(np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist())) if n and most else []


def outward(n: int) -> Iterator[int]:
    """Yield ``range(n)`` in an order whose beginning is spread over all of it: halves, quarters, and so on."""
    seen: set[int] = set()
    parts = 1
    while len(seen) < n:
        for i in evenly(n, parts):
            if i not in seen:
                seen.add(i)
                yield i
        parts *= 4


def header_size(path: Path) -> Size:
    """Return the size (height, width) of an image as it is seen, from the header of its file.

    Raises:
        DataError: If it has none.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except DAMAGE as e:
        raise DataError(f"cannot read {path} ({str(e) or type(e).__name__}); replace the file") from e


@dataclass(frozen=True)
class Headers:
    """What the headers of a split's files say.

    Attributes:
        sizes: Of images, one for each that could be read.
        unequal: Samples whose label is of another size than the image: name, and both sizes.
        damaged: One message for each file without a header.
    """

    sizes: tuple[Size, ...]
    unequal: tuple[tuple[str, Size, Size], ...]
    damaged: tuple[str, ...]


def read_headers(data: SegmentationData, indices: Sequence[int], update: Update = ignore) -> Headers:
    """Read sizes of images and labels; nothing is decoded. Empty where samples are no files of their own."""
    entries = files_of(data)
    sizes, unequal, damaged = [], [], []
    for done, entry in enumerate((entries[i] for i in indices) if entries else (), start=1):
        try:
            size = header_size(entry.image)
            sizes.append(size)
            if entry.label is not None and entry.label != entry.image and _is_picture(entry.label):
                own = header_size(entry.label)
                if own != size:
                    unequal.append((entry.name, size, own))
        except DataError as e:
            damaged.append(str(e))
        update(done)
    return Headers(tuple(sizes), tuple(unequal), tuple(damaged))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() not in (".txt", ".json", ".yaml", ".yml", ".xml")


@dataclass(frozen=True)
class Counts:
    """Labels of some samples of a split.

    Attributes:
        indices: Of the samples that could be read.
        pixels: By sample and class, void last, (samples, classes + 1); of classification one label a sample.
        damaged: Name and message of each sample that could not be read.
    """

    indices: tuple[int, ...]
    pixels: NDArray[np.int64]
    damaged: tuple[tuple[int, str], ...]

    @property
    def total(self) -> NDArray[np.int64]:
        """Over all samples, (classes + 1,)."""
        total: NDArray[np.int64] = self.pixels.sum(0)
        return total

    @property
    def void(self) -> tuple[int, ...]:
        """Indices of the samples without any labelled pixel."""
        return tuple(i for i, row in zip(self.indices, self.pixels, strict=True) if not row[:-1].any())


def count_labels(label: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return how many pixels of a label, or labels (), each class has, void last: (classes + 1,)."""
    flat = np.atleast_1d(label).ravel()
    void = flat == IGNORE_LABEL if label.ndim else np.zeros(flat.shape, bool)  # of images 255 may be a class
    counts = np.bincount(flat[~void], minlength=classes)[:classes]
    out: NDArray[np.int64] = np.append(counts, int(void.sum())).astype(np.int64)
    return out


def count_classes(data: SegmentationData, indices: Sequence[int], update: Update = ignore) -> Counts:
    """Read some samples and count their labels."""
    classes, read, rows, damaged = len(data.classes), [], [], []
    for done, i in enumerate(indices, start=1):
        try:
            rows.append(count_labels(data[i].label, classes))
            read.append(i)
        except DataError as e:
            damaged.append((i, str(e)))
        update(done)
    pixels = np.stack(rows) if rows else np.zeros((0, classes + 1), np.int64)
    return Counts(tuple(read), pixels, tuple(damaged))


def classes_in(data: SegmentationData, enough: int, indices: Sequence[int] | None = None) -> set[int]:
    """Return classes that occur, in all samples or in some: reading ends with the sample that makes them `enough`."""
    found: set[int] = set()
    among = range(len(data)) if indices is None else indices
    for i in outward(len(among)):
        found.update(np.flatnonzero(count_labels(data[among[i]].label, len(data.classes))[:-1]).tolist())
        if len(found) >= enough:
            break
    return found


Place = tuple[str, str]  # a split, and the name of a sample of it


def equal_pictures(splits: Mapping[str, SegmentationData], update: Update = ignore) -> list[tuple[Place, ...]]:
    """Return which images are the same file: groups of two or more.

    Only files of one size can be equal, so only these are read.

    Args:
        splits: By their names; those whose samples are no files of their own are passed over.
        update: Told how many of the files that had to be read are.
    """
    by_size: dict[int, list[tuple[Place, Path]]] = defaultdict(list)
    for split, data in splits.items():
        for entry in files_of(data):
            by_size[entry.image.stat().st_size].append(((split, entry.name), entry.image))
    doubtful = [same for same in by_size.values() if len(same) > 1]
    total, done = sum(map(len, doubtful)), 0
    out = []
    for same in doubtful:
        by_content: dict[str, list[Place]] = defaultdict(list)
        for place, path in same:
            by_content[sha256(path.read_bytes())].append(place)
            done += 1
            update(done, total=total)
        out += [tuple(places) for places in by_content.values() if len(places) > 1]
    return out


def across(groups: Iterable[Sequence[Place]]) -> dict[tuple[str, str], list[str]]:
    """Return the names of images that two splits share, by the two; of images twice in one, by it and itself."""
    out: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group in groups:
        splits = list(dict.fromkeys(split for split, _ in group))
        for i, a in enumerate(splits):
            own = [name for split, name in group if split == a]
            if len(own) > 1:
                out[a, a].append(" = ".join(own))
            for b in splits[i + 1 :]:
                other = next(name for split, name in group if split == b)
                out[a, b].append(own[0] if own[0] == other else f"{own[0]} = {other}")
    return dict(out)
