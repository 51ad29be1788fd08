"""CamVid, 11 classes, and any folder laid out like it.

Layout: ``<split>.txt`` lists names, one a line; ``<split>/images/<name>.jpg`` is RGB; ``<split>/labels/<name>.png``
has one byte a pixel: 0..10 the classes below, 11 void. Names, order and colours follow SegNet
(Badrinarayanan et al. 2017), which later papers keep; the images are from Brostow et al. 2009.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import (
    CACHE_BYTES,
    IGNORE_LABEL,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    ClassList,
    Sample,
    SampleCache,
    check_index,
    check_size,
    check_split,
)
from hwnas.data.registry import layout
from hwnas.errors import DataError
from hwnas.images import DAMAGE
from hwnas.optional import require

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = require("PIL.Image", "search")

CAMVID_CLASSES = ClassList(
    names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)

_VOID_IN_FILE = len(CAMVID_CLASSES)


class _Entry(NamedTuple):
    name: str
    image: Path
    label: Path


@layout("camvid", Path.is_dir)  # of any other folder it says best what is missing
class CamVid:
    """One split of a CamVid-like folder, decoded when asked for and kept in memory up to a limit.

    Args:
        folder: Holds ``<split>.txt`` and ``<split>/``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width) to resize to if files differ: images bilinear, labels nearest.
        length: Use only the first so many of the list; all of them if None.
        cache_bytes: Limit of decoded samples kept in memory.
        own_labels: Leave labels at the size of their files.

    Raises:
        DataError: If the folder, the list or a listed file is missing, the list is empty, names a sample twice or
            leaves the folder, or has fewer than `length` names. Files are decoded, and judged, only when asked for.
    """

    classes = CAMVID_CLASSES
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(
        self,
        folder: Path,
        split: str,
        size: tuple[int, int],
        length: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        own_labels: bool = False,
    ) -> None:
        self.folder = folder
        self.split = check_split(split)
        self.size = check_size(size)
        self.name = f"{folder.resolve().name}/{split}"
        self._own_labels = own_labels
        self._cache = SampleCache(cache_bytes)
        names = _read_list(folder, split)
        if length is not None and not 1 <= length <= len(names):
            raise DataError(f"{folder / split}.txt lists {len(names)} samples, got length {length}; ask for 1 to that")
        self._entries = [
            _Entry(n, folder / split / "images" / f"{n}.jpg", folder / split / "labels" / f"{n}.png")
            for n in names[:length]
        ]
        self.check()

    def check(self) -> None:
        """Look for every listed file, without opening any.

        Raises:
            DataError: If one is missing; names the first and counts the rest.
        """
        # os.path.isfile says no where Path.is_file raises: a name too long for the file system is a missing file
        missing = [p for e in self._entries for p in (e.image, e.label) if not os.path.isfile(p)]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(
                f"{missing[0]} is missing{more}; restore it or take its name out of {self.folder / self.split}.txt"
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index` at the size of this dataset.

        Raises:
            DataError: If a file cannot be decoded, is too large, or the label does not fit image or classes.
            IndexError: If there is no such sample.
        """
        return self._cache.get(check_index(index, len(self)), self._load)

    def _load(self, index: int) -> Sample:
        entry = self._entries[index]
        image = _decode(entry.image).convert("RGB")
        label = _decode(entry.label)
        if label.mode not in ("L", "P"):
            raise DataError(
                f"{entry.label} must be a single-channel 8-bit PNG of class numbers, got mode {label.mode}; convert it"
            )
        if image.size != label.size:
            (iw, ih), (lw, lh) = image.size, label.size
            raise DataError(
                f"{entry.label} is {lh}x{lw} (height x width) but its image is {ih}x{iw}; make them the same size"
            )
        classes = Image.fromarray(_to_house(np.asarray(label), entry.label))
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if classes.size != (width, height) and not self._own_labels:
            classes = classes.resize((width, height), Image.Resampling.NEAREST)
        return Sample(np.array(image), np.array(classes), entry.name)


def _read_list(folder: Path, split: str) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"dataset folder {folder} does not exist; give a folder with {split}.txt and {split}/ in it")
    path = folder / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise DataError(f"cannot read the list {path}: {reason}; write one sample name a line into it") from e
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path} is empty; write one sample name a line into it")
    seen: set[str] = set()
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in name or not name.isprintable():
            raise DataError(f"{path} lists {name!r}, which may leave the folder; list plain names within {split}/")
        # a sample listed twice could land in both halves of a search
        if name in seen:
            raise DataError(f"{path} lists {name!r} twice; list every sample once")
        seen.add(name)
    return names


def _decode(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns in a band of sizes; here too large is one error
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                pixels = image.width * image.height
                if pixels <= MAX_PIXELS:
                    image.load()
                    return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        raise _too_large(path) from e
    except DAMAGE as e:
        raise DataError(f"cannot decode {path} ({str(e) or type(e).__name__}); replace the file") from e
    raise _too_large(path)


def _too_large(path: Path) -> DataError:
    return DataError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels; scale it down")


def _to_house(label: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    worst = int(label.max())
    if worst > _VOID_IN_FILE:
        raise DataError(
            f"{path} holds label {worst}, expected 0..{_VOID_IN_FILE - 1} for classes or {_VOID_IN_FILE} for void; "
            "map its values to these"
        )
    return np.where(label == _VOID_IN_FILE, np.uint8(IGNORE_LABEL), label)
