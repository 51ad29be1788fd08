"""A dataset of five classes on disk: palette PNGs in CamVid's arrangement, with names and colours of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hwnas.data import ClassList, Sample, layout, registry
from hwnas.data.base import IGNORE_LABEL, IMAGENET_MEAN, IMAGENET_STD
from hwnas.errors import DataError
from hwnas.images import DAMAGE

MARK = "five-classes"
FIVE = ClassList(
    ("ground", "wall", "crate", "belt", "person"),
    ((90, 90, 96), (176, 148, 110), (222, 140, 40), (52, 120, 190), (214, 48, 72)),
)
VOID = 5  # in files


class Entry(NamedTuple):
    """A sample and its files."""

    name: str
    image: Path
    label: Path


class FiveClasses:
    """One split; as small as a layout can be."""

    classes, mean, std = FIVE, IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, folder: Path, split: str, size: tuple[int, int], length: int | None = None) -> None:
        if not (folder / f"{split}.txt").exists():
            raise DataError(f"{folder} has no {split}.txt; list names there")
        self.name, self.size = f"{folder.resolve().name}/{split}", size
        at = folder / split
        self.entries = tuple(
            Entry(n, at / "images" / f"{n}.png", at / "labels" / f"{n}.png")
            for n in (folder / f"{split}.txt").read_text().split()[:length]
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        name, image, label = self.entries[index]
        height, width = self.size
        try:
            picture, values = Image.open(image).convert("RGB"), Image.open(label)
        except DAMAGE as e:
            raise DataError(f"cannot decode {image} or its label; replace the file") from e
        classes = np.array(values.resize((width, height), Image.Resampling.NEAREST))
        classes[classes == VOID] = IGNORE_LABEL
        return Sample(np.array(picture.resize((width, height))), classes, name)


@contextmanager
def five_classes() -> Iterator[None]:
    """Let folders with `MARK` in them be recognised."""
    layout(MARK, lambda path: (path / MARK).exists())(FiveClasses)
    try:
        yield
    finally:
        del registry._LAYOUTS[MARK]


def write_label(path: Path, label: np.ndarray) -> None:
    """Write a label map as a palette PNG."""
    picture = Image.fromarray(label.astype(np.uint8))
    picture.putpalette([v for colour in FIVE.palette for v in colour] + [0, 0, 0])
    picture.save(path)


def five_folder(folder: Path, length: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """Write a dataset: in each image blocks of all classes in the colours of their class, and void."""
    rng = np.random.default_rng(5)
    height, width = size
    colours = np.array([*FIVE.palette, (0, 0, 0)])
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        names = [f"{split}-{i}" for i in range(length)]
        (folder / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            blocks = rng.permutation(np.arange(48) % 6).reshape(6, 8)
            label = np.kron(blocks, np.ones((height // 6, width // 8), int))
            image = (colours[label] + rng.integers(-20, 20, (*size, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / split / "images" / f"{name}.png")
            write_label(folder / split / "labels" / f"{name}.png", label)
    (folder / MARK).touch()
    return folder


def make_void(folder: Path, split: str, *indices: int) -> None:
    """Make labels of a split void; all of them without indices."""
    names = (folder / f"{split}.txt").read_text().split()
    for name in [names[i] for i in indices] or names:
        path = folder / split / "labels" / f"{name}.png"
        write_label(path, np.full(np.array(Image.open(path)).shape, VOID))
