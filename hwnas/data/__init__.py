"""Datasets for semantic segmentation and image classification: numpy arrays in, no torch."""

from __future__ import annotations

from hwnas.data.base import (
    CLASSIFICATION,
    IGNORE_LABEL,
    SEGMENTATION,
    ClassList,
    Sample,
    SegmentationData,
    Task,
    split_halves,
    task_of,
)
from hwnas.data.camvid import CAMVID_CLASSES, CamVid
from hwnas.data.cifar10 import CIFAR10_CLASSES, Cifar10
from hwnas.data.registry import dataset, layout, layout_of, open_dataset, registered_datasets
from hwnas.data.shapes import Shapes
from hwnas.data.synthetic import Synthetic

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
    "dataset",
    "layout",
    "layout_of",
    "open_dataset",
    "registered_datasets",
    "split_halves",
    "task_of",
]
