"""Cityscapes (Cordts et al. 2016) as it is released: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/``.

Labels are the first of ``*_gtFine_labelIds.png``, ``*_gtFine_labelTrainIds.png`` and ``*_gtFine_color.png`` that the
folder has; those of ``gtCoarse/`` where there is no ``gtFine/``. Classes, numbers and colours are those of labels.py of
cityscapesScripts, of which 19 are trained and evaluated. The labels of ``test`` are not public.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hwnas.data.base import IGNORE_LABEL, ClassList
from hwnas.data.descriptor import Descriptor, Split, folder_layout
from hwnas.data.labels import Colour, Entry, LabelTable, numbered
from hwnas.data.lists import has_files, some, walk
from hwnas.decode import decode_label
from hwnas.errors import DataError


class _Class(NamedTuple):
    name: str
    number: int  # in files of labelIds
    colour: Colour


# In the order of their numbers for training.
_CLASSES = (
    _Class("road", 7, (128, 64, 128)),
    _Class("sidewalk", 8, (244, 35, 232)),
    _Class("building", 11, (70, 70, 70)),
    _Class("wall", 12, (102, 102, 156)),
    _Class("fence", 13, (190, 153, 153)),
    _Class("pole", 17, (153, 153, 153)),
    _Class("traffic light", 19, (250, 170, 30)),
    _Class("traffic sign", 20, (220, 220, 0)),
    _Class("vegetation", 21, (107, 142, 35)),
    _Class("terrain", 22, (152, 251, 152)),
    _Class("sky", 23, (70, 130, 180)),
    _Class("person", 24, (220, 20, 60)),
    _Class("rider", 25, (255, 0, 0)),
    _Class("car", 26, (0, 0, 142)),
    _Class("truck", 27, (0, 0, 70)),
    _Class("bus", 28, (0, 60, 100)),
    _Class("train", 31, (0, 80, 100)),
    _Class("motorcycle", 32, (0, 0, 230)),
    _Class("bicycle", 33, (119, 11, 32)),
)
CITYSCAPES_CLASSES = ClassList(tuple(c.name for c in _CLASSES), tuple(c.colour for c in _CLASSES))
_NUMBERS = 34  # 0 to 33; what is no class of these is void
# Unlabelled and out of view, dynamic, ground, parking, rail track, guard rail, bridge, tunnel, caravan, trailer. The
# groups of poles and the licence plates have the colours of poles and cars, so files of colours count them as these.
_VOID_COLOURS: tuple[Colour, ...] = (
    (0, 0, 0),
    (111, 74, 0),
    (81, 0, 81),
    (250, 170, 160),
    (230, 150, 140),
    (180, 165, 180),
    (150, 100, 100),
    (150, 120, 90),
    (0, 0, 90),
    (0, 0, 110),
)
_TABLES = {
    "labelIds": LabelTable(
        dict.fromkeys((*range(_NUMBERS), IGNORE_LABEL), IGNORE_LABEL) | {c.number: i for i, c in enumerate(_CLASSES)}
    ),
    "labelTrainIds": LabelTable(numbered(len(_CLASSES))),
    "color": LabelTable(
        colours=dict.fromkeys(_VOID_COLOURS, IGNORE_LABEL) | {c.colour: i for i, c in enumerate(_CLASSES)}
    ),
}
_IMAGE = "_leftImg8bit"
_ENDINGS = (".png", ".jpg", ".jpeg")


@folder_layout(
    "cityscapes", lambda path: (path / "leftImg8bit").is_dir(), "leftImg8bit/SPLIT/CITY/*.png and gtFine/ beside it"
)
def cityscapes(folder: Path) -> Descriptor:
    """Describe Cityscapes at a folder: 19 classes."""
    kind = next(
        (
            (truth, form)
            for truth in ("gtFine", "gtCoarse")
            for form in _TABLES
            if has_files(folder / truth, (f"_{truth}_{form}.png".lower(),))
        ),
        None,
    )
    if kind is None:
        raise DataError(
            f"{folder} has no labels: expected gtFine/SPLIT/CITY/*_gtFine_labelIds.png; unpack gtFine_trainvaltest.zip"
        )
    truth, form = kind
    notes = []
    if truth == "gtCoarse":
        notes.append(f"{folder} has no gtFine/: these are the coarse labels of gtCoarse/")
    if form == "color":
        notes.append("labels are read from colours, where groups of poles look like poles and licence plates like cars")
    table = _TABLES[form]
    return Descriptor(CITYSCAPES_CLASSES, table, lambda s: _split(folder, s, truth, form, table), tuple(notes))


def _split(folder: Path, split: str, truth: str, form: str, table: LabelTable) -> Split:
    images = folder / "leftImg8bit" / split
    if not images.is_dir():
        raise DataError(f"{images} is missing; unpack leftImg8bit_trainvaltest.zip into {folder}")
    entries, bare = [], []
    for path in walk(images, _ENDINGS):
        name = path[: path.rindex(".")].removesuffix(_IMAGE)
        label = folder / truth / split / f"{name}_{truth}_{form}.png"
        if label.is_file():
            entries.append(Entry(name, images / path, label))
        else:
            bare.append(name)
    if split == "test" and (not entries or _all_void(entries[0], table)):
        raise DataError(
            f"{folder} has no labels for test: those of Cityscapes are not public, and files in their place are void; "
            "take val"
        )
    if bare and not entries:
        raise DataError(
            f"{images} has {len(bare)} images, and none has its label in {folder / truth / split}; add them"
        )
    notes = (f"{len(bare)} images in {images} have no label, left out: {some(bare)}",) if bare else ()
    return Split(tuple(entries), images, notes=notes)


def _all_void(entry: Entry, table: LabelTable) -> bool:
    """Tell whether a label is void; the one file that is decoded when a split is opened."""
    assert entry.label is not None
    stored = decode_label(entry.label, colours=not table.values)
    return bool((table.apply(stored, entry.label) == IGNORE_LABEL).all())
