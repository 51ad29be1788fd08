"""`hwnas search`: from a budget to an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hwnas.data.base import SegmentationData
from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json, write_atomic
from hwnas.latency.table import LatencyTable
from hwnas.ops.fused import native
from hwnas.problem import NoTwins
from hwnas.run import Run
from hwnas.search.costs import Bound
from hwnas.search.gradient import BilevelSearch, SearchConfig, search
from hwnas.search.memory import forecast
from hwnas.search.widths import Constraint, Contest, price, random_latencies_ms
from hwnas.spaces.base import Scale, SearchSpace
from hwnas.steplog import StepLog
from hwnas.ui import bar, console, summary
from hwnas.verbs.common import budgets_ms_of, check_table, further, keep_table, open_table, read_split
from hwnas.verbs.deriving import run_derive
from hwnas.verbs.landing import check_measurable

RANDOM_NETWORKS = 200  # per width, for the default budget


def run_search(run: Run, tables: Sequence[Path], fps: Sequence[float], foreign: bool, measure: bool = False) -> None:
    """Search under a budget and derive a network.

    Args:
        run: The run.
        tables: What budgets are held against, the first for the run to keep; none for the run's own. With several, a
            network must meet the budget of each.
        fps: One for each table, or one for all; none for the recipe's percentile, where there is one table.
        foreign: Whether a table of another device will do. Further tables are of other devices anyway.
        measure: Whether networks are measured here until one is at the budget.

    Raises:
        BudgetError: If no network meets the budgets.
    """
    recipe = run.recipe
    space, scales = recipe.space, recipe.scales()
    budgets = budgets_ms_of(fps, len(tables))
    if len(tables) > 1 and not budgets:
        raise HwnasError(f"{len(tables)} --table need a budget: give --fps once for all of them, or once for each")
    if budgets:
        run.ask(budget_ms=budgets[0], how={"others": further(tables, budgets)} if len(tables) > 1 else None)
    config = replace(recipe.search, seed=int(run.settings.get("seed", recipe.search.seed)))
    run.ask(search_seed=config.seed, data=run.settings.get("data", recipe.data))
    if (run.folder / "arch.json").exists():
        if measure and "measured_ms" not in read_json(run.folder / "arch.json", "a derived architecture"):
            raise HwnasError(
                f"the run {run.name!r} was searched without --measure; run: hwnas derive {run.name} --measure --to NAME"
            )
        summary({"arch": run.folder / "arch.json", "state": "complete, nothing to do"}, f"hwnas train {run.name}")
        return
    run.data("train")  # whether it is there at all; reading it comes after the budget
    latency = open_table(run, tables[0] if tables else None, foreign)
    others = [(LatencyTable.load(path), ms) for path, ms in zip(tables[1:], budgets[1:], strict=True)]
    check_table(run, latency)
    if measure:
        check_measurable(latency)  # before the search
    models = price(space, scales, latency)
    typical = random_latencies_ms(space.problem, models, RANDOM_NETWORKS, seed=0)
    default_ms = float(np.percentile(typical, recipe.budget_percentile))
    budget_ms = float(run.settings.get("budget_ms", default_ms))
    here = Constraint(str(latency.path), models, budget_ms)
    elsewhere = [Constraint.on_table(space, scales, t, ms) for t, ms in others]
    _refuse_impossible(space, scales, here, elsewhere)
    data = read_split(run, "train", config.scale.size)
    run.ask(budget_ms=budget_ms)
    run.commit()
    keep_table(run, latency)
    console.print(
        f"budget {budget_ms:.4g} ms ({1000 / budget_ms:.1f} fps); random networks take "
        f"{typical.min():.4g} to {typical.max():.4g} ms"
    )
    _say_how_cells_are_computed(config)
    # The scale whose typical network is nearest to the budget is the one most likely to be derived.
    nearest = int(np.abs(np.log(np.median(typical, axis=1) / budget_ms)).argmin())
    bounds = [here.bound(nearest, "ms"), *(c.bound(nearest, f"ms_{i}") for i, c in enumerate(elsewhere, start=2))]
    checkpoint = run.folder / "search.pt"
    if not checkpoint.exists():
        _say_memory(space, config, data, bounds)
    bilevel = BilevelSearch(space, config, data, bounds)
    settings = {"budget_ms": budget_ms, "table": latency.where, "data": data.name}
    if others:
        settings["others"] = [{"budget_ms": ms, "table": t.where} for t, ms in others]
    log = StepLog(run.folder / "search.jsonl")
    with bar("search", config.steps) as update:
        logits = search(bilevel, checkpoint, settings, log, update)
    content = {"groups": {k: v.tolist() for k, v in logits.items()}, "table": str(latency.path)}
    write_atomic(run.folder / "alphas.json", canonical_json(content) + "\n")
    _show(run, bilevel, bounds[0], log)
    run_derive(run, run, latency, budget_ms, others=others, measure=measure)


def _refuse_impossible(
    space: SearchSpace, scales: Sequence[Scale], here: Constraint, elsewhere: Sequence[Constraint]
) -> None:
    """Refuse before the search what no network meets, whatever the search would find: any probabilities tell.

    Raises:
        BudgetError: If it is so; names what can be reached.
    """
    problem = space.problem.with_rules(NoTwins(space.twins()))  # as what is derived in the end
    contest = Contest(problem, scales, here.models, problem.uniform(), 0.0, constraints=elsewhere)
    if not contest.is_met(here.most):
        raise contest.refusal(here.most)


def _say_how_cells_are_computed(config: SearchConfig) -> None:
    """Say that kernels are being compiled, which takes some seconds, or that there is nothing to compile them."""
    if config.evaluation == "plain":
        return
    if native.compiler() is None:
        console.print("no C++ compiler here, so torch alone computes the supernet, more slowly; see: hwnas doctor")
    elif not native.built():
        console.print("compiling the supernet's kernels for this CPU, once")
        native.library()


def _say_memory(space: SearchSpace, config: SearchConfig, data: SegmentationData, bounds: Sequence[Bound]) -> None:
    """Say how much memory the search will take, and what to do where there is not as much."""
    with bar("memory: two small steps", 2) as update:
        found = forecast(space, config, data, bounds, update)
    if found is None:
        console.print("how much memory the search will take cannot be foretold on this system")
        return
    console.print(f"memory: about {found.peak_bytes / 2**30:.1f} GiB of {found.free_bytes / 2**30:.1f} that are free")
    if not found.enough:
        console.print(
            "that is more than there is, and the system may end the search: in the recipe's search, divide `batch` and "
            "multiply `accumulate`, make `crop` smaller, or set evaluation='lean'",
            style="bold",
        )


def _show(run: Run, bilevel: BilevelSearch, bound: Bound, log: StepLog) -> None:
    """Say what was searched and how sure the search is of it."""
    steps, space = log.read(), bilevel.space
    if not steps:
        return  # somebody took the log away
    last = steps[-1]
    n = sum(len(g.decisions) for g in space.groups)
    why = "" if bilevel.stopped is None else f", ended early: {bilevel.stopped}"
    facts: dict[str, object] = {
        "searched": f"{len(steps)} steps, {sum(s['seconds'] for s in steps):.0f} s{why}",
        "decisions": f"{n} in {', '.join(g.name for g in space.groups)}; logits in {run.folder / 'alphas.json'}",
        "loss": f"{last['train_loss']:.4g} where the weights learn"
        + (f", {last['val_loss']:.4g} where the alphas do" if "val_loss" in last else ""),
        "entropy": f"{last['entropy']:.3f} (1: nothing decided, 0: everything); mean margin {last['margin']:.3f}",
        "cost": f"lambda {last['lambda']:.4g}; derived without a budget {last['derived_ms']:.4g} ms, "
        f"{last['derived_ms'] / bound.budget:.3f} of the {bound.budget:.4g} ms that are aimed at",
    }
    summary(facts, None)
