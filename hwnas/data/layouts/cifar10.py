"""CIFAR-10 (Krizhevsky 2009) from the files of its public python or binary version; nothing is downloaded.

A folder with ``data_batch_1`` to ``data_batch_5`` and ``test_batch``, or the same with ``.bin``; one that has it as
``cifar-10-batches-py`` or ``cifar-10-batches-bin``; or the archive of either, ``cifar-10-python.tar.gz`` or
``cifar-10-binary.tar.gz``. Of the training images the last tenth is val: 45,000, 5,000 and 10,000 images.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.data.augment import scaled_image
from hwnas.data.base import ClassList, Sample, check_index, check_size, check_split
from hwnas.data.registry import layout
from hwnas.errors import DataError

CIFAR10_CLASSES = ClassList(
    names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    palette=(
        (31, 119, 180),
        (255, 127, 14),
        (44, 160, 44),
        (214, 39, 40),
        (148, 103, 189),
        (140, 86, 75),
        (227, 119, 194),
        (127, 127, 127),
        (188, 189, 34),
        (23, 190, 207),
    ),
)
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
BINARY = ".bin"  # the ending of files of the binary version
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
SIDE = 32  # pixels
VAL_SHARE = 10  # one in so many training images is for val
MOST_BYTES = 1 << 27  # of one file; the public ones have 31 MB

# What pickle raises on damaged files.
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    TypeError,
    ValueError,
)


def is_cifar10(path: Path) -> bool:
    """Tell whether a path looks like CIFAR-10: an archive, or a folder with one of its files, whole or not."""
    if path.is_file():
        return path.name.endswith((".tar.gz", ".tgz"))
    return _folder(path) is not None


def _folder(path: Path) -> tuple[Path, str] | None:
    """Return the folder that has files of CIFAR-10, and their ending; None if there is none."""
    for folder in (path, *(path / f for f in FOLDERS)):
        for ending in ("", BINARY):
            if any((folder / f"{name}{ending}").exists() for name in (*TRAIN_FILES, TEST_FILE)):
                return folder, ending
    return None


@layout("cifar10", is_cifar10, "data_batch_1 and so on of CIFAR-10, or its .tar.gz")
class Cifar10:
    """One split of CIFAR-10, held in memory: the labels are single class numbers.

    Args:
        path: The folder or the archive.
        split: ``"train"``, ``"val"`` (the last tenth of the training images) or ``"test"``.
        size: (height, width) to resize to where it is not 32x32.
        length: Use only the first so many; all of them if None.

    Raises:
        DataError: If a file is missing, damaged or not of CIFAR-10, or has fewer images than `length`.
    """

    classes = CIFAR10_CLASSES
    mean = (0.49139968, 0.48215827, 0.44653124)  # of the training images, as in the public DARTS code, utils.py
    std = (0.24703233, 0.24348505, 0.26158768)

    def __init__(self, path: Path, split: str, size: tuple[int, int], length: int | None = None) -> None:
        self.split = check_split(split)
        self.size = check_size(size)
        self.name = f"cifar10/{split}"
        names = (TEST_FILE,) if split == "test" else TRAIN_FILES
        batches = [_parse(content, where, ending) for content, where, ending in _read(path, names)]
        images = np.concatenate([b[0] for b in batches])
        labels = np.concatenate([b[1] for b in batches])
        first_of_val = len(images) - len(images) // VAL_SHARE
        part = {"train": slice(first_of_val), "val": slice(first_of_val, None), "test": slice(None)}[split]
        available = len(labels[part])
        if not 1 <= (available if length is None else length) <= available:
            asked = "all of them" if length is None else f"length {length}"
            raise DataError(f"{path} has {available} images for {split}, got {asked}; ask for 1 to that")
        self._images, self._labels = images[part][:length].copy(), labels[part][:length].copy()
        self._images.setflags(write=False)
        self._labels.setflags(write=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` and its label ().

        Raises:
            IndexError: If there is no such image.
        """
        i = check_index(index, len(self))
        image = self._images[i].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        return Sample(scaled_image(image, self.size), self._labels[i, ...], f"{self.split}-{i:05d}")


