"""A dataset on disk as data: its classes, how its labels are read, and what its splits hold; one class serves them all.

A layout is a function from a folder to a `Descriptor`, with `folder_layout` above it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.data.augment import scaled_image
from hwnas.data.base import (
    CACHE_BYTES,
    IGNORE_LABEL,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClassList,
    Sample,
    SampleCache,
    check_index,
    check_size,
    check_split,
)
from hwnas.data.labels import ClassNumbers, Entry, Labels
from hwnas.data.lists import Files, key_of, read_list, some, stem_of
from hwnas.data.registry import layout
from hwnas.decode import decode_image
from hwnas.errors import DataError
from hwnas.optional import require

Image: Any = require("PIL.Image", "search")


@dataclass(frozen=True)
class Split:
    """What one split of a dataset holds.

    Attributes:
        entries: Its samples, in order.
        source: What lists them: a file of names, or a folder.
        listed: Whether a list names them, so that they may be missing; else they were found.
        notes: What is odd, in sentences for people.
        labels: How its labels are read, where each split has its own; else the descriptor says it.
    """

    entries: tuple[Entry, ...]
    source: Path
    listed: bool = False
    notes: tuple[str, ...] = ()
    labels: Labels | None = None


@dataclass(frozen=True)
class Descriptor:
    """A dataset at a folder.

    Attributes:
        classes: Names and colours, in label order.
        labels: From a sample to its label; None where splits say it.
        split: From ``"train"``, ``"val"`` or ``"test"`` to what the split holds. It raises DataError if there is none.
        notes: What is odd about all splits.
    """

    classes: ClassList
    labels: Labels | None
    split: Callable[[str], Split]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.labels, ClassNumbers) and len(self.classes) > IGNORE_LABEL:
            raise DataError(
                f"expected at most {IGNORE_LABEL} classes of pixels, got {len(self.classes)}; join some of them"
            )


def folder_layout(
    name: str, recognises: Callable[[Path], bool], expects: str, general: bool = False
) -> Callable[[Callable[[Path], Descriptor]], Callable[[Path], Descriptor]]:
    """Register a layout of folders: a function from a folder to its `Descriptor`, decodes nothing.

    Args:
        name: Of the layout.
        recognises: Whether a path is laid out so. What was registered last is asked first.
        expects: What such a folder holds, for messages.
        general: Whether it is asked only where no other recognises the path.
    """

    def register(describe: Callable[[Path], Descriptor]) -> Callable[[Path], Descriptor]:
        def make(
            folder: Path, split: str, size: tuple[int, int], length: int | None = None, own_labels: bool = False
        ) -> FolderData:
            return FolderData(folder, describe(folder), split, size, length, own_labels)

        layout(name, recognises, expects, general)(make)
        return describe

    return register


class FolderData:
    """One split of a dataset on disk, decoded when asked for and kept in memory up to a limit.

    Attributes:
        notes: What is odd about the split, in sentences for people.

    Args:
        folder: Where it lies.
        descriptor: What it is.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width) to resize to if files differ: images bilinear, labels nearest.
        length: Use only the first so many; all of them if None.
        own_labels: Leave label maps at the size of their files.
        cache_bytes: Limit of decoded samples kept in memory.

    Raises:
        DataError: If the split is missing or empty, a listed file is missing, or there are fewer than `length`. Files
            are decoded, and judged, only when asked for.
    """

    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(
        self,
        folder: Path,
        descriptor: Descriptor,
        split: str,
        size: tuple[int, int],
        length: int | None = None,
        own_labels: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        held = descriptor.split(check_split(split))
        self.folder = folder
        self.split = split
        self.size = check_size(size)
        self.name = f"{folder.resolve().name}/{split}"
        self.classes = descriptor.classes
        self.notes = (*descriptor.notes, *held.notes)
        self.source = held.source
        labels = held.labels or descriptor.labels
        assert labels is not None, f"neither {self.name} nor its descriptor says how labels are read"
        self._labels = labels
        self._own_labels = own_labels
        self._cache = SampleCache(cache_bytes)
        n = len(held.entries)
        if not n:
            raise DataError(f"{held.source} has no samples for {split}; add some, or name another dataset")
        if length is not None and not 1 <= length <= n:
            raise DataError(f"{held.source} lists {n} samples, got length {length}; ask for 1 to that")
        self.entries = held.entries[:length]
        if held.listed:
            self.check()

    def check(self) -> None:
        """Look for every file, without opening any.

        Raises:
            DataError: If one is missing; names the first and counts the rest.
        """
        # os.path.isfile says no where Path.is_file raises: a name too long for the file system is a missing file
        missing = [p for e in self.entries for p in (e.image, e.label) if p is not None and not os.path.isfile(p)]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(f"{missing[0]} is missing{more}; restore it or take its name out of {self.source}")

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`: the image at the size of this dataset, and its label.

        Raises:
            DataError: If a file cannot be decoded, is too large, or the label does not fit image or classes.
            IndexError: If there is no such sample.
        """
        return self._cache.get(check_index(index, len(self)), self._load)

    def _load(self, index: int) -> Sample:
        entry = self.entries[index]
        image = decode_image(entry.image)
        label = self._labels.read(entry, (image.shape[0], image.shape[1]))
        if label.ndim and not self._own_labels:
            label = scaled_label(label, self.size)
        return Sample(np.ascontiguousarray(scaled_image(image, self.size)), label, entry.name)


