"""Exactly k of several edges survive (DARTS 2.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.problem.arch import Architecture
from hwnas.problem.linear import Row
from hwnas.problem.probabilities import Literal, Literals, Probabilities
from hwnas.problem.rules.base import Fixed, Rule


@dataclass(frozen=True)
class TopK(Rule):
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

    def __str__(self) -> str:
        """Return it as messages have it."""
        return f"{self.k} of {', '.join(self.decisions)} are kept"

    @property
    def kept(self) -> tuple[str, ...]:
        """The options but `none`."""
        return tuple(o for o in self.options if o != self.none)

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Drop all but k edges, each set of k equally often."""
        kept = set(rng.permutation(len(self.decisions))[: self.k].tolist())
        return {d: self.none for i, d in enumerate(self.decisions) if i not in kept}

    def strongest(self, probs: Probabilities) -> dict[str, str]:
        """Keep the k edges whose best op is the most probable, with that op; ties keep what comes first (DARTS 2.3)."""
        of = probs.by_decision
        best = {d: max(self.kept, key=of[d].__getitem__) for d in self.decisions}
        ranked = sorted(self.decisions, key=lambda d: -of[d][best[d]])  # stable
        return {d: best[d] if d in ranked[: self.k] else self.none for d in self.decisions}

    def score(self, probs: Probabilities) -> dict[Literal, float]:
        """Return the probabilities."""
        return {(d, o): probs.by_decision[d][o] for d in self.decisions for o in self.kept}

    def relax(self, q: Tensor, literals: Literals) -> Tensor:
        """Return marginals under a relaxed top-k that sums to k, ops renormalised over non-none.

        The strength of an edge is its best non-none probability, as in the derivation.
        """
        index = torch.tensor([[literals.index[d, o] for o in self.kept] for d in self.decisions], device=q.device)
        dropped = torch.tensor([literals.index[d, self.none] for d in self.decisions], device=q.device)
        p = q[index]  # (edges, ops)
        keep = relaxed_top_k(p.max(dim=1).values, self.k)  # (edges,)
        share = p / p.sum(dim=1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        q = q.index_put((index,), keep[:, None] * share)
        return q.index_put((dropped,), 1 - keep)

    def given(self, fixed: Fixed) -> TopK:
        """Return what is left to keep of the edges that are open."""
        rest = tuple(d for d in self.decisions if d not in fixed)
        left = self.k - sum(d in fixed and fixed[d] != self.none for d in self.decisions)
        if not 0 <= left <= len(rest):
            raise HwnasError(f"the fixed answers leave {left} of {len(rest)} open edges to keep, by the rule: {self}")
        return replace(self, decisions=rest, k=left)

    def rows(self) -> list[Row]:
        """Return the one constraint: kept edges sum to k."""
        kept = {(d, o): 1.0 for d in self.decisions for o in self.kept}
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
