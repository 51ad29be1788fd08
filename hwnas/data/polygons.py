"""Label maps drawn from outlines: what COCO and YOLO files describe, as classes of pixels.

A pixel is inside of an outline if its centre is (even-odd rule). Objects are drawn in the order of the file, later ones
over earlier ones; what no object covers is class 0, the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.data.labels import Entry
from hwnas.errors import DataError

BACKGROUND = "background"

Outline = tuple[float, ...]  # x, y, x, y, ... in pixels, from the top left corner of the image


class Shape(NamedTuple):
    """One object of an image.

    Attributes:
        number: Its class.
        outlines: Its parts, each closed; together they are the object.
        runs: Lengths of runs of pixels outside and inside in turn, down the columns (COCO's RLE); empty if it has
            outlines.
    """

    number: int
    outlines: tuple[Outline, ...] = ()
    runs: tuple[int, ...] = ()


class Drawing(NamedTuple):
    """The objects of one image.

    Attributes:
        size: (height, width) they were drawn for; None if they fit any.
        shapes: In the order they are painted.
    """

    size: tuple[int, int] | None
    shapes: Sequence[Shape]


@dataclass(frozen=True)
class DrawnLabels:
    """Labels that are drawn when asked for.

    Attributes:
        drawings: By name of the sample.
    """

    drawings: Mapping[str, Drawing]

    def read(self, entry: Entry, size: tuple[int, int]) -> NDArray[Any]:
        """Return the label map of an entry, uint8 (H, W).

        Raises:
            DataError: If the image has another size than its objects were drawn for.
        """
        drawing = self.drawings[entry.name]
        if drawing.size not in (None, size):
            assert drawing.size is not None
            (h, w), (height, width) = drawing.size, size
            raise DataError(
                f"{entry.image} is {height}x{width} (height x width) but its objects are drawn for {h}x{w}; correct "
                "the annotations or the file"
            )
        return paint(drawing.shapes, size)


def paint(shapes: Sequence[Shape], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the class of each pixel (H, W) of an image with these objects."""
    label = np.zeros(size, np.uint8)
    for shape in shapes:
        for outline in shape.outlines:
            label[inside(outline, size)] = shape.number
        if shape.runs:
            label[unrolled(shape.runs, size)] = shape.number
    return label


def inside(outline: Outline, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels' centres lie inside of an outline, (H, W)."""
    height, width = size
    x, y = np.array(outline[::2]), np.array(outline[1::2])
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    rows = np.arange(height)[:, None] + 0.5
    crosses = (y <= rows) != (y2 <= rows)  # (H, edges)
    slope = (x2 - x) / np.where(y2 == y, 1, y2 - y)
    at = x + (rows - y) * slope
    # a pixel is inside where an odd number of edges is crossed left of its centre
    first = np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)
    toggles = np.zeros((height, width + 1), np.int64)
    row, edge = np.nonzero(crosses)
    np.add.at(toggles, (row, first[row, edge]), 1)
    found: NDArray[np.bool_] = (np.cumsum(toggles, axis=1)[:, :width] & 1).astype(np.bool_)
    return found


def unrolled(runs: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels runs cover, (H, W): they alternate between outside and inside, down the columns."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[::-1]).T


def runs_of(text: str) -> tuple[int, ...]:
    """Return the runs of a compressed RLE, as COCO's maskApi writes it.

    Each number is written in groups of five bits, the lowest first, in characters from 48 on, whose sixth bit says that
    more follow; from the third number on it is the difference to the last but one.

    Raises:
        ValueError: If the text ends within a number, or has other characters.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r}")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return tuple(runs)
