"""`hwnas derive`: from the probabilities of a search to a network under a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hwnas.errors import HwnasError
from hwnas.files import read_json, write_atomic
from hwnas.latency.resources import RESOURCES
from hwnas.latency.table import LatencyTable
from hwnas.problem import AtMost, NoTwins, Probabilities
from hwnas.run import Derived, Run
from hwnas.search.relax import open_logits
from hwnas.search.widths import KEPT, Candidate, Constraint, Contest, choose, count, margins, price
from hwnas.ui import bar, console, summary, table
from hwnas.verbs.common import budgets_ms_of, check_table, further, keep_table, open_table, picture, references_for
from hwnas.verbs.landing import budget_of, check_measurable, land_on_budget, landed_facts, rivals
from hwnas.verbs.pricing import Network, price_network
from hwnas.verbs.reranking import gap, rerank

COIN_TOSS = 0.01  # a decision whose best option leads by less than this was not really decided
RERANKED = 4  # candidates of each width and depth, where one is to be chosen by what they score


@dataclass(frozen=True)
class Wishes:
    """What is asked of a derived network beside its budget; None for what is not asked.

    Attributes:
        candidates: How many of each width and depth.
        rerank: What chooses among them: supernet or short trainings; by default their utility.
        rerank_steps: Steps of such a training; by default the recipe's.
        max_skips: How many `skip_connect` the normal cell may have.
        max_macs: How many multiply-adds the network may have.
        max_params: How many parameters.

    Raises:
        HwnasError: If one cannot be met by any network, or goes with another that is not there.
    """

    candidates: int | None = None
    rerank: Literal["supernet", "train"] | None = None
    rerank_steps: int | None = None
    max_skips: int | None = None
    max_macs: float | None = None
    max_params: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("candidates", 1), ("rerank_steps", 1), ("max_skips", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise HwnasError(f"{_flag(name)} must be {least} or more, got {value}")
        for name in ("max_macs", "max_params"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise HwnasError(f"{_flag(name)} must be a positive number, got {value}")
        if self.rerank_steps is not None and self.rerank != "train":
            raise HwnasError("--rerank-steps is for --rerank train")
        if self.rerank is not None and self.candidates == 1:
            raise HwnasError("--rerank chooses among several: ask for --candidates 2 or more")

    def asked(self) -> dict[str, Any]:
        """Return what was asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def flags(self) -> str:
        """Return it as the command line has it, with a blank before each."""
        return "".join(f" {_flag(name)} {value}" for name, value in self.asked().items())


def open_contest(
    source: Run, latency: LatencyTable, wishes: Wishes, others: Sequence[tuple[LatencyTable, float]] = ()
) -> Contest:
    """Set up the derivation of what `source` found.

    Args:
        source: A run that was searched.
        latency: What the budget is held against.
        wishes: What else is asked for.
        others: Further tables, each with the milliseconds a network may take there.
    """
    recipe = source.recipe
    space, scales = recipe.space, recipe.scales()
    bounds = [Constraint.on_table(space, scales, t, ms) for t, ms in others]
    for resource in RESOURCES:
        most = getattr(wishes, f"max_{resource}")
        if most is not None:
            bounds.append(Constraint(resource, count(space, scales, resource), most))
    problem = space.problem.with_rules(NoTwins(space.twins()))
    if wishes.max_skips is not None:
        normal = next(g for g in problem.groups if g.name == "normal")
        problem = problem.with_rules(AtMost.of(normal, "skip_connect", wishes.max_skips))
    models = price(space, scales, latency)
    return Contest(problem, scales, models, read_probs(source), recipe.width_utility, recipe.depth_utility, bounds)


