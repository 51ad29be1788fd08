"""Derivation from trials: the best of a list of scored architectures that meets the budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hwnas.errors import BudgetError
from hwnas.latency.model import LatencyModel
from hwnas.problem import Architecture, Matrices, Problem
from hwnas.progress import Update, ignore
from hwnas.search.derive import Solution
from hwnas.search.strategy import Trial


class TrialSolver:
    """Chooses among trials as `hwnas.search.derive.Solver` chooses among all architectures; probabilities are not read.

    Of equal scores the earlier trial wins.
    """

    def __init__(self, problem: Problem, trials: Sequence[Trial], models: Sequence[LatencyModel]) -> None:
        """Price the trials.

        Args:
            problem: What is decided, with all rules that a network must obey; trials that break one are left out.
            trials: With complete architectures.
            models: What each has a budget of.
        """
        self.models = tuple(models)
        whole = [Trial(problem.completed(t.architecture), t.score) for t in trials]
        self.trials = sorted((t for t in whole if problem.broken(t.architecture) is None), key=lambda t: -t.score)
        self._values = [[m.predict_ms(t.architecture) for m in models] for t in self.trials]

    def best(self, probs: Matrices, budget_ms: Sequence[float], k: int = 1) -> list[Solution]:
        """Return the k trials of the highest scores that meet the budgets, best first.

        Raises:
            BudgetError: If none does.
        """
        out = [self._solution(i) for i in self._within(budget_ms)]
        if not out:
            raise BudgetError(f"none of {len(self.trials)} trials meets {budget_ms[0]:.4g} ms; search for more of them")
        return out[:k]

    def beats(self, probs: Matrices, budget_ms: Sequence[float], least: float) -> Solution | None:
        """Return the best trial within the budgets if it scores `least`, else None."""
        best = next(iter(self._within(budget_ms)), None)
        return None if best is None or self.trials[best].score < least else self._solution(best)

    def fastest(self, model: int = 0, within: Sequence[float] = ()) -> Solution:
        """Return the trial of the lowest latency that one of the models predicts.

        Raises:
            BudgetError: If none is within the bounds.
        """
        inside = self._within(within or [math.inf] * len(self.models))
        if not inside:
            raise BudgetError(f"none of {len(self.trials)} trials is within the bounds; search for more of them")
        i = min(inside, key=lambda i: self._values[i][model])
        return Solution(self.trials[i].architecture, 0.0, self._values[i][model])

    def nearest(self, budget_ms: Sequence[float]) -> float:
        """Return the least factor that all budgets together must be eased by.

        Raises:
            BudgetError: If there is no trial.
        """
        if not self.trials:
            raise BudgetError("no trial obeys the rules; search for more of them")
        return min(max(v / b for v, b in zip(values, budget_ms, strict=True)) for values in self._values)

    def cost_of_change(
        self, probs: Matrices, arch: Architecture, budget_ms: Sequence[float], update: Update = ignore
    ) -> dict[str, float]:
        """Return for each decision the score lost to the best trial within the budgets that answers it otherwise."""
        inside = [self.trials[i] for i in self._within(budget_ms)]
        reached = next(t.score for t in self.trials if t.architecture == arch)
        out: dict[str, float] = {}
        for done, (decision, option) in enumerate(arch.answers, start=1):
            others = [t.score for t in inside if t.architecture.get(decision) != option]
            out[decision] = max(0.0, reached - others[0]) if others else math.inf
            update(done, decision)
        return out

    def score(self, arch: Architecture) -> float:
        """Return the best score of an architecture.

        Raises:
            KeyError: If it was not tried.
        """
        by_arch = {t.architecture: t.score for t in reversed(self.trials)}
        return by_arch[arch]

    def _within(self, budget_ms: Sequence[float]) -> list[int]:
        return [
            i
            for i, values in enumerate(self._values)
            if all(v <= b * (1 + 1e-9) for v, b in zip(values, budget_ms, strict=True))
        ]

    def _solution(self, i: int) -> Solution:
        trial, values = self.trials[i], self._values[i]
        return Solution(trial.architecture, trial.score, values[0], tuple(values[1:]))
