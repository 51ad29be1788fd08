"""A problem and its prices as a mixed-integer program: a binary per literal, gates and rules as linear constraints."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

from hwnas.errors import BudgetError
from hwnas.latency.model import LatencyModel
from hwnas.problem import Architecture, Problem
from hwnas.problem.linear import Bounded, Linear, add, less
from hwnas.problem.walks import Walks, conserve
from hwnas.search.milp import Rows, minimise

EQUAL = 1e-9  # relative; what differs by less is the same to a solver


class Program:
    """The constraints of a problem and of the gates that prices depend on; a `LinearForm`.

    They are built once; budgets and cuts are rows on top of them.

    Attributes:
        problem: What is decided.
        literals: The first variables, in this order.
        prices: Of each model, latency as a linear function of the variables: coefficients and constant.
        worst: A variable from 0 to infinity that no constraint binds.
        size: Number of variables.
    """

    def __init__(self, problem: Problem, models: Sequence[LatencyModel]) -> None:
        """Set up the variables and constraints.

        Args:
            problem: What is decided; fixed answers are constraints.
            models: Whose gates get variables. Models of one space have the same gates, so that each gets its own once.
        """
        self.problem = problem
        self.literals = problem.literals
        self.size = len(self.literals)
        self._rows: list[Bounded] = []
        self._expressions: dict[Hashable, Linear] = {}
        self._levels: dict[Walks, list[int]] = {}
        index = self.literals.index
        for d in problem.decisions:
            self.constrain({index[d.name, o]: 1.0 for o in d.options}, 1.0, 1.0)
        for r in [r for rule in problem.rules for r in rule.rows()]:
            self.constrain({index[lit]: c for lit, c in r.coefficients.items()}, r.low, r.high)
        if any(len(walk) > 1 for m in models for g in m.gates for walk, _ in g.walks.terms):
            conserve(self, list(self._rows))
        for literal in problem.fixed:
            self.constrain({index[literal]: 1.0}, 1.0, 1.0)
        self.prices = [self._price(m) for m in models]
        self.worst = self.variable()
        self._stack = self._stacked(self._rows)
        self._upper = np.ones(self.size)
        self._upper[self.worst] = np.inf
        self._integer = np.zeros(self.size, bool)
        self._integer[: len(self.literals)] = True  # gates follow from literals
        self._integer[[i for levels in self._levels.values() for i in levels]] = True

    def architecture(self, cost: np.ndarray, extra: Sequence[Bounded] = ()) -> Architecture | None:
        """Return the architecture of the lowest linear cost; None if nothing is feasible.

        Args:
            cost: Of each variable, (size,).
            extra: Further constraints.
        """
        values = self.values(cost, extra)
        if values is None:
            return None
        chosen = np.round(values[: len(self.literals)])
        answers = {d: o for (d, o), on in zip(self.literals.names, chosen, strict=True) if on}
        return Architecture.of(self.problem.name, answers)

    def values(self, cost: np.ndarray, extra: Sequence[Bounded]) -> np.ndarray | None:
        """Minimise a linear cost; return the values of all variables, or None if nothing is feasible."""
        rows = self._stack.and_also(self._stacked(extra)) if extra else self._stack
        return minimise(cost, self._upper, self._integer, rows)

    def refusal(self) -> str:
        """Return what to say where no architecture obeys all rules."""
        asked = ", ".join(str(r) for r in self.problem.rules if not r.decisions) or "what is asked for"
        return f"no architecture of the space has {asked}; allow more of it"

    def once(self, key: Hashable, make: Callable[[], Linear]) -> Linear:
        """Return the expression under a key, made when it is first asked for."""
        if key not in self._expressions:
            self._expressions[key] = make()
        return self._expressions[key]

    def variable(self) -> int:
        """Return a new variable, from 0 to 1."""
        self.size += 1
        return self.size - 1

    def constrain(self, expression: Linear, low: float, high: float) -> None:
        """Keep an expression between two bounds."""
        self._rows.append((expression, low, high))

    def any_of(self, parts: Sequence[Linear]) -> Linear:
        """Return "at least one part holds" as a linear expression."""
        y = self.variable()
        every: Linear = {y: 1.0}
        for part in parts:
            self.constrain({y: 1.0, **{i: -c for i, c in part.items()}}, 0.0, np.inf)  # y >= part
            every |= {i: -c for i, c in part.items()}
        self.constrain(every, -np.inf, 0.0)  # y <= sum of parts
        return {y: 1.0}

    def all_of(self, parts: Sequence[Linear]) -> Linear:
        """Return "all parts hold" as a linear expression."""
        y = self.variable()
        total: Linear = {y: 1.0}
        for part in parts:
            self.constrain({y: 1.0, **{i: -c for i, c in part.items()}}, -np.inf, 0.0)  # y <= part
            add(total, part, -1.0)
        self.constrain(total, 1.0 - len(parts), np.inf)  # y >= sum - (n - 1)
        return {y: 1.0}

    def _price(self, model: LatencyModel) -> tuple[Linear, float]:
        """Return latency as a linear function of the variables: coefficients and constant."""
        row: Linear = {}
        constant = model.base_ms
        unit_costs: dict[Walks, Linear] = {}  # what each unit of a count costs
        for gate, ms in zip(model.gates, model.gate_ms, strict=True):
            counted = gate.walks.linear(self)
            if gate.conditional:
                add(unit_costs.setdefault(gate.walks, {}) if gate.walks else row, gate.linear(self), float(ms))
            elif gate.walks:
                add(row, counted, float(ms))
            else:
                constant += float(ms)
        # All gates have their variables by now, so that one matrix of constraints will do.
        stack = self._stacked(self._rows)
        for walks, cost in unit_costs.items():
            add(row, self._product(walks, cost, stack))
        return row, constant

    def _product(self, walks: Walks, cost: Linear, stack: Rows) -> Linear:
        """Return count times unit cost, as a sum of unit costs over the levels that the count reaches.

        That takes one product of a binary and a bounded cost for each level, not one for each counted gate.
        """
        low, high = self._range(cost, stack)
        out: Linear = {}
        add(out, walks.linear(self), low)
        if high - low <= EQUAL * abs(high):
            return out
        least, share = low / (high - low), {i: c / (high - low) for i, c in cost.items()}
        for reached in self._reached(walks, stack):
            y = self.variable()  # reached * normalised cost, which is 0 at its lowest and 1 at its highest
            self.constrain({y: 1.0, reached: -1.0}, -np.inf, 0.0)
            self.constrain(less({y: 1.0}, share), -np.inf, -least)
            self.constrain(less({y: 1.0, reached: -1.0}, share), -least - 1.0, np.inf)
            out[y] = high - low
        return out

    def _reached(self, walks: Walks, stack: Rows) -> list[int]:
        """Return variables that are 1 where a count is at least 1, where it is at least 2, and so on."""
        if walks not in self._levels:
            _, most = self._range(walks.linear(self), stack)
            new = [self.variable() for _ in range(math.floor(most + 1e-6))]
            self._rows += [({i: 1.0, j: -1.0}, 0.0, np.inf) for i, j in pairwise(new)]
            self.constrain(less(dict.fromkeys(new, 1.0), walks.linear(self)), 0.0, 0.0)
            self._levels[walks] = new
        return self._levels[walks]

    def _range(self, expression: Mapping[int, float], stack: Rows) -> tuple[float, float]:
        """Return the bounds of an expression in the linear relaxation."""
        n = stack.matrix.shape[1]
        cost = np.zeros(n)
        cost[list(expression)] = list(expression.values())
        low, high = (minimise(sign * cost, np.ones(n), np.zeros(n, bool), stack) for sign in (1, -1))
        if low is None or high is None:
            raise BudgetError(self.refusal())
        return float(cost @ low), float(cost @ high)

    def _stacked(self, rows: Sequence[Bounded]) -> Rows:
        """Return rows as a sparse matrix, and their bounds."""
        entries = [(r, i, c) for r, (row, _, _) in enumerate(rows) for i, c in row.items()]
        r, i, c = zip(*entries, strict=True) if entries else ((), (), ())
        matrix = csr_matrix((c, (r, i)), shape=(len(rows), self.size))
        return Rows(matrix, np.array([low for _, low, _ in rows]), np.array([high for _, _, high in rows]))
