"""Options that verbs share, as types of their fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

TableFile = Annotated[Path | None, arg(metavar="FILE", help="latency table (default: the run's own)")]
Tables = Annotated[
    tuple[Path, ...],
    UseAppendAction,
    arg(metavar="FILE", help="latency table (default: the run's own); given again, the network must meet both"),
]
Foreign = Annotated[bool, arg(help="accept a table of another device")]
RunName = Annotated[str | None, arg(metavar="NAME", help="everything goes to runs/NAME/ (default: the recipe's name)")]
Measure = Annotated[bool, arg(help="measure what is derived, here, and derive again until a network is at the budget")]
RecipeName = Annotated[
    Positional[str], arg(metavar="RECIPE", help="see hwnas ls; or FILE.py:FUNCTION, which returns a Recipe")
]
Set = Annotated[
    tuple[str, ...],
    UseAppendAction,
    arg(
        metavar="NAME=VALUE",
        help="a setting of the recipe by its dotted name, e.g. search.steps=600, search.relaxation=gumbel-softmax, "
        "search.crop=96x128; may be given again",
    ),
]
Device = Annotated[
    str, arg(metavar="DEVICE", help="where networks compute: auto (a GPU if there is one), cpu, cuda or cuda:N")
]
Workers = Annotated[
    int | None, arg(metavar="N", help="processes that make batches ahead (default: none on a CPU, up to 4 on a GPU)")
]
DataFolder = Annotated[
    Path | None,
    arg(metavar="DIR", help="dataset folder, see hwnas data; networks get its classes (default: the recipe's data)"),
]
Moved = Annotated[Path | None, arg(metavar="DIR", help="where the data of the run lie now, if they have moved")]
TrialCount = Annotated[
    int | None, arg(metavar="N", help="of a search by trials, in all: a finished one goes on (default: the recipe's)")
]
Storage = Annotated[
    str | None, arg(metavar="URL", help="database of the trials, for several machines (default: a file in the run)")
]
Processes = Annotated[int, arg(metavar="N", help="of this machine, for a search by trials: each tries architectures")]
