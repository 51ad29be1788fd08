"""What is here: recipes, published networks, and runs with how far each is."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas import recipes
from hwnas.errors import RecipeFileError
from hwnas.latency.table import LatencyTable
from hwnas.run import RUNS, Run
from hwnas.spaces import published_names

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
        problem: Why it cannot be gone on with here; empty if it can.
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
    """List recipes, runs and published networks."""
    runs = []
    for run in (Run(p.parent.name) for p in sorted(RUNS.glob("*/run.json"))):
        done = tuple(stage for stage, file in STAGES.items() if (run.folder / file).exists())
        table = run.folder / "table.json"
        device = LatencyTable.load(table).name if table.exists() else ""
        try:
            settings = run.settings
        except RecipeFileError as e:
            runs.append(RunListing(run.name, "", done, device, problem=str(e)))
            continue
        overrides = tuple(sorted(map("=".join, (settings.overrides or {}).items())))
        runs.append(RunListing(run.name, settings.recipe, done, device, overrides))
    return Listing({name: recipes.get(name).title for name in recipes.names()}, tuple(runs), tuple(published_names()))
