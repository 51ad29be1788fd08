"""What all that reads pictures has in common: how one becomes a network's input, and how files can be damaged."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What Pillow raises on damaged files; UnidentifiedImageError is an OSError, and broken PNG chunks are SyntaxErrors.
# KeyError and TypeError come of EXIF entries of a wrong type.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
)


def normalise(image: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Return what a network reads of an image, or of several.

    Args:
        image: RGB (..., H, W, 3).
        mean: Of the three colours, where white is 1: subtracted.
        std: The same: divided by.

    Returns:
        (..., 3, H, W), contiguous.
    """
    offset = np.asarray(mean, np.float32)[:, None, None]
    gain = 1 / np.asarray(std, np.float32)[:, None, None]
    planes = np.moveaxis(image, -1, -3).astype(np.float32, order="C")
    planes *= np.float32(1 / 255)
    planes -= offset
    planes *= gain
    return planes


def resize_labels(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return a label map (..., h, w) at `size` (height, width) by the nearest pixel, with half-pixel centres."""
    if labels.shape[-2:] == size:
        return labels
    rows, columns = (((2 * np.arange(n) + 1) * old) // (2 * n) for n, old in zip(size, labels.shape[-2:], strict=True))
    return labels[..., rows[:, None], columns]
