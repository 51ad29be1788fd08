"""PNG files of any bit depth and colour type, written without Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    values: NDArray[Any], depth: int, kind: int = 0, palette: Sequence[tuple[int, int, int]] = (), extra: bytes = b""
) -> bytes:
    """Return a PNG that stores `values`, (H, W) or (H, W, channels), as they are.

    Args:
        values: What is stored.
        depth: Bits a channel.
        kind: Colour type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA.
        palette: Of colour type 3.
        extra: Chunks before the pixels.
    """
    height, width = values.shape[:2]
    samples = values.reshape(height, width * CHANNELS[kind])
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    colours = chunk(b"PLTE", bytes(part for colour in palette for part in colour)) if palette else b""
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
            colours,
            extra,
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        )
    )
