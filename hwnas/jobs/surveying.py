"""From a dataset to what is in it: splits, sizes, classes, what is odd, and a drawing of some of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.data import SEGMENTATION, ClassList, SegmentationData, Task, open_dataset, task_of
from hwnas.data.base import SPLITS
from hwnas.data.identity import LEAST, files_of, is_drawn
from hwnas.data.registry import layout_of
from hwnas.data.survey import (
    Counts,
    Headers,
    Size,
    Sizes,
    across,
    count_classes,
    equal_pictures,
    evenly,
    read_headers,
)
from hwnas.errors import DataError, HwnasError, check_ranges
from hwnas.jobs.looking import WITHOUT, first
from hwnas.progress import SILENT, Reporter
from hwnas.sheet import Legend, Tile, save_sheet

IMAGES = 300  # of each split, whose labels are read by default
HEADERS = 20_000  # of each split, whose sizes are read
DRAWN_SIZE = (192, 256)  # (height, width) of what has no size of its own
TILE = 256  # the longer side of images that are classified
SHOWN = 6  # pictures of a drawing; of classification one for each class, up to so many:
SHOWN_CLASSES = 24


@dataclass(frozen=True)
class SurveySettings:
    """What is surveyed.

    Attributes:
        place: A dataset folder, or the name of drawn data.
        images: Bound on the images of each split whose labels are read; None for `IMAGES`.
        out: The drawing; None for ``data-NAME.png`` in the current folder.
        overwrite: Whether the drawing may take the place of a file that is there.
    """

    place: str
    images: int | None = None
    out: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raise HwnasError for a bound that is no number of images, or a file that is no PNG."""
        check_ranges("a survey", ("--images of 1 or more", self.images, self.images is None or self.images >= 1))
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise HwnasError(f"expected --out with a file name that ends in .png, got {self.out}; rename it")


@dataclass(frozen=True)
class SplitSurvey:
    """One split.

    Attributes:
        name: ``"train"``, ``"val"`` or ``"test"``.
        samples: How many there are.
        read: How many had their labels read.
        sizes: Of its images; None where they are drawn, or no files of their own.
        pixels: Of each class, void last; of classification images. Of the labels that were read.
    """

    name: str
    samples: int
    read: int
    sizes: Sizes | None
    pixels: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each class among what has one; zeros where nothing has."""
        labelled = sum(self.pixels[:-1])
        return tuple(n / labelled if labelled else 0.0 for n in self.pixels[:-1])

    @property
    def void(self) -> float:
        """Share of the pixels that have no class."""
        return self.pixels[-1] / max(1, sum(self.pixels))


@dataclass(frozen=True)
class SurveyResult:
    """What is in a dataset.

    Attributes:
        place: Folder or name, as it was given.
        layout: What recognises it.
        task: What it is for; None where no split can be used.
        classes: Names and colours; None where no split can be used.
        splits: Those that can be opened.
        unusable: Why nothing can be searched or trained with it as it is, a line each; empty if that can be done.
        odd: What else is worth knowing, a line each.
        sheet: The drawing; None where nothing can be drawn, or `kept`.
        kept: A file of that name that was there and stays.
    """

    place: str
    layout: str
    task: Task | None
    classes: ClassList | None
    splits: tuple[SplitSurvey, ...]
    unusable: tuple[str, ...]
    odd: tuple[str, ...]
    sheet: Path | None = None
    kept: Path | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be searched and trained with."""
        return not self.unusable


@dataclass(frozen=True)
class _Split:
    """A split that can be opened, and what was read of it."""

    name: str
    data: SegmentationData
    headers: Headers
    counts: Counts

    def named(self, indices: Sequence[int]) -> str:
        """Return the first names of some samples, and how many there are beside."""
        entries = files_of(self.data)
        return first([entries[i].name if entries else self.data[i].name for i in indices])


