"""Images to classify, in a folder for each class: ``train/CLASS/*``, ``val/CLASS/*``, as ImageNet has them.

Classes are the folders of ``train``, in order of their names; there may be any number.
"""

from __future__ import annotations

from pathlib import Path

from hwnas.data.base import SPLITS, ClassList
from hwnas.data.descriptor import Descriptor, Split, folder_layout
from hwnas.data.labels import ClassNumbers, Entry, colour_map
from hwnas.data.lists import (
    IMAGE_ENDINGS,
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    SPLIT_NAMES,
    VAL_SHARE,
    first_folder,
    has_files,
    split_of,
    stem_of,
    walk,
)
from hwnas.errors import DataError


def _part(path: Path, split: str) -> Path | None:
    return first_folder(path / n for n in SPLIT_NAMES[split])


def _class_names(part: Path) -> list[str]:
    try:
        return sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as e:
        raise DataError(f"cannot list {part}: {e.strerror}; make it a folder that can be read") from e


def _is_it(path: Path) -> bool:
    """Tell whether a split holds folders of images and nothing beside them."""
    part = next((p for s in SPLITS if (p := _part(path, s)) is not None), None)
    if part is None:
        return False
    names = _class_names(part)
    if {*names} & {*IMAGE_FOLDERS, *LABEL_FOLDERS}:
        return False  # of images and label maps
    return any(has_files(part / n, IMAGE_ENDINGS) for n in names) and not any(p.is_file() for p in part.glob("*.*"))


@folder_layout("class-folders", _is_it, "train/CLASS/*.jpg, of images to classify")
def class_folders(path: Path) -> Descriptor:
    """Describe images in folders by class."""
    part = _part(path, "train")
    names = _class_names(part) if part is not None else []
    if part is None or not names:
        raise DataError(f"{path} has no train with a folder for each class; its folders name the classes")
    classes = ClassList(tuple(names), colour_map(len(names), 1))
    labels = ClassNumbers({name: i for i, name in enumerate(names)})
    return Descriptor(classes, labels, lambda split: _split(path, part, split, set(names)))


def _split(path: Path, train: Path, split: str, names: set[str]) -> Split:
    part, notes = _part(path, split), []
    held_out = split in ("train", "val") and _part(path, "val") is None
    if held_out:
        part = train
        notes.append(f"{path} has no val: a hash of the name puts {VAL_SHARE:.0%} of train there")
    if part is None:
        raise DataError(f"{path} has no {split}: expected {split}/CLASS/ with images")
    foreign = sorted(set(_class_names(part)) - names)
    if foreign:
        raise DataError(f"{part / foreign[0]} is no class of {train}; take it away, or add images of it to train")
    entries = []
    for name in sorted(names & set(_class_names(part))):
        for file in walk(part / name, IMAGE_ENDINGS):
            sample = f"{name}/{stem_of(file, IMAGE_ENDINGS)}"
            if not held_out or (split_of(sample) == "val") == (split == "val"):
                entries.append(Entry(sample, part / name / file, None))
    bare = sorted(names - {e.name.partition("/")[0] for e in entries})
    if bare:
        notes.append(f"{len(bare)} of {len(names)} classes have no image in {split}: {', '.join(bare[:3])}")
    return Split(tuple(entries), part, notes=tuple(notes))
