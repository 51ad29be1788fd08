"""Pascal VOC 2012 (Everingham et al.): ``JPEGImages``, ``SegmentationClass``, ``ImageSets/Segmentation/*.txt``.

Where ``SegmentationClassAug`` lies beside them (Hariharan et al. 2011, 10,582 images), `train` is ``trainaug.txt``. The
labels of ``test`` are not public.
"""

from __future__ import annotations

from pathlib import Path

from hwnas.data.base import IGNORE_LABEL, ClassList
from hwnas.data.descriptor import Descriptor, Split, folder_layout, listed_split
from hwnas.data.labels import LabelTable, colour_map, numbered
from hwnas.data.lists import LABEL_ENDINGS, Files
from hwnas.errors import DataError

VOC_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOC_CLASSES = ClassList(VOC_NAMES, colour_map(len(VOC_NAMES)))
_TABLE = LabelTable(
    numbered(len(VOC_CLASSES)),
    # as colours, where a palette was lost; void is the last colour of the map
    {c: i for i, c in enumerate(VOC_CLASSES.palette)} | {colour_map(1, IGNORE_LABEL)[0]: IGNORE_LABEL},
)
_AUGMENTED = ("trainaug.txt", "train_aug.txt")


def _root(path: Path) -> Path | None:
    candidates = (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012")
    return next((p for p in candidates if (p / "JPEGImages").is_dir()), None)


@folder_layout("voc", lambda path: _root(path) is not None, "JPEGImages/, SegmentationClass/ and ImageSets/")
def voc(folder: Path) -> Descriptor:
    """Describe Pascal VOC 2012 at a folder, or two levels above: background and 20 classes."""
    root = _root(folder)
    assert root is not None, "it was recognised"
    return Descriptor(VOC_CLASSES, _TABLE, lambda split: _split(root, split))


def _split(root: Path, split: str) -> Split:
    lists, augmented = root / "ImageSets" / "Segmentation", root / "SegmentationClassAug"
    images = Files(root / "JPEGImages", (".jpg", ".jpeg", ".png"))
    fine = Files(root / "SegmentationClass", LABEL_ENDINGS)
    if split == "train" and augmented.is_dir():
        path = next((lists / n for n in _AUGMENTED if (lists / n).is_file()), None)
        if path is not None:
            found = listed_split(path, root, images, Files(augmented, LABEL_ENDINGS))
            return Split(found.entries, path, True, (f"train is {path.name}, with the labels of SegmentationClassAug",))
    path = lists / f"{split}.txt"
    both = lists / "trainval.txt"
    if split == "train" and not path.is_file() and both.is_file() and (lists / "val.txt").is_file():
        held_out = {e.name for e in listed_split(lists / "val.txt", root, images, fine).entries}
        found = listed_split(both, root, images, fine)
        kept = tuple(e for e in found.entries if e.name not in held_out)
        return Split(kept, both, True, ("train is trainval.txt without val.txt",))
    if split == "test" and not path.is_file():
        raise DataError(f"{lists} has no test.txt: the test labels of Pascal VOC 2012 are not public; take val")
    return listed_split(path, root, images, fine)