def survey(settings: SurveySettings, report: Reporter = SILENT) -> SurveyResult:
    """Look at a dataset as a search will use it.

    Sizes come from the headers of files. Labels are read at the size of the images, where these have one, else at
    their median size; they are scaled by the nearest pixel, so shares of classes stay right.

    Raises:
        DataError: If no layout recognises the folder.
        HwnasError: If a file is in the way of a drawing that was asked for.
    """
    place = settings.place if is_drawn(settings.place) else str(Path(settings.place).expanduser())
    layout = layout_of(place)
    called = Path(place).resolve().name
    out = settings.out or Path("data-" + re.sub(r"[^\w.-]+", "-", called) + ".png")
    there = out.exists() and not settings.overwrite
    if there and settings.out is not None:
        raise HwnasError(f"{out} is there already; name another file, or add --overwrite")
    splits, missing = _read(place, settings.images or IMAGES, report)
    unusable, odd = _findings(splits, missing, report)
    surveys = tuple(map(_survey_of, splits))
    classes = splits[0].data.classes if splits else None
    sheet = None
    if splits and not there and (tiles := _tiles(splits)):
        assert classes is not None
        counts = ", ".join(f"{len(s.data)} {s.name}" for s in splits)
        title = f"{called}: {counts} images, {len(classes)} classes"
        segments = task_of(splits[0].data) is SEGMENTATION
        what = f"share of the labelled {'pixels' if segments else 'images'} of {splits[0].name}"
        save_sheet(out, tiles, Legend(classes, surveys[0].shares, what, void=segments), title)
        sheet = out
    return SurveyResult(
        settings.place,
        layout,
        task_of(splits[0].data) if splits else None,
        classes,
        surveys,
        tuple(unusable),
        tuple(odd),
        sheet,
        out if there else None,
    )


def _read(place: str, images: int, report: Reporter) -> tuple[list[_Split], dict[str, str]]:
    """Return the splits that can be opened, and why the others cannot."""
    splits, missing = [], {}
    for name in SPLITS:
        try:
            data = open_dataset(place, name, LEAST)
            task = task_of(data)
        except DataError as e:
            missing[name] = str(e)
            continue
        chosen = evenly(len(data), HEADERS)
        with report.bar(f"sizes in {name}", len(chosen)) as update:
            headers = read_headers(data, chosen, update)
        if task is SEGMENTATION or headers.sizes:
            data = open_dataset(place, name, _size(headers.sizes, task))
        chosen = evenly(len(data), images)
        with report.bar(f"labels in {name}", len(chosen)) as update:
            counts = count_classes(data, chosen, update)
        splits.append(_Split(name, data, headers, counts))
    return splits, missing


def _size(sizes: Sequence[Size], task: Task) -> Size:
    known = Sizes.of(sizes)
    if known is None:
        return DRAWN_SIZE
    most = 1.0 if task is SEGMENTATION else min(1.0, TILE / max(known.median))  # of one label any size will do
    height, width = (max(1, round(most * side)) for side in known.median)
    return height, width


def _survey_of(split: _Split) -> SplitSurvey:
    return SplitSurvey(
        split.name,
        len(split.data),
        len(split.counts.indices),
        Sizes.of(split.headers.sizes),
        tuple(split.counts.total.tolist()),
    )


def _findings(splits: Sequence[_Split], missing: Mapping[str, str], report: Reporter) -> tuple[list[str], list[str]]:
    """Return what makes a dataset unusable, and what else is odd about it."""
    unusable: list[str] = []
    odd: list[str] = []
    for name, why in missing.items():
        (odd if name == "test" else unusable).append(f"no {name}: {why}; {WITHOUT[name]}")
    for split in splits:
        unusable += _damage(split)
        odd += getattr(split.data, "notes", ())
        void, read = split.counts.void, len(split.counts.indices)
        if void and len(void) == read:
            all_of = "all" if read == len(split.data) else f"the {read} read"
            text = f"{split.name} has no labelled pixel: {all_of} of its labels are void; {WITHOUT[split.name]}"
            (odd if split.name == "test" else unusable).append(text)
        elif void:
            odd.append(f"{len(void)} labels in {split.name} are all void: {split.named(void)}")
        occurring = np.flatnonzero(split.counts.total[:-1])
        if len(occurring) == 1 and len(split.data.classes) > 1:
            odd.append(f"{split.name} shows one class alone: {split.data.classes.names[occurring[0]]}")
    train = next((s for s in splits if s.name == "train"), None)
    if train is not None:
        if len(train.data) < 2:
            unusable.append("train has 1 sample, a search needs 2 or more: weights and alphas learn on one half each")
        odd += _unseen(train, [s for s in splits if s is not train])
    with report.bar("equal images", None) as update:
        groups = equal_pictures({s.name: s.data for s in splits}, update)
    for (a, b), names in across(groups).items():
        where = f"twice in {a}" if a == b else f"in {a} and {b}: scores on {b} are too good"
        odd.append(f"{len(names)} equal images {where}: {first(names)}")
    return unusable, odd


