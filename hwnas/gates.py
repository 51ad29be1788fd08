"""Gates and rules, declared once: the probability in the loss and the linear constraint in the solver.

A *literal* is a pair (decision, option). A `Gate` says how often an op is part of the derived network: a conjunction of
clauses, each a disjunction of literals, and how many of some walks are taken. A `Rule` says what every valid
architecture obeys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hwnas.arch import Architecture, Group

Literal = tuple[str, str]
Answers = tuple[Literal, ...]
Clause = frozenset[Literal]
Probs = Mapping[str, Mapping[str, float]]  # {decision: {option: probability}}


# Steps of a path, one after the other: the literals of decisions at successive places, each taken only where it passes.
Walk = tuple[Literal, ...]
Walks = frozenset[tuple[Walk, int]]  # with how often each counts


@dataclass(frozen=True)
class Gate:
    """How often an op is part of the derived network: not at all unless each clause holds by one of its literals.

    Attributes:
        clauses: All of them must hold.
        walks: How often each walk counts; none for once, whatever path is taken. A negative number takes back what two
            others count together.
    """

    clauses: frozenset[Clause] = frozenset()
    walks: Walks = frozenset()

    def __and__(self, other: Gate) -> Gate:
        """Both hold."""
        assert not (self.walks and other.walks), "a walk within a walk has no meaning yet"
        return Gate(self.clauses | other.clauses, self.walks | other.walks)

    def __or__(self, other: Gate) -> Gate:
        """At least one holds; distributes over clauses, so that the result is again a conjunction of clauses."""
        if self.walks != other.walks:
            assert self.clauses == other.clauses, "alternatives differ in their walks or in their clauses"
            return Gate(self.clauses, _any_walk(self.walks, other.walks))
        common = self.clauses & other.clauses
        # If one gate implies the other, only what they share is left, and there is nothing to pair.
        pairs = frozenset(a | b for a in self.clauses - common for b in other.clauses - common)
        return Gate(common | pairs, self.walks)

    @classmethod
    def total(cls, gates: Sequence[Gate]) -> Gate:
        """Return how often one of several gates is open, each counted: they differ in their walks alone."""
        return cls(gates[0].clauses, _sum([walk for g in gates for walk in g.walks]))

    def count(self, arch: Architecture) -> int:
        """Return how often the gate is open in an architecture."""
        if not all(any(arch.get(d) == o for d, o in clause) for clause in self.clauses):
            return 0
        return sum(n for walk, n in self.walks if all(arch.get(d) == o for d, o in walk)) if self.walks else 1

    def holds(self, arch: Architecture) -> bool:
        """Tell whether the gate is open in an architecture."""
        return self.count(arch) > 0


def _any_walk(a: Walks, b: Walks) -> Walks:
    """Return walks that count 1 where those of a, or of b, or of both count 1: their sum less their product."""
    assert a and b, "an op that is always there is no alternative to one on a walk"
    both = [(walk, -n * m) for v, n in a for w, m in b if (walk := _both(v, w)) is not None]
    return _sum([*a, *b, *both])


def _both(v: Walk, w: Walk) -> Walk | None:
    """Return the walk that takes both; None if no path does. Walks that share no step pass a layer at two places."""
    for first, then in ((v, w), (w, v)):
        for at in range(len(first)):
            overlap = min(len(first) - at, len(then))
            if first[at : at + overlap] == then[:overlap]:
                return first + then[overlap:]
    return None


def _sum(walks: Sequence[tuple[Walk, int]]) -> Walks:
    total: dict[Walk, int] = {}
    for walk, n in walks:
        total[walk] = total.get(walk, 0) + n
    return frozenset((walk, n) for walk, n in total.items() if n)


ALWAYS = Gate()


def choice(decision: str, *options: str) -> Gate:
    """Return the gate of a decision answered with one of `options`."""
    return Gate(frozenset({frozenset((decision, o) for o in options)}))


def at_least(n: int, clauses: Sequence[Clause]) -> Gate:
    """Return the gate of n or more of several clauses holding: of any so many that fewer than n are left, one does."""
    some = combinations(clauses, len(clauses) - n + 1)
    return Gate(frozenset(frozenset[Literal]().union(*chosen) for chosen in some))


class Literals:
    """The order of literals in vectors: groups in order, rows in order, options in order."""

    def __init__(self, groups: Sequence[Group]) -> None:
        """Index the literals of `groups`."""
        self.groups = tuple(groups)
        self.names: list[Literal] = [(d.name, o) for g in groups for d in g.decisions for o in d.options]
        self.index = {literal: i for i, literal in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def vector(self, arch: Architecture) -> np.ndarray:
        """Return the one-hot vector of an architecture: (n_literals,) of 0.0 and 1.0."""
        return np.array([float(arch.get(d) == o) for d, o in self.names])

    def matrices(self, arch: Architecture) -> dict[str, Tensor]:
        """Return ``{group: (n_decisions, n_options)}``: one-hot where answered, uniform where open."""
        out: dict[str, Tensor] = {}
        for g in self.groups:
            rows = [
                [1.0 / len(d.options)] * len(d.options)
                if arch.get(d.name) is None
                else [float(arch.get(d.name) == o) for o in d.options]
                for d in g.decisions
            ]
            out[g.name] = torch.tensor(rows)
        return out


@dataclass(frozen=True)
class Row:
    """One linear constraint ``low <= sum(coefficient * literal) <= high``."""

    coefficients: Mapping[Literal, float]
    low: float
    high: float


class Rule(Protocol):
    """What every valid architecture obeys.

    Attributes:
        decisions: Those it is about.
        none: The option that means dropped: it costs 0 and scores 0.
    """

    @property
    def decisions(self) -> tuple[str, ...]:
        """See above."""

    @property
    def none(self) -> str:
        """See above."""

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Draw which decisions are dropped, and the answers to others as far as the rule is about them."""

    def strongest(self, probs: Probs) -> dict[str, str]:
        """Return the paper's answers to all of its decisions."""

    def worth(self, probs: Probs) -> dict[Literal, float]:
        """Return what each option but `none` adds to a score: of all that obeys, `strongest` has the largest sum."""

    def relax(self, q: Tensor, literals: Literals) -> Tensor:
        """Turn probabilities (n_literals,) into marginals of the derived network; the identity on valid one-hots."""

    def rows(self) -> list[Row]:
        """Return the same as linear constraints on 0/1 literals."""

    def holds(self, arch: Architecture) -> bool:
        """Tell whether an architecture obeys."""


