"""The datasets there are, by name and by how their folders look: one decorator and one file make another one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hwnas.data.base import SegmentationData, check_split
from hwnas.errors import DataError, unknown

Data = TypeVar("Data", bound=Callable[..., SegmentationData])


@dataclass(frozen=True)
class Layout:
    """How datasets lie on disk.

    Attributes:
        recognises: Whether a path holds one.
        make: From path, split and size to one split.
        expects: What such a path holds, for messages.
        general: Whether it is asked only where no other recognises the path.
    """

    recognises: Callable[[Path], bool]
    make: Callable[..., SegmentationData]
    expects: str
    general: bool = False


_DRAWN: dict[str, Callable[..., SegmentationData]] = {}
_LAYOUTS: dict[str, Layout] = {}


def dataset(name: str) -> Callable[[Data], Data]:
    """Register a dataset that needs no folder: ``make(split, size, seed=..., length=...)``."""

    def register(make: Data) -> Data:
        assert name not in _DRAWN, f"two datasets are called {name}"
        _DRAWN[name] = make
        return make

    return register


def layout(
    name: str, recognises: Callable[[Path], bool], expects: str = "", general: bool = False
) -> Callable[[Data], Data]:
    """Register a dataset that lies at a path: ``make(path, split, size, length=...)``.

    What has label maps takes ``own_labels=...`` as well. `hwnas.data.descriptor.folder_layout` is the short way.

    Args:
        name: Of the layout.
        recognises: Whether a path holds it. What was registered last is asked first.
        expects: What such a path holds, for messages.
        general: Whether it is asked only where no other recognises the path.
    """

    def register(make: Data) -> Data:
        assert name not in _LAYOUTS, f"two layouts are called {name}"
        _LAYOUTS[name] = Layout(recognises, make, expects, general)
        return make

    return register


def registered_datasets() -> Mapping[str, Callable[..., SegmentationData]]:
    """Return all datasets by name: those that are drawn, and those of a layout."""
    return _DRAWN | {name: held.make for name, held in _LAYOUTS.items()}


def registered_layouts() -> Mapping[str, Layout]:
    """Return all layouts by name."""
    return dict(_LAYOUTS)


def layout_of(name_or_folder: str) -> str:
    """Return the name of a drawn dataset, or of the layout that recognises a path.

    Raises:
        DataError: If there is no such dataset, and no layout recognises the path.
    """
    if name_or_folder in _DRAWN:
        return name_or_folder
    path = Path(name_or_folder).expanduser()
    newest_first = list(reversed(_LAYOUTS.items()))
    for name, held in sorted(newest_first, key=lambda item: item[1].general):
        if held.recognises(path):
            return name
    known = "; ".join(f"{name}: {held.expects}" for name, held in sorted(_LAYOUTS.items()) if held.expects)
    if path.is_dir():
        try:
            inside = sorted(os.listdir(path))
        except OSError as e:
            raise DataError(f"cannot list {path}: {e.strerror}; make it a folder that can be read") from e
        shown = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
        raise DataError(
            f"{path} is laid out as no dataset that is known: it has {shown or 'nothing'}; known are {known}"
        )
    kind = "is a file" if path.exists() else "is no folder"
    raise DataError(f"{unknown('dataset', name_or_folder, _DRAWN)}; it {kind} either: expected one of {known}")


def open_dataset(
    name_or_folder: str,
    split: str,
    size: tuple[int, int],
    seed: int = 0,
    length: int | None = None,
    own_labels: bool = False,
) -> SegmentationData:
    """Open one split of a dataset.

    Args:
        name_or_folder: The name of a drawn dataset, e.g. ``"synthetic"`` (street scenes) or ``"synthetic-shapes"``
            (pictures to classify), or a path that one of the layouts recognises.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width) of the samples.
        seed: Of what is drawn; a folder has none.
        length: How many samples to draw, or how many of a folder's to use; None for the usual number.
        own_labels: Leave label maps at the size of their files, for evaluation there; what is drawn has no other size.

    Raises:
        DataError: If there is no such dataset or split, or the folder is not laid out as expected.
    """
    check_split(split)
    if name_or_folder in _DRAWN:
        return _DRAWN[name_or_folder](split, size, seed=seed, length=length)
    make = _LAYOUTS[layout_of(name_or_folder)].make
    # Not every layout has label maps.
    own = {"own_labels": True} if own_labels and "own_labels" in inspect.signature(make).parameters else {}
    return make(Path(name_or_folder).expanduser(), split, size, length=length, **own)
