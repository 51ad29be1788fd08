"""Derivation at every width and depth: these have no logits, so the solver runs at each and the candidates compete."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hwnas.errors import BudgetError
from hwnas.latency.model import LatencyModel
from hwnas.latency.resources import RESOURCES, Counts
from hwnas.latency.table import LatencyTable
from hwnas.ops.trace import Trace
from hwnas.problem import Architecture, Matrices, Probabilities, Problem
from hwnas.progress import Update, ignore
from hwnas.search.costs import Bound
from hwnas.search.derive import Solution, Solver, reachable_fps, strongest
from hwnas.search.strategy import Trial
from hwnas.search.trials import TrialSolver
from hwnas.spaces import Scale, Space, trace_alternatives

RANDOM_NETWORKS = 200  # per width, for the default budget and for what is typical

# The prediction of a derived network stays below the budget by half the relative error of the table, 10 % at most: a
# table with a larger error should be measured again.
SAFETY = 0.5
MAX_SAFETY = 0.1


def _traces(space: Space, scales: Sequence[Scale], merge: bool) -> list[Trace]:
    return [trace_alternatives(space.at(s), merge) for s in scales]


def price(space: Space, scales: Sequence[Scale], table: LatencyTable) -> list[LatencyModel]:
    """Return the latency model of the deploy form at each scale.

    Raises:
        MissingOp: If the table lacks an op.
    """
    traces = _traces(space, scales, bool(table.where["merges"]))
    return [LatencyModel(t.terms(), table, space.problem) for t in traces]


def count(space: Space, scales: Sequence[Scale], resource: str) -> list[LatencyModel]:
    """Return models that predict a count in place of milliseconds, one for each scale.

    Args:
        space: Any scale.
        scales: The deployment scales.
        resource: One of `hwnas.latency.resources.RESOURCES`.
    """
    traces = _traces(space, scales, merge=True)  # merged ops have neither parameters nor multiply-adds
    return [LatencyModel(t.terms(), Counts.of(t, resource), space.problem) for t in traces]


def random_latencies_ms(problem: Problem, models: Sequence[LatencyModel], n: int, seed: int) -> np.ndarray:
    """Return the predicted latencies of random architectures, (len(models), n)."""
    rng = np.random.default_rng(seed)
    return np.array([[m.predict_ms(problem.draw(rng)) for _ in range(n)] for m in models])


def typical(problem: Problem, model: LatencyModel, name: str) -> Bound:
    """Return a resource that has no budget relative to what the typical network takes: the median of random ones."""
    taken = random_latencies_ms(problem, [model], RANDOM_NETWORKS, seed=0)
    return Bound(name, model, float(np.median(taken)))


def safety(model: LatencyModel) -> float:
    """Return by what factor the prediction of a derived network stays below its budget."""
    return 1 + min(SAFETY * (model.relative_error or 0.0), MAX_SAFETY)


@dataclass(frozen=True)
class Constraint:
    """A further bound on networks: latency on another device, multiply-adds, or parameters.

    Attributes:
        name: What messages call it: a table, or one of `hwnas.latency.resources.RESOURCES`.
        models: One for each scale.
        most: Milliseconds, or a count.
    """

    name: str
    models: Sequence[LatencyModel]
    most: float

    @classmethod
    def on_table(cls, space: Space, scales: Sequence[Scale], table: LatencyTable, most_ms: float) -> Constraint:
        """Hold networks to a latency on the device of another table."""
        return cls(str(table.path or table.name), price(space, scales, table), most_ms)

    def bound(self, scale: int, name: str) -> Bound:
        """Return the budget of a search at one scale, with the safety factor of the table.

        Args:
            scale: Index of the scale.
            name: In logs, with its unit.
        """
        model = self.models[scale]
        return Bound(name, model, self.most / safety(model))

    def say(self, value: float) -> str:
        """Return a value as messages have it: frames per second by a table, or a count."""
        return f"{value:.4g} {self.name}" if self.name in RESOURCES else f"{1000 / value:.1f} fps by {self.name}"


# A candidate with a lower score ranks behind all others. Utility is linear in the score, which holds near 1; far below,
# more channels do not compensate for a cell without convolutions.
MIN_SCORE = 0.8


@dataclass(frozen=True)
class Candidate:
    """One of the best architectures of one width and depth.

    Attributes:
        scale: The scale it was derived at.
        arch: None if nothing of this scale meets the budget.
        latency_ms: Predicted; of the fastest network of this scale, with the safety allowed for, if none meets the
            budget.
        score: Relative to the score of the network that is derived without a budget.
        utility: What the candidates compete by: score + `width_utility` per doubling of channels + `depth_utility`
            per doubling of cells; if `score` is below `KEPT`, reduced so that it ranks behind all others.
        interval_ms: (low, high) that holds the measured latency with 95 % confidence; None for an untested table.
        others: What is predicted for each further `Constraint`.
    """

    scale: Scale
    arch: Architecture | None
    latency_ms: float
    score: float = 0.0
    utility: float = -math.inf
    interval_ms: tuple[float, float] | None = None
    others: tuple[float, ...] = ()


class Contest:
    """The solvers of all scales, and the utility by which their candidates compete."""

    def __init__(
        self,
        problem: Problem,
        scales: Sequence[Scale],
        models: Sequence[LatencyModel],
        probs: Matrices,
        width_utility: float,
        depth_utility: float = 0.0,
        constraints: Sequence[Constraint] = (),
        trials: Sequence[Trial] = (),
    ) -> None:
        """Set up a solver for each scale.

        Args:
            problem: What is decided, with all rules that a network must obey.
            scales: Deployment scales, narrowest and shallowest first.
            models: Their prices.
            probs: After the softmax.
            width_utility: Utility of doubling the channels, in units of the score without a budget.
            depth_utility: Utility of doubling the cells.
            constraints: What else a network may not exceed.
            trials: What is chosen among by score, of all architectures; none to choose by probabilities.
        """
        self.problem, self.trials = problem, tuple(trials)
        self.scales, self.models, self.constraints = tuple(scales), tuple(models), tuple(constraints)
        self.probs = problem.probabilities(probs)
        channels, cells = (min(getattr(s, size) for s in scales) for size in ("channels", "cells"))
        self.bonus = [
            width_utility * math.log2(s.channels / channels) + depth_utility * math.log2(s.cells / cells)
            for s in scales
        ]
        self._penalty = 1.0 + max(self.bonus)
        per_scale = list(zip(models, *(b.models for b in constraints), strict=True))
        # Without decisions there is one network, as good as the best of its scale: a program has nothing to decide.
        known = self.trials if problem.decisions else (Trial(Architecture.of(problem.name, {}), 1.0),)
        self.solvers: list[Solver | TrialSolver] = [
            TrialSolver(problem, known, every) if known else Solver(problem, every) for every in per_scale
        ]
        self._margins = [[safety(m) for m in every] for every in per_scale]
        # By scale: the smallest budget solved for with its candidate; a budget with a utility that is out of reach
        # under it; the largest budget that nothing meets.
        self._solved: dict[int, tuple[float, Candidate]] = {}
        self._beaten: dict[int, tuple[float, float]] = {}
        self._impossible = [0.0] * len(self.scales)

    @cached_property
    def _best_score(self) -> float:
        first = self.solvers[0]
        if isinstance(first, TrialSolver):
            return max((t.score for t in first.trials), default=1.0)
        return self._sum(strongest(self.problem, self.probs))

    def budgets(self, scale: int, budget_ms: float) -> list[float]:
        """Return the bounds on predictions at a scale: budget and constraints, each over its safety factor."""
        return [
            x / m for x, m in zip([budget_ms, *(b.most for b in self.constraints)], self._margins[scale], strict=True)
        ]

    def candidates(self, scale: int, budget_ms: float, k: int = 1) -> list[Candidate]:
        """Return the k best of a scale, best first, or one without an architecture if none meets the budget."""
        try:
            solutions = self.solvers[scale].best(self.probs, self.budgets(scale, budget_ms), k)
        except BudgetError:
            return [Candidate(self.scales[scale], None, self.fastest_ms(scale))]
        return [self._candidate(scale, s) for s in solutions]

    def winner(self, budget_ms: float) -> Candidate | None:
        """Return the candidate of the highest utility; None if no scale meets the budget.

        Equal to the best of `candidates` over all scales. For a sequence of falling budgets it solves few programs: the
        candidate of a larger budget bounds the utility under a smaller one, and is the answer where it meets that.
        """
        best: tuple[float, int, Candidate] | None = None
        order = sorted(range(len(self.scales)), key=lambda i: -self._bound(i, budget_ms))
        for i in order:
            # Of equal candidates the one of the first scale wins.
            if best is not None and (-self._bound(i, budget_ms), i) > best[:2]:
                continue
            candidate = self._at(i, budget_ms, -math.inf if best is None else -best[0])
            if candidate is not None and (best is None or (-candidate.utility, i) < best[:2]):
                best = (-candidate.utility, i, candidate)
        return None if best is None else best[2]

    def is_met(self, budget_ms: float) -> bool:
        """Tell whether some network of some scale meets a budget, whatever the probabilities."""
        least = (self._least(i, 0, self.budgets(i, math.inf)) for i in range(len(self.scales)))
        return any(0 < ms <= budget_ms for ms in least)

    def score(self, arch: Architecture) -> float:
        """Return the score of an architecture relative to that of the network derived without a budget."""
        return self._sum(arch) / self._best_score

    def cost_of_change(self, chosen: Candidate, budget_ms: float, update: Update = ignore) -> dict[str, float]:
        """Return for each decision the least score lost by another answer, at the scale of the chosen candidate.

        Budget and constraints hold for the alternatives too; see `Solver.cost_of_change`.
        """
        assert chosen.arch is not None
        i = self.scales.index(chosen.scale)
        return self.solvers[i].cost_of_change(self.probs, chosen.arch, self.budgets(i, budget_ms), update)

    def fastest_ms(self, scale: int) -> float:
        """Return the least budget that a scale meets, along with the constraints if it can meet those at all."""
        return self._least(scale, 0, self.budgets(scale, math.inf)) or self._least(scale, 0)

    def free_ms(self, scale: int) -> float:
        """Return the budget beyond which a larger one changes nothing; 0 if the scale cannot meet the constraints."""
        best = self._at(scale, math.inf)
        return 0.0 if best is None else best.latency_ms * self._margins[scale][0]

    def _least(self, scale: int, model: int, within: Sequence[float] = ()) -> float:
        """Return the least budget for one of the models that a scale meets; 0 if it cannot be within the others."""
        try:
            fastest = self.solvers[scale].fastest(model, within).latency_ms
        except BudgetError:
            return 0.0
        assert fastest is not None
        return fastest * self._margins[scale][model]

    def refusal(self, budget_ms: float) -> BudgetError:
        """Return the error for a budget that no scale meets; it names what can be reached."""
        fastest_ms = min(self._least(i, 0) for i in range(len(self.scales)))
        what = f"none of the {len(self.trials)} trials" if self.trials else "no architecture of the space"
        refused = f"{what} meets {1000 / budget_ms:.1f} fps ({budget_ms:.4g} ms)"
        reach = (
            f"the fastest reachable is {1000 / fastest_ms:.1f} fps ({fastest_ms:.4g} ms, with the table's error "
            "allowed for)"
        )
        if not self.constraints:
            return BudgetError(f"{refused}; {reach}; ask for at most --fps {reachable_fps(fastest_ms)}")
        least = [min(self._least(i, 1 + j) for i in range(len(self.scales))) for j in range(len(self.constraints))]
        listed = "; ".join(
            f"{b.say(b.most)} (at best {b.say(v)})" for b, v in zip(self.constraints, least, strict=True)
        )
        factor = min(s.nearest(self.budgets(i, budget_ms)) for i, s in enumerate(self.solvers))
        eased = [
            f"--fps {reachable_fps(factor * budget_ms)}",
            *(b.say(1.001 * factor * b.most) for b in self.constraints),
        ]  # 1.001: messages have four digits
        return BudgetError(f"{refused} and {listed} at once; {reach}; all eased alike: {', '.join(eased)}")

    def _bound(self, scale: int, budget_ms: float) -> float:
        """Return an upper bound of the utility of a scale under a budget, from the candidates of larger budgets."""
        if budget_ms <= self._impossible[scale]:
            return -math.inf
        bound, solved, beaten = 1.0 + self.bonus[scale], self._solved.get(scale), self._beaten.get(scale)
        if solved is not None and budget_ms <= solved[0]:
            bound = solved[1].utility
        if beaten is not None and budget_ms <= beaten[0]:
            bound = min(bound, beaten[1])
        return bound

    def _at(self, scale: int, budget_ms: float, utility: float = -math.inf) -> Candidate | None:
        """Return the best candidate of a scale under a budget; None if none meets it with at least this utility."""
        if budget_ms <= self._impossible[scale]:
            return None
        solved = self._solved.get(scale)
        if solved is not None and solved[1].latency_ms * self._margins[scale][0] <= budget_ms <= solved[0]:
            return solved[1]
        if utility > -math.inf:
            solution = self.solvers[scale].beats(
                self.probs, self.budgets(scale, budget_ms), self._needed(scale, utility)
            )
            if solution is None:
                self._beaten[scale] = (budget_ms, utility)
                return None
            candidate = self._candidate(scale, solution)
        else:
            (candidate,) = self.candidates(scale, budget_ms)
        if candidate.arch is None:
            self._impossible[scale] = budget_ms
            return None
        if solved is None or budget_ms <= solved[0]:
            self._solved[scale] = (budget_ms, candidate)
        return candidate

    def _needed(self, scale: int, utility: float) -> float:
        """Return the least sum of probabilities with which a candidate of a scale has at least this utility."""
        score = utility - self.bonus[scale]
        if score + self._penalty >= MIN_SCORE:
            score = max(score, MIN_SCORE)  # below it the penalty applies
        else:
            score += self._penalty
        return score * self._best_score

    def _sum(self, arch: Architecture) -> float:
        """Return the score of an architecture: of a trial, or as `Problem.scores` has it."""
        first = self.solvers[0]
        if isinstance(first, TrialSolver):
            return first.score(arch)
        return float(self.problem.scores(self.probs) @ self.problem.literals.vector(arch))

    def _candidate(self, scale: int, solution: Solution) -> Candidate:
        assert solution.latency_ms is not None
        score = solution.score / self._best_score
        interval = self.models[scale].interval_ms(solution.arch)
        utility = score + self.bonus[scale] - self._penalty * (score < MIN_SCORE)
        return Candidate(
            self.scales[scale], solution.arch, solution.latency_ms, score, utility, interval, solution.others
        )


def choose(contest: Contest, budget_ms: float, candidates: int = 1) -> tuple[Candidate, list[Candidate]]:
    """Choose among the best of all scales by utility.

    Args:
        contest: The solvers of all scales.
        budget_ms: What the network may take.
        candidates: How many of each scale, the best ones; only the first of each competes.

    Returns:
        The chosen candidate and all of them, by scale and best first.

    Raises:
        BudgetError: If no scale meets the budget; names the fastest reachable fps.
    """
    per_scale = [contest.candidates(i, budget_ms, candidates) for i in range(len(contest.scales))]
    chosen = max((every[0] for every in per_scale), key=lambda c: c.utility)
    if chosen.arch is None:
        raise contest.refusal(budget_ms)
    return chosen, [c for every in per_scale for c in every]


def margins(probs: Probabilities) -> dict[str, float]:
    """Return for each decision the best probability less the second best."""
    out: dict[str, float] = {}
    matrices = probs.matrices()
    for g in probs.literals.groups:
        top = np.sort(matrices[g.name], axis=1)[:, ::-1]
        out |= {d.name: float(m) for d, m in zip(g.decisions, top[:, 0] - top[:, 1], strict=True)}
    return out
