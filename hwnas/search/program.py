"""A space and its prices as a mixed-integer program: one binary per literal, gates and rules as linear constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from scipy.sparse import csr_matrix

from hwnas.problem import Architecture, Group
from hwnas.problem import Clause, Gate, Literals, Walk, Walks
from hwnas.problem import Row as GateRow
from hwnas.latency.model import LatencyModel
from hwnas.search.milp import Rows, minimise

Linear = dict[int, float]  # a linear function: coefficients by variable
EQUAL = 1e-9  # relative; what differs by less is the same to a solver
Row = tuple[Linear, float, float]  # with its low and high


class Restriction(Protocol):
    """What is a set of linear constraints on literals: a `Rule`, a limit."""

    def rows(self) -> list[GateRow]:
        """Return the constraints."""


def _add(to: Linear, what: Mapping[int, float], times: float = 1.0) -> None:
    for i, c in what.items():
        to[i] = to.get(i, 0.0) + times * c


def _less(a: Linear, b: Linear) -> Linear:
    out = dict(a)
    _add(out, b, -1.0)
    return out


class Program:
    """The constraints of a space and of the gates that prices hang on.

    They are built once; what differs between questions, budgets and cuts, are rows on top of them.

    Attributes:
        literals: The first variables, in this order.
        prices: Of each model, latency as a linear function of the variables: coefficients and constant.
        worst: A variable from 0 to infinity that no constraint binds.
        size: Number of variables.
    """

    def __init__(
        self, groups: Sequence[Group], rules: Sequence[Restriction], space: str, models: Sequence[LatencyModel]
    ) -> None:
        """Set up the variables and constraints.

        Args:
            groups: Of the space.
            rules: Of the space, and whatever else an architecture must obey.
            space: Its name.
            models: Whose gates get variables. Models of one space have the same gates, so that each gets its own once.
        """
        self.literals = Literals(groups)
        self.space = space
        self.size = len(self.literals)
        self._rows: list[Row] = []
        self._answers = {d.name: [(d.name, o) for o in d.options] for g in groups for d in g.decisions}
        for answers in self._answers.values():
            self._rows.append(({self.literals.index[x]: 1.0 for x in answers}, 1.0, 1.0))
        for r in [r for rule in rules for r in rule.rows()]:
            self._rows.append(({self.literals.index[lit]: c for lit, c in r.coefficients.items()}, r.low, r.high))
        self._clauses: dict[Clause, Linear] = {}
        self._gates: dict[frozenset[Clause], Linear] = {}
        self._walks: dict[Walk, Linear] = {}
        self._counts: dict[Walks, Linear] = {}
        self._levels: dict[Walks, list[int]] = {}
        if any(len(walk) > 1 for m in models for g in m.gates for walk, _ in g.walks):
            self._flows(list(self._rows))
        self.prices = [self._price(m) for m in models]
        self.worst = self._variable()
        self._stack = self._stacked(self._rows)
        self._upper = np.ones(self.size)
        self._upper[self.worst] = np.inf
        self._whole = np.zeros(self.size, bool)
        self._whole[: len(self.literals)] = True  # gates follow from literals
        self._whole[[i for reached in self._levels.values() for i in reached]] = True

    def architecture(self, cost: np.ndarray, extra: Sequence[Row] = ()) -> Architecture | None:
        """Return the architecture of the lowest linear cost; None if nothing is feasible.

        Args:
            cost: Of each variable, (size,).
            extra: Further constraints.
        """
        values = self.values(cost, extra)
        if values is None:
            return None
        chosen = np.round(values[: len(self.literals)])
        return Architecture.of(self.space, {d: o for (d, o), on in zip(self.literals.names, chosen, strict=True) if on})

    def values(self, cost: np.ndarray, extra: Sequence[Row]) -> np.ndarray | None:
        """Minimise a linear cost; return the values of all variables, or None if nothing is feasible."""
        rows = self._stack.and_also(self._stacked(extra)) if extra else self._stack
        return minimise(cost, self._upper, self._whole, rows)

    def _price(self, model: LatencyModel) -> tuple[Linear, float]:
        """Return latency as a linear function of the variables: coefficients and constant."""
        row: Linear = {}
        constant = model.base_ms
        of_one: dict[Walks, Linear] = {}  # what each of a count costs
        for gate, ms in zip(model.gates, model.gate_ms, strict=True):
            counted = self._count(gate.walks)
            if gate.clauses:
                _add(of_one.setdefault(gate.walks, {}) if gate.walks else row, self._holds(gate), float(ms))
            elif gate.walks:
                _add(row, counted, float(ms))
            else:
                constant += float(ms)
        # All that costs are linear functions of is there by now, so that one matrix will do.
        stack = self._stacked(self._rows)
        for walks, cost in of_one.items():
            _add(row, self._product(walks, cost, stack))
        return row, constant

    def _variable(self) -> int:
        self.size += 1
        return self.size - 1

    def _holds(self, gate: Gate) -> Linear:
        """Return "all clauses of a gate hold" as a linear expression."""
        if gate.clauses not in self._gates:
            clauses = sorted(gate.clauses, key=sorted)
            self._gates[gate.clauses] = self._clause(clauses[0]) if len(clauses) == 1 else self._all_clauses(clauses)
        return self._gates[gate.clauses]

    def _count(self, walks: Walks) -> Linear:
        """Return how often some walks count as a linear expression."""
        if walks not in self._counts:
            total: Linear = {}
            for walk, n in sorted(walks):
                _add(total, self._walk(walk), n)
            self._counts[walks] = {i: c for i, c in total.items() if c}
        return self._counts[walks]

    def _product(self, walks: Walks, cost: Linear, stack: Rows) -> Linear:
        """Return a count times what each costs: that, added up over what the count has reached.

        So there is one product for each number that a count can reach, and not one for each gate that is counted.
        """
        low, high = self._range(cost, stack)
        out: Linear = {}
        _add(out, self._count(walks), low)
        if high - low <= EQUAL * abs(high):
            return out
        least, share = low / (high - low), {i: c / (high - low) for i, c in cost.items()}
        for reached in self._reached(walks, stack):
            y = self._variable()  # where the number is reached: where the cost is between its lowest, 0, and highest, 1
            self._rows.append(({y: 1.0, reached: -1.0}, -np.inf, 0.0))
            self._rows.append((_less({y: 1.0}, share), -np.inf, -least))
            self._rows.append((_less({y: 1.0, reached: -1.0}, share), -least - 1.0, np.inf))
            out[y] = high - low
        return out

    def _reached(self, walks: Walks, stack: Rows) -> list[int]:
        """Return variables that are 1 where a count is at least 1, where it is at least 2, and so on."""
        if walks not in self._levels:
            _, most = self._range(self._count(walks), stack)
            new = [self._variable() for _ in range(math.floor(most + 1e-6))]
            self._rows += [({i: 1.0, j: -1.0}, 0.0, np.inf) for i, j in pairwise(new)]
            self._rows.append((_less(dict.fromkeys(new, 1.0), self._count(walks)), 0.0, 0.0))
            self._levels[walks] = new
        return self._levels[walks]

    def _range(self, expression: Linear, stack: Rows) -> tuple[float, float]:
        """Return the least and the greatest value of an expression, as far as fractions tell."""
        n = stack.matrix.shape[1]
        cost = np.zeros(n)
        cost[list(expression)] = list(expression.values())
        low, high = (minimise(sign * cost, np.ones(n), np.zeros(n, bool), stack) for sign in (1, -1))
        assert low is not None and high is not None, "there is an architecture"
        return float(cost @ low), float(cost @ high)

    def _flows(self, conserved: Sequence[Row]) -> None:
        """Set up walks of two steps: each step into a place goes on by one of the steps from there, and the reverse.

        The steps from a place are answers to one decision, so that at most one is taken.
        """
        for row, low, high in conserved:
            into, out = ([i for i, c in row.items() if c == sign] for sign in (-1.0, 1.0))
            if low == high == 0 and into and out and len(into) + len(out) == len(row):
                names = self.literals.names
                walks = {(i, j): self._variable() for i in into for j in out}
                self._walks |= {(names[i], names[j]): {y: 1.0} for (i, j), y in walks.items()}
                for i in (*into, *out):
                    through = {y: 1.0 for pair, y in walks.items() if i in pair}
                    self._rows.append(({**through, i: -1.0}, 0.0, 0.0))

    def _walk(self, walk: Walk) -> Linear:
        """Return "all steps are taken" as a linear expression."""
        if walk not in self._walks:
            steps = [{self.literals.index[step]: 1.0} for step in walk]
            self._walks[walk] = steps[0] if len(steps) == 1 else self._all_of(steps)
        return self._walks[walk]

    def _clause(self, clause: Clause) -> Linear:
        """Return "at least one literal holds" as a linear expression; literals of one decision exclude each other."""
        if clause not in self._clauses:
            by_decision: dict[str, Linear] = {}
            for d, o in sorted(clause):
                by_decision.setdefault(d, {})[self.literals.index[d, o]] = 1.0
            parts = list(by_decision.values())
            self._clauses[clause] = parts[0] if len(parts) == 1 else self._any_of(parts)
        return self._clauses[clause]

    def _all_clauses(self, clauses: Sequence[Clause]) -> Linear:
        """Return "all clauses hold" as a linear expression.

        Where each is of one decision, that is 1 less "some decision is answered otherwise". Often there is a gate for
        that too: the two must add up to 1 for the solver's fractions as well, or it takes neither and pays for neither.
        """
        of = [{d for d, _ in clause} for clause in clauses]
        if any(len(decisions) > 1 for decisions in of):
            return self._all_of([self._clause(c) for c in clauses])
        answers = [self._answers[d] for (d,) in of]
        otherwise = frozenset(x for every, c in zip(answers, clauses, strict=True) for x in every if x not in c)
        out = {self.literals.index[x]: 1.0 for x in answers[0]}  # the literals of a decision add up to 1
        for i, c in self._clause(otherwise).items():
            out[i] = out.get(i, 0.0) - c
        return {i: c for i, c in out.items() if c}

    def _any_of(self, parts: list[Linear]) -> Linear:
        """Return "at least one part holds" as a linear expression."""
        y = self._variable()
        every: Linear = {y: 1.0}
        for part in parts:
            self._rows.append(({y: 1.0, **{i: -c for i, c in part.items()}}, 0.0, np.inf))  # y >= part
            every |= {i: -c for i, c in part.items()}
        self._rows.append((every, -np.inf, 0.0))  # y <= sum of parts
        return {y: 1.0}

    def _all_of(self, parts: list[Linear]) -> Linear:
        """Return "all parts hold" as a linear expression."""
        y = self._variable()
        total: Linear = {y: 1.0}
        for part in parts:
            self._rows.append(({y: 1.0, **{i: -c for i, c in part.items()}}, -np.inf, 0.0))  # y <= part
            for i, c in part.items():
                total[i] = total.get(i, 0.0) - c
        self._rows.append((total, 1.0 - len(parts), np.inf))  # y >= sum - (n - 1)
        return {y: 1.0}

    def _stacked(self, rows: Sequence[Row]) -> Rows:
        """Return rows as a sparse matrix, and their bounds."""
        entries = [(r, i, c) for r, (row, _, _) in enumerate(rows) for i, c in row.items()]
        r, i, c = zip(*entries, strict=True) if entries else ((), (), ())
        matrix = csr_matrix((c, (r, i)), shape=(len(rows), self.size))
        return Rows(matrix, np.array([low for _, low, _ in rows]), np.array([high for _, _, high in rows]))
