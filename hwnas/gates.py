"""Gates and rules, declared once: the probability in the loss and the linear constraint in the solver.

A *literal* is a pair (decision, option). A `Gate` says when an op is part of the derived network: a conjunction of
clauses, each a disjunction of literals. A `Rule` says what every valid architecture obeys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hwnas.arch import Architecture, Group

Literal = tuple[str, str]
Clause = frozenset[Literal]


@dataclass(frozen=True)
class Gate:
    """When an op is part of the derived network: all clauses hold, each by at least one of its literals."""

    clauses: frozenset[Clause] = frozenset()

    def __and__(self, other: Gate) -> Gate:
        """Both hold."""
        return Gate(self.clauses | other.clauses)

    def __or__(self, other: Gate) -> Gate:
        """At least one holds; distributes over clauses, so that the result is again a conjunction of clauses."""
        common = self.clauses & other.clauses
        # If one gate implies the other, only what they share is left, and there is nothing to pair.
        return Gate(common | {a | b for a in self.clauses - common for b in other.clauses - common})

    def holds(self, arch: Architecture) -> bool:
        """Tell whether the gate is open in an architecture."""
        return all(any(arch.get(d) == o for d, o in clause) for clause in self.clauses)


ALWAYS = Gate()


def choice(decision: str, *options: str) -> Gate:
    """Return the gate of a decision answered with one of `options`."""
    return Gate(frozenset({frozenset((decision, o) for o in options)}))


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
    """What every valid architecture obeys."""

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

    def literal_probs(self, probs: Mapping[str, Tensor]) -> Tensor:
        """Return the marginals of literals in the derived network, (n_literals,)."""
        q = torch.cat([probs[g.name].reshape(-1) for g in self.literals.groups])
        for rule in self.rules:
            q = rule.relax(q, self.literals)
        return q

    def gate_probs(self, q: Tensor) -> Tensor:
        """Return the probability that each gate is open, (n_gates,), from literal marginals (n_literals,)."""
        one = q.new_ones(1)
        parts = q.new_zeros(self._n_parts).index_add(0, self._part, q[self._literal])
        clauses = 1 - torch.cat([1 - parts, one])[self._clause_parts].prod(dim=1)
        return torch.cat([clauses, one])[self._gate_clauses].prod(dim=1)


def _padded(rows: list[list[int]], pad: int) -> Tensor:
    width = max((len(r) for r in rows), default=0)
    return torch.tensor([r + [pad] * (width - len(r)) for r in rows], dtype=torch.long).reshape(len(rows), width)