def _damage(split: _Split) -> list[str]:
    out = []
    if unequal := split.headers.unequal:
        name, (height, width), (own_height, own_width) = unequal[0]
        out.append(
            f"{len(unequal)} labels in {split.name} are of another size than their image, such as {name}: image "
            f"{height}x{width}, label {own_height}x{own_width}"
        )
    of_size = {name for name, *_ in unequal}
    entries = files_of(split.data)
    damaged = [text for i, text in split.counts.damaged if not (entries and entries[i].name in of_size)]
    if texts := list(dict.fromkeys([*split.headers.damaged, *damaged])):
        more = f" (and {len(texts) - 1} more in {split.name})" if len(texts) > 1 else ""
        out.append(f"{split.name}: {texts[0]}{more}")
    return out


def _unseen(train: _Split, others: Sequence[_Split]) -> list[str]:
    """Return which classes train does not show, those that are scored on other splits apart."""
    names, seen = train.data.classes.names, train.counts.total[:-1] > 0
    if not seen.any() or seen.all():
        return []
    read = len(train.counts.indices)
    where = "train" if read == len(train.data) else f"the {read} labels of train that were read"
    elsewhere = np.any([s.counts.total[:-1] > 0 for s in others], axis=0) if others else np.zeros(len(names), bool)
    out = []
    for unseen, tail in ((~seen & elsewhere, ", but in val or test"), (~seen & ~elsewhere, ", nor elsewhere")):
        if unseen.any():
            own = [names[i] for i in np.flatnonzero(unseen)]
            out.append(f"{len(own)} classes do not occur in {where}{tail}: {first(own)}")
    return out


def _tiles(splits: Sequence[_Split]) -> list[Tile]:
    """Return samples of the first split that between them show as many classes as possible."""
    split = splits[0]
    counts = split.counts
    segments = task_of(split.data) is SEGMENTATION
    chosen = telling(counts.pixels[:, :-1], SHOWN if segments else min(SHOWN_CLASSES, len(split.data.classes)))
    samples = [split.data[counts.indices[row]] for row in chosen]
    return [Tile(s.image, s.label, s.name) for s in samples]


def telling(pixels: NDArray[np.int64], most: int) -> list[int]:
    """Return rows that show many classes: each time the one that adds most, where a rare class counts more.

    Neighbours are passed over as far as that goes: they are often frames of one film.

    Args:
        pixels: By sample and class, (samples, classes).
        most: How many rows.
    """
    share = pixels.sum(0) / max(1, pixels.sum())
    weight = np.where(share > 0, 1 / np.sqrt(np.maximum(share, 1e-9)), 0.0)
    # Of a class some pixels can be seen, a few cannot: a hundredth of the picture counts for half.
    shown = pixels / np.maximum(1, pixels.sum(1, keepdims=True))
    shown = shown / (shown + 0.01)
    best, out = np.zeros(pixels.shape[1]), list[int]()
    rows, apart = np.arange(len(pixels)), len(pixels) // (2 * most)
    for _ in range(min(most, len(pixels))):
        gain = (np.maximum(shown - best, 0) * weight).sum(1) + 1e-6 * shown.sum(1)
        for row in out:
            gain[np.abs(rows - row) <= apart] -= 1e6
        gain[out] = -np.inf
        out.append(int(gain.argmax()))
        best = np.maximum(best, shown[out[-1]])
    return sorted(out)
