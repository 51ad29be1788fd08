"""The datasets there are, by name and by how their folders look: one decorator and one file make another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from hwnas.data.base import SegmentationData, check_split
from hwnas.errors import DataError, unknown

Data = TypeVar("Data", bound=Callable[..., SegmentationData])
_DRAWN: dict[str, Callable[..., SegmentationData]] = {}
_LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[..., SegmentationData]]] = {}


def dataset(name: str) -> Callable[[Data], Data]:
    """Register a dataset that needs no folder: ``make(split, size, seed=..., length=...)``."""

    def register(make: Data) -> Data:
        assert name not in _DRAWN, f"two datasets are called {name}"
        _DRAWN[name] = make
        return make

    return register


def layout(name: str, recognises: Callable[[Path], bool]) -> Callable[[Data], Data]:
    """Register a dataset that lies at a path: ``make(path, split, size, length=...)``.

    Args:
        name: Of the layout.
        recognises: Whether a path holds it. What was registered last is asked first.
    """

    def register(make: Data) -> Data:
        assert name not in _LAYOUTS, f"two layouts are called {name}"
        _LAYOUTS[name] = (recognises, make)
        return make

    return register


def registered_datasets() -> Mapping[str, Callable[..., SegmentationData]]:
    """Return all datasets by name: those that are drawn, and those of a layout."""
    return _DRAWN | {name: make for name, (_, make) in _LAYOUTS.items()}


def open_dataset(
    name_or_folder: str, split: str, size: tuple[int, int], seed: int = 0, length: int | None = None
) -> SegmentationData:
    """Open one split of a dataset.

    Args:
        name_or_folder: The name of a drawn dataset, e.g. ``"synthetic"`` (street scenes) or ``"synthetic-shapes"``
            (pictures to classify), or a path that one of the layouts recognises.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width) of the samples.
        seed: Of what is drawn; a folder has none.
        length: How many samples to draw, or how many of a folder's to use; None for the usual number.

    Raises:
        DataError: If there is no such dataset or split, or the folder is not laid out as expected.
    """
    check_split(split)
    name = layout_of(name_or_folder, split)
    if name_or_folder in _DRAWN:
        return _DRAWN[name](split, size, seed=seed, length=length)
    return _LAYOUTS[name][1](Path(name_or_folder).expanduser(), split, size, length=length)


def layout_of(name_or_folder: str, split: str = "train") -> str:
    """Return the name of the drawn dataset, or of the layout that recognises a path.

    Args:
        name_or_folder: See `open_dataset`.
        split: That the message is about.

    Raises:
        DataError: If there is none.
    """
    if name_or_folder in _DRAWN:
        return name_or_folder
    folder = Path(name_or_folder).expanduser()
    for name, (recognises, _) in reversed(_LAYOUTS.items()):
        if recognises(folder):
            return name
    kind = "is a file" if folder.exists() else "is no folder"
    raise DataError(
        f"{unknown('dataset', name_or_folder, _DRAWN)}; it {kind} either: expected a folder with {split}.txt, "
        f"{split}/images/*.jpg and {split}/labels/*.png, or one of CIFAR-10 or its .tar.gz"
    )