def run_derive(
    source: Run,
    target: Run,
    latency: LatencyTable,
    budget_ms: float,
    wishes: Wishes = Wishes(),
    others: Sequence[tuple[LatencyTable, float]] = (),
    measure: bool = False,
) -> None:
    """Derive a network from what `source` found, under a budget, into the run `target`.

    Args:
        source: A run that was searched.
        target: The run that gets the network; may be the same.
        latency: What the budget is held against.
        budget_ms: What the network may take.
        wishes: What else is asked for.
        others: Further tables, each with the milliseconds a network may take there.
        measure: Whether networks are measured here until one is at the budget.

    Raises:
        BudgetError: If no network meets the budget.
    """
    contest = open_contest(source, latency, wishes, others)
    more: dict[str, Any] = {"table": str(latency.path)}
    predicted_within_ms = budget_ms
    if measure:
        beside = references_for(target, latency)
        chosen, landed = land_on_budget(contest, source.recipe.space, latency, beside, target.folder, budget_ms)
        more |= landed
        candidates, predicted_within_ms = rivals(contest, chosen, wishes.candidates or 1), budget_of(contest, chosen)
    else:
        chosen, candidates = choose(contest, budget_ms, wishes.candidates or (RERANKED if wishes.rerank else 1))
    if target is not source:
        keep_table(target, latency)
        target.commit()
    if wishes.rerank is not None:
        chosen, more["rerank"] = rerank(source, target, candidates, chosen, wishes.rerank, wishes.rerank_steps)
    assert chosen.arch is not None
    index = contest.scales.index(chosen.scale)
    space, sure = source.recipe.space, margins(contest.probs)
    with bar("what changing a decision costs", len(sure)) as update:
        cost = contest.cost_of_change(chosen, predicted_within_ms, update)
    tosses = sorted(d for d, m in sure.items() if m < COIN_TOSS)
    more |= {
        "candidates": [_candidate(c, contest.constraints) | {"chosen": c is chosen} for c in candidates],
        "coin_tosses": tosses,
        "margins": sure,
        "cost_of_change": {d: c if math.isfinite(c) else None for d, c in cost.items()},
        "flips": sorted(d for d, c in cost.items() if c < COIN_TOSS),
        "discretisation_gap": gap(source, chosen.arch, contest.probs.matrices()),
        "genotype": str(space.genotype(chosen.arch)),
        "by_kind_ms": contest.models[index].by_kind(chosen.arch),
        "constraints": [
            {"name": c.name, "most": c.most, "predicted": v}
            for c, v in zip(contest.constraints, chosen.others, strict=True)
        ],
    }
    target.write_derived(Derived(chosen.arch, chosen.scale, budget_ms, chosen.latency_ms), more)
    write_atomic(target.folder / "arch.dot", space.dot(chosen.arch))
    network = Network(target.name, source.recipe, chosen.scale, chosen.arch)

    def draw(figure: Any) -> None:
        space.draw(figure, network.arch, contest.probs.matrices(), price_network(network, latency).by_part())

    picture(target.folder / "arch.svg", draw)
    show_candidates(candidates, chosen, contest.constraints)
    console.print(more["genotype"], markup=False)
    summary(_facts(target, chosen, budget_ms, more), f"hwnas train {target.name}")


def derive_into(
    source: Run,
    name: str | None,
    tables: Sequence[Path],
    fps: Sequence[float],
    foreign: bool,
    wishes: Wishes = Wishes(),
    measure: bool = False,
) -> None:
    """Derive another network of a finished search into a run of its own.

    Args:
        source: A run that was searched.
        name: Of the run that gets the network; None to name it after the budget.
        tables: What the budgets are held against, the first for the run to keep; none for the run's own.
        fps: One for each table, or one for all; none for the budget of the search.
        foreign: Whether tables of another device will do. Further tables are of other devices anyway.
        wishes: What else is asked for.
        measure: Whether networks are measured here until one is at the budget.
    """
    if measure and wishes.rerank is not None:
        raise HwnasError("--measure lands on the network of the highest utility: leave --rerank away")
    settings = source.settings
    if "budget_ms" not in settings:
        raise HwnasError(f"the run {source.name!r} has not been searched; run: {source.command('search')}")
    budgets = budgets_ms_of(fps, len(tables)) or [float(settings["budget_ms"])] * max(1, len(tables))
    latency = open_table(source, tables[0] if tables else None, foreign)
    others = [(LatencyTable.load(path), ms) for path, ms in zip(tables[1:], budgets[1:], strict=True)]
    target = Run(name or f"{source.name}-{1000 / budgets[0]:.0f}fps")
    how = wishes.asked() | ({"measure": True} if measure else {})
    if others:
        how["others"] = further(tables, budgets)
    arch = target.folder / "arch.json"
    if arch.exists() and (target.settings.get("how") or {}) != how:
        raise HwnasError(f"{arch} was derived with {target.settings.get('how') or 'no such wishes'}; give --to NAME")
    known = {k: v for k, v in settings.items() if k not in ("schema", "budget_ms", "how")}
    target.ask(**known, budget_ms=budgets[0], how=how or None)
    with target.locked():
        check_table(target, latency)
        if arch.exists():
            summary({"arch": arch, "state": "complete, nothing to do"}, target.command("train"))
            return
        if measure:
            check_measurable(latency)  # before anything is derived or written
        run_derive(source, target, latency, budgets[0], wishes, others, measure)


