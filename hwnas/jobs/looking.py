"""The splits of a run's data, looked at before anything that takes long: what is missing, without labels, or twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hwnas.data import SEGMENTATION, SegmentationData, split_halves, task_of
from hwnas.data.base import SPLITS
from hwnas.data.drawn import Drawn
from hwnas.data.survey import across, classes_in, equal_pictures
from hwnas.errors import DataError
from hwnas.progress import Reporter
from hwnas.run import Run

FIRST = 3  # names that a message has

WITHOUT = {
    "train": "nothing can be searched or trained with it",
    "val": "hwnas train chooses the best weights by it",
    "test": "hwnas validate scores the exported file on it",
}


def look_at(
    run: Run,
    opened: Mapping[str, SegmentationData],
    report: Reporter,
    also: Sequence[str] = (),
    halves: Sequence[int] = (),
) -> None:
    """Look whether splits can serve, before the first step of a search or training, or the first measurement.

    What is opened is needed and refused; what is looked at beside it gets one line of warning each: a split that is
    missing or without a label, a test split of one class, and images that are in two splits. Labels are read until
    there is one that is enough, so a split in order costs a sample or two.

    Args:
        run: Whose data they are.
        opened: Splits that are needed, by name.
        report: Gets the warnings.
        also: Splits that a later verb needs.
        halves: Seeds of bilevel splits of train: each half needs labels, or its loss says nothing.

    Raises:
        DataError: If a split that is needed has no label, or one half of train.
    """
    splits = dict(opened)
    for split in also:
        try:
            splits[split] = run.data(split)
        except DataError as e:
            report.note(f"warning: no {split}: {e}; {WITHOUT[split]}", warning=True)
    for split in (s for s in SPLITS if s in splits and not isinstance(splits[s], Drawn)):
        data = splits[split]
        try:
            found = classes_in(data, 2 if split == "test" else 1)
        except DataError as e:
            if split in opened:
                raise
            report.note(f"warning: {split} cannot be read: {e}; {WITHOUT[split]}", warning=True)
            continue
        if not found:
            said = f"no label of {data.name} has a class, all of its pixels are void: {WITHOUT[split]}"
            if split in opened:
                raise DataError(f"{said}; give it labels, see what is in it with: hwnas data {run.settings.data}")
            report.note(f"warning: {said}; give it labels first", warning=True)
        elif len(found) == 1 and split == "test" and len(data.classes) > 1:
            (only,) = found
            report.note(
                f"warning: all labels of {data.name} are {data.classes.names[only]}: a score on it says nothing of "
                f"the {len(data.classes) - 1} other classes",
                warning=True,
            )
    for seed in halves:
        _look_at_halves(splits["train"], seed)
    _warn_of_equal(splits, report)


def _look_at_halves(train: SegmentationData, seed: int) -> None:
    if isinstance(train, Drawn) or task_of(train) is not SEGMENTATION:
        return
    for title, half in zip(("weights", "alphas"), split_halves(len(train), seed), strict=True):
        if not classes_in(train, 1, half):
            raise DataError(
                f"none of the {len(half)} samples of {train.name} that the {title} would learn on has a label; "
                "label them, leave samples that are all void out, or take another --seed"
            )


def _warn_of_equal(splits: Mapping[str, SegmentationData], report: Reporter) -> None:
    shared = {pair: names for pair, names in across(equal_pictures(splits)).items() if pair[0] != pair[1]}
    if shared:
        said = [f"{len(names)} in {a} and {b} ({first(names)})" for (a, b), names in shared.items()]
        report.note(
            f"warning: equal images in two splits: {'; '.join(said)}: scores on them are too good",
            warning=True,
        )


def first(names: Sequence[str]) -> str:
    """Return the first names, and how many there are beside."""
    more = f", and {len(names) - FIRST} more" if len(names) > FIRST else ""
    return ", ".join(names[:FIRST]) + more
