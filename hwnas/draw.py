"""Pictures of labels and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import IGNORE_LABEL, ClassList
from hwnas.errors import HwnasError
from hwnas.files import write_atomic
from hwnas.optional import require

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont
else:
    Image, ImageDraw, ImageFont = (require(f"PIL.{m}", "search") for m in ("Image", "ImageDraw", "ImageFont"))

CAPTIONS = ("image", "label", "prediction")

_GAP, _HEADER = 4, 18  # pixels


def colourise(label: NDArray[Any], classes: ClassList) -> NDArray[np.uint8]:
    """Return a label map, integers (H, W), as RGB uint8 (H, W, 3) in the colours of `classes`, void black.

    Raises:
        HwnasError: If a label is neither a class nor IGNORE_LABEL.
    """
    outside = (label != IGNORE_LABEL) & ((label < 0) | (label >= len(classes)))
    if outside.any():
        raise HwnasError(
            f"label {int(label[outside][0])} is outside 0..{len(classes) - 1}; use the class list of the dataset"
        )
    table = np.zeros((IGNORE_LABEL + 1, 3), np.uint8)
    table[: len(classes)] = classes.palette
    picture: NDArray[np.uint8] = table[label]
    return picture


def panel(rows: Sequence[Sequence[NDArray[np.uint8]]], captions: Sequence[str] = CAPTIONS) -> Image.Image:
    """Return a grid of pictures with a caption above each column.

    Args:
        rows: Pictures RGB uint8 (H, W, 3), all of one size, as many a row as there are captions.
        captions: One a column, from the left.

    Raises:
        HwnasError: If there are no rows, or a row or a picture does not fit the grid.
    """
    if not rows or not captions or any(len(row) != len(captions) for row in rows):
        got = ", ".join(str(len(row)) for row in rows) or "no rows"
        raise HwnasError(f"expected rows of {len(captions)} pictures, one a caption, got {got}; give each one caption")
    shape = rows[0][0].shape
    for picture in (p for row in rows for p in row):
        if picture.shape != shape or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise HwnasError(
                f"expected pictures uint8 (H, W, 3) of one size, got {picture.dtype} {picture.shape} beside {shape}; "
                "use colourise() for labels and one size for all"
            )
    height, width = shape[0] + _GAP, shape[1] + _GAP
    out = Image.new("RGB", (width * len(captions) + _GAP, height * len(rows) + _HEADER), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default()
    for c, caption in enumerate(captions):
        draw.text((c * width + _GAP, 3), caption, fill="black", font=font)
        for r, row in enumerate(rows):
            out.paste(Image.fromarray(row[c]), (c * width + _GAP, r * height + _HEADER))
    return out


def save_panel(path: Path, rows: Sequence[Sequence[NDArray[np.uint8]]], captions: Sequence[str] = CAPTIONS) -> None:
    """Write `panel` as a PNG file, whole or not at all.

    Raises:
        HwnasError: If the pictures do not form a grid, or `path` does not end in ``.png``.
    """
    if path.suffix.lower() != ".png":
        raise HwnasError(f"expected a file name that ends in .png, got {path}; rename it")
    picture = panel(rows, captions)
    write_atomic(path, lambda f: picture.save(f, format="PNG"))
