"""What the alphas minimise: task loss plus a latency term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hwnas.data.base import IGNORE_LABEL
from hwnas.latency.model import LatencyModel


def task_loss(scores: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over pixels that are not void; 0 where all are.

    Args:
        scores: (N, K, H, W).
        labels: (N, H, W), void is `IGNORE_LABEL`.
        class_weights: (K,) or None.
    """
    if not bool((labels != IGNORE_LABEL).any()):
        return 0 * scores.sum()  # the mean over no pixel is NaN, and one such batch would end a run
    return F.cross_entropy(scores, labels, weight=class_weights, ignore_index=IGNORE_LABEL)


@dataclass(frozen=True)
class LatencyTerm:
    """``weight * E[latency] / budget``: linear, the form of CAS (equation in section 3.3), without a unit.

    Attributes:
        model: Priced at the deployment scale.
        budget_ms: The budget.
        weight: How much one whole budget costs in units of the task loss.
    """

    model: LatencyModel
    budget_ms: float
    weight: float

    def __call__(self, probs: Mapping[str, Tensor]) -> Tensor:
        """Return the term for the search's probabilities."""
        out: Tensor = self.weight * self.model(probs) / self.budget_ms
        return out
