"""From a budget to an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwnas import checkpoint, records
from hwnas.data import SegmentationData
from hwnas.derived import Demands, Derived
from hwnas.errors import HwnasError, MissingOp, check_ranges, not_below
from hwnas.files import set_aside
from hwnas.jobs.deriving import DeriveResult, decide, derive_into, open_contest
from hwnas.jobs.findings import read_stage, stored_findings
from hwnas.jobs.inputs import (
    budgets_ms_of,
    keep_table,
    open_table,
    other_budgets,
    read_all,
    refuse_second_table,
    settle_data,
)
from hwnas.jobs.landing import check_measurable
from hwnas.jobs.looking import look_at
from hwnas.jobs.reranking import Judge
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.learn import loop
from hwnas.learn.device import AUTO, title
from hwnas.learn.distributed import ALONE, World, current
from hwnas.problem import Architecture, NoTwins
from hwnas.progress import SILENT, Reporter
from hwnas.recipes import Recipe
from hwnas.run import Run
from hwnas.search.config import SearchConfig
from hwnas.search.costs import Bound
from hwnas.search.strategy import Inputs, Stage
from hwnas.search.strategy import search as run_search
from hwnas.search.widths import RANDOM_NETWORKS, Constraint, Contest, count, price, random_latencies_ms, safety, typical
from hwnas.steplog import StepLog


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
        trials: How many architectures a search by trials is to try in all: a finished one goes on; None for the
            recipe's number.
        storage: URL of a database for the trials, which several machines can share; None for a file in the run.
        processes: Of this machine that try architectures at once.
    """

    tables: tuple[Path, ...] = ()
    fps: tuple[float, ...] = ()
    foreign_table: bool = False
    measure: bool = False
    device: str = AUTO
    workers: int | None = None
    trials: int | None = None
    storage: str | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        """Raise HwnasError for numbers that cannot be."""
        check_ranges(
            "a search",
            *not_below(self, ("processes",), 1),
            ("--trials of 1 or more", self.trials, self.trials is None or self.trials >= 1),
        )


@dataclass(frozen=True)
class StageResult:
    """What one stage of a search found.

    Attributes:
        name: Of the stage.
        groups: What it decided.
        decisions: How many there were.
        steps: The lines of its step log.
        trials: How many architectures it scored; 0 for a strategy that finds probabilities.
        findings: The file of what it found.
        log: The file of its step log.
        stopped: Why it ended early; None if it did not.
    """

    name: str
    groups: tuple[str, ...]
    decisions: int
    steps: tuple[dict[str, Any], ...]
    trials: int
    findings: Path
    log: Path
    stopped: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        derivation: Of the network, as `hwnas.jobs.derive` gives it.
        stages: One for each stage; empty where the search was complete already.
        aim_ms: What the loss aimed at.
    """

    derivation: DeriveResult
    stages: tuple[StageResult, ...] = ()
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

    Where processes were `joined`, all of them call this; supernets are trained together, the rest is done by rank 0.

    Raises:
        BudgetError: If no network meets the budgets.
    """
    world = current()
    if world.rank:
        return _take_part(run, settings, world)
    with world.leading():
        return _begin(run, settings, report, world)


def _begin(run: Run, settings: SearchSettings, report: Reporter, world: World) -> SearchResult:
    tables = settings.tables
    budgets = budgets_ms_of(settings.fps, len(tables))
    if len(tables) > 1 and not budgets:
        raise HwnasError(f"{len(tables)} --table need a budget: give --fps once for all of them, or once for each")
    demands = Demands(others=other_budgets(tables, budgets) if budgets else ())
    with run.locked():
        if budgets:
            run.ask(budget_ms=budgets[0], how=demands if demands.others else None)
        seed = next((stage.strategy.seed for stage in run.seeded_recipe.searched), None)
        run.ask(search_seed=seed, data=run.settings.data or run.recipe.data)
        _check_shared(run.recipe, settings)
        if settings.trials is not None:
            _extend(run, settings.trials)
        if (run.folder / "arch.json").exists():
            derived = run.derived()
            if settings.measure and derived.measured_ms is None:
                raise HwnasError(
                    f"the run {run.name!r} was searched without --measure; "
                    f"run: hwnas derive {run.name} --measure --to NAME"
                )
            settle_data(run, report, read=False)
            return SearchResult(DeriveResult(run, derived, complete=True))
        demands = replace(demands, measure=settings.measure)
        return _search(run, settings, demands, report, world)


def _check_shared(recipe: Recipe, settings: SearchSettings) -> None:
    """Refuse what only a search by trials can do.

    Raises:
        HwnasError: If the recipe has no stage that does.
    """
    asked = {
        "--trials": settings.trials is not None,
        "--storage": settings.storage is not None,
        "--processes": settings.processes > 1,
    }
    if any(asked.values()) and not any(s.strategy.concurrent for s in recipe.searched):
        option = next(name for name, given in asked.items() if given)
        raise HwnasError(f"{option} is for searches by trials, and the recipe {recipe.name} has none")


