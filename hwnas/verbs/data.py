"""The verb about datasets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hwnas import jobs, show


@dataclass(frozen=True)
class Data:
    """Say what is in a dataset and what is odd about it, and draw some of it; exit code 1 if it is of no use as it is.

    Example: hwnas data camvid

    Example: hwnas data streets --images 1000 --out streets.png
    """

    place: Annotated[Positional[str], arg(metavar="DIR", help="a dataset folder, or the name of drawn data: synthetic")]
    images: Annotated[
        int | None,
        arg(metavar="N", help="read the labels of at most N images of each split, evenly spread (default: 300)"),
    ] = None
    out: Annotated[
        Path | None, arg(metavar="FILE", help="the drawing, a PNG that is not there yet (default: data-NAME.png)")
    ] = None
    overwrite: Annotated[bool, arg(help="draw into a file that is there")] = False
    all: Annotated[bool, arg(help="every class, not only the most frequent ones")] = False

    def __call__(self) -> int:
        """Run the verb."""
        settings = jobs.SurveySettings(self.place, self.images, self.out, self.overwrite)
        result = jobs.survey(settings, show.TERMINAL)
        show.surveyed(result, self.all)
        return 0 if result.usable else 1
