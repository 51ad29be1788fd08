"""How datasets lie on disk, one file each. What is imported last is asked first; the general ones come first."""

from __future__ import annotations

from hwnas.data.layouts import (
    ade20k,
    camvid,
    cifar10,
    cityscapes,
    class_folders,
    coco,
    folder,
    voc,
    yolo,
)

__all__ = ["ade20k", "camvid", "cifar10", "cityscapes", "class_folders", "coco", "folder", "voc", "yolo"]
