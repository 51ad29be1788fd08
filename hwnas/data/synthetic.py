"""Seeded street scenes with exact masks: a dataset for tests, demonstrations and machines without data.

Classes share their colours, and light, shadow, haze and noise change them from scene to scene, so that colour alone
does not solve it: shape, place and surroundings must be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import (
    IGNORE_LABEL,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from hwnas.data.drawn import Drawn
from hwnas.data.layouts.camvid import CAMVID_CLASSES
from hwnas.data.registry import dataset
from hwnas.data.scenery import paint_scene
from hwnas.data.street import CAMERA_HEIGHT, PAVEMENT, ROAD, SKY, Street
from hwnas.optional import require

if TYPE_CHECKING:
    from PIL import Image, ImageFilter
else:
    Image, ImageFilter = require("PIL.Image", "search"), require("PIL.ImageFilter", "search")

DEFAULT_LENGTHS = {"train": 400, "val": 100, "test": 100}
LEAST_SIDE = 16

# texture strength by class, void last: grain of single pixels, and patches of a few
_GRAIN = (0.01, 0.06, 0.04, 0.05, 0.05, 0.18, 0.02, 0.05, 0.02, 0.05, 0.05, 0.04)
_PATCH = (0.03, 0.05, 0.04, 0.04, 0.05, 0.2, 0.03, 0.06, 0.04, 0.06, 0.06, 0.05)


@dataset("synthetic")
class Synthetic(Drawn):
    """One split of generated street scenes with the classes of CamVid.

    Scene i is a pure function of (seed, split, i, size): equal in every process, and never shared by two splits.

    See `hwnas.data.drawn.Drawn` for the arguments.
    """

    classes = CAMVID_CLASSES
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    kind = "synthetic"
    lengths = DEFAULT_LENGTHS
    least_side = LEAST_SIDE

    def draw(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a scene and its labels."""
        street = Street(self.size, rng)
        paint_scene(street)
        label = np.array(street.label)
        return _photograph(street, label, rng), label


def _photograph(s: Street, label: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the painted scene with textures, light, blur and noise: uint8 (H, W, 3)."""
    # gain of each pixel, as one field (H, W): products here are a third of the work they would be on colours
    slot = np.where(label == IGNORE_LABEL, np.uint8(len(_GRAIN) - 1), label)
    field = rng.standard_normal(s.size, np.float32) * np.take(np.array(_GRAIN, np.float32), slot)
    field += (_clouds(s.size, 3, rng) + _clouds(s.size, 14, rng)) * np.take(np.array(_PATCH, np.float32), slot)
    field += 1
    _tile_ground(s, label, field, rng)
    _light(s, label, field, rng)
    image = np.asarray(s.image).astype(np.float32)
    image *= field[..., None]
    gain = rng.uniform(0.65, 1.3) * rng.uniform(0.92, 1.08, 3)  # exposure and white balance
    contrast = rng.uniform(0.8, 1.2)
    image = image * np.float32(gain * contrast) + np.float32(120 * (1 - contrast))
    np.clip(image, 0, 255, out=image)
    blur = ImageFilter.BoxBlur(rng.uniform(0.15, 0.5))  # a third of the time of a Gaussian
    soft = np.asarray(Image.fromarray(image.astype(np.uint8)).filter(blur)).astype(np.int16)
    out: NDArray[np.uint8] = np.clip(soft + _sensor_noise(s.size, rng), 0, 255).astype(np.uint8)
    return out


def _clouds(size: tuple[int, int], period: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise (H, W) with about unit range and features of `period` pixels or more."""
    height, width = size
    seeds = rng.standard_normal((height // period + 2, width // period + 2), np.float32)
    return np.asarray(Image.fromarray(seeds).resize((width, height), Image.Resampling.BILINEAR))


def _tile_ground(s: Street, label: NDArray[np.uint8], field: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Darken the joints of paving slabs and the tracks of wheels, in perspective."""
    first = min(s.size[0], int(s.horizon) + 1)
    rows = np.arange(first, s.size[0], dtype=np.float32)
    ahead = s.focal * CAMERA_HEIGHT / (rows + 0.5 - s.horizon)  # metres, (rows,)
    right = (np.arange(s.size[1], dtype=np.float32) - s.vanish) * (ahead / s.focal)[:, None]  # metres, (rows, W)
    ground, gain = label[first:], field[first:]
    slab = rng.uniform(0.6, 1.2)
    fade = np.float32(0.22) * np.exp(-ahead / 9)  # joints thinner than a pixel blur away
    across = (right / slab) % 1 < 0.08
    along = (ahead / slab) % 1 < 0.08
    gain -= (ground == PAVEMENT) * (across | along[:, None]) * fade[:, None]
    gain -= (ground == ROAD) * np.float32(0.05) * np.cos(right * np.float32(np.pi))


def _light(s: Street, label: NDArray[np.uint8], field: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Brighten the sky toward the horizon, and everything across the picture; darken its corners."""
    y = np.linspace(0, 1, s.size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, s.size[1], dtype=np.float32)[None]
    sky = label == SKY
    field += sky * (np.float32(rng.uniform(0.2, 0.6)) * (y - 0.1))
    field += sky * np.float32(rng.uniform(0, 0.12)) * _clouds(s.size, max(4, s.size[0] // 6), rng)
    field *= 1 + np.float32(rng.uniform(-0.15, 0.15)) * x
    field *= 1 - np.float32(rng.uniform(0, 0.2)) * (x * x + (2 * y - 1) ** 2) / 2


def _sensor_noise(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int16]:
    """Return noise (H, W, 3) of a triangular law: two random bytes cost a tenth of a normal draw."""
    pair = rng.integers(0, 256, (2, *size, 3), np.uint8).astype(np.int16)
    noise: NDArray[np.int16] = (pair[0] - pair[1]) * np.int16(rng.integers(2, 14))
    return noise >> 8
