"""Seeded pictures of one shape each: ten classes at the size of CIFAR-10, for tests and machines without data.

Place, size, tilt, colours, background and noise differ from picture to picture, so that only the outline tells.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import (
    ClassList,
)
from hwnas.data.drawn import Drawn
from hwnas.data.layouts.cifar10 import CIFAR10_CLASSES
from hwnas.data.registry import dataset
from hwnas.optional import require

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
else:
    Image, ImageDraw = require("PIL.Image", "search"), require("PIL.ImageDraw", "search")

SHAPES = ClassList(
    names=("disc", "ring", "square", "frame", "triangle", "cross", "star", "bar", "crescent", "corner"),
    palette=CIFAR10_CLASSES.palette,
)
DEFAULT_LENGTHS = {"train": 2000, "val": 300, "test": 300}
LEAST_SIDE = 16
_FINE = 4  # drawn so many times larger, then reduced: smooth edges

Point = tuple[float, float]  # (x, y), y down, the shape within -1..1
_SQUARE: tuple[Point, ...] = ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
_CROSS: tuple[Point, ...] = (
    *((-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3)),
    *((0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3), (-1.0, -0.3), (-0.3, -0.3)),
)


def _circle(radius: float = 1.0, x: float = 0.0) -> tuple[Point, ...]:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    return tuple((x + radius * math.cos(t), radius * math.sin(t)) for t in turns)


def _star() -> tuple[Point, ...]:
    points = [(0.42 if i % 2 else 1.0, math.pi * (i / 5 - 0.5)) for i in range(10)]
    return tuple((r * math.cos(t), r * math.sin(t)) for r, t in points)


# Of each class what is painted, and what is taken away from that.
_OUTLINES: tuple[tuple[tuple[Point, ...], tuple[Point, ...]], ...] = (
    (_circle(), ()),
    (_circle(), _circle(0.6)),
    (_SQUARE, ()),
    (_SQUARE, tuple((0.6 * x, 0.6 * y) for x, y in _SQUARE)),
    (((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)), ()),
    (_CROSS, ()),
    (_star(), ()),
    (((-1.0, -0.28), (1.0, -0.28), (1.0, 0.28), (-1.0, 0.28)), ()),
    (_circle(), _circle(0.85, 0.5)),
    (((-0.9, -0.9), (-0.3, -0.9), (-0.3, 0.3), (0.9, 0.3), (0.9, 0.9), (-0.9, 0.9)), ()),
)


@dataset("synthetic-shapes")
class Shapes(Drawn):
    """Drawn pictures as a sequence of samples; every tenth one is of the same class, and a label is one class number.

    Picture i is a pure function of (seed, split, i, size): equal in every process, and never shared by two splits.

    See `hwnas.data.drawn.Drawn` for the arguments.
    """

    classes = SHAPES
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    kind = "synthetic-shapes"
    lengths = DEFAULT_LENGTHS
    least_side = LEAST_SIDE

    def draw(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a picture and its label ()."""
        label = index % len(SHAPES)
        return _draw(label, self.size, rng), np.array(label, np.uint8)


def _draw(label: int, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) of one shape, brighter than what is behind it: any two colours, light, noise."""
    mask = _mask(label, size, rng)[..., None]
    ground = rng.uniform(20, 120, 3).astype(np.float32)
    colour = ground + rng.uniform(50, 130, 3).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j].astype(np.float32)
    slope = rng.uniform(-20, 20, 2).astype(np.float32)
    picture = ground + mask * (colour - ground) + (slope[0] * y + slope[1] * x)[..., None]
    picture += rng.normal(0, rng.uniform(2, 10), picture.shape).astype(np.float32)
    out: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return out


def _mask(label: int, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return how much of each pixel is covered, (H, W) from 0 to 1."""
    height, width = (_FINE * n for n in size)
    radius = rng.uniform(0.3, 0.45) * min(height, width)
    tilt = rng.uniform(-0.3, 0.3)  # in radians: a square that is turned more is a diamond
    cx, cy = (n / 2 + rng.uniform(-1, 1) * (n / 2 - radius) for n in (width, height))
    cos, sin = radius * math.cos(tilt), radius * math.sin(tilt)
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    for outline, fill in zip(_OUTLINES[label], (255, 0), strict=True):
        if outline:
            draw.polygon([(cx + cos * x - sin * y, cy + sin * x + cos * y) for x, y in outline], fill=fill)
    small = picture.reduce(_FINE)
    return np.asarray(small, np.float32) / np.float32(255)
