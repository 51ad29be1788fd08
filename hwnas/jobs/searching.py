"""From a budget to an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import records
from hwnas.data import SegmentationData
from hwnas.derived import Demands, Derived
from hwnas.errors import HwnasError
from hwnas.jobs.deriving import Alphas, DeriveResult, derive_into, open_contest
from hwnas.jobs.inputs import budgets_ms_of, keep_table, open_table, other_budgets, read_all, refuse_second_table
from hwnas.jobs.landing import check_measurable
from hwnas.jobs.reranking import Judge
from hwnas.latency.table import LatencyTable
from hwnas.learn.device import AUTO, CPU, open_device
from hwnas.ops.fused import native
from hwnas.problem import NoTwins
from hwnas.progress import SILENT, Reporter
from hwnas.run import Run
from hwnas.search.costs import Bound
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.gradient import search as search_gradient
from hwnas.search.memory import forecast
from hwnas.search.widths import Constraint, Contest, price, random_latencies_ms
from hwnas.spaces import Space
from hwnas.steplog import StepLog

RANDOM_NETWORKS = 200  # per width, for the default budget


@dataclass(frozen=True)
class SearchSettings:
    """What is searched for.

    Attributes:
        tables: What budgets are held against, the first for the run to keep; none for the run's own. With several, a
            network must meet the budget of each.
        fps: Budget for each table, or one for all; none for the recipe's percentile, where there is one table.
        foreign_table: Whether tables of another device will do. Further tables are of other devices anyway.
        measure: Whether networks are measured here until one is at the budget.
        device: Where the supernet computes: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        workers: Processes that make batches ahead; None for as many as help.
    """

    tables: tuple[Path, ...] = ()
    fps: tuple[float, ...] = ()
    foreign_table: bool = False
    measure: bool = False
    device: str = AUTO
    workers: int | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        derivation: Of the network, as `hwnas.jobs.derive` gives it.
        groups: What was decided.
        decisions: How many there were.
        steps: The lines of the step log; empty where the search was complete already.
        stopped: Why it ended early; None if it did not.
        aim_ms: What the loss aimed at.
    """

    derivation: DeriveResult
    groups: tuple[str, ...] = ()
    decisions: int = 0
    steps: tuple[dict[str, Any], ...] = ()
    stopped: str | None = None
    aim_ms: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the network was there already."""
        return self.derivation.complete

    @property
    def derived(self) -> Derived:
        """The network."""
        return self.derivation.derived


def search(run: Run, settings: SearchSettings = SearchSettings(), report: Reporter = SILENT) -> SearchResult:
    """Search under a budget and derive a network.

    Raises:
        BudgetError: If no network meets the budgets.
    """
    recipe, tables = run.recipe, settings.tables
    budgets = budgets_ms_of(settings.fps, len(tables))
    if len(tables) > 1 and not budgets:
        raise HwnasError(f"{len(tables)} --table need a budget: give --fps once for all of them, or once for each")
    demands = Demands(others=other_budgets(tables, budgets) if budgets else ())
    with run.locked():
        if budgets:
            run.ask(budget_ms=budgets[0], how=demands if demands.others else None)
        seed = run.settings.seed
        config = recipe.search if seed is None else replace(recipe.search, seed=seed)
        run.ask(search_seed=config.seed, data=run.settings.data or recipe.data)
        if (run.folder / "arch.json").exists():
            derived = run.derived()
            if settings.measure and derived.measured_ms is None:
                raise HwnasError(
                    f"the run {run.name!r} was searched without --measure; "
                    f"run: hwnas derive {run.name} --measure --to NAME"
                )
            return SearchResult(DeriveResult(run, derived, complete=True))
        demands = replace(demands, measure=settings.measure)
        return _search(run, config, settings, demands, report)


def _search(
    run: Run, config: SearchConfig, settings: SearchSettings, demands: Demands, report: Reporter
) -> SearchResult:
    recipe, tables, device = run.recipe, settings.tables, open_device(settings.device)
    space, scales = recipe.space, recipe.scales()
    data = run.data("train", config.scale.size)  # whether it is there at all; reading it comes after the budget
    table = open_table(run, tables[0] if tables else None, settings.foreign_table)
    others = [LatencyTable.load(Path(other.table)) for other in demands.others]
    refuse_second_table(run, table)
    if demands.measure:
        check_measurable(table)  # before the search
    models = price(space, scales, table)
    typical = random_latencies_ms(space.problem, models, RANDOM_NETWORKS, seed=0)
    budget_ms = run.settings.budget_ms
    if budget_ms is None:
        budget_ms = float(np.percentile(typical, recipe.budget_percentile))
    here = Constraint(str(table.path), models, budget_ms)
    elsewhere = [
        Constraint.on_table(space, scales, t, other.budget_ms) for t, other in zip(others, demands.others, strict=True)
    ]
    # What no network meets, none does whatever the search will find: any probabilities tell.
    problem = space.problem.with_rules(NoTwins(space.twins()))  # as what is derived in the end
    contest = Contest(problem, scales, models, problem.uniform(), 0.0, constraints=elsewhere)
    if not contest.is_met(budget_ms):
        raise contest.refusal(budget_ms)
    read_all(data, report)
    run.ask(budget_ms=budget_ms)
    run.commit()
    keep_table(run, table)
    report.note(
        f"budget {budget_ms:.4g} ms ({1000 / budget_ms:.1f} fps); random networks take "
        f"{typical.min():.4g} to {typical.max():.4g} ms"
    )
    if device == CPU:
        report_kernels(config, report)
    # The scale whose typical network is nearest to the budget is the one most likely to be derived.
    nearest = int(np.abs(np.log(np.median(typical, axis=1) / budget_ms)).argmin())
    bounds = [here.bound(nearest, "ms"), *(c.bound(nearest, f"ms_{i}") for i, c in enumerate(elsewhere, start=2))]
    checkpoint = run.folder / "search.pt"
    if device == CPU and not checkpoint.exists():
        report_memory(space, config, data, bounds, report)
    bilevel = BilevelSearch(space, config, data, bounds, device=device, workers=settings.workers)
    made_with: dict[str, Any] = {"budget_ms": budget_ms, "table": table.where, "data": data.name}
    if others:
        made_with["others"] = [
            {"budget_ms": o.budget_ms, "table": t.where} for t, o in zip(others, demands.others, strict=True)
        ]
    log = StepLog(run.folder / "search.jsonl")
    with report.bar("search", config.steps) as update:
        logits = search_gradient(bilevel, checkpoint, made_with, log, update)
    records.save(
        run.folder / "alphas.json",
        Alphas({k: tuple(map(tuple, v.tolist())) for k, v in logits.items()}, str(table.path)),
    )
    contest = open_contest(run, table, demands)
    derivation = derive_into(run, table, budget_ms, demands, contest, Judge(run, data, device), report)
    return SearchResult(
        derivation,
        tuple(g.name for g in space.groups),
        sum(len(g.decisions) for g in space.groups),
        tuple(log.read()),
        bilevel.stopped,
        bounds[0].budget,
    )


def report_kernels(config: SearchConfig, report: Reporter) -> None:
    """Say that kernels are being compiled, which takes some seconds, or that there is nothing to compile them."""
    if config.evaluation == "plain":
        return
    if native.compiler() is None:
        report.note("no C++ compiler here, so torch alone computes the supernet, more slowly; see: hwnas doctor")
    elif not native.built():
        report.note("compiling the supernet's kernels for this CPU, once")
        native.library()


def report_memory(
    space: Space, config: SearchConfig, data: SegmentationData, bounds: Sequence[Bound], report: Reporter
) -> None:
    """Say how much memory the search will take, and what to do where there is not as much."""
    with report.bar("memory: two small steps", 2) as update:
        memory = forecast(space, config, data, bounds, update)
    if memory is None:
        report.note("how much memory the search will take cannot be foretold on this system")
        return
    report.note(f"memory: about {memory.peak_bytes / 2**30:.1f} GiB of {memory.free_bytes / 2**30:.1f} that are free")
    if not memory.enough:
        report.note(
            "that is more than there is, and the system may end the search: in the recipe's search, divide `batch` and "
            "multiply `accumulate`, make `crop` smaller, or set evaluation='lean'",
            warning=True,
        )