@dataclass(frozen=True)
class TopK:
    """Exactly `k` of the decisions are answered with something other than `none` (DARTS 2.3 with k = 2).

    Attributes:
        decisions: The incoming edges of one node; all have the same options.
        options: Their options.
        k: How many edges survive.
        none: The option that means a dropped edge; a dropped edge costs 0 and scores 0.
    """

    decisions: tuple[str, ...]
    options: tuple[str, ...]
    k: int
    none: str = "none"

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Drop all but k edges, each set of k equally often."""
        kept = set(rng.permutation(len(self.decisions))[: self.k].tolist())
        return {d: self.none for i, d in enumerate(self.decisions) if i not in kept}

    def strongest(self, probs: Probs) -> dict[str, str]:
        """Keep the k edges whose best op is the most probable, with that op; ties keep what comes first (DARTS 2.3)."""
        ops = [o for o in self.options if o != self.none]
        best = {d: max(ops, key=probs[d].__getitem__) for d in self.decisions}
        ranked = sorted(self.decisions, key=lambda d: -probs[d][best[d]])  # stable
        return {d: best[d] if d in ranked[: self.k] else self.none for d in self.decisions}

    def worth(self, probs: Probs) -> dict[Literal, float]:
        """Return the probabilities."""
        return {(d, o): probs[d][o] for d in self.decisions for o in self.options if o != self.none}

    def relax(self, q: Tensor, literals: Literals) -> Tensor:
        """Return marginals under a relaxed top-k that sums to k, ops renormalised over non-none.

        The strength of an edge is its best non-none probability, as in the derivation.
        """
        ops = [o for o in self.options if o != self.none]
        index = torch.tensor([[literals.index[d, o] for o in ops] for d in self.decisions], device=q.device)
        dropped = torch.tensor([literals.index[d, self.none] for d in self.decisions], device=q.device)
        p = q[index]  # (edges, ops)
        keep = relaxed_top_k(p.max(dim=1).values, self.k)  # (edges,)
        share = p / p.sum(dim=1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        q = q.index_put((index,), keep[:, None] * share)
        return q.index_put((dropped,), 1 - keep)

    def rows(self) -> list[Row]:
        """Return the one constraint: kept edges sum to k."""
        kept = {(d, o): 1.0 for d in self.decisions for o in self.options if o != self.none}
        return [Row(kept, float(self.k), float(self.k))]

    def holds(self, arch: Architecture) -> bool:
        """Tell whether exactly k edges are kept."""
        return sum(arch.get(d) not in (self.none, None) for d in self.decisions) == self.k


def relaxed_top_k(strength: Tensor, k: int) -> Tensor:
    """Return keep probabilities, proportional to `strength` and capped at 1, that sum to k.

    Args:
        strength: (n,), non-negative, at least k of them positive.
        k: How many are kept; with n <= k all are.

    Returns:
        (n,): 1 on the k positive entries where only k are positive, so exact on one-hots.
    """
    if len(strength) <= k:
        return torch.ones_like(strength)
    capped = torch.zeros_like(strength, dtype=torch.bool)
    keep = strength
    for _ in range(k + 1):  # each round either caps one more entry or is the last
        room = k - capped.sum()
        free = torch.where(capped, torch.zeros_like(strength), strength)
        scaled = room * free / free.sum().clamp_min(torch.finfo(strength.dtype).tiny)
        keep = torch.where(capped, torch.ones_like(strength), scaled)
        capped = capped | (keep >= 1)
    return keep.clamp(max=1.0)


class Marginals:
    """From the search's probabilities to the marginals of the derived network and of many gates at once."""

    def __init__(self, groups: Sequence[Group], rules: Sequence[Rule], gates: Iterable[Gate]) -> None:
        """Index `gates` for vectorised evaluation.

        Args:
            groups: Of the space.
            rules: Of the space.
            gates: In the order of the result of `gate_probs`.
        """
        self.literals = Literals(groups)
        self.rules = tuple(rules)
        self.gates = list(gates)
        clauses = sorted({c for g in self.gates for c in g.clauses}, key=sorted)
        # Literals of one decision exclude each other, so they add; decisions are independent, so they multiply.
        parts = sorted({(i, d) for i, c in enumerate(clauses) for d, _ in c})
        part_of = {p: n for n, p in enumerate(parts)}
        pairs = [(part_of[i, d], self.literals.index[d, o]) for i, c in enumerate(clauses) for d, o in sorted(c)]
        self._part, self._literal = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        self._n_parts = len(parts)
        self._clause_parts = _padded(
            [[part_of[p] for p in parts if p[0] == i] for i in range(len(clauses))], len(parts)
        )
        clause_of = {c: i for i, c in enumerate(clauses)}
        self._gate_clauses = _padded([[clause_of[c] for c in g.clauses] for g in self.gates], len(clauses))
        walks = sorted({walk for g in self.gates for walk, _ in g.walks})
        self._walks = _padded([[self.literals.index[step] for step in walk] for walk in walks], len(self.literals))
        # Where a step is not the first of its walk, how probable it is where it is passed: over the place's marginal.
        dropped = {d: self.literals.index[d, r.none] for r in rules for d in r.decisions}
        self._places = _padded([[dropped[d] for d, _ in walk[1:]] for walk in walks], len(self.literals))
        self._places = self._places[:, : self._walks.shape[1] - 1]
        walk_of = {walk: i for i, walk in enumerate(walks)}
        counted = [(i, walk_of[walk], n) for i, g in enumerate(self.gates) for walk, n in sorted(g.walks)]
        self._gate_walks = torch.tensor([c[:2] for c in counted], dtype=torch.long).reshape(-1, 2)
        self._counts = torch.tensor([c[2] for c in counted])
        self._anywhere = torch.tensor([float(not g.walks) for g in self.gates])

    def literal_probs(self, probs: Mapping[str, Tensor]) -> Tensor:
        """Return the marginals of literals in the derived network, (n_literals,)."""
        rows = [probs[g.name].reshape(-1) for g in self.literals.groups]
        q = torch.cat(rows) if rows else torch.empty(0)  # a space of one network has no decisions
        for rule in self.rules:
            q = rule.relax(q, self.literals)
        return q

    def gate_probs(self, q: Tensor) -> Tensor:
        """Return how often each gate is open in expectation, (n_gates,), from literal marginals (n_literals,)."""
        one = q.new_ones(1)
        parts = q.new_zeros(self._n_parts).index_add(0, self._part, q[self._literal])
        clauses = 1 - torch.cat([1 - parts, one])[self._clause_parts].prod(dim=1)
        hold = torch.cat([clauses, one])[self._gate_clauses].prod(dim=1)
        if not len(self._counts):
            return hold
        steps = torch.cat([q, one])[self._walks]
        passed = 1 - torch.cat([q, 0 * one])[self._places]
        taken = steps[:, 0] * (steps[:, 1:] / passed.clamp_min(torch.finfo(q.dtype).tiny)).prod(dim=1)
        gate, walk = self._gate_walks.unbind(1)
        return hold * self._anywhere.to(q).index_add(0, gate, self._counts.to(q) * taken[walk])


def _padded(rows: list[list[int]], pad: int) -> Tensor:
    width = max((len(r) for r in rows), default=0)
    return torch.tensor([r + [pad] * (width - len(r)) for r in rows], dtype=torch.long).reshape(len(rows), width)
