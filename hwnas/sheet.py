"""A contact sheet of a dataset: some images with their labels on top, and the classes beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import IGNORE_LABEL, ClassList
from hwnas.draw import colourise
from hwnas.files import write_atomic
from hwnas.optional import require

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont
else:
    Image, ImageDraw, ImageFont = (require(f"PIL.{m}", "search") for m in ("Image", "ImageDraw", "ImageFont"))

PAPER, INK, GREY, LINE = (255, 255, 255), (28, 30, 33), (112, 117, 124), (226, 229, 233)
OPACITY = 0.6  # of labels over their image
OUTLINE = 0.35  # of the white lines between labels
MARGIN, GAP = 32, 16  # pixels
GRID_WIDTH = 1280  # of all tiles
ROW, SWATCH, BAR_WIDTH, SHARE_WIDTH = 28, 18, 110, 62
NAME_WIDTHS = (70, 190)  # of the names of classes, as they are long
LEAST_ROWS = 12
MOST_COLUMNS = 3  # of the legend; classes beyond are counted


@dataclass(frozen=True)
class Tile:
    """A sample.

    Attributes:
        image: RGB uint8 (H, W, 3).
        label: (H, W), or the class of the image, ().
        name: What stands below it.
    """

    image: NDArray[np.uint8]
    label: NDArray[Any]
    name: str


@dataclass(frozen=True)
class Legend:
    """The classes.

    Attributes:
        classes: Names and colours.
        shares: Of each, what its bar is as long as.
        title: What the shares are of.
        void: Whether there may be pixels of no class.
    """

    classes: ClassList
    shares: Sequence[float]
    title: str
    void: bool = True


def overlay(image: NDArray[np.uint8], label: NDArray[Any], classes: ClassList) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) in the colours of its labels (H, W); outlines are drawn, and void is hatched."""
    void = label == IGNORE_LABEL
    grey = image.astype(np.float32).mean(2, keepdims=True)
    # Colours carry the classes, brightness the picture: so the image is brought to grey below them.
    below = 0.35 * image + 0.65 * grey
    out = (1 - OPACITY) * below + OPACITY * colourise(label, classes).astype(np.float32)
    y, x = np.indices(label.shape)
    hatch = ((x + y) // max(2, label.shape[0] // 90)) % 4 == 0
    out = np.where(void[..., None], np.where(hatch[..., None], 0.5 * grey + 120, 0.75 * grey + 20), out)
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    out[edge] = (1 - OUTLINE) * out[edge] + OUTLINE * 255
    picture: NDArray[np.uint8] = out.clip(0, 255).astype(np.uint8)
    return picture


def sheet(tiles: Sequence[Tile], legend: Legend, title: str) -> Image.Image:
    """Return a picture of tiles, all of one size, with the legend on the right.

    Args:
        tiles: At least one.
        legend: The classes.
        title: The line on top.
    """
    height, width = tiles[0].image.shape[:2]
    columns = _columns(len(tiles), width / height)
    tile_width = (GRID_WIDTH - (columns - 1) * GAP) // columns
    tile_height = max(24, round(tile_width * height / width))
    caption = 24
    rows = math.ceil(len(tiles) / columns)
    grid_height = rows * (tile_height + caption + GAP) - GAP
    per_column, legend_columns = _legend_shape(len(legend.classes) + 2, grid_height)
    name_width = min(NAME_WIDTHS[1], max(NAME_WIDTHS[0], *(_length(n, 15) for n in legend.classes.names)) + 18)
    column_width = SWATCH + 10 + name_width + BAR_WIDTH + SHARE_WIDTH
    legend_width = legend_columns * (column_width + GAP) - GAP
    top = MARGIN + 30 + GAP
    size = (2 * MARGIN + GRID_WIDTH + MARGIN + legend_width, top + max(grid_height, per_column * ROW) + MARGIN)
    out = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(out)
    draw.text((MARGIN, MARGIN - 4), title, fill=INK, font=_font(24))
    for i, tile in enumerate(tiles):
        x = MARGIN + (i % columns) * (tile_width + GAP)
        y = top + (i // columns) * (tile_height + caption + GAP)
        out.paste(_picture(tile, legend.classes, (tile_width, tile_height)), (x, y))
        draw.text(
            (x, y + tile_height + 5), _fit(_caption(tile, legend.classes), 14, tile_width), fill=GREY, font=_font(14)
        )
    left = 2 * MARGIN + GRID_WIDTH
    _draw_legend(draw, legend, (left, top), per_column, legend_columns, name_width)
    return out


def save_sheet(path: Path, tiles: Sequence[Tile], legend: Legend, title: str) -> None:
    """Write `sheet` as a PNG file, whole or not at all."""
    picture = sheet(tiles, legend, title)
    write_atomic(path, lambda f: picture.save(f, format="PNG"))


def _columns(tiles: int, aspect: float) -> int:
    """Return into how many columns tiles go, so that the grid is some two thirds as high as wide, with few gaps."""

    def unlike(n: int) -> float:
        rows = math.ceil(tiles / n)
        return abs(math.log(rows / n / aspect / 0.6)) + (rows * n - tiles) / tiles

    return min(range(1, tiles + 1), key=unlike)


def _legend_shape(lines: int, height: int) -> tuple[int, int]:
    """Return how many lines the legend has in a column, and how many columns."""
    per_column = max(LEAST_ROWS, height // ROW)
    columns = min(MOST_COLUMNS, math.ceil(lines / per_column))
    return per_column, columns


def _picture(tile: Tile, classes: ClassList, size: tuple[int, int]) -> Image.Image:
    """Return a tile at a size (width, height): the image smooth, labels with hard edges."""
    image = Image.fromarray(tile.image).resize(size, Image.Resampling.LANCZOS)
    if not tile.label.ndim:
        return image
    label = np.asarray(Image.fromarray(tile.label).resize(size, Image.Resampling.NEAREST))
    return Image.fromarray(overlay(np.asarray(image), label, classes))


def _caption(tile: Tile, classes: ClassList) -> str:
    return tile.name if tile.label.ndim else f"{classes.names[int(tile.label)]}  ({tile.name})"


def _draw_legend(
    draw: ImageDraw.ImageDraw, legend: Legend, at: tuple[int, int], per_column: int, columns: int, name_width: int
) -> None:
    """Draw the classes, the most frequent one first, and void at the end."""
    names, palette, shares = legend.classes.names, legend.classes.palette, legend.shares
    order = sorted(range(len(names)), key=lambda i: (-shares[i], i))
    width = SWATCH + 10 + name_width + BAR_WIDTH + SHARE_WIDTH
    room = per_column * columns - 2
    longest = max([*shares, 1e-9])
    draw.text((at[0], at[1] - 2), legend.title, fill=GREY, font=_font(14))
    hidden = order[room:] if len(order) > room else []
    lines = order[: room - 1] if hidden else order
    last = [-1] if legend.void or hidden else []
    for n, i in enumerate([*lines, *last]):
        column, row = divmod(n + 1, per_column)
        x, y = at[0] + column * (width + GAP), at[1] + row * ROW
        box = (x, y + (ROW - SWATCH) // 2 - 4, x + SWATCH, y + (ROW + SWATCH) // 2 - 4)
        name_at = (x + SWATCH + 10, y)
        if i < 0:
            if legend.void:
                _hatch(draw, box)
            more = f"{len(order) - len(lines)} classes not listed" if hidden else ""
            rest = ", and ".join(t for t in ("void" if legend.void else "", more) if t)
            draw.text(name_at, rest, fill=GREY, font=_font(15))
            continue
        draw.rounded_rectangle(box, 4, fill=palette[i], outline=LINE)
        draw.text(name_at, _fit(names[i], 15, name_width - 12), fill=INK if shares[i] else GREY, font=_font(15))
        bar = x + SWATCH + 10 + name_width
        draw.rounded_rectangle((bar, y + 6, bar + BAR_WIDTH, y + 12), 3, fill=LINE)
        if shares[i] > 0:
            length = max(3, round(BAR_WIDTH * shares[i] / longest))
            draw.rounded_rectangle((bar, y + 6, bar + length, y + 12), 3, fill=GREY)
        share = percent(shares[i])
        draw.text((x + width - _length(share, 14), y + 1), share, fill=GREY, font=_font(14))


def _hatch(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    draw.rounded_rectangle(box, 4, fill=(160, 163, 168))
    for d in range(4, 2 * SWATCH, 7):
        a, b = max(0, d - SWATCH), min(d, SWATCH)
        draw.line((box[0] + a, box[1] + d - a, box[0] + b, box[1] + d - b), fill=(225, 227, 230), width=2)


def percent(share: float) -> str:
    """Return a share with as many digits as tell it from none: ``"27.5 %"``, ``"0.04 %"``, ``"0"``."""
    value = 100 * share
    return "0" if value == 0 else "<0.01 %" if value < 0.01 else f"{value:.2f} %" if value < 0.1 else f"{value:.1f} %"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _length(text: str, size: int) -> int:
    return math.ceil(float(_font(size).getlength(text)))


def _fit(text: str, size: int, width: int) -> str:
    """Return a text that is no longer than a width, in pixels: its middle left out."""
    if _length(text, size) <= width:
        return text
    keep = len(text)
    while keep > 2 and _length(f"{text[: keep // 2]}…{text[len(text) - keep // 2 :]}", size) > width:
        keep -= 1
    return f"{text[: keep // 2]}…{text[len(text) - keep // 2 :]}"
