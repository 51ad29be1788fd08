"""What is here."""

from __future__ import annotations

from hwnas.jobs.listing import Listing
from hwnas.run import Run
from hwnas.show.console import summary, table, warn


def listed(listing: Listing) -> None:
    """List recipes, and the runs here with how far each is."""
    table("recipes", ("name", "what it is"), [list(item) for item in listing.recipes.items()])
    rows = [
        [r.name, r.recipe or "?", ", ".join(r.done) or "nothing yet", r.table, " ".join(r.overrides)]
        for r in listing.runs
    ]
    table("runs", ("name", "recipe", "done", "table", "set"), rows)
    for r in listing.runs:
        if r.problem:
            warn(f"the run {r.name}: {r.problem}")
    summary({"published networks": ", ".join(listing.published)}, None)


def recipe_changes(run: Run) -> None:
    """Say what of a run's recipe was set by name, and warn where it, or the file it is from, has changed since."""
    if (path := run.changed_file()) is not None:
        warn(
            f"{path} has changed since the run {run.name} was made, which goes on with its own settings, and with the "
            "classes and functions that are in the file now"
        )
    overrides = run.settings.overrides or {}
    if overrides:
        summary({"set": " ".join(sorted(map("=".join, overrides.items())))}, None)
    changes = run.changes()
    if changes:
        warn(
            f"the recipe {run.recipe.name} has changed since the run {run.name} was made, which goes on with its own: "
            f"{'; '.join(map(str, changes))}; to use the new one, give another name with --run"
        )
