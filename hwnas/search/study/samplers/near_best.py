"""Random search that also looks near the best: uniform points, and points near the current best (Chen et al. 2018).

The paper (Searching for Efficient Multi-Scale Architectures for Dense Image Prediction, section 3) says no more of how
near, or how often; these are settings, with defaults of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import check_ranges, not_below
from hwnas.records import stored
from hwnas.search.study.choices import Answers, Choices, Tried, best_of
from hwnas.search.study.samplers.base import Asking, Proposals, Sampler


@stored("near-best")
@dataclass(frozen=True)
class NearBest(Sampler):
    """Draws uniformly, or changes a few decisions of the best.

    Attributes:
        share: Of the trials that are near the best.
        changes: How many decisions differ there at most: 1 to so many, each equally often.

    Raises:
        HwnasError: If a setting is out of range.
    """

    share: float = 0.5
    changes: int = 3

    def __post_init__(self) -> None:
        check_ranges(
            "a sampler", ("a share from 0 to 1", self.share, 0 <= self.share <= 1), *not_below(self, ("changes",), 1)
        )

    def asking(self, choices: Choices, seed: int) -> Asking:
        """Start asking."""

        def propose(history: Sequence[Tried], rng: np.random.Generator) -> Answers:
            best = best_of(history)
            if best is None or rng.random() >= self.share:
                return choices.draw(rng)
            return choices.neighbour(best.answers, rng, int(rng.integers(1, self.changes + 1)))

        return Proposals(propose, seed)
