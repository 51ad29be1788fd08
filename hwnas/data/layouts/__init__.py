"""How datasets lie on disk, one file each."""

from __future__ import annotations

from hwnas.data.layouts import ade20k, camvid, cifar10, cityscapes, class_folders, coco, folder, voc, yolo

__all__ = ["ade20k", "camvid", "cifar10", "cityscapes", "class_folders", "coco", "folder", "voc", "yolo"]
