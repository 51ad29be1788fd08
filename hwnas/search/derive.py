"""From probabilities to a network: the strongest architecture, exactly, under a latency budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import BudgetError, HwnasError
from hwnas.latency.model import LatencyModel
from hwnas.problem import Architecture, Matrices, Problem
from hwnas.problem.linear import Bounded
from hwnas.progress import Update, ignore
from hwnas.search.program import Program

# HiGHS meets rows to 1e-7; a solution this close above the budget is checked in full precision and cut off.
TOLERANCE = 1e-6
TIE = 1e-7  # scores this close, relative to the largest probability, count as equal


def strongest(problem: Problem, probs: Matrices) -> Architecture:
    """Derive without a budget, as the papers do: for DARTS the k strongest edges of each node with their best op (2.3).

    Each rule of the problem derives its own decisions. Ties keep the edge, and the op, that comes first; decisions
    outside of every rule take their most probable option. If the result breaks a rule that only excludes architectures,
    the solver returns the architecture of the largest score that obeys all rules.

    Raises:
        BudgetError: If no architecture obeys all rules.
    """
    arch = problem.strongest(problem.probabilities(probs))
    return arch if problem.broken(arch) is None else Solver(problem).solve(probs).arch


@dataclass(frozen=True)
class Solution:
    """A derived architecture.

    Attributes:
        arch: Complete and valid.
        score: Sum of the probabilities of what was kept.
        latency_ms: Predicted, None without a latency model; by the first of several.
        others: What the other models predict, in their order.
    """

    arch: Architecture
    score: float
    latency_ms: float | None
    others: tuple[float, ...] = ()


def reachable_fps(latency_ms: float) -> str:
    """Return the frames per second of a latency with four digits, rounded down: who asks for that gets it."""
    fps = 1000 / latency_ms
    unit = 10.0 ** (math.floor(math.log10(fps)) - 3)
    return f"{math.floor(fps / unit) * unit:g}"


class Solver:
    """The exact derivation, by a mixed-integer program.

    Among architectures of equal score (to 1e-7) the tie-breaks of the DARTS rule decide: the edge, and the op, that
    comes first. They take a second solve, which is done only where two literals of one rule have the same score.
    """

    def __init__(self, problem: Problem, latency: LatencyModel | Sequence[LatencyModel] | None = None) -> None:
        """Set up the constraints of a problem and of the latency models' gates.

        Args:
            problem: What is decided, with all rules that an architecture must obey.
            latency: Prices the gates at one scale; several if each is to have a budget (latency on two devices, or a
                count of something: `hwnas.latency.resources`); None if there will be no budget.
        """
        self.models = () if latency is None else (latency,) if isinstance(latency, LatencyModel) else tuple(latency)
        self.problem = problem
        self.program = Program(problem, self.models)
        self.literals = problem.literals
        self._rivals = self._by_rule()

    def solve(self, probs: Matrices, budget_ms: float | Sequence[float] | None = None) -> Solution:
        """Return the architecture of the highest score that meets the budget.

        Args:
            probs: After the softmax, which `none` took part in. A dropped edge scores 0.
            budget_ms: Upper bound of the predicted latency, or one for each model; None for none.

        Raises:
            BudgetError: If nothing meets the budget; names the fastest reachable latency.
        """
        return self.best(probs, budget_ms)[0]

    def best(self, probs: Matrices, budget_ms: float | Sequence[float] | None = None, k: int = 1) -> list[Solution]:
        """Return the k architectures of the highest scores that meet the budget, best first.

        Each solution is cut off before the next solve, so the list is exact.

        Args:
            probs: As in `solve`.
            budget_ms: As in `solve`.
            k: How many; fewer come if there are no more.

        Raises:
            BudgetError: If nothing meets the budget; names the fastest reachable latency.
        """
        budgets = self._budgets(budget_ms)
        solutions = self._search(probs, budgets, k)
        if not solutions:
            raise self._refusal(budgets)
        return solutions

    def beats(self, probs: Matrices, budget_ms: float | Sequence[float] | None, least: float) -> Solution | None:
        """Return what `solve` does if its score is at least `least`, else None, which takes less time to prove."""
        solutions = self._search(probs, self._budgets(budget_ms), 1, least)
        return solutions[0] if solutions else None

    def _search(self, probs: Matrices, budgets: Sequence[float], k: int, least: float = -math.inf) -> list[Solution]:
        """Return up to k architectures that meet the budgets and score `least`, best first."""
        p, score = self._scores(probs)
        limits, solutions, cuts = list(budgets), list[Solution](), list[Bounded]()
        if least > -math.inf:
            unit = self._unit(score)
            cuts.append(({i: float(x) / unit for i, x in enumerate(score) if x}, least / unit - TIE, np.inf))
        while len(solutions) < k:
            arch = self._best(score, p, [*self._budget_rows(limits), *cuts])
            if arch is None:
                break
            values = [m.predict_ms(arch) for m in self.models]
            over = [v > b * (1 + 1e-9) for v, b in zip(values, budgets, strict=False)]
            if any(over):
                worst = max(v / b for v, b in zip(values, budgets, strict=False))
                assert worst <= 1.01, "the constraints price a network lower than the prediction does"
                limits = [min(x, b) * (1 - TOLERANCE * o) for x, b, o in zip(limits, budgets, over, strict=True)]
                continue
            first = values[0] if values else None
            solutions.append(Solution(arch, float(score @ self.literals.vector(arch)), first, tuple(values[1:])))
            cuts.append(self._other_than(arch))
        return solutions

    def cost_of_change(
        self,
        probs: Matrices,
        arch: Architecture,
        budget_ms: float | Sequence[float] | None = None,
        update: Update = ignore,
    ) -> dict[str, float]:
        """Return for each decision the least score that is lost if it gets another answer than in `arch`.

        Args:
            probs: As in `solve`.
            arch: What `solve` returned for them.
            budget_ms: As in `solve`.
            update: Told after each decision.

        Returns:
            By decision, in units of probability; infinite where no other answer meets the budget. Others may change
            along with it: an edge that is dropped makes room for another.
        """
        _, score = self._scores(probs)
        reached, rows = float(score @ self.literals.vector(arch)), self._budget_rows(self._budgets(budget_ms))
        out: dict[str, float] = {}
        for done, (decision, option) in enumerate(arch.answers, start=1):
            other = self.program.architecture(
                self._score_cost(score), [*rows, ({self.literals.index[decision, option]: 1.0}, 0.0, 0.0)]
            )
            lost = math.inf if other is None else reached - float(score @ self.literals.vector(other))
            out[decision] = max(0.0, lost)
            update(done, decision)
        return out

    def fastest(self, model: int = 0, within: Sequence[float] = ()) -> Solution:
        """Return the architecture of the lowest latency that one of the models predicts.

        Args:
            model: Which of them.
            within: Upper bounds of what the models predict, one for each, infinite where there is none.

        Raises:
            BudgetError: If no architecture keeps the limits and is within the bounds.
        """
        cost = self._latency_cost(model)
        arch = self.program.architecture(cost / max(1e-12, np.abs(cost).max()), self._budget_rows(within))
        if arch is None:
            raise self._refusal(())
        return Solution(arch, 0.0, self.models[model].predict_ms(arch))

    def nearest(self, budget_ms: Sequence[float]) -> float:
        """Return the least factor that all budgets together must be eased by; at most 1 if they can be met.

        Args:
            budget_ms: One for each model.

        Raises:
            BudgetError: If no architecture keeps the limits.
        """
        cost = np.zeros(self.program.size)
        cost[self.program.worst] = 1.0
        rows = [({**row, self.program.worst: -1.0}, low, high - 1.0) for row, low, high in self._budget_rows(budget_ms)]
        arch = self.program.architecture(cost, rows)
        if arch is None:
            raise self._refusal(())
        return max(m.predict_ms(arch) / b for m, b in zip(self.models, budget_ms, strict=True))

    def _scores(self, probs: Matrices) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of each literal, and what it adds to the score."""
        probabilities = self.problem.probabilities(probs)
        p = probabilities.numpy()
        if not np.isfinite(p).all() or (p < 0).any():
            raise HwnasError("probabilities must be finite and not negative; the search that made them went wrong")
        return p, self.problem.scores(probabilities)

    def _budgets(self, budget_ms: float | Sequence[float] | None) -> tuple[float, ...]:
        if budget_ms is None:
            return ()
        budgets = tuple(budget_ms) if isinstance(budget_ms, Sequence) else (budget_ms,)
        assert len(budgets) == len(self.models), "each budget needs a latency model, and each model a budget"
        return budgets

    def _budget_rows(self, limits_ms: Sequence[float]) -> list[Bounded]:
        """Return the budgets as rows; relative to each, so that the solver's tolerance is relative too."""
        return [
            ({i: c / limit for i, c in row.items()}, -np.inf, 1.0 - constant / limit)
            for (row, constant), limit in zip(self.program.prices, limits_ms, strict=False)
        ]

    def _refusal(self, budgets: Sequence[float]) -> BudgetError:
        """Return the error for budgets that nothing meets."""
        if not budgets:
            return BudgetError(self.program.refusal())
        if len(budgets) > 1:
            factor = self.nearest(budgets)
            listed = ", ".join(f"{b:.4g}" for b in budgets)
            return BudgetError(
                f"no architecture meets the budgets {listed} at once; together they must be {factor:.4g} times as large"
            )
        ms = self.fastest().latency_ms
        assert ms is not None
        return BudgetError(
            f"no architecture meets {budgets[0]:.4g} ms; the fastest takes {ms:.4g} ms "
            f"({1000 / ms:.1f} fps); ask for at most {reachable_fps(ms)} fps "
            "or allow narrower networks"
        )

    def _latency_cost(self, model: int) -> np.ndarray:
        """Return latency, less its constant, as a cost vector over all variables."""
        row, _ = self.program.prices[model]
        cost = np.zeros(self.program.size)
        cost[list(row)] = list(row.values())
        return cost

    def _score_cost(self, score: np.ndarray) -> np.ndarray:
        """Return the score, relative to the largest probability, as a cost vector over all variables."""
        cost = np.zeros(self.program.size)
        cost[: len(score)] = -score / self._unit(score)
        return cost

    def _unit(self, score: np.ndarray) -> float:
        """Return the largest probability, which scores are relative to in the program."""
        return max(float(np.abs(score).max(initial=0.0)), 1e-300)

    def _other_than(self, arch: Architecture) -> Bounded:
        """Return the cut that this architecture alone violates: not all of its answers at once."""
        row = {self.literals.index[answer]: 1.0 for answer in arch.answers}
        return row, -np.inf, len(row) - 1.0

    def _by_rule(self) -> list[list[int]]:
        """Return the literals that compete: those a rule may keep, else the options of a decision outside of rules."""
        problem, out = self.problem, dict[object, list[int]]()
        for d in (d for d in problem.decisions if d.name not in problem.answers):
            rule = problem.rule_of.get(d.name)
            for o in d.options:
                if not problem.is_dropped(d.name, o) and o not in d.closed:
                    out.setdefault(d.name if rule is None else rule.decisions, []).append(
                        self.literals.index[d.name, o]
                    )
        return list(out.values())

    def _best(self, score: np.ndarray, p: np.ndarray, rows: list[Bounded]) -> Architecture | None:
        """Maximise the score, then break ties as `_ranks` orders the literals of each rule."""
        cost = self._score_cost(score)
        first = self.program.architecture(cost, rows)
        if first is None or not self._may_tie(cost[: len(score)]):
            return first
        reached = -float(cost[: len(score)] @ self.literals.vector(first))
        near = {i: -float(c) for i, c in enumerate(cost) if c}
        ties = np.zeros(self.program.size)
        ties[: len(score)] = -self._ranks(p)
        return self.program.architecture(ties, [*rows, (near, reached - TIE, np.inf)]) or first

    def _may_tie(self, cost: np.ndarray) -> bool:
        """Tell whether two rivals have the same score; else the second solve, as long as the first, is spared."""
        return any(bool((np.diff(np.sort(cost[members])) <= TIE).any()) for members in self._rivals)

    def _ranks(self, p: np.ndarray) -> np.ndarray:
        """Return the rank of each literal among its rivals, from 1; of equally probable ones the first is higher."""
        out = np.zeros(len(p))
        for members in self._rivals:
            for rank, i in enumerate(sorted(members, key=lambda i: (p[i], -i))):
                out[i] = rank + 1
        return out
