"""Pictures as arrays: what files store, upright and in one form, or one error."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hwnas import decode
from hwnas.decode import decode_image, decode_label
from hwnas.errors import DataError
from tests.png import chunk, png

RNG = np.random.default_rng(0)
SHAPE = (5, 7)
# What each EXIF orientation asks to be done to the stored pixels (TIFF 6.0, tag 274; EXIF 2.3, table 6).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
GREY_PALETTE = tuple((v, v, v) for v in (0, 1, 3, 8))


def saved(path: Path, array: NDArray[Any] | Image.Image, **options: Any) -> Path:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def exif(orientation: int) -> bytes:
    held = Image.Exif()
    held[274] = orientation
    return held.tobytes()


def was_refused(read: Any, path: Path) -> bool:
    """Read a file that may be damaged: an array, or an error of one line that names the file."""
    try:
        read(path)
    except DataError as e:
        if "\n" in str(e) or path.name not in str(e):
            raise
        return True
    return False


# labels


@pytest.mark.parametrize(("depth", "kind"), [(d, 0) for d in (1, 2, 4, 8, 16)] + [(d, 3) for d in (1, 2, 4, 8)])
def test_labels_are_what_the_file_stores(depth: int, kind: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 2**depth, SHAPE)
    palette = [(7 * i % 256, i, 255 - i) for i in range(2**depth)] if kind == 3 else ()
    label = decode_label(written(tmp_path / "a.png", png(values, depth, kind, palette)))
    assert label.dtype == (np.uint16 if depth == 16 else np.uint8)
    np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_palette_of_greys_is_indices(depth: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 4, SHAPE)
    path = written(tmp_path / "a.png", png(values, depth, 3, GREY_PALETTE))
    np.testing.assert_array_equal(decode_label(path), values)
    by_colours = decode_label(path, colours=True)
    np.testing.assert_array_equal(by_colours, np.array(GREY_PALETTE, np.uint8)[values])


def test_transparent_palettes_do_not_change_indices(tmp_path: Path) -> None:
    values = RNG.integers(0, 4, SHAPE)
    path = written(tmp_path / "a.png", png(values, 8, 3, GREY_PALETTE, chunk(b"tRNS", b"\x00\x80\xff")))
    np.testing.assert_array_equal(decode_label(path), values)
    assert decode_label(path, colours=True).shape == (*SHAPE, 3)


@pytest.mark.parametrize("kind", [2, 6])
def test_colours_of_labels_come_without_alpha(kind: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (*SHAPE, 3 if kind == 2 else 4))
    np.testing.assert_array_equal(decode_label(written(tmp_path / "a.png", png(values, 8, kind))), values[..., :3])


def test_grey_with_alpha_is_grey(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (*SHAPE, 2))
    np.testing.assert_array_equal(decode_label(written(tmp_path / "a.png", png(values, 8, 4))), values[..., 0])


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_labels_of_16_bits_and_channels_are_refused(kind: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 2**16, (*SHAPE, {2: 3, 4: 2, 6: 4}[kind]))
    with pytest.raises(DataError, match=r"a\.png has .*16 bits"):
        decode_label(written(tmp_path / "a.png", png(values, 16, kind)))


@pytest.mark.parametrize(
    ("form", "name"), [("JPEG", "JPEG"), ("WEBP", "WebP"), ("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF")]
)
def test_labels_of_other_formats_are_refused_by_content(form: str, name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.zeros(SHAPE, np.uint8), format=form)
    with pytest.raises(DataError, match=rf"a\.png must be a PNG, as labels may lose nothing, got {name}; make it anew"):
        decode_label(path)


def test_a_label_may_be_called_anything(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jpg", png(np.full(SHAPE, 3), 8))
    assert (decode_label(path) == 3).all()


# images


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_images_are_turned_upright(orientation: int, ending: str, tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(RNG.integers(0, 2, (2, 3, 1)) * 255, 8, 0), 8, 1).repeat(3, 2).astype(np.uint8)
    path = saved(tmp_path / f"a.{ending}", pixels, exif=exif(orientation))
    image = decode_image(path)
    want = UPRIGHT[orientation](pixels)
    assert image.shape == want.shape
    assert np.abs(image.astype(int) - want).max() < 10
    if ending == "png":
        np.testing.assert_array_equal(decode_label(path), want)


def test_labels_are_turned_like_images(tmp_path: Path) -> None:
    values = RNG.integers(0, 12, SHAPE).astype(np.uint8)
    path = saved(tmp_path / "a.png", values, exif=exif(6))
    np.testing.assert_array_equal(decode_label(path), np.rot90(values, -1))


@pytest.mark.parametrize(("depth", "shift"), [(8, 0), (16, 8)])
@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_grey_colours_and_alpha_of_any_depth_become_rgb(depth: int, shift: int, kind: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 2**depth, (*SHAPE, {0: 1, 2: 3, 4: 2, 6: 4}[kind]))
    image = decode_image(written(tmp_path / "a.png", png(values, depth, kind)))
    assert (image.shape, image.dtype) == ((*SHAPE, 3), np.uint8)
    rgb = values[..., :3] if kind in (2, 6) else values[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(image, rgb >> shift)


@pytest.mark.parametrize("transparent", [b"", b"\x00\x80\xff"])
def test_palettes_become_their_colours(transparent: bytes, tmp_path: Path) -> None:
    palette = [(200, 3, 9), (0, 0, 255), (1, 2, 3)]
    values = RNG.integers(0, 3, SHAPE)
    extra = chunk(b"tRNS", transparent) if transparent else b""
    image = decode_image(written(tmp_path / "a.png", png(values, 8, 3, palette, extra)))
    np.testing.assert_array_equal(image, np.array(palette, np.uint8)[values])


def test_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    values = RNG.integers(0, 2, SHAPE)
    image = decode_image(written(tmp_path / "a.png", png(values, 1)))
    np.testing.assert_array_equal(image, (values[..., None] * 255).repeat(3, 2))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    red = np.full((8, 8, 3), (250, 10, 20), np.uint8)
    path = saved(tmp_path / "a.jpg", Image.fromarray(red).convert("CMYK"), quality=95)
    with Image.open(path) as file:
        assert file.mode == "CMYK"
    assert np.abs(decode_image(path).astype(int) - red).max() < 12


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_32_bits_are_refused(kind: type, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", np.zeros(SHAPE, kind))
    with pytest.raises(DataError, match=r"a\.tif has 32 bits a pixel, expected 8 or 16 bits a channel"):
        decode_image(path)


@pytest.mark.parametrize("read", [decode_image, decode_label])
class TestDamage:
    def test_too_large_is_refused(self, read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(tmp_path / "a.png", png(np.zeros((10, 11), int), 8))
        monkeypatch.setattr(decode, "MAX_PIXELS", 109)
        with pytest.raises(DataError, match=r"a\.png has more than 0 megapixels; scale it down"):
            read(path)
        monkeypatch.setattr(decode, "MAX_PIXELS", 110)
        assert read(path).shape[:2] == (10, 11)

    @pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"<html>", b"\x00" * 100])
    def test_what_is_no_picture_is_named(self, read: Any, content: bytes, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"cannot decode .*a\.png \(.*\); replace the file"):
            read(written(tmp_path / "a.png", content))

    def test_files_that_cannot_be_read_are_named(self, read: Any, tmp_path: Path) -> None:
        for path, why in ((tmp_path / "none.png", "No such file or directory"), (tmp_path, "Is a directory")):
            with pytest.raises(DataError, match=rf"cannot decode {re.escape(str(path))} \({why}\)"):
                read(path)

    def test_cuts_and_flips_raise_nothing_else(self, read: Any, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        Image.fromarray(RNG.integers(0, 12, (24, 32)).astype(np.uint8)).save(buffer, "PNG", exif=exif(6))
        content, refused = buffer.getvalue(), 0
        for at in RNG.integers(0, len(content), 150).tolist():
            flipped = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
            for spoilt in (content[:at], flipped):
                refused += was_refused(read, written(tmp_path / "a.png", spoilt))
        assert refused > 150


def test_damaged_exif_raises_nothing_else(tmp_path: Path) -> None:
    whole = exif(6)
    pixels = np.zeros((8, 8, 3), np.uint8)
    for at in range(6, len(whole)):
        spoilt = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        was_refused(decode_image, saved(tmp_path / "a.jpg", pixels, exif=spoilt))


def test_importing_the_decoder_loads_no_pillow() -> None:
    code = "import sys, hwnas.decode; assert not {'PIL', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
