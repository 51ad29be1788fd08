"""From what label files store to classes: the table of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import IGNORE_LABEL
from hwnas.decode import decode_label
from hwnas.errors import DataError

Colour = tuple[int, int, int]
VALUES = 1 << 16  # a label file has at most 16 bits a pixel
_UNKNOWN = -1


class Entry(NamedTuple):
    """One sample of a split.

    Attributes:
        name: What the dataset calls it.
        image: File of the image.
        label: File of the label; None where labels are no files of their own.
    """

    name: str
    image: Path
    label: Path | None


class Labels(Protocol):
    """How a dataset's labels are read."""

    def read(self, entry: Entry, size: tuple[int, int]) -> NDArray[Any]:
        """Return the label of an image of `size` (height, width), as `hwnas.data.base.Sample` has it.

        Raises:
            DataError: If it cannot be read or does not fit the image.
        """


@dataclass(frozen=True)
class LabelTable:
    """Labels in PNG files: what a pixel stores is looked up.

    Attributes:
        values: Class index, or IGNORE_LABEL for void, of each value that a file of numbers may have.
        colours: The same of RGB colours; empty if labels are numbers.
        rest: What every other value or colour means; an unknown one is an error if it is None.

    Raises:
        DataError: If a class has no place in a label map, or there is nothing to look up.
    """

    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[Colour, int] = field(default_factory=dict)
    rest: int | None = None

    def __post_init__(self) -> None:
        classes = {*self.values.values(), *self.colours.values(), *(() if self.rest is None else (self.rest,))}
        good = all(0 <= c <= IGNORE_LABEL for c in classes) and all(0 <= v < VALUES for v in self.values)
        good = good and all(len(c) == 3 and all(0 <= part <= 255 for part in c) for c in self.colours)
        if not classes or not good:
            raise DataError(
                f"expected a table of values below {VALUES} and colours of three bytes to at most {IGNORE_LABEL} "
                f"classes, got values {dict(self.values)} and colours {dict(self.colours)}; correct it"
            )

    def read(self, entry: Entry, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the label map of an entry, uint8 (H, W).

        Raises:
            DataError: If it cannot be decoded, is not of `size`, or holds a value that is not in the table.
        """
        assert entry.label is not None, "a table reads label files"
        stored = decode_label(entry.label, colours=not self.values)
        if stored.shape[:2] != size:
            (h, w), (height, width) = stored.shape[:2], size
            raise DataError(
                f"{entry.label} is {h}x{w} (height x width) but its image is {height}x{width}; make them the same size"
            )
        return self.apply(stored, entry.label)

    def apply(self, stored: NDArray[Any], where: Path) -> NDArray[np.uint8]:
        """Return the classes uint8 (H, W) of what a file stores, (H, W) or RGB (H, W, 3).

        Raises:
            DataError: If a value is not in the table; names the file, the value and what was expected.
        """
        if stored.ndim == 3:
            if not self.colours:
                raise DataError(
                    f"{where} must have one number a pixel, {_expected(self.values)}, got colours (RGB); convert it, "
                    "or give the colours of its classes"
                )
            classes = self._of_colours(stored)
        else:
            if not self.values:
                raise DataError(f"{where} has one number a pixel, expected one of {len(self.colours)} RGB colours")
            classes = self._numbers[stored]
        if classes.min(initial=0) == _UNKNOWN:
            row, column = np.unravel_index(int(np.argmin(classes)), classes.shape)
            came = stored[row, column]
            held, expected = (
                (f"label {int(came)}", _expected(self.values))
                if stored.ndim == 2
                else (f"colour ({', '.join(map(str, came))})", f"one of {len(self.colours)} colours")
            )
            raise DataError(
                f"{where} holds {held}, expected {expected} (the first at row {row}, column {column}); map its values "
                "to these"
            )
        return classes.astype(np.uint8)

    @cached_property
    def _numbers(self) -> NDArray[np.int16]:
        table = np.full(VALUES, _UNKNOWN if self.rest is None else self.rest, np.int16)
        table[list(self.values.keys())] = list(self.values.values())
        return table

    @cached_property
    def _codes(self) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """The colours as numbers, sorted, and the class of each."""
        pairs = sorted(((r << 16) + (g << 8) + b, c) for (r, g, b), c in self.colours.items())
        return np.array([p[0] for p in pairs], np.int32), np.array([p[1] for p in pairs], np.int16)

    def _of_colours(self, stored: NDArray[Any]) -> NDArray[np.int16]:
        codes, classes = self._codes
        pixels = stored.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        at = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
        rest = np.int16(_UNKNOWN if self.rest is None else self.rest)
        found: NDArray[np.int16] = np.where(codes[at] == pixels, classes[at], rest)
        return found


@dataclass(frozen=True)
class ClassNumbers:
    """Labels of images that are classified: the first folder of a name says the class.

    Attributes:
        numbers: Class index by folder.
    """

    numbers: Mapping[str, int]

    def read(self, entry: Entry, size: tuple[int, int]) -> NDArray[Any]:
        """Return the class of an entry, int64 ()."""
        return np.array(self.numbers[entry.name.partition("/")[0]], np.int64)


def numbered(n: int, void: Iterable[int] = (IGNORE_LABEL,), first: int = 0) -> dict[int, int]:
    """Return the table of `n` classes that files number from `first`, and of void."""
    return {first + i: i for i in range(n)} | dict.fromkeys(void, IGNORE_LABEL)


def colour_map(n: int, first: int = 0) -> tuple[Colour, ...]:
    """Return `n` distinct colours from number `first` of the colour map of Pascal VOC (VOCdevkit, VOClabelcolormap.m).

    The bits of a number go to red, green and blue in turn, the lowest to the highest bit of each.
    """

    def part(number: int, shift: int) -> int:
        return sum((number >> (3 * k + shift) & 1) << (7 - k) for k in range(8))

    return tuple((part(i, 0), part(i, 1), part(i, 2)) for i in range(first, first + n))


def _expected(values: Mapping[int, int]) -> str:
    """Say which values a table has, for messages: ``"0..10 for classes or 11 for void"``."""
    known = _ranges(v for v, c in values.items() if c != IGNORE_LABEL)
    void = _ranges(v for v, c in values.items() if c == IGNORE_LABEL)
    return f"{known} for classes" + (f" or {void} for void" if void else "")


def _ranges(values: Iterable[int]) -> str:
    """Write numbers with runs as ``0..10``."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)
