"""What a fixed encoder gives for some images, computed once and read from memory-mapped files by every trial."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json, sha256, sync_dir, write_atomic
from hwnas.lock import Lock

Arrays = Sequence[NDArray[Any]]
LISTED = "cache.json"
WAIT_S = 24 * 3600.0  # for another process that fills the same cache
BLOCK = 1 << 22  # bytes, of a checksum


class Fill(Protocol):
    """Computes what a cache holds, some images at a time."""

    def __call__(self) -> Iterable[Arrays]:
        """Yield for some images each: one array (images, ...) for each file, of the same shape and type each time."""


@dataclass(frozen=True)
class Cache:
    """Arrays over the same images, mapped into memory, read-only.

    Attributes:
        arrays: By file: (images, ...).
    """

    arrays: tuple[NDArray[Any], ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.arrays[0])

    def at(self, indices: Sequence[int]) -> list[NDArray[Any]]:
        """Return copies of the rows of some images."""
        return [np.ascontiguousarray(a[list(indices)]) for a in self.arrays]


def open_cache(folder: Path, made_with: object, images: int, fill: Fill) -> Cache:
    """Open a cache; fill it first unless that has been done. Of several processes one fills it.

    Args:
        folder: Of the cache; there as a whole, or not at all.
        made_with: What its content follows from, as JSON values; a cache that was made with something else is made
            anew.
        images: How many there are.
        fill: Computes it.

    Raises:
        HwnasError: If a file of it is damaged.
    """
    digest = sha256(canonical_json(made_with))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Lock(folder.with_name(f"{folder.name}.lock"), f"another process fills {folder} for a day now", WAIT_S):
        listed = folder / LISTED
        if not listed.exists() or read_json(listed, "a cache of features").get("made_with") != digest:
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, digest, images, fill)
        return _open(folder)


def _make(folder: Path, digest: str, images: int, fill: Fill) -> None:
    """Write all files beside the place of the folder, and rename it."""
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        maps: list[np.memmap[Any, Any]] = []
        done = 0
        for arrays in fill():
            if not maps:
                names = [beside / f"{i}.npy" for i in range(len(arrays))]
                shapes = [(images, *a.shape[1:]) for a in arrays]
                maps = [
                    np.lib.format.open_memmap(name, "w+", a.dtype, shape)
                    for name, a, shape in zip(names, arrays, shapes, strict=True)
                ]
            for m, a in zip(maps, arrays, strict=True):
                m[done : done + len(a)] = a
            done += len(arrays[0])
        assert done == images, "a cache is filled with all images"
        for m in maps:
            m.flush()
        files = {f"{i}.npy": _checksum(beside / f"{i}.npy") for i in range(len(maps))}
        write_atomic(beside / LISTED, canonical_json({"made_with": digest, "files": files}) + "\n")
        os.replace(beside, folder)
        sync_dir(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _open(folder: Path) -> Cache:
    files = read_json(folder / LISTED, "a cache of features")["files"]
    for name, digest in files.items():
        if not (folder / name).exists() or _checksum(folder / name) != digest:
            raise HwnasError(f"{folder / name} is not as it was written; remove {folder} to compute it again")
    return Cache(tuple(np.load(folder / f"{i}.npy", mmap_mode="r") for i in range(len(files))))


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as f:
        while block := f.read(BLOCK):
            yield block