def _read(path: Path, names: tuple[str, ...]) -> list[tuple[bytes, str, str]]:
    """Return the content of each file, what messages call it, and its ending."""
    if path.is_file():
        return _read_archive(path, names)
    folder, ending = _folder(path) or (path, "")
    out = []
    for file in (folder / f"{n}{ending}" for n in names):
        try:
            if file.stat().st_size > MOST_BYTES:
                raise _not_of_cifar10(str(file), f"it has more than {MOST_BYTES >> 20} MiB")
            out.append((file.read_bytes(), str(file), ending))
        except OSError as e:
            raise DataError(f"cannot read {file} of CIFAR-10: {e.strerror}; unpack its archive again") from e
    return out


def _read_archive(path: Path, names: tuple[str, ...]) -> list[tuple[bytes, str, str]]:
    found: dict[str, tuple[bytes, str]] = {}
    try:
        # As a stream, in memory: nothing is unpacked, so no name can lead out of a folder.
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                file_name = Path(member.name).name
                name = file_name.removesuffix(BINARY)
                if not member.isfile() or name not in names:
                    continue
                if member.size > MOST_BYTES:
                    raise _not_of_cifar10(f"{path}:{name}", f"it has more than {MOST_BYTES >> 20} MiB")
                file = archive.extractfile(member)
                assert file is not None
                found[name] = (file.read(), file_name[len(name) :])
            while stream.read(1 << 20):
                pass  # the checksum is at the end, behind what tar reads
    except (tarfile.TarError, zlib.error, EOFError, OSError) as e:
        raise DataError(f"cannot read the archive {path} ({e}); download it again") from e
    missing = [n for n in names if n not in found]
    if missing:
        raise DataError(f"{path} has no {missing[0]}; expected the archive cifar-10-python.tar.gz or -binary")
    return [(content, f"{path}:{n}{ending}", ending) for n, (content, ending) in ((n, found[n]) for n in names)]


def _parse(content: bytes, where: str, ending: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images uint8 (n, 3 * 32 * 32), planes of red, green and blue, and labels uint8 (n,).

    Raises:
        DataError: If the content is damaged, or not a batch of CIFAR-10.
    """
    if ending == BINARY:
        return _parse_binary(content, where)
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _DAMAGE as e:
        raise _not_of_cifar10(where, f"it cannot be read: {str(e) or type(e).__name__}") from e
    fields = {_text(k): v for k, v in batch.items()} if isinstance(batch, dict) else {}
    if not {"data", "labels"} <= set(fields):
        raise _not_of_cifar10(where, f"it has {', '.join(sorted(fields)) or type(batch).__name__}, not data and labels")
    images = fields["data"].values if isinstance(fields["data"], _Array) else None
    if images is None or images.ndim != 2 or images.shape[1] != 3 * SIDE * SIDE or not len(images):
        shape = None if images is None else images.shape
        raise _not_of_cifar10(where, f"its images are {shape}, not (n, {3 * SIDE * SIDE})")
    labels = fields["labels"]
    whole = isinstance(labels, list) and all(type(v) is int and 0 <= v < len(CIFAR10_CLASSES) for v in labels)
    if not whole or len(labels) != len(images):
        raise _not_of_cifar10(where, f"it has not one label from 0 to 9 for each of its {len(images)} images")
    return images, np.array(labels, np.uint8)


def _parse_binary(content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the same of a file of the binary version: of each image its label, a byte, and its planes."""
    record = 1 + 3 * SIDE * SIDE
    if not content or len(content) % record:
        raise _not_of_cifar10(where, f"it has {len(content)} bytes, not a multiple of {record}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    if rows[:, 0].max() >= len(CIFAR10_CLASSES):
        raise _not_of_cifar10(where, f"it has the label {rows[:, 0].max()}, not 0 to 9")
    return rows[:, 1:], rows[:, 0]


def _text(key: object) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _not_of_cifar10(where: str, why: str) -> DataError:
    return DataError(f"{where} is no batch of CIFAR-10, or damaged: {why}; unpack its archive again")


class _Dtype:
    """Stands for ``numpy.dtype`` in a pickle; bytes are the only type that CIFAR-10 has."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if _text(name) not in ("u1", "uint8"):
            raise pickle.UnpicklingError(f"an array of {name!r}, expected bytes")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for ``numpy.ndarray`` in a pickle, so that no code of numpy interprets what a file says."""

    values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not of bytes")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that Python 3 wrote as text, which it does for old readers."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding!r}")
    return text.encode("latin-1")


# All that a batch of CIFAR-10 may name; a pickle that can name anything can run anything.
_ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Reads numbers, text, bytes, lists, dicts and arrays of bytes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a dataset")
        return _ADMITTED[module, name]
