"""What is in a dataset."""

from __future__ import annotations

import shlex

from hwnas.data import SEGMENTATION
from hwnas.data.survey import Size, Sizes
from hwnas.jobs.surveying import SurveyResult
from hwnas.sheet import percent
from hwnas.show.console import console, summary, table, warn

LISTED = 40  # classes
CELLS = 12  # characters of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"


def surveyed(result: SurveyResult, every_class: bool = False) -> None:
    """Show what is in a dataset, what is odd about it, and what to run next."""
    task, classes = result.task, result.classes
    facts: dict[str, object] = {"dataset": result.place, "layout": result.layout}
    if task is not None and classes is not None:
        facts["for"] = f"{task.name} into {len(classes)} classes"
    summary(facts, None)
    if result.splits:
        _splits(result)
        _classes(result, every_class)
    for text in result.odd:
        warn(text)
    for text in result.unusable:
        console.print(f"not usable: {text}", style="bold red", markup=False)
    facts = {}
    if result.kept is not None:
        facts["drawing"] = f"{result.kept} is there already and stays; --overwrite draws it anew, --out names another"
    elif result.sheet is not None:
        facts["drawing"] = result.sheet
    following = f"hwnas profile RECIPE --data {shlex.quote(result.place)}   (hwnas ls lists recipes)"
    summary(facts, following if result.usable else None)


def _splits(result: SurveyResult) -> None:
    segments = result.task is SEGMENTATION
    header = ("split", "images", "labels read", "size (height x width)", *(("void",) if segments else ()))
    rows = []
    for split in result.splits:
        read = "all" if split.read == split.samples else f"{split.read}, evenly spread"
        void = (percent(split.void),) if segments else ()
        rows.append([split.name, str(split.samples), read, _sizes(split.sizes), *void])
    table("splits", header, rows, numbers=True)


def _sizes(sizes: Sizes | None) -> str:
    if sizes is None:
        return "any"
    if sizes.kinds == 1:
        return _size(sizes.least)
    return f"{_size(sizes.least)} to {_size(sizes.most)}, median {_size(sizes.median)}, {sizes.kinds} sizes"


def _size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _classes(result: SurveyResult, every_class: bool) -> None:
    assert result.classes is not None
    names, shares = result.classes.names, [split.shares for split in result.splits]
    longest = max([s for split in shares for s in split] + [1e-9])
    order = list(range(len(names)))
    if len(order) > LISTED and not every_class:
        order = sorted(order, key=lambda i: -shares[0][i])[:LISTED]
    what = "pixels" if result.task is SEGMENTATION else "images"
    header = ["", "class", *(cell for split in result.splits for cell in (split.name, ""))]
    rows = [
        [str(i), names[i], *(cell for own in shares for cell in (percent(own[i]), bar(own[i] / longest)))]
        for i in order
    ]
    table(f"share of the labelled {what}", header, rows)
    if len(order) < len(names):
        console.print(
            f"and {len(names) - len(order)} classes that are rarer in {result.splits[0].name}; --all lists them"
        )


def bar(share: float) -> str:
    """Return a bar of `CELLS` characters for 1, to an eighth of one; what is more than 0 can be seen."""
    eighths = max(round(8 * CELLS * share), 1 if share > 0 else 0)
    whole, part = divmod(eighths, 8)
    return "█" * whole + (EIGHTHS[part] if part else "")
