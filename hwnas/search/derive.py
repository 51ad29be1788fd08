"""From probabilities to a network: the strongest architecture, exactly, under a latency budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from hwnas.arch import Architecture, Group
from hwnas.errors import BudgetError, HwnasError
from hwnas.gates import Literals, Rule, TopK
from hwnas.latency.model import LatencyModel

# HiGHS meets rows to 1e-7; a solution this close above the budget is checked in full precision and cut off.
TOLERANCE = 1e-6
TIE = 1e-7  # scores this close, relative to the largest probability, count as equal


def strongest(
    groups: Sequence[Group], rules: Sequence[Rule], space: str, probs: Mapping[str, np.ndarray]
) -> Architecture:
    """Derive by the paper's rule: strongest k edges per node by their best non-none op, then that op (DARTS 2.3).

    Ties keep the edge, and the op, that comes first. Decisions outside of every rule take their most probable option.

    Args:
        groups: Of the space.
        rules: Of the space.
        space: Its name.
        probs: ``{group: (decisions, options)}`` after the softmax, which `none` took part in.
    """
    row = {d.name: probs[g.name][i] for g in groups for i, d in enumerate(g.decisions)}
    answers = {d.name: d.options[int(row[d.name].argmax())] for g in groups for d in g.decisions}
    for rule in rules:
        assert isinstance(rule, TopK), "the paper's rule is for spaces that keep k edges per node"
        ops = [i for i, o in enumerate(rule.options) if o != rule.none]
        best = {d: max(ops, key=lambda i, p=row[d]: p[i]) for d in rule.decisions}  # type: ignore[misc]
        ranked = sorted(rule.decisions, key=lambda d: -row[d][best[d]])  # stable
        answers |= {d: rule.options[best[d]] if d in ranked[: rule.k] else rule.none for d in rule.decisions}
    return Architecture.of(space, answers)


@dataclass(frozen=True)
class Solution:
    """A derived architecture.

    Attributes:
        arch: Complete and valid.
        score: Sum of the probabilities of what was kept.
        latency_ms: Predicted, None without a latency model.
    """

    arch: Architecture
    score: float
    latency_ms: float | None


def reachable_fps(latency_ms: float) -> str:
    """Return the frames per second of a latency with four digits, rounded down: who asks for that gets it."""
    fps = 1000 / latency_ms
    unit = 10.0 ** (math.floor(math.log10(fps)) - 3)
    return f"{math.floor(fps / unit) * unit:g}"


class Solver:
    """The exact derivation as a mixed-integer program: one binary per literal, gates as linear constraints.

    Solved by HiGHS. Among architectures of the same score (to 1e-7) the paper's tie-breaks decide.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        rules: Sequence[Rule],
        space: str,
        latency: LatencyModel | None = None,
    ) -> None:
        """Set up the constraints of a space and of the latency model's gates.

        Args:
            groups: Of the space.
            rules: Of the space.
            space: Its name.
            latency: Prices the gates at one scale; None if there will be no budget.
        """
        self.literals = Literals(groups)
        self.space = space
        self.latency = latency
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._n = len(self.literals)
        for g in groups:
            for d in g.decisions:
                self._rows.append(({self.literals.index[d.name, o]: 1.0 for o in d.options}, 1.0, 1.0))
        for rule in rules:
            for r in rule.rows():
                self._rows.append(({self.literals.index[lit]: c for lit, c in r.coefficients.items()}, r.low, r.high))
        self._rules = {d: r for r in rules if isinstance(r, TopK) for d in r.decisions}
        self._latency_row = self._price() if latency is not None else ({}, 0.0)

    def _price(self) -> tuple[dict[int, float], float]:
        """Return latency as a linear function of the variables: coefficients and constant."""
        assert self.latency is not None
        row: dict[int, float] = {}
        constant = self.latency.base_ms
        for gate, ms in zip(self.latency.gates, self.latency.gate_ms, strict=True):
            clauses = [self._clause(c) for c in sorted(gate.clauses, key=sorted)]
            if not clauses:
                constant += float(ms)
                continue
            for i, c in (clauses[0] if len(clauses) == 1 else self._all_of(clauses)).items():
                row[i] = row.get(i, 0.0) + c * float(ms)
        return row, constant

    def _variable(self) -> int:
        self._n += 1
        return self._n - 1

    def _clause(self, clause: frozenset[tuple[str, str]]) -> dict[int, float]:
        """Return "at least one literal holds" as a linear expression; literals of one decision exclude each other."""
        by_decision: dict[str, dict[int, float]] = {}
        for d, o in sorted(clause):
            by_decision.setdefault(d, {})[self.literals.index[d, o]] = 1.0
        parts = list(by_decision.values())
        if len(parts) == 1:
            return parts[0]
        y = self._variable()
        every: dict[int, float] = {y: 1.0}
        for part in parts:
            self._rows.append(({y: 1.0, **{i: -c for i, c in part.items()}}, 0.0, np.inf))  # y >= part
            every |= {i: -c for i, c in part.items()}
        self._rows.append((every, -np.inf, 0.0))  # y <= sum of parts
        return {y: 1.0}

    def _all_of(self, parts: list[dict[int, float]]) -> dict[int, float]:
        """Return "all parts hold" as a linear expression."""
        y = self._variable()
        total: dict[int, float] = {y: 1.0}
        for part in parts:
            self._rows.append(({y: 1.0, **{i: -c for i, c in part.items()}}, -np.inf, 0.0))  # y <= part
            for i, c in part.items():
                total[i] = total.get(i, 0.0) - c
        self._rows.append((total, 1.0 - len(parts), np.inf))  # y >= sum - (n - 1)
        return {y: 1.0}

    def solve(self, probs: Mapping[str, np.ndarray], budget_ms: float | None = None) -> Solution:
        """Return the architecture of the highest score that meets the budget.

        Args:
            probs: ``{group: (decisions, options)}`` after the softmax. A dropped edge scores 0.
            budget_ms: Upper bound of the predicted latency; None for none.

        Raises:
            BudgetError: If nothing meets the budget; names the fastest reachable latency.
        """
        p = np.concatenate([np.asarray(probs[g.name], dtype=np.float64).reshape(-1) for g in self.literals.groups])
        score = np.array([0.0 if self._is_drop(d, o) else v for (d, o), v in zip(self.literals.names, p, strict=True)])
        if not np.isfinite(score).all() or (score < 0).any():
            raise HwnasError("probabilities must be finite and not negative; the search that made them went wrong")
        limit = budget_ms
        while True:
            arch = self._best(score, p, limit)
            if arch is None:
                fastest = self.fastest()
                assert fastest.latency_ms is not None and budget_ms is not None
                raise BudgetError(
                    f"no architecture meets {budget_ms:.4g} ms; the fastest takes {fastest.latency_ms:.4g} ms "
                    f"({1000 / fastest.latency_ms:.1f} fps); ask for at most {reachable_fps(fastest.latency_ms)} fps "
                    "or allow narrower networks"
                )
            ms = None if self.latency is None else self.latency.predict_ms(arch)
            if budget_ms is None or ms is None or ms <= budget_ms * (1 + 1e-9):
                return Solution(arch, float(score @ self.literals.vector(arch)), ms)
            assert limit is not None
            assert ms <= 1.01 * budget_ms, "the constraints price a network lower than the prediction does"
            limit = min(limit, budget_ms) * (1 - TOLERANCE)

    def fastest(self) -> Solution:
        """Return the architecture of the lowest predicted latency."""
        cost = self._latency_cost()
        arch = self._run(cost / max(1e-12, np.abs(cost).max()), [])
        assert arch is not None and self.latency is not None, "some architecture is always valid"
        return Solution(arch, 0.0, self.latency.predict_ms(arch))

    def latency_of(self, arch: Architecture) -> float:
        """Return the latency the constraints see for an architecture: that of the loss, to the solver's tolerance."""
        pinned = [({i: 1.0}, on, on) for i, on in enumerate(self.literals.vector(arch))]
        cost = self._latency_cost()
        result = self._milp(cost, pinned)
        assert result is not None, "a valid architecture meets its space's constraints"
        return float(cost @ result) + self._latency_row[1]

    def _latency_cost(self) -> np.ndarray:
        """Return latency, less its constant, as a cost vector over all variables."""
        row, _ = self._latency_row
        cost = np.zeros(self._n)
        cost[list(row)] = list(row.values())
        return cost

    def _is_drop(self, decision: str, option: str) -> bool:
        return decision in self._rules and option == self._rules[decision].none

    def _best(self, score: np.ndarray, p: np.ndarray, limit_ms: float | None) -> Architecture | None:
        """Maximise the score, then break ties by the paper's order of literals within each rule."""
        rows = []
        if limit_ms is not None:
            assert self.latency is not None, "a budget needs a latency model"
            row, constant = self._latency_row
            # Relative to the budget, so that the solver's tolerance is relative too.
            rows.append(({i: c / limit_ms for i, c in row.items()}, -np.inf, 1.0 - constant / limit_ms))
        top = max(float(score.max()), 1e-300)
        cost = np.zeros(self._n)
        cost[: len(score)] = -score / top
        first = self._run(cost, rows)
        if first is None:
            return None
        reached = float(score @ self.literals.vector(first)) / top
        near = {i: float(v) / top for i, v in enumerate(score) if v > 0}
        ties = np.zeros(self._n)
        ties[: len(score)] = -self._ranks(p)
        return self._run(ties, [*rows, (near, reached - TIE, np.inf)]) or first

    def _ranks(self, p: np.ndarray) -> np.ndarray:
        """Return, for each literal, how many of its rule's (else its decision's) literals it beats; ties go first."""
        out = np.zeros(len(p))
        by_rule: dict[object, list[int]] = {}
        for i, (d, o) in enumerate(self.literals.names):
            if not self._is_drop(d, o):
                by_rule.setdefault(self._rules[d].decisions if d in self._rules else d, []).append(i)
        for members in by_rule.values():
            for rank, i in enumerate(sorted(members, key=lambda i: (p[i], -i))):
                out[i] = rank + 1
        return out

    def _run(self, cost: np.ndarray, extra: list[tuple[dict[int, float], float, float]]) -> Architecture | None:
        """Return the architecture of the lowest linear cost; None if nothing is feasible."""
        values = self._milp(cost, extra)
        if values is None:
            return None
        chosen = np.round(values[: len(self.literals)])
        return Architecture.of(self.space, {d: o for (d, o), on in zip(self.literals.names, chosen, strict=True) if on})

    def _milp(self, cost: np.ndarray, extra: list[tuple[dict[int, float], float, float]]) -> np.ndarray | None:
        """Minimise a linear cost; return the values of all variables, or None if nothing is feasible."""
        rows = [*self._rows, *extra]
        data = [(r, i, c) for r, (row, _, _) in enumerate(rows) for i, c in row.items()]
        r, i, c = zip(*data, strict=True)
        matrix = csr_matrix((c, (r, i)), shape=(len(rows), self._n))
        integrality = np.zeros(self._n)
        integrality[: len(self.literals)] = 1  # gates follow from literals
        result = milp(
            cost,
            integrality=integrality,
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows]),
            options={"mip_rel_gap": 0},
        )
        if result.x is None:
            assert result.status == 2, f"the solver stopped without an answer: {result.message}"
            return None
        values: np.ndarray = result.x
        return values