def read_probs(run: Run) -> Probabilities:
    """Return what a search found: the probabilities of each group, as its relaxation reads them off its logits."""
    path = run.require("alphas.json", "search")
    data = read_json(path, "the alphas of a search")
    recipe = run.recipe
    try:
        logits = {str(k): torch.tensor(v, dtype=torch.float32) for k, v in data["groups"].items()}
        shapes = {k: tuple(v.shape) for k, v in logits.items()}
        if shapes != {g.name: g.shape for g in recipe.space.groups}:
            raise ValueError("its shapes are those of another space")
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise HwnasError(f"{path} does not hold the alphas of {recipe.name} ({e}); search again") from e
    problem = recipe.space.problem
    return problem.probabilities(recipe.search.relaxation.probs(open_logits(logits, problem.groups)))


def _candidate(c: Candidate, constraints: Sequence[Constraint]) -> dict[str, Any]:
    """Return a JSON object of a candidate."""
    arch = None if c.arch is None else c.arch.to_json()
    out = {"scale": c.scale.to_json(), "latency_ms": c.latency_ms, "architecture": arch}
    if c.arch is None:
        return out
    others = [{"name": b.name, "predicted": v} for b, v in zip(constraints, c.others, strict=True)]
    return out | {"score": c.score, "utility": c.utility, "interval_ms": c.interval_ms, "constraints": others}


def show_candidates(candidates: Sequence[Candidate], chosen: Candidate, constraints: Sequence[Constraint] = ()) -> None:
    """Print what competed, with the latency that is predicted and the interval that holds the measured one."""
    rows = []
    for c in candidates:
        size = [str(c.scale.channels), str(c.scale.cells)]
        if c.arch is None:
            least = f"at best {c.latency_ms:.4g}"
            rows.append([*size, "", "", least, "", f"{1000 / c.latency_ms:.1f}", *[""] * len(constraints), "over"])
            continue
        interval = "" if c.interval_ms is None else "{:.4g} to {:.4g}".format(*c.interval_ms)
        others = [b.say(v) for b, v in zip(constraints, c.others, strict=True)]
        figures = [f"{c.score:.3f}", f"{c.utility:.3f}", f"{c.latency_ms:.4g}", interval, f"{1000 / c.latency_ms:.1f}"]
        note = "<- chosen" if c is chosen else "keeps little" if c.score < KEPT else ""
        rows.append([*size, *figures, *others, note])
    header = ("channels", "cells", "score", "utility", "predicted ms", "95 % interval", "fps")
    table("candidates", (*header, *(b.name for b in constraints), ""), rows, numbers=True)


def _facts(target: Run, chosen: Candidate, budget_ms: float, more: Mapping[str, Any]) -> dict[str, object]:
    """Return the summary of a derivation."""
    sure, cost = more["margins"], more["cost_of_change"]
    close = min((c, d) for d, c in cost.items() if c is not None) if any(c is not None for c in cost.values()) else None
    facts: dict[str, object] = {
        "arch": target.folder / "arch.json",
        "predicted": f"{chosen.latency_ms:.4g} ms ({1000 / chosen.latency_ms:.1f} fps), budget {budget_ms:.4g} ms",
        "coin tosses": f"{len(more['coin_tosses'])} of {len(sure)} decisions led by less than {COIN_TOSS}",
        "would flip": f"{len(more['flips'])} of {len(sure)} answers: another network that differs there and meets the "
        f"budget scores less than {COIN_TOSS} less"
        + ("" if close is None else f"; the least sure is {close[1]}, by {close[0]:.4f}"),
    }
    if "measured_ms" in more:
        facts |= landed_facts(budget_ms, more)
    found = more["discretisation_gap"]
    if "gap" in found:
        facts["discretisation gap"] = (
            f"{found['gap']:+.3f}: the supernet's loss is {found['mixture_loss']:.3f} as the mixture and "
            f"{found['derived_loss']:.3f} as this network, on {found['images']} held-out images"
        )
    else:
        facts["discretisation gap"] = f"not measured: {found['reason']}"
    if "rerank" in more:
        facts["rerank"] = more["rerank"]["reason"]
    return facts


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
