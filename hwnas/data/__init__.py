"""Datasets for semantic segmentation: numpy arrays in, no torch."""

from __future__ import annotations

from pathlib import Path

from hwnas.data.base import IGNORE_LABEL, ClassList, Sample, SegmentationData, check_split, split_halves
from hwnas.data.camvid import CAMVID_CLASSES, CamVid
from hwnas.data.synthetic import Synthetic
from hwnas.errors import DataError, unknown

__all__ = [
    "CAMVID_CLASSES",
    "IGNORE_LABEL",
    "CamVid",
    "ClassList",
    "Sample",
    "SegmentationData",
    "Synthetic",
    "open_dataset",
    "split_halves",
]

_NAMES = ("synthetic",)


def open_dataset(
    name_or_folder: str, split: str, size: tuple[int, int], seed: int = 0, length: int | None = None
) -> SegmentationData:
    """Open one split of a dataset.

    Args:
        name_or_folder: ``"synthetic"``, or a folder laid out as `hwnas.data.camvid` says.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width) of the samples.
        seed: Of the synthetic scenes; a folder has none.
        length: How many scenes to draw, or how many names of a folder's list to use; None for the usual number.

    Raises:
        DataError: If there is no such dataset or split, or the folder is not laid out as expected.
    """
    check_split(split)
    if name_or_folder == "synthetic":
        return Synthetic(split, size, seed=seed, length=length)
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return CamVid(folder, split, size, length=length)
    kind = "is a file" if folder.exists() else "is no folder"
    raise DataError(
        f"{unknown('dataset', name_or_folder, _NAMES)}; it {kind} either: "
        f"expected a folder with {split}.txt, {split}/images/*.jpg and {split}/labels/*.png"
    )
