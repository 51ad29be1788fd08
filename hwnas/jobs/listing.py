"""What is here: recipes, published networks, and runs with how far each is."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas import recipes
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
    """

    name: str
    recipe: str
    done: tuple[str, ...]
    table: str


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
        runs.append(RunListing(run.name, run.settings.recipe, done, device))
    return Listing({name: recipes.get(name).title for name in recipes.names()}, tuple(runs), tuple(published_names()))