def _extend(run: Run, trials: int) -> None:
    """Let the last stage of a run have more trials; the network of a finished search is kept under a number.

    Raises:
        HwnasError: If the last stage is not by trials, has more, or the run's network is trained already.
    """
    stage = run.recipe.searched[-1]
    if trials == stage.strategy.steps:
        return
    stage.strategy.extended(trials)  # refuses what cannot be
    done = run.folder / "arch.json"
    later = [name for name in ("train", "deploy", "report.json") if (run.folder / name).exists()]
    if done.exists() and later:
        raise HwnasError(
            f"the run {run.name!r} has {later[0]} of the network it found; for more trials search under another name "
            "with --run"
        )
    run.ask(overrides={f"{stage.name}.steps": str(trials)}, late=(stage.name,))
    if done.exists():
        run.commit()
        set_aside(done)


def _take_part(run: Run, settings: SearchSettings, world: World) -> SearchResult:
    """Do the steps of the searches that the process of rank 0 runs; of the run folder files are read only."""
    device = world.device(settings.device)
    for name, found in world.orders():
        stage = next(stage for stage in run.seeded_recipe.searched if stage.name == name)
        data = run.data("train", stage.strategy.size)
        inputs = Inputs(
            run.recipe.space, data, open_groups=stage.groups, device=device, workers=settings.workers, world=world
        )
        loop.follow(stage.strategy.begin(replace(inputs, **found)), world)
    return SearchResult(DeriveResult(run, run.derived(), complete=True))


def _search(run: Run, settings: SearchSettings, demands: Demands, report: Reporter, world: World) -> SearchResult:
    recipe, tables, device = run.seeded_recipe, settings.tables, world.device(settings.device)
    space, scales = recipe.space, recipe.scales()
    # Read after the budget; where nothing is searched, for what is to be trained.
    data = {s.strategy.size: run.data("train", s.strategy.size) for s in recipe.searched} or {None: run.data("train")}
    for stage in recipe.searched:
        if stage.before is not None:
            stage.before.open("train")  # what cannot be used is refused now
    table = open_table(run, tables[0] if tables else None, settings.foreign_table)
    others = [LatencyTable.load(Path(other.table)) for other in demands.others]
    refuse_second_table(run, table)
    if demands.measure:
        check_measurable(table)  # before the search
    models = _price(run, table)
    random_ms = random_latencies_ms(space.problem, models, RANDOM_NETWORKS, seed=0)
    budget_ms = run.settings.budget_ms
    if budget_ms is None:
        budget_ms = _default_budget_ms(recipe, models, random_ms)
    here = Constraint(str(table.path), models, budget_ms)
    elsewhere = [
        Constraint.on_table(space, scales, t, other.budget_ms) for t, other in zip(others, demands.others, strict=True)
    ]
    # What no network meets, none does whatever the search will find: any probabilities tell.
    problem = space.problem.with_rules(NoTwins(space.twins()))  # as what is derived in the end
    contest = Contest(problem, scales, models, problem.uniform(), 0.0, constraints=elsewhere)
    if not contest.is_met(budget_ms):
        raise contest.refusal(budget_ms)
    for images in data.values():
        read_all(images, report)
    images = data[recipe.searched[-1].strategy.size if recipe.searched else None]
    halves = {s.strategy.seed for s in recipe.searched if isinstance(s.strategy, SearchConfig)}
    look_at(run, {"train": images}, report, also=("val", "test"), halves=sorted(halves))
    run.ask(budget_ms=budget_ms)
    settle_data(run, report)
    run.commit()
    keep_table(run, table)
    report.note(
        f"budget {budget_ms:.4g} ms ({1000 / budget_ms:.1f} fps); random networks take "
        f"{random_ms.min():.4g} to {random_ms.max():.4g} ms"
    )
    # The scale whose typical network is nearest to the budget is the one most likely to be derived.
    nearest = int(np.abs(np.log(np.median(random_ms, axis=1) / budget_ms)).argmin())
    bounds = [here.bound(nearest, "ms"), *(c.bound(nearest, f"ms_{i}") for i, c in enumerate(elsewhere, start=2))]
    weighed = dict.fromkeys(r for stage in recipe.searched for r in stage.strategy.resources)
    counted = {r: typical(space.problem, count(space, [scales[nearest]], r)[0], r) for r in weighed}
    made_with: dict[str, Any] = {"budget_ms": budget_ms, "table": table.where, "data": run.name_of(images)}
    if others:
        made_with["others"] = [
            {"budget_ms": o.budget_ms, "table": t.where} for t, o in zip(others, demands.others, strict=True)
        ]
    context = _Context(run, data, tuple(bounds), counted, table, demands, made_with, device, settings, world)
    results, fixed = [], Architecture.of(space.name, {})
    for i, stage in enumerate(recipe.searched):
        result, fixed = _search_stage(context, stage, fixed, i == len(recipe.searched) - 1, report)
        results.append(result)
    judge = Judge(run, images, device)
    derivation = derive_into(run, table, budget_ms, demands, open_contest(run, table, demands), judge, report)
    return SearchResult(derivation, tuple(results), bounds[0].budget)