def scaled_label(label: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a label map uint8 (H, W) at `size` (height, width), nearest; itself if it has that size."""
    if label.shape == size:
        return label
    return np.array(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))


def listed_split(path: Path, folder: Path, images: Files, labels: Files) -> Split:
    """Return the samples that a list names.

    Args:
        path: The list: one name a line, or an image and its label.
        folder: What paths of lists with two columns are relative to.
        images: Where images lie, by name.
        labels: Where labels lie, by name.

    Raises:
        DataError: If the list cannot be used; a missing file is said when the split is opened.
    """
    entries: list[Entry] = []
    rows = read_list(path)
    cut = _foreign(folder, rows)
    of_image: dict[Path, str] = {}
    for name, second in rows:
        if second is None:
            inner = name
            for root in (images.root, labels.root):  # names may start at the folder itself
                below = f"{root.relative_to(folder)}/" if root != folder and root.is_relative_to(folder) else ""
                inner = inner.removeprefix(below)
            stem = stem_of(inner, images.endings)
            entry = Entry(stem, images.find(inner), _label_of(stem, images, labels))
        else:
            image, label = (folder.joinpath(*_parts(column)[cut:]) for column in (name, second))
            inner = str(image.relative_to(images.root if image.is_relative_to(images.root) else folder))
            entry = Entry(stem_of(inner, images.endings), image, label)
        if entry.image in of_image:
            raise DataError(f"{path} lists {of_image[entry.image]!r} twice, as {name!r} too; list every sample once")
        of_image[entry.image] = name
        entries.append(entry)
    return Split(tuple(entries), path, listed=True)


def _label_of(stem: str, images: Files, labels: Files) -> Path:
    """Return the label of an image; one that is not there if what is called like it belongs to another image."""
    label = labels.find(stem)
    own = str(label.relative_to(labels.root))
    of_other = key_of(stem_of(own, labels.endings)) != key_of(stem) and images.has(stem_of(own, labels.endings))
    return labels.root / f"{stem}{labels.endings[0]}" if of_other else label


def _parts(name: str) -> list[str]:
    return [p for p in name.split("/") if p not in ("", ".")]


def _foreign(folder: Path, rows: list[tuple[str, str | None]]) -> int:
    """Return how many folders to cut off paths of a list that was written where the dataset lay elsewhere."""
    first = next((_parts(name) for name, label in rows if label is not None), [])
    return next((n for n in range(len(first)) if os.path.isfile(folder.joinpath(*first[n:]))), 0)


def paired_split(source: Path, images: Files, labels: Files, chosen: Callable[[str], bool] = lambda _: True) -> Split:
    """Return the samples of two folders, paired by name; those without their other half are left out, with a note.

    Args:
        source: What messages call them.
        images: The images.
        labels: The labels.
        chosen: Which samples are of this split.

    Raises:
        DataError: If nothing is paired, though there are images.
    """
    names, label_names = images.names(), labels.names()
    there = {key_of(n) for n in names}
    # a label that is called like an image is of that one alone
    of_label = {n: {n} if key_of(n) in there else labels.samples_of(n) for n in label_names}
    known = {key_of(s) for samples in of_label.values() for s in samples}
    mine = [n for n in names if chosen(n)]
    bare = [n for n in mine if key_of(n) not in known]
    if bare and len(bare) == len(mine):
        raise DataError(
            f"{images.root} has {len(bare)} images without labels in {labels.root} (the first is {bare[0]}), and none "
            "with one; name labels like their images, with the ending .png"
        )
    entries = tuple(Entry(n, images.find(n), _label_of(n, images, labels)) for n in mine if key_of(n) in known)
    unpaired = [n for n, samples in of_label.items() if not there & {key_of(s) for s in samples}]
    alone = [n for n in unpaired if chosen(min(of_label[n], key=len))]
    notes = []
    if bare:
        notes.append(f"{len(bare)} of {len(mine)} images in {images.root} have no label, left out: {some(bare)}")
    if alone:
        notes.append(f"{len(alone)} labels in {labels.root} have no image, left out: {some(alone)}")
    return Split(entries, source, notes=tuple(notes))
