"""The canvas of the synthetic street scenes: a camera on a straight road, and colours that classes share.

Things are painted back to front into a picture and a label map with the same polygons, so that the
mask of everything is exact. World coordinates are metres: x right of the camera, y up from the ground, z ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwnas.optional import require

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
else:
    Image, ImageDraw = require("PIL.Image", "search"), require("PIL.ImageDraw", "search")

Colour = tuple[int, int, int]
Point = tuple[float, float, float]
Span = tuple[float, float]
Things = list[tuple[float, Callable[[], None]]]  # how far, and how to paint it

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

CAMERA_HEIGHT, NEAREST = 1.5, 1.0  # metres

# the classes share these on purpose: grey is sky, building, pole, road, pavement, fence or car
GREY: tuple[Colour, ...] = ((70, 70, 74), (100, 100, 102), (128, 126, 124), (152, 150, 148), (84, 86, 92))
SKIES: tuple[Colour, ...] = ((112, 152, 204), (150, 178, 208), (184, 190, 196), (206, 208, 210), (140, 146, 156))
WALLS: tuple[Colour, ...] = (*GREY, (142, 92, 72), (168, 140, 106), (190, 176, 150), (112, 84, 68), (150, 160, 168))
PAVING: tuple[Colour, ...] = ((128, 126, 124), (150, 144, 134), (112, 112, 114), (140, 120, 106))
LEAVES: tuple[Colour, ...] = ((58, 84, 42), (78, 98, 50), (92, 90, 44), (104, 80, 48), (52, 66, 44), (72, 66, 56))
PAINT: tuple[Colour, ...] = (*GREY, (200, 200, 202), (34, 34, 38), (128, 34, 34), (44, 62, 112), (60, 78, 62))
SIGNS: tuple[Colour, ...] = ((176, 38, 40), (38, 70, 148), (206, 204, 198), (198, 160, 44), (40, 110, 72))
CLOTHES: tuple[Colour, ...] = (*PAINT, (168, 140, 106), (152, 70, 60), (70, 96, 120), (190, 176, 150))
SKIN: tuple[Colour, ...] = ((206, 162, 136), (164, 116, 88), (104, 72, 56))
METAL: tuple[Colour, ...] = (*GREY, (50, 60, 54), (112, 84, 68))
DARK: Colour = (26, 28, 32)
WHITE: Colour = (214, 214, 208)


def _circle(n: int) -> tuple[tuple[float, float], ...]:
    return tuple((math.cos(2 * math.pi * (i + 0.5) / n), math.sin(2 * math.pi * (i + 0.5) / n)) for i in range(n))


_OCTAGON, _ROUND = _circle(8), _circle(16)


class Street:
    """Picture and label map, with the camera and the layout of the street.

    Args:
        size: (height, width) in pixels.
        rng: Draws everything.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        self.size = size
        self._rng = rng
        self._spare: list[float] = []
        self.focal = 0.9 * math.sqrt(height * width)
        self.horizon = height * self.uniform(0.38, 0.52)
        self.vanish = width * self.uniform(0.32, 0.68)
        self.sunny = self.uniform() < 0.6
        self.sun_side = self.side()
        self.sky = self.pick(SKIES)
        # road edges and house fronts by side, -1 left and 1 right, in metres right of the camera
        self.kerb = {side: side * self.uniform(2.4, 5.2) for side in (-1, 1)}
        self.front = {side: self.kerb[side] + side * self.uniform(2.6, 6.0) for side in (-1, 1)}
        self.image = Image.new("RGB", (width, height), self.sky)
        self.label = Image.new("L", (width, height), SKY)
        self._ink = ImageDraw.Draw(self.image, "RGBA")  # in this mode the alpha of a colour blends
        self._mark = ImageDraw.Draw(self.label)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a number; from a block, since drawing one by one would take most of the time of a scene."""
        if not self._spare:
            self._spare = self._rng.random(512).tolist()
        return low + (high - low) * self._spare.pop()

    def side(self) -> int:
        """Draw -1 (left) or 1 (right)."""
        return 1 if self.uniform() < 0.5 else -1

    def count(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included."""
        return int(self.uniform(low, high + 1))

    def pick(self, colours: Sequence[Colour]) -> Colour:
        """Draw one of `colours`, a little changed."""
        colour = colours[int(self.uniform(0, len(colours)))]
        return shade([c + self.uniform(-8, 8) for c in colour], self.uniform(0.85, 1.15))

    def paint(self, points: Sequence[Point], colour: Colour, label: int | None = None, alpha: int = 255) -> None:
        """Fill a polygon. Without a label it is a detail of what lies there; with alpha 0 it is label alone."""
        pixels = []
        for x, y, z in points:
            k = self.focal / max(z, NEAREST)
            pixels.append((self.vanish + k * x, self.horizon + k * (CAMERA_HEIGHT - y)))
        columns = [p[0] for p in pixels]
        left, right = min(columns), max(columns)
        if right < 0 or left > self.size[1] or (label is None and right - left < 0.6):
            return  # out of the picture, or a detail too thin to see
        if alpha:
            haze = 0.5 * (1 - math.exp(-points[0][2] / 90))
            self._ink.polygon(pixels, fill=(*blend(colour, self.sky, haze), alpha))
        if label is not None:
            self._mark.polygon(pixels, fill=label)

    def box(self, x: Span, y: Span, z: float, colour: Colour, label: int | None = None, alpha: int = 255) -> None:
        """Fill an upright rectangle that faces the camera."""
        self.paint([(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)], colour, label, alpha)

    def wall(self, x: float, y: Span, z: Span, colour: Colour, label: int | None = None, alpha: int = 255) -> None:
        """Fill an upright rectangle that runs along the street."""
        self.paint([(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])], colour, label, alpha)

    def floor(self, x: Span, z: Span, colour: Colour, label: int | None = None, alpha: int = 255, y: float = 0) -> None:
        """Fill a level rectangle, on the ground unless `y` says how high."""
        self.paint([(x[0], y, z[0]), (x[1], y, z[0]), (x[1], y, z[1]), (x[0], y, z[1])], colour, label, alpha)

    def disc(
        self, centre: Point, across: float, up: float, colour: Colour, label: int | None = None, alpha: int = 255
    ) -> None:
        """Fill an upright ellipse that faces the camera; `across` and `up` are its radii."""
        x, y, z = centre
        outline = _OCTAGON if up * self.focal < 6 * z else _ROUND
        self.paint([(x + across * u, y + up * v, z) for u, v in outline], colour, label, alpha)

    def pixels(self, metres: float, z: float) -> float:
        """Return how many pixels a length spans at a distance."""
        return metres * self.focal / max(z, NEAREST)


def shade(colour: Sequence[float], factor: float) -> Colour:
    """Return a colour times a factor of 0 or more."""
    r, g, b = colour
    return min(255, round(r * factor)), min(255, round(g * factor)), min(255, round(b * factor))


def blend(a: Colour, b: Colour, share: float) -> Colour:
    """Return the colour that is `share` of the way from `a` to `b`."""
    keep = 1 - share
    return round(a[0] * keep + b[0] * share), round(a[1] * keep + b[1] * share), round(a[2] * keep + b[2] * share)


def along(s: Street, n: int, nearest: float = 5.0, farthest: float = 55.0) -> list[float]:
    """Draw distances, denser nearby: evenly spread in log z."""
    return [nearest * (farthest / nearest) ** s.uniform() for _ in range(n)]