def _price(run: Run, table: LatencyTable) -> list[LatencyModel]:
    """Return the latency model of each scale of a run's recipe by a table."""
    space = run.recipe.space
    try:
        return price(space, run.recipe.scales(), table)
    except MissingOp as e:
        raise MissingOp(
            f"{e}; here that is: {run.command('profile')} (its networks are for {space.classes} classes, and a table "
            "serves one number of classes)"
        ) from e


def _default_budget_ms(recipe: Recipe, models: Sequence[LatencyModel], random_ms: np.ndarray) -> float:
    """Return the budget where none is asked for: the recipe's percentile of random networks of all scales.

    Where the size is all there is to choose, it leaves that to the utility.

    Args:
        recipe: Of the run.
        models: One for each scale.
        random_ms: What they predict for random networks, (models, networks).
    """
    if recipe.searched:
        return float(np.percentile(random_ms, recipe.budget_percentile))
    return max(safety(m) * float(ms.max()) for m, ms in zip(models, random_ms, strict=True))


@dataclass(frozen=True)
class _Context:
    """What all stages of a search share."""

    run: Run
    data: dict[tuple[int, int] | None, SegmentationData]
    bounds: tuple[Bound, ...]
    counted: dict[str, Bound]  # what has no budget and is weighed by a strategy
    table: LatencyTable
    demands: Demands
    made_with: dict[str, Any]
    device: torch.device
    settings: SearchSettings
    world: World


def _weights(context: _Context, stage: Stage, fixed: Architecture, report: Reporter) -> dict[str, Tensor] | None:
    """Return what the supernet of a stage starts from; pre-train the encoder where the stage has that before it."""
    run = context.run
    out: dict[str, Tensor] = {}
    if stage.weights_from is not None:
        source = next(s for s in run.recipe.stages if s.name == stage.weights_from)
        out |= checkpoint.read(run.folder / source.file("search.pt"))["net"]
    if stage.before is not None:
        with report.bar("pre-train", stage.before.settings.steps) as update:
            out |= stage.before.run(
                run.recipe.space,
                fixed,
                run.folder / f"pretrain-{stage.name}",
                update=update,
                device=context.device,
                workers=context.settings.workers,
            )
    return out or None


def _search_stage(
    context: _Context, stage: Stage, fixed: Architecture, last: bool, report: Reporter
) -> tuple[StageResult, Architecture]:
    """Run a stage, unless that has been done, and return what it found and what is decided after it."""
    run, strategy = context.run, stage.strategy
    path, log = run.folder / stage.file("search.pt"), StepLog(run.folder / stage.file("search.jsonl"))
    inputs = Inputs(
        run.recipe.space,
        context.data[strategy.size],
        (*context.bounds, *(context.counted[r] for r in strategy.resources)),
        stage.groups,
        fixed if fixed.answers else None,
        device=context.device,
        workers=context.settings.workers,
        folder=run.folder / stage.file("study"),
        storage=context.settings.storage,
        processes=context.settings.processes,
        name=f"{run.name}/{stage.name}",
        world=context.world if strategy.shareable else ALONE,
    )
    groups, answers = tuple(g.name for g in inputs.groups), inputs.problem.answers
    file, stopped = run.folder / stage.file("alphas.json"), None
    there = read_stage(run, stage) if file.exists() else None
    if there is None or (last and strategy.concurrent and len(there.trials) < strategy.steps):
        inputs = replace(inputs, weights=_weights(context, stage, fixed, report))
        strategy.prepare(inputs, not path.exists(), report)
        made_with = context.made_with | ({"fixed": fixed.to_json()} if fixed.answers else {})
        with report.bar(stage.name, strategy.steps) as update:
            search = strategy.begin(inputs)
            if inputs.world.shared:
                found = {name: getattr(inputs, name) for name in ("bounds", "fixed", "weights")}
                inputs.world.order((stage.name, found))
            findings = run_search(search, path, made_with, log, update, {"device": title(context.device)})
        stopped = search.stopped
        decided = None
        if not last:
            budget_ms = context.made_with["budget_ms"]
            decided = decide(run.recipe, stage, fixed, findings, context.table, budget_ms, context.demands)
        there = stored_findings(findings, context.table, decided)
        records.save(file, there)
    result = StageResult(
        stage.name,
        groups,
        sum(d.name not in answers for g in inputs.groups for d in g.decisions),
        tuple(log.read()),
        len(there.trials),
        file,
        log.path,
        stopped,
    )
    return result, fixed if there.decided is None else there.decided
