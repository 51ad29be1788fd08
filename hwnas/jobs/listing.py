"""What is here: recipes, published networks, and runs with how far each is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from hwnas import recipes
from hwnas.errors import HwnasError, refusal
from hwnas.files import is_there
from hwnas.latency.table import LatencyTable
from hwnas.run import RUNS, Run
from hwnas.spaces import published_names

T = TypeVar("T")
STAGES = {
    "profiled": "table.json",
    "searched": "arch.json",
    "trained": "train/model.safetensors",
    "exported": "deploy/engine.json",
    "validated": "report.json",
}


@dataclass(frozen=True)
class RunListing:
    """A run.

    Attributes:
        name: Of the run.
        recipe: Name of its recipe.
        done: Its stages that are done.
        table: Name of its table's device; empty without a table.
        overrides: Settings of the recipe that were set by name.
        problem: What of it cannot be read, or why it cannot be gone on with here; empty if all can.
    """

    name: str
    recipe: str
    done: tuple[str, ...]
    table: str
    overrides: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Listing:
    """What is here.

    Attributes:
        recipes: Titles by name.
        runs: In the current directory.
        published: Names of published networks, which `hwnas price` takes.
    """

    recipes: dict[str, str]
    runs: tuple[RunListing, ...]
    published: tuple[str, ...]


def list_all() -> Listing:
    """List recipes, runs and published networks; what cannot be read of a run is its problem, and no other's."""
    runs = tuple(filter(None, (_run(folder) for folder in sorted(RUNS.iterdir())))) if is_there(RUNS) else ()
    return Listing({name: recipes.get(name).title for name in recipes.names()}, runs, tuple(published_names()))


def _run(folder: Path) -> RunListing | None:
    """Return what there is to say of a folder; None if it is no run."""
    problems: list[str] = []

    def read(what: Callable[[], T], instead: T) -> T:
        try:
            return what()
        except HwnasError as e:
            problems.append(str(e))
        except OSError as e:
            problems.append(str(refusal(e, folder)))
        return instead

    def device() -> str:
        table = folder / STAGES["profiled"]
        return LatencyTable.load(table).name if is_there(table) else ""

    if not read(lambda: is_there(folder / "run.json"), instead=True):
        return None
    done = tuple(s for s, file in STAGES.items() if read(partial(is_there, folder / file), instead=False))
    table = read(device, "")
    settings = read(lambda: Run(folder.name).settings, None)
    overrides = () if settings is None else tuple(sorted(map("=".join, (settings.overrides or {}).items())))
    recipe = "" if settings is None else settings.recipe
    return RunListing(folder.name, recipe, done, table, overrides, "; ".join(dict.fromkeys(problems)))
