"""Picture files as arrays, one decoder for images and one for labels: upright, in one form, damage as one error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import DataError, HwnasError
from hwnas.images import DAMAGE
from hwnas.optional import require

MAX_PIXELS = 40_000_000
"""The largest image that is decoded or drawn, in pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # of images, by Pillow's names
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6  # colour types of PNG (ISO/IEC 15948, table 11.1)
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
# How files that are not PNG begin, for messages.
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"RIFF", "WebP"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
)


def decode_image(path: Path) -> NDArray[np.uint8]:
    """Return an image as RGB uint8 (H, W, 3), turned as its EXIF orientation says.

    Grey, palette and CMYK become RGB, and transparency is dropped. Of 16 bits a channel the upper 8 are kept.

    Raises:
        DataError: If the file cannot be read, is damaged, has more than MAX_PIXELS, or is of whole numbers or reals of
            32 bits.
        MissingExtra: If Pillow is not installed.
    """
    with _opened(path, FORMATS) as image:
        upright = _upright(image)
        if upright.mode in _GREY_16:
            grey = (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if upright.mode in ("I", "F"):
            raise DataError(f"{path} has 32 bits a pixel, expected 8 or 16 bits a channel; convert it")
        upright.info.pop("transparency", None)  # Pillow warns of some forms of what is dropped here
        return np.array(upright.convert("RGB"))


def decode_label(path: Path, colours: bool = False) -> NDArray[Any]:
    """Return a label map as its PNG stores it, turned as its EXIF orientation says.

    Args:
        path: The file; what it is, its content says and not its name.
        colours: Whether classes are told by colours: then a palette's colours are returned, else its indices.

    Returns:
        The value of each pixel (H, W): uint8 of 1, 2, 4 or 8 bits, grey or of a palette, or uint16. Of a file of
        colours RGB uint8 (H, W, 3). Alpha is dropped.

    Raises:
        DataError: If the file cannot be read, is damaged, has more than MAX_PIXELS, or is no PNG: lossy formats change
            values.
        MissingExtra: If Pillow is not installed.
    """
    depth, kind = _header(path)
    with _opened(path, ("PNG",)) as image:
        upright = _upright(image)
        if kind == _PALETTE and colours:
            upright.info.pop("transparency", None)
            return np.array(upright.convert("RGB"))
        values = np.array(upright)
    if kind in (_RGB, _RGBA):
        if depth != 8:
            raise DataError(f"{path} has colours of {depth} bits a channel, expected 8; convert it")
        return values[..., :3]
    if kind == _GREY_ALPHA:
        if depth != 8:
            raise DataError(f"{path} has {depth} bits and an alpha channel; save it as grey without alpha")
        return values[..., 0]
    if kind == _GREY and depth == 16:
        return values.astype(np.uint16)
    if kind == _GREY and depth in (2, 4):  # Pillow spreads these over 0 to 255
        spread: NDArray[np.uint8] = values // np.uint8(255 // (2**depth - 1))
        return spread
    return values.astype(np.uint8)


def png_values(path: Path) -> str:
    """Return ``"numbers"`` or ``"colours"``: what the pixels of a label file are, from its header.

    Raises:
        DataError: If the file cannot be read or is no PNG.
    """
    return "colours" if _header(path)[1] in (_RGB, _RGBA) else "numbers"


def _header(path: Path) -> tuple[int, int]:
    """Return bits a channel and the colour type of a PNG."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except (OSError, ValueError) as e:
        raise _cannot(path, e) from e
    if not head.startswith(_PNG):
        came = next((name for start, name in _SIGNATURES if head.startswith(start)), None)
        if came is None:
            raise DataError(f"cannot decode {path} (no PNG); replace the file")
        raise DataError(f"{path} must be a PNG, as labels may lose nothing, got {came}; make it anew as PNG")
    if len(head) < 26:
        raise DataError(f"cannot decode {path} (its header is cut off); replace the file")
    return head[24], head[25]


@contextmanager
def _opened(path: Path, formats: tuple[str, ...]) -> Iterator[Any]:
    """Yield a Pillow image that is decoded; whatever goes wrong, in the block too, is a DataError."""
    pil = require("PIL.Image", "image")
    try:
        with warnings.catch_warnings():
            # Of sizes, which are checked here, and of EXIF entries that are cut off.
            warnings.simplefilter("ignore")
            with pil.open(path, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(path)
                image.load()
                yield image
    except pil.DecompressionBombError as e:
        raise _too_large(path) from e
    except HwnasError:  # what says best itself what is wrong
        raise
    except DAMAGE as e:
        raise _cannot(path, e) from e


def _upright(image: Any) -> Any:
    require("PIL.ImageOps", "image").exif_transpose(image, in_place=True)
    return image


def _too_large(path: Path) -> DataError:
    return DataError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels; scale it down")


def _cannot(path: Path, e: BaseException) -> DataError:
    why = getattr(e, "strerror", None) or str(e).replace("\n", " ") or type(e).__name__
    return DataError(f"cannot decode {path} ({why}); replace the file")
