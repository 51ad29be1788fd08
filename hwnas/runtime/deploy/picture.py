"""A bundle on one picture: read it, run it, draw what came out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.decode import decode_image
from hwnas.errors import HwnasError
from hwnas.files import write_atomic
from hwnas.optional import require
from hwnas.runtime.deploy.bundle import Bundle, open_application
from hwnas.runtime.measuring.measure import timed

RUNS = 10  # after a first one, which loads caches
GAP = 4  # pixels between picture and labels

Picture = NDArray[np.uint8]  # RGB (height, width, 3)


def run_on_picture(folder: Path, image: Path, out: Path, overlay: bool = False, force: bool = False) -> list[str]:
    """Run a bundle on a picture, and write a PNG of the picture, at the size of the network, beside its labels.

    A network that classifies pictures fills the right half with the colour of its class.

    Args:
        folder: A bundle.
        image: A picture that Pillow reads.
        out: The PNG.
        overlay: Whether the colours are laid over the picture, half and half.
        force: Whether `out` may be there already.

    Returns:
        What there is to say, in lines: how long it took, and the share of each class, or the one class.

    Raises:
        HwnasError: If the bundle or the picture cannot be used, or `out` is there already.
        MissingExtra: If Pillow or the engine is not installed.
    """
    if out.suffix.lower() != ".png":
        raise HwnasError(f"expected a file name that ends in .png, got {out}; rename it")
    if out.exists() and not force:
        raise HwnasError(f"{out} is there already; name another file with --out, or write over it with --force")
    bundle = Bundle.load(folder)
    picture, said = read_picture(image, bundle.input.size)
    with open_application(bundle) as application:
        labels = application.labels(picture)
        took_ms = timed(lambda: application.labels(picture), RUNS, time.perf_counter_ns).wall_ms
    drawn = np.broadcast_to(np.asarray(bundle.palette, np.uint8)[labels], picture.shape)
    if overlay:
        drawn = (picture // 2 + drawn // 2).astype(np.uint8)
    _write(np.hstack([picture, np.full((len(picture), GAP, 3), 255, np.uint8), drawn]), out)
    found = [f"class: {bundle.classes[int(labels)]}"] if bundle.classifies else _shares(labels, bundle.classes)
    speed = f"{np.median(took_ms):.4g} ms from picture in memory to labels, median of {RUNS} by the wall clock"
    return [*said, *found, f"{speed}, with {bundle.engine} in {bundle.precision}", f"wrote {out}"]


def _shares(labels: NDArray[np.uint8], classes: tuple[str, ...]) -> list[str]:
    counts = np.bincount(labels.reshape(-1), minlength=len(classes))
    width = max(map(len, classes))
    return [f"{name:<{width}}  {n / labels.size:6.1%}" for name, n in zip(classes, counts, strict=True)]


def read_picture(path: Path, size: tuple[int, int]) -> tuple[Picture, list[str]]:
    """Return a picture at `size` (height, width), and a note if it had another.

    Raises:
        DataError: If it cannot be read.
        MissingExtra: If Pillow is not installed.
    """
    picture = decode_image(path)
    if picture.shape[:2] == size:
        return picture, []
    (h, w), (height, width) = picture.shape[:2], size
    pil = _pillow()
    resized = np.array(pil.fromarray(picture).resize((width, height), pil.Resampling.BILINEAR))
    return resized, [f"note: {path} is {h}x{w} (height x width), resized to {height}x{width}"]


def _write(picture: Picture, path: Path) -> None:
    drawn = _pillow().fromarray(picture)
    write_atomic(path, lambda f: drawn.save(f, format="PNG"))


def _pillow() -> Any:
    return require("PIL.Image", extra="image")
