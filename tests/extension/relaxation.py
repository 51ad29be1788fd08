"""A relaxation: sparse probabilities, so that improbable options have none (sparsemax, Martins and Astudillo 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.records import stored
from hwnas.search.relax import Categorical, Matrices, Moment


@stored("sparsemax")
@dataclass(frozen=True)
class Sparsemax(Categorical):
    """The Euclidean projection of the scaled logits onto the simplex (algorithm 1).

    Attributes:
        scale: Of the logits.
    """

    scale: float = 1.0

    def weights(self, logits: Matrices, at: Moment) -> dict[str, Tensor]:
        """Return the projections."""
        return {name: sparsemax(self.scale * a) for name, a in logits.items()}


def sparsemax(a: Tensor) -> Tensor:
    """Return the projection of each row of (n, k) onto the simplex."""
    ranked = a.sort(dim=-1, descending=True).values
    total, count = ranked.cumsum(-1) - 1, torch.arange(1, a.shape[-1] + 1, device=a.device)
    inside = (ranked * count > total) & ranked.isfinite()
    size = inside.sum(-1, keepdim=True)
    return (a - total.gather(-1, size - 1) / size).clamp_min(0)
