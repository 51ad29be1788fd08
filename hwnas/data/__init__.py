"""Datasets for semantic segmentation and image classification: numpy arrays in, no torch."""

from __future__ import annotations

from pathlib import Path

from hwnas.data.base import (
    CLASSIFICATION,
    IGNORE_LABEL,
    SEGMENTATION,
    ClassList,
    Sample,
    SegmentationData,
    Task,
    check_split,
    split_halves,
    task_of,
)
from hwnas.data.camvid import CAMVID_CLASSES, CamVid
from hwnas.data.cifar10 import CIFAR10_CLASSES, Cifar10, is_cifar10
from hwnas.data.shapes import Shapes
from hwnas.data.synthetic import Synthetic
from hwnas.errors import DataError, unknown

__all__ = [
    "CAMVID_CLASSES",
    "CIFAR10_CLASSES",
    "CLASSIFICATION",
    "IGNORE_LABEL",
    "SEGMENTATION",
    "CamVid",
    "Cifar10",
    "ClassList",
    "Sample",
    "SegmentationData",
    "Shapes",
    "Synthetic",
    "Task",
    "open_dataset",
    "split_halves",
    "task_of",
]

_DRAWN: dict[str, type[Synthetic | Shapes]] = {"synthetic": Synthetic, "synthetic-shapes": Shapes}


def open_dataset(
    name_or_folder: str, split: str, size: tuple[int, int], seed: int = 0, length: int | None = None
) -> SegmentationData:
    """Open one split of a dataset.

    Args:
        name_or_folder: ``"synthetic"`` (street scenes), ``"synthetic-shapes"`` (pictures to classify), or a folder laid
            out as `hwnas.data.camvid` or `hwnas.data.cifar10` says; of the latter its archive too.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width) of the samples.
        seed: Of what is drawn; a folder has none.
        length: How many samples to draw, or how many of a folder's to use; None for the usual number.

    Raises:
        DataError: If there is no such dataset or split, or the folder is not laid out as expected.
    """
    check_split(split)
    if name_or_folder in _DRAWN:
        return _DRAWN[name_or_folder](split, size, seed=seed, length=length)
    folder = Path(name_or_folder).expanduser()
    if is_cifar10(folder):
        return Cifar10(folder, split, size, length=length)
    if folder.is_dir():
        return CamVid(folder, split, size, length=length)
    kind = "is a file" if folder.exists() else "is no folder"
    raise DataError(
        f"{unknown('dataset', name_or_folder, _DRAWN)}; it {kind} either: expected a folder with {split}.txt, "
        f"{split}/images/*.jpg and {split}/labels/*.png, or one of CIFAR-10 or its .tar.gz"
    )
