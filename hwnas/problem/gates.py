"""Gates: how often an op is part of the derived network, declared once for loss, prediction and solver.

A gate is a conjunction of clauses, each a disjunction of literals, times a count of walks (`hwnas.problem.walks`). It
may have an exception, a further conjunction under which it is closed: "exactly m" is "m or more, unless m + 1 or more".
It says how often it is open in an architecture, how often in expectation, and what it is as a linear expression of a
mixed-integer program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from hwnas.problem.arch import Architecture
from hwnas.problem.linear import Linear, LinearForm, less
from hwnas.problem.probabilities import Literal, Literals
from hwnas.problem.walks import WalkCounts, Walks, padded

Clause = frozenset[Literal]
NO_WALKS = Walks()


@dataclass(frozen=True)
class Gate:
    """How often an op is part of the derived network: not at all unless each clause holds by one of its literals.

    Attributes:
        clauses: All of them must hold.
        walks: How many of them the path takes; none for once, whatever path is taken.
        unless: Where all of these hold as well, it is closed; none for no exception. As one conjunction less another
            that implies it, "exactly m" has the same variables in a program, and the same factors in expectation, as
            its neighbours "exactly m - 1" and "exactly m + 1". Written as clauses it would need a literal of each pair
            of edges, and in expectation the alternatives would not add up to 1.
    """

    clauses: frozenset[Clause] = frozenset()
    walks: Walks = NO_WALKS
    unless: frozenset[Clause] = frozenset()

    def __post_init__(self) -> None:
        assert not (self.walks and self.unless), "an exception within a walk has no meaning yet"

    def __and__(self, other: Gate) -> Gate:
        """Both hold."""
        assert not (self.walks and other.walks), "a walk within a walk has no meaning yet"
        assert not (self.unless and other.unless), "two exceptions are no conjunction"
        return Gate(simplified(self.clauses | other.clauses), self.walks or other.walks, self.unless or other.unless)

    def __or__(self, other: Gate) -> Gate:
        """At least one holds; distributes over clauses, so that the result is again a conjunction of clauses."""
        assert self.unless == other.unless, "alternatives differ in their exceptions"
        if self.walks != other.walks:
            assert self.clauses == other.clauses, "alternatives differ in their walks or in their clauses"
            return Gate(self.clauses, self.walks | other.walks)
        common = self.clauses & other.clauses
        # If one gate implies the other, only what they share is left, and there is nothing to pair.
        pairs = frozenset(a | b for a in self.clauses - common for b in other.clauses - common)
        return Gate(common | pairs, self.walks, self.unless)

    def except_where(self, other: Gate) -> Gate:
        """This one holds and the other, a conjunction of clauses, does not."""
        assert other.clauses and not (other.walks or other.unless or self.unless), "an exception is a conjunction"
        return Gate(self.clauses, self.walks, other.clauses)

    @classmethod
    def total(cls, gates: Sequence[Gate]) -> Gate:
        """Return how often one of several gates is open, each counted: they differ in their walks alone."""
        return cls(gates[0].clauses, Walks.total([term for g in gates for term in g.walks.terms]))

    @property
    def counted(self) -> bool:
        """Whether it may be open more than once."""
        return bool(self.walks)

    @property
    def conditional(self) -> bool:
        """Whether it has clauses or an exception, so that `linear` is no constant."""
        return bool(self.clauses or self.unless)

    def count(self, arch: Architecture) -> int:
        """Return how often the gate is open in an architecture."""
        if not _all_hold(self.clauses, arch) or (self.unless and _all_hold(self.unless, arch)):
            return 0
        return self.walks.count(arch) if self.walks else 1

    def holds(self, arch: Architecture) -> bool:
        """Tell whether the gate is open in an architecture."""
        return self.count(arch) > 0

    def linear(self, form: LinearForm) -> Linear:
        """Return "all clauses hold, and not all of `unless`" as a linear expression; the gate is `conditional`."""
        if not self.unless:
            return _conjunction(form, self.clauses)
        both = _conjunction(form, simplified(self.clauses | self.unless))
        if self.clauses:
            return less(_conjunction(form, self.clauses), both)
        decision = min(d for clause in self.unless for d, _ in clause)  # its literals add up to 1
        return less({form.literals.index[x]: 1.0 for x in form.literals.options_of(decision)}, both)


ALWAYS = Gate()


def choice(decision: str, *options: str) -> Gate:
    """Return the gate of a decision answered with one of `options`."""
    return Gate(frozenset({frozenset((decision, o) for o in options)}))


def exactly(n: int, clauses: Sequence[Clause], least: int = 0) -> Gate:
    """Return the gate of n of several clauses holding, and no more; `least` of them hold in any case, by a rule."""
    low = at_least(n, clauses) if n > least else ALWAYS
    return low.except_where(at_least(n + 1, clauses)) if n < len(clauses) else low


def at_least(n: int, clauses: Sequence[Clause]) -> Gate:
    """Return the gate of n or more of several clauses holding: of any so many that fewer than n are left, one does."""
    some = combinations(clauses, len(clauses) - n + 1)
    return Gate(frozenset(frozenset[Literal]().union(*chosen) for chosen in some))


def simplified(clauses: frozenset[Clause]) -> frozenset[Clause]:
    """Return the same conjunction with one clause for what is about one decision, and none that another one implies.

    In expectation clauses count as independent, so that none should say again what another one does.
    """
    of_one: dict[str, Clause] = {}
    rest = set()
    for clause in clauses:
        (decision, *others) = {d for d, _ in clause} or ("",)
        if others:
            rest.add(clause)
        else:
            of_one[decision] = of_one.get(decision, clause) & clause
    every = rest | set(of_one.values())
    return frozenset(c for c in every if not any(other < c for other in every))


def _all_hold(clauses: frozenset[Clause], arch: Architecture) -> bool:
    return all(any(arch.get(d) == o for d, o in clause) for clause in clauses)


def _conjunction(form: LinearForm, clauses: frozenset[Clause]) -> Linear:
    """Return "all clauses hold" as a linear expression; there is at least one."""

    def make() -> Linear:
        ordered = sorted(clauses, key=sorted)
        return _clause(form, ordered[0]) if len(ordered) == 1 else _all_clauses(form, ordered)

    return form.once(clauses, make)


def _clause(form: LinearForm, clause: Clause) -> Linear:
    """Return "at least one literal holds" as a linear expression; literals of one decision exclude each other."""

    def make() -> Linear:
        by_decision: dict[str, Linear] = {}
        for d, o in sorted(clause):
            by_decision.setdefault(d, {})[form.literals.index[d, o]] = 1.0
        parts = list(by_decision.values())
        return parts[0] if len(parts) == 1 else form.any_of(parts)

    return form.once(clause, make)


def _all_clauses(form: LinearForm, clauses: Sequence[Clause]) -> Linear:
    """Return "all clauses hold" as a linear expression.

    Where each is of one decision, AND is 1 - OR of the negations, so that it shares a variable with its complement.
    Often there is a gate for that too: the two must add up to 1 for the solver's fractions as well, or it takes neither
    and pays for neither.
    """
    of = [{d for d, _ in clause} for clause in clauses]
    if any(len(decisions) > 1 for decisions in of):
        return form.all_of([_clause(form, c) for c in clauses])
    answers = [form.literals.options_of(d) for (d,) in of]
    otherwise = frozenset(x for every, c in zip(answers, clauses, strict=True) for x in every if x not in c)
    out = {form.literals.index[x]: 1.0 for x in answers[0]}  # the literals of a decision add up to 1
    for i, c in _clause(form, otherwise).items():
        out[i] = out.get(i, 0.0) - c
    return {i: c for i, c in out.items() if c}


class GateProbabilities(nn.Module):
    """How often each of many gates is open in expectation, at once."""

    _part: Tensor
    _literal: Tensor
    _clause_parts: Tensor
    _gate_clauses: Tensor
    _excepted: Tensor
    _both_clauses: Tensor

    def __init__(self, literals: Literals, gates: Sequence[Gate], dropped: dict[str, int]) -> None:
        """Index `gates` for vectorised evaluation.

        Args:
            literals: Their order.
            gates: In the order of the result.
            dropped: By decision that can be dropped, the literal that says so.
        """
        super().__init__()
        both = {n: simplified(g.clauses | g.unless) for n, g in enumerate(gates) if g.unless}
        clauses = sorted({c for group in (*(g.clauses for g in gates), *both.values()) for c in group}, key=sorted)
        # Literals of one decision exclude each other, so they add; decisions are independent, so they multiply.
        parts = sorted({(i, d) for i, c in enumerate(clauses) for d, _ in c})
        part_of = {p: n for n, p in enumerate(parts)}
        pairs = [(part_of[i, d], literals.index[d, o]) for i, c in enumerate(clauses) for d, o in sorted(c)]
        part, literal = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        self.register_buffer("_part", part, persistent=False)
        self.register_buffer("_literal", literal, persistent=False)
        self._n_parts = len(parts)
        by_clause = [[part_of[p] for p in parts if p[0] == i] for i in range(len(clauses))]
        self.register_buffer("_clause_parts", padded(by_clause, len(parts)), persistent=False)
        clause_of = {c: i for i, c in enumerate(clauses)}
        of_gates = padded([[clause_of[c] for c in g.clauses] for g in gates], len(clauses))
        self.register_buffer("_gate_clauses", of_gates, persistent=False)
        self.register_buffer("_excepted", torch.tensor(list(both), dtype=torch.long), persistent=False)
        of_both = padded([[clause_of[c] for c in group] for group in both.values()], len(clauses))
        self.register_buffer("_both_clauses", of_both, persistent=False)
        self._counts = WalkCounts(literals, [g.walks for g in gates], dropped)

    def forward(self, q: Tensor) -> Tensor:
        """Return expected counts (n_gates,) from the marginals of literals (n_literals,)."""
        one = q.new_ones(1)
        parts = q.new_zeros(self._n_parts).index_add(0, self._part, q[self._literal])
        clauses = torch.cat([1 - torch.cat([1 - parts, one])[self._clause_parts].prod(dim=1), one])
        hold = clauses[self._gate_clauses].prod(dim=1)
        if len(self._excepted):
            hold = hold.index_add(0, self._excepted, -clauses[self._both_clauses].prod(dim=1))
        counts = self._counts(q)
        return hold if counts is None else hold * counts
