"""`hwnas search`: from a budget to an architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hwnas.files import canonical_json, write_atomic
from hwnas.run import Run
from hwnas.search.gradient import BilevelSearch, search
from hwnas.search.objective import LatencyTerm
from hwnas.search.widths import derive, price, random_latencies_ms
from hwnas.steplog import StepLog
from hwnas.ui import bar, console, summary
from hwnas.verbs.common import budget_ms_of, check_table, keep_table, open_table, read_split
from hwnas.verbs.deriving import run_derive

RANDOM_NETWORKS = 200  # per width, for the default budget


def run_search(run: Run, table_path: Path | None, fps: float | None, foreign: bool) -> None:
    """Search under a budget and derive a network."""
    recipe = run.recipe
    space, scales = recipe.space, recipe.scales()
    if fps is not None:
        run.ask(budget_ms=budget_ms_of(fps))
    config = replace(recipe.search, seed=int(run.settings.get("seed", recipe.search.seed)))
    run.ask(search_seed=config.seed, data=run.settings.get("data", recipe.data))
    if (run.folder / "arch.json").exists():
        summary({"arch": run.folder / "arch.json", "state": "complete, nothing to do"}, f"hwnas train {run.name}")
        return
    run.data("train")  # whether it is there at all; reading it comes after the budget
    latency = open_table(run, table_path, foreign)
    check_table(run, latency)
    models = price(space, scales, latency)
    typical = random_latencies_ms(space, models, RANDOM_NETWORKS, seed=0)
    default_ms = float(np.percentile(typical, recipe.budget_percentile))
    budget_ms = float(run.settings.get("budget_ms", default_ms))
    # An impossible budget is refused before the search, whatever it would find: any probabilities tell.
    uniform = {g.name: np.full(g.shape, 1 / g.shape[1]) for g in space.groups}
    derive(space, scales, models, uniform, budget_ms, recipe.width_utility)
    data = read_split(run, "train")
    run.ask(budget_ms=budget_ms)
    run.commit()
    keep_table(run, latency)
    console.print(
        f"budget {budget_ms:.4g} ms ({1000 / budget_ms:.1f} fps); random networks take "
        f"{typical.min():.4g} to {typical.max():.4g} ms"
    )
    # The width whose typical network is nearest to the budget is the one most likely to be derived.
    nearest = int(np.abs(np.log(np.median(typical, axis=1) / budget_ms)).argmin())
    bilevel = BilevelSearch(space, config, data, LatencyTerm(models[nearest], budget_ms, config.latency_weight))
    settings = {"budget_ms": budget_ms, "table": latency.where, "data": data.name}
    with bar("search", config.steps) as update:
        logits = search(bilevel, run.folder / "search.pt", settings, StepLog(run.folder / "search.jsonl"), update)
    content = {"groups": {k: v.tolist() for k, v in logits.items()}, "table": str(latency.path)}
    write_atomic(run.folder / "alphas.json", canonical_json(content) + "\n")
    run_derive(run, run, latency, budget_ms)
