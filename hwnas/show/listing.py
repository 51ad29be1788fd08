"""What is here."""

from __future__ import annotations

from hwnas.jobs.listing import Listing
from hwnas.run import Run
from hwnas.show.console import summary, table, warn


def listed(listing: Listing) -> None:
    """List recipes, and the runs here with how far each is."""
    table("recipes", ("name", "what it is"), [list(item) for item in listing.recipes.items()])
    rows = [[r.name, r.recipe, ", ".join(r.done) or "nothing yet", r.table] for r in listing.runs]
    table("runs", ("name", "recipe", "done", "table"), rows)
    summary({"published networks": ", ".join(listing.published)}, None)


def recipe_changes(run: Run) -> None:
    """Warn where the recipe of a run is not any more what it was when the run was made."""
    changes = run.changes()
    if changes:
        warn(
            f"the recipe {run.recipe.name} has changed since the run {run.name} was made, which goes on with its own: "
            f"{'; '.join(map(str, changes))}; to use the new one, give another name with --run"
        )
