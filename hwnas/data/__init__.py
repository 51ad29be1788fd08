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
from hwnas.data.descriptor import Descriptor, FolderData, Split, folder_layout
from hwnas.data.labels import Entry, LabelTable
from hwnas.data.layouts.camvid import CAMVID_CLASSES
from hwnas.data.layouts.cifar10 import CIFAR10_CLASSES, Cifar10
from hwnas.data.registry import dataset, layout, layout_of, open_dataset, registered_datasets, registered_layouts
from hwnas.data.shapes import Shapes
from hwnas.data.synthetic import Synthetic

__all__ = [
    "CAMVID_CLASSES",
    "CIFAR10_CLASSES",
    "CLASSIFICATION",
    "IGNORE_LABEL",
    "SEGMENTATION",
    "Cifar10",
    "ClassList",
    "Descriptor",
    "Entry",
    "FolderData",
    "LabelTable",
    "Sample",
    "SegmentationData",
    "Shapes",
    "Split",
    "Synthetic",
    "Task",
    "dataset",
    "folder_layout",
    "layout",
    "layout_of",
    "open_dataset",
    "registered_datasets",
    "registered_layouts",
    "split_halves",
    "task_of",
]
