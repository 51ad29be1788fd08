"""From the probabilities of a search to a network under a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hwnas.complexity import complexity
from hwnas.derived import ConstraintValue, Contender, Demands, Derived
from hwnas.errors import BudgetError, HwnasError
from hwnas.files import is_there, write_atomic
from hwnas.jobs.findings import Found, read_findings
from hwnas.jobs.inputs import (
    budgets_ms_of,
    keep_table,
    open_table,
    other_budgets,
    references_for,
    refuse_second_table,
    settle_data,
    settle_source,
)
from hwnas.jobs.landing import budget_of, check_measurable, land_on_budget, rivals
from hwnas.jobs.pricing import parts_ms
from hwnas.jobs.reranking import Judge
from hwnas.latency.resources import RESOURCES
from hwnas.latency.table import LatencyTable
from hwnas.learn.device import AUTO, open_device
from hwnas.problem import Architecture, AtMost, Group, NoTwins, Probabilities
from hwnas.progress import SILENT, Reporter
from hwnas.recipes import Recipe
from hwnas.run import Run
from hwnas.search.guards import SKIP
from hwnas.search.strategy import Findings, Stage
from hwnas.search.widths import Candidate, Constraint, Contest, choose, count, margins, price
from hwnas.spaces import Space

UNDECIDED = 0.01  # a decision is undecided where the best option leads by less than this in probability
RERANKED = 4  # candidates of each width and depth, where one is to be chosen by what they score
_NOTHING = Demands()


@dataclass(frozen=True)
class DeriveSettings:
    """What is derived.

    Attributes:
        to: Name of the run that gets the network; None to name it after the budget.
        tables: What the budgets are held against, the first for the run to keep; none for the run's own.
        fps: Budget for each table, or one for all; none for the budget of the search.
        foreign_table: Whether tables of another device will do. Further tables are of other devices anyway.
        demands: What else is asked for.
        device: Where the networks are judged and trained: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        workers: Processes that make batches ahead; None for as many as help.
    """

    to: str | None = None
    tables: tuple[Path, ...] = ()
    fps: tuple[float, ...] = ()
    foreign_table: bool = False
    demands: Demands = field(default_factory=Demands)
    device: str = AUTO
    workers: int | None = None


@dataclass(frozen=True)
class DeriveResult:
    """A derived network.

    Attributes:
        run: The run that has it.
        derived: It.
        complete: Whether it was there already; what follows is then empty.
        space: At its scale.
        probs: What it was derived from.
        parts_ms: Predicted milliseconds of each part of it.
    """

    run: Run
    derived: Derived
    complete: bool = False
    space: Space | None = None
    probs: Probabilities | None = None
    parts_ms: Mapping[str, float] = field(default_factory=dict)


def skip_groups(space: Space) -> list[Group]:
    """Return the groups of the cells that keep the resolution and may skip."""
    return [cell.group for cell in space.cells if cell.stride == 1 and SKIP in cell.ops]


def open_contest(run: Run, table: LatencyTable, demands: Demands = _NOTHING) -> Contest:
    """Set up the derivation of what a run found.

    Args:
        run: That was searched.
        table: What the budget is held against.
        demands: What else is asked for.
    """
    return _contest(run.recipe, read_findings(run), table, demands)


def _contest(recipe: Recipe, found: Found, table: LatencyTable, demands: Demands) -> Contest:
    space, scales = recipe.space, recipe.scales()
    constraints = [
        Constraint.on_table(space, scales, LatencyTable.load(Path(other.table)), other.budget_ms)
        for other in demands.others
    ]
    for resource in RESOURCES:
        most = getattr(demands, f"max_{resource}")
        if most is not None:
            constraints.append(Constraint(resource, count(space, scales, resource), most))
    problem = space.problem.fix(found.decided).with_rules(NoTwins(space.twins()))
    if demands.max_skips is not None:
        problem = problem.with_rules(*(AtMost.of(g, SKIP, demands.max_skips) for g in skip_groups(space)))
    models, utilities = price(space, scales, table), (recipe.width_utility, recipe.depth_utility)
    return Contest(problem, scales, models, found.probs, *utilities, constraints, found.trials)


def decide(
    recipe: Recipe,
    stage: Stage,
    decided: Architecture,
    findings: Findings,
    table: LatencyTable,
    budget_ms: float,
    demands: Demands,
) -> Architecture:
    """Return what is decided after a stage that is not the last.

    Its groups get the answers of the network that would be derived now under the budget, where all options of later
    groups count the same; or those of the best trial that some network under the budget has.

    Args:
        recipe: Of the search.
        stage: One of its stages.
        decided: The answers of earlier stages.
        findings: Of this stage.
        table: What the budget is held against.
        budget_ms: What the network may take.
        demands: What else is asked for.

    Raises:
        BudgetError: If no network meets the budget.
    """
    problem = recipe.space.problem
    probs = dict(problem.uniform()) | {k: torch.from_numpy(v) for k, v in findings.probabilities.items()}
    contest = _contest(recipe, Found(problem.probabilities(probs), (), decided), table, demands)
    if not findings.trials:
        best = contest.winner(budget_ms)
        if best is None or best.arch is None:
            raise contest.refusal(budget_ms)
        names = {d.name for g in problem.groups if g.name in findings.probabilities for d in g.decisions}
        return Architecture.of(problem.name, dict(decided.answers) | {d: o for d, o in best.arch.answers if d in names})
    for trial in sorted(findings.trials, key=lambda t: -t.score):
        try:
            left = contest.problem.fix(trial.architecture)
            others = Contest(left, contest.scales, contest.models, contest.probs, 0.0, constraints=contest.constraints)
        except HwnasError:  # it breaks a rule
            continue
        if others.is_met(budget_ms):
            return Architecture.of(problem.name, left.answers)
    raise BudgetError(
        f"none of the {len(findings.trials)} trials of the stage {stage.name!r} meets {budget_ms:.4g} ms "
        f"({1000 / budget_ms:.1f} fps); ask for less, or search for more of them"
    )


def derive(run: Run, settings: DeriveSettings = DeriveSettings(), report: Reporter = SILENT) -> DeriveResult:
    """Derive another network of a finished search into a run of its own.

    Raises:
        BudgetError: If no network meets the budget.
    """
    own, tables, device = run.settings, settings.tables, open_device(settings.device)
    if own.budget_ms is None:
        raise HwnasError(f"the run {run.name!r} has not been searched; run: {run.command('search')}")
    budgets = budgets_ms_of(settings.fps, len(tables)) or [own.budget_ms] * max(1, len(tables))
    table = open_table(run, tables[0] if tables else None, settings.foreign_table)
    demands = replace(settings.demands, others=other_budgets(tables, budgets))
    target = _target(run, settings, budgets[0])
    arch = target.folder / "arch.json"
    if is_there(arch) and (there := target.settings.how or _NOTHING) != demands:
        raise HwnasError(f"{arch} was derived with {there.asked() or 'no other demands'}; give --to NAME")
    inherited = ("data", "seed", "search_seed", "engine", "threads", "precision", "source")
    target.ask(
        own.recipe_settings,
        own.overrides,
        **{name: getattr(own, name) for name in inherited},
        budget_ms=budgets[0],
        how=demands if demands.asked() else None,
        identity=None if (target.folder / "run.json").exists() else own.identity,
    )
    settle_source(run, report)
    with target.locked():
        refuse_second_table(target, table)
        if arch.exists():
            settle_data(target, report, read=False)
            return DeriveResult(target, target.derived(), complete=True)
        if demands.measure:
            check_measurable(table)  # before anything is derived or written
        judge = Judge(run, device=device, workers=settings.workers)
        return derive_into(target, table, budgets[0], demands, open_contest(run, table, demands), judge, report)


def _target(run: Run, settings: DeriveSettings, budget_ms: float) -> Run:
    """Return the run that gets a network: of a whole rate, unless another budget that rounds to it has that name."""
    if settings.to is not None:
        return Run(settings.to, "--to")
    rate = 1000 / budget_ms
    short = Run(f"{run.name}-{rate:.0f}fps", "--to")
    taken = is_there(short.folder / "run.json") and short.settings.budget_ms != budget_ms
    return Run(f"{run.name}-{rate:.12g}fps", "--to") if taken else short


def derive_into(
    target: Run,
    table: LatencyTable,
    budget_ms: float,
    demands: Demands,
    contest: Contest,
    judge: Judge,
    report: Reporter,
) -> DeriveResult:
    """Derive a network under a budget into a run that is locked.

    Args:
        target: The run that gets the network.
        table: What the budget is held against.
        budget_ms: What the network may take.
        demands: What else is asked for.
        contest: Of the demands, see `open_contest`.
        judge: Of the run that was searched, which may be the same.
        report: Told how far it is.

    Raises:
        BudgetError: If no network meets the budget.
    """
    recipe_space, landing = judge.run.recipe.space, None
    measured_ms, reranking, predicted_within_ms = None, None, budget_ms
    if demands.measure:
        beside = references_for(target, table, report)
        chosen, measured_ms, landing = land_on_budget(
            contest, recipe_space, table, beside, target.folder, budget_ms, report=report
        )
        candidates, predicted_within_ms = rivals(contest, chosen, demands.candidates or 1), budget_of(contest, chosen)
    else:
        chosen, candidates = choose(contest, budget_ms, demands.candidates or (RERANKED if demands.rerank else 1))
    if target is not judge.run:
        keep_table(target, table)
        target.commit()
    if demands.rerank is not None:
        chosen, reranking = judge.rerank(target, candidates, chosen, demands.rerank, demands.rerank_steps, report)
    assert chosen.arch is not None
    space = recipe_space.at(chosen.scale)
    sure = {} if contest.trials else margins(contest.probs)  # scores of whole networks say nothing of one decision
    with report.bar("what changing a decision costs", len(contest.problem.decisions)) as update:
        cost = contest.cost_of_change(chosen, predicted_within_ms, update)
    counted = complexity(space, chosen.arch)
    assert all(c.name not in RESOURCES or v == getattr(counted, c.name) for c, v in _others(chosen, contest)), counted
    derived = Derived(
        architecture=chosen.arch,
        scale=chosen.scale,
        budget_ms=budget_ms,
        predicted_ms=chosen.latency_ms,
        table=str(table.path),
        measured_ms=measured_ms,
        macs=counted.macs,
        params=counted.params,
        genotype=str(space.genotype(chosen.arch)),
        candidates=tuple(_contender(c, contest, c is chosen) for c in candidates),
        margins=sure,
        coin_tosses=tuple(sorted(d for d, m in sure.items() if m < UNDECIDED)),
        cost_of_change={d: c if math.isfinite(c) else None for d, c in cost.items()},
        flips=tuple(sorted(d for d, c in cost.items() if c < UNDECIDED)),
        discretisation_gap=judge.gap(chosen.arch, contest.probs, report),
        by_kind_ms=contest.models[contest.scales.index(chosen.scale)].by_kind(chosen.arch),
        constraints=tuple(ConstraintValue(c.name, c.most, v) for c, v in _others(chosen, contest)),
        landing=landing,
        rerank=reranking,
    )
    write_atomic(target.folder / "arch.dot", space.dot(chosen.arch))
    target.write_derived(derived)
    return DeriveResult(target, derived, space=space, probs=contest.probs, parts_ms=parts_ms(space, chosen.arch, table))


def _others(candidate: Candidate, contest: Contest) -> list[tuple[Constraint, float]]:
    """Return each further constraint, and what is predicted for it."""
    return list(zip(contest.constraints, candidate.others, strict=True))


def _contender(c: Candidate, contest: Contest, chosen: bool) -> Contender:
    if c.arch is None:
        return Contender(c.scale, c.latency_ms)
    values = tuple(ConstraintValue(b.name, b.most, v) for b, v in _others(c, contest))
    return Contender(c.scale, c.latency_ms, c.arch, c.score, c.utility, c.interval_ms, values, chosen)
