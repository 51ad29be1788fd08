"""A space and its prices as a mixed-integer program: one binary per literal, gates and rules as linear constraints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from scipy.sparse import csr_matrix

from hwnas.arch import Architecture, Group
from hwnas.gates import Clause, Gate, Literals, Walk, Walks
from hwnas.gates import Row as GateRow
from hwnas.latency.model import LatencyModel
from hwnas.search.milp import Rows, minimise

Row = tuple[dict[int, float], float, float]  # coefficients by variable, low, high


class Linear(Protocol):
    """What is a set of linear constraints on literals: a `Rule`, a limit."""

    def rows(self) -> list[GateRow]:
        """Return the constraints."""


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
        self, groups: Sequence[Group], rules: Sequence[Linear], space: str, models: Sequence[LatencyModel]
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
        self._clauses: dict[Clause, dict[int, float]] = {}
        self._gates: dict[Gate, dict[int, float]] = {}
        self._walks: dict[Walk, dict[int, float]] = {}
        self._counts: dict[Walks, tuple[dict[int, float], float]] = {}  # and their largest values
        self._bounds = [1.0] * self.size
        rows = list(self._rows)
        if any(len(walk) > 1 for m in models for g in m.gates for walk, _ in g.walks):
            self._flows(rows)
        self._count_walks(dict.fromkeys(g.walks for m in models for g in m.gates if g.walks))
        self._products: dict[tuple[Walks, tuple[tuple[int, float], ...]], dict[int, float]] = {}
        self.prices = [self._price(m) for m in models]
        self.worst = self._variable(np.inf)
        self._stack = self._stacked(self._rows)
        self._whole = np.arange(self.size) < len(self.literals)  # gates follow from literals
        self._upper = np.array(self._bounds)

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

    def _price(self, model: LatencyModel) -> tuple[dict[int, float], float]:
        """Return latency as a linear function of the variables: coefficients and constant."""
        row: dict[int, float] = {}
        constant = model.base_ms
        for gate, ms in zip(model.gates, model.gate_ms, strict=True):
            if not gate.clauses and not gate.walks:
                constant += float(ms)
                continue
            if gate not in self._gates:
                self._gates[gate] = self._gate(gate)
            for i, c in self._gates[gate].items():
                row[i] = row.get(i, 0.0) + c * float(ms)
        return row, constant

    def _variable(self, most: float = 1.0) -> int:
        self.size += 1
        self._bounds.append(most)
        return self.size - 1

    def _count_walks(self, every: Iterable[Walks]) -> None:
        """Give counts of walks their linear expressions, and bounds: a product with a count needs a tight one."""
        for walks in every:
            total: dict[int, float] = {}
            for walk, n in sorted(walks):
                for i, c in self._walk(walk).items():
                    total[i] = total.get(i, 0.0) + n * c
            self._counts[walks] = {i: c for i, c in total.items() if c}, 0.0
        if not self._counts:
            return
        rows, upper, whole = self._stacked(self._rows), np.ones(self.size), np.zeros(self.size, bool)
        for walks, (counted, _) in self._counts.items():
            cost = np.zeros(self.size)
            cost[list(counted)] = [-c for c in counted.values()]
            values = minimise(cost, upper, whole, rows)
            assert values is not None, "there is a path"
            self._counts[walks] = counted, float(np.floor(-cost @ values + 1e-6))

    def _gate(self, gate: Gate) -> dict[int, float]:
        """Return how often a gate is open as a linear expression."""
        clauses = sorted(gate.clauses, key=sorted)
        holds = self._clause(clauses[0]) if len(clauses) == 1 else self._all_clauses(clauses) if clauses else {}
        if not gate.walks:
            return holds
        return self._product(gate.walks, holds) if holds else self._counts[gate.walks][0]

    def _product(self, walks: Walks, holds: dict[int, float]) -> dict[int, float]:
        """Return a count of walks where an expression is 1, and 0 where it is 0."""
        key = walks, tuple(sorted(holds.items()))
        if key in self._products:
            return self._products[key]
        counted, most = self._counts[walks]
        y = self._variable(most)
        self._rows.append(({y: 1.0, **{i: -most * c for i, c in holds.items()}}, -np.inf, 0.0))  # y <= most * holds
        self._rows.append(({y: 1.0, **{i: -c for i, c in counted.items()}}, -np.inf, 0.0))  # y <= counted
        both = {y: 1.0, **{i: -c for i, c in counted.items()}}
        for i, c in holds.items():
            both[i] = both.get(i, 0.0) - most * c
        self._rows.append((both, -most, np.inf))  # y >= counted - most * (1 - holds)
        self._products[key] = {y: 1.0}
        return self._products[key]

    def _flows(self, conserved: Sequence[Row]) -> None:
        """Say of walks through a place that each step into it goes on by one of the steps from there, and the reverse.

        It follows from the rest where variables are whole numbers. Where they are not yet, a walk of two steps that
        are half taken might not be taken at all, and the solver has to try out what it could have known.
        """
        for row, low, high in conserved:
            into, out = ([i for i, c in row.items() if c == sign] for sign in (-1.0, 1.0))
            if low == high == 0 and into and out and len(into) + len(out) == len(row):
                names = self.literals.names
                walks = {(i, j): self._walk((names[i], names[j])) for i in into for j in out}
                for i in (*into, *out):
                    through = {k: c for pair, y in walks.items() if i in pair for k, c in y.items()}
                    self._rows.append(({**through, i: -1.0}, 0.0, 0.0))

    def _walk(self, walk: Walk) -> dict[int, float]:
        """Return "all steps are taken" as a linear expression."""
        if walk not in self._walks:
            steps = [{self.literals.index[step]: 1.0} for step in walk]
            self._walks[walk] = steps[0] if len(steps) == 1 else self._all_of(steps)
        return self._walks[walk]

    def _clause(self, clause: Clause) -> dict[int, float]:
        """Return "at least one literal holds" as a linear expression; literals of one decision exclude each other."""
        if clause not in self._clauses:
            by_decision: dict[str, dict[int, float]] = {}
            for d, o in sorted(clause):
                by_decision.setdefault(d, {})[self.literals.index[d, o]] = 1.0
            parts = list(by_decision.values())
            self._clauses[clause] = parts[0] if len(parts) == 1 else self._any_of(parts)
        return self._clauses[clause]

    def _all_clauses(self, clauses: Sequence[Clause]) -> dict[int, float]:
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

    def _any_of(self, parts: list[dict[int, float]]) -> dict[int, float]:
        """Return "at least one part holds" as a linear expression."""
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

    def _stacked(self, rows: Sequence[Row]) -> Rows:
        """Return rows as a sparse matrix, and their bounds."""
        entries = [(r, i, c) for r, (row, _, _) in enumerate(rows) for i, c in row.items()]
        r, i, c = zip(*entries, strict=True) if entries else ((), (), ())
        matrix = csr_matrix((c, (r, i)), shape=(len(rows), self.size))
        return Rows(matrix, np.array([low for _, low, _ in rows]), np.array([high for _, _, high in rows]))
