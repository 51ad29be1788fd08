"""Lists of samples, and the files of folders: names as people write them, found as they lie on disk."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from hwnas.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LABEL_ENDINGS = (".png",)
IMAGE_FOLDERS = ("images", "image", "imgs")
LABEL_FOLDERS = ("labels", "masks", "annotations", "label", "mask")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
VAL_SHARE = TEST_SHARE = 0.1  # where a folder does not say what its splits are
_COLUMNS = re.compile(r"^(.+?\.(?:jpe?g|png|webp|bmp|tiff?))[\s,]+(\S.*\.png)$", re.IGNORECASE)


def read_text(path: Path, named: str, remedy: str) -> str:
    """Return a text file.

    Args:
        path: UTF-8, with or without a byte order mark.
        named: What messages call it.
        remedy: What to do about it, for messages.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise DataError(f"cannot read {named}: {reason}; {remedy}") from e


def read_lines(path: Path, hint: str) -> list[str]:
    """Return the lines of a text file that are not blank, without the blanks about them, of any system's line ends.

    Args:
        path: UTF-8, with or without a byte order mark.
        hint: What to write into it, for messages.

    Raises:
        DataError: If it cannot be read or is empty.
    """
    text = read_text(path, f"the list {path}", f"write {hint} into it")
    # splitlines would also split at characters that names may have
    lines = [stripped for line in re.split(r"\r\n|\n|\r", text) if (stripped := line.strip())]
    if not lines:
        raise DataError(f"{path} is empty; write {hint} into it")
    return lines


def read_list(path: Path) -> list[tuple[str, str | None]]:
    """Return what a list names, one sample a line: an image, and its label where the line has two columns.

    Raises:
        DataError: If the list cannot be read, is empty, names a sample twice, or has a name that leaves the folder.
    """
    rows: list[tuple[str, str | None]] = []
    seen: set[str] = set()
    for line in read_lines(path, "one sample name a line"):
        columns = _COLUMNS.match(line)
        row = (columns[1], columns[2]) if columns else (line, None)
        for name in filter(None, row):
            # a list of two columns may have been written where the dataset lay elsewhere
            rooted = name.startswith("/") and columns is None
            if rooted or ".." in PurePosixPath(name).parts or "\\" in name or not name.isprintable():
                raise DataError(f"{path} lists {name!r}, which may leave the folder; list plain names within it")
        # a sample listed twice could land in both halves of a search
        if row[0] in seen:
            raise DataError(f"{path} lists {row[0]!r} twice; list every sample once")
        seen.add(row[0])
        rows.append(row)
    return rows


def first_list(folder: Path, split: str) -> Path | None:
    """Return the list of a split in a folder, under any of its names; None if there is none."""
    return next((p for n in SPLIT_NAMES[split] if (p := folder / f"{n}.txt").is_file()), None)


def first_folder(folders: Iterable[Path]) -> Path | None:
    """Return the first of these that is a folder."""
    return next((f for f in folders if f.is_dir()), None)


def key_of(name: str) -> str:
    """Return what names are compared by: file systems and lists may compose letters with marks in different ways."""
    return unicodedata.normalize("NFC", name)


def stem_of(name: str, endings: Sequence[str]) -> str:
    """Return a name without its ending, if that is one of `endings` in any case; other dots belong to the name."""
    low = name.lower()
    return next((name[: -len(e)] for e in endings if low.endswith(e) and len(name) > len(e)), name)


class Files:
    """The files of a folder with some endings, by name without ending.

    Args:
        root: The folder.
        endings: Lower case; files with others are left out.
        suffixes: What may follow the name of a sample before the ending; the first that is there counts.
    """

    def __init__(self, root: Path, endings: Sequence[str], suffixes: Sequence[str] = ("",)) -> None:
        self.root = root
        self.endings = tuple(endings)
        self.suffixes = tuple(suffixes)
        self._folders: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path:
        """Return the file of a sample; one that is not there if it has none, for a message.

        Args:
            name: With or without ending, with folders below `root`.

        Raises:
            DataError: If two files can be meant.
        """
        parent, _, last = name.rpartition("/")
        stem = stem_of(last, self.endings)
        there = self._folder(parent)
        for suffix in self.suffixes:
            files = there.get(key_of(stem + suffix), [])
            exact = [f for f in files if key_of(f) == key_of(last)]
            if len(exact or files) > 1:
                raise DataError(f"{self.root / parent} has {' and '.join(files)}, which may both be {name}; keep one")
            if files:
                return self.root / parent / (exact or files)[0]
        ending = "" if stem != last else self.endings[0]
        return self.root / parent / (last + ending)

    def has(self, name: str) -> bool:
        """Tell whether a file has this name, without ending."""
        parent, _, last = name.rpartition("/")
        return key_of(last) in self._folder(parent)

    def _folder(self, parent: str) -> dict[str, list[str]]:
        if parent not in self._folders:
            names: dict[str, list[str]] = {}
            try:
                with os.scandir(self.root / parent) as entries:
                    for e in entries:
                        if e.name.lower().endswith(self.endings):
                            names.setdefault(key_of(stem_of(e.name, self.endings)), []).append(e.name)
            except (OSError, ValueError):
                pass  # its files are missing, and said to be
            self._folders[parent] = names
        return self._folders[parent]

    def names(self) -> list[str]:
        """Return the names of all files below the folder, without endings, in order of characters."""
        return sorted(stem_of(name, self.endings) for name in walk(self.root, self.endings))

    def samples_of(self, name: str) -> set[str]:
        """Return which samples a file's name without ending can be of: it may end with one of the suffixes."""
        return {name[: len(name) - len(s)] for s in self.suffixes if name.endswith(s) and len(name) > len(s)}


def walk(root: Path, endings: Sequence[str], below: str = "") -> Iterator[str]:
    """Yield the files below a folder with one of these endings, relative to it; hidden ones are left out.

    Raises:
        DataError: If a folder cannot be listed.
    """
    try:
        with os.scandir(root / below) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as e:
        raise DataError(f"cannot list {root / below}: {e.strerror}; make it a folder that can be read") from e
    for entry in found:
        if entry.is_dir():
            yield from walk(root, endings, f"{below}{entry.name}/")
        elif entry.name.lower().endswith(tuple(endings)):
            yield below + entry.name


def has_files(root: Path, endings: Sequence[str]) -> bool:
    """Tell whether a folder, or one below it, has a file with one of these endings."""
    return root.is_dir() and next(walk(root, endings), None) is not None


def split_of(name: str) -> str:
    """Return which split a sample is of, where nothing else says it: a hash of the name, so that it stays there."""
    drawn = int.from_bytes(hashlib.sha256(key_of(name).encode()).digest()[:8], "big") / 2**64
    return "test" if drawn < TEST_SHARE else "val" if drawn < TEST_SHARE + VAL_SHARE else "train"


def some(names: Sequence[str], most: int = 3) -> str:
    """Write the first few of these names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
