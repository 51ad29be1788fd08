"""What tells one dataset from another, wherever it lies: its splits, and the names and sizes of its label files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwnas.data.base import SPLITS, SegmentationData
from hwnas.data.drawn import Drawn
from hwnas.data.labels import Entry
from hwnas.data.registry import open_dataset, registered_datasets
from hwnas.errors import DataError
from hwnas.files import sha256

LEAST = (32, 32)  # (height, width) a split is opened at where no sample is looked at


def files_of(data: SegmentationData) -> Sequence[Entry]:
    """Return the files of each sample; none where a split is drawn, or is held by one file."""
    entries: Sequence[Entry] = getattr(data, "entries", None) or ()
    return entries if all(hasattr(e, "image") and hasattr(e, "label") for e in entries[:1]) else ()


def is_drawn(place: str) -> bool:
    """Tell whether this is the name of a dataset that is drawn, and no path."""
    made = registered_datasets().get(place)
    return isinstance(made, type) and issubclass(made, Drawn)


@dataclass(frozen=True)
class Identity:
    """What tells a dataset from another one.

    Attributes:
        name: What it was called where it was first used: its samples go by it in checkpoints.
        splits: Of each split that can be used, the number of its samples and a digest of their names and the names and
            sizes of their labels: ``"367:0a1b..."``. No file is opened for it.
    """

    name: str
    splits: Mapping[str, str]

    def unlike(self, other: Identity) -> str:
        """Return what another one lacks or has otherwise, for a message; empty where all splits here are there."""
        for split, own in self.splits.items():
            there = other.splits.get(split)
            if there is None:
                return f"it has no {split} that can be used"
            if there != own:
                (n, _, _), (m, _, _) = own.partition(":"), there.partition(":")
                return (
                    f"its {split} has {m} samples, not {n}" if n != m else f"other samples or labels are in its {split}"
                )
        return ""


def identity_of(place: str) -> Identity | None:
    """Return what tells the dataset at a path from another one; None where it is drawn: its name says all.

    Raises:
        DataError: If none of its splits can be used.
    """
    if is_drawn(place):
        return None
    folder, splits, name = Path(place).expanduser(), {}, ""
    problem: DataError | None = None
    for split in SPLITS:
        try:
            data = open_dataset(place, split, LEAST)
        except DataError as e:
            problem = problem or e
            continue
        name = name or data.name.rpartition("/")[0]
        splits[split] = f"{len(data)}:{sha256(_listing(folder, data))}"
    if problem is not None and not splits:
        raise problem
    return Identity(name, splits)


def _listing(folder: Path, data: SegmentationData) -> str:
    """Return one line for each sample; where these are not files of their own, one for each file of the dataset."""
    lines = []
    for entry in files_of(data):
        label = entry.label
        said = "" if label is None else f"{os.path.relpath(label, folder)}\0{label.stat().st_size}"
        lines.append(f"{entry.name}\0{said}")
    if lines:
        return "\n".join(lines)
    if folder.is_file():
        return str(folder.stat().st_size)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return "\n".join(f"{p.relative_to(folder)}\0{p.stat().st_size}" for p in files)
