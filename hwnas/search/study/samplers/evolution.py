"""Regularised evolution: tournaments among the youngest, who die of age (Real et al. 2019, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import check_ranges, not_below
from hwnas.records import stored
from hwnas.search.study.choices import Answers, Choices, Tried, best_of
from hwnas.search.study.samplers.base import Asking, Proposals, Sampler


@stored("evolution")
@dataclass(frozen=True)
class Evolution(Sampler):
    """Mutates the best of a sample of the population; a child takes the place of the oldest.

    Attributes:
        population: Architectures alive; the first so many are drawn. 100 in the paper, for 20,000 trials.
        sample: Drawn from it without replacement for a tournament; 25 in the paper.

    Raises:
        HwnasError: If a setting is out of range.
    """

    population: int = 20
    sample: int = 5

    def __post_init__(self) -> None:
        check_ranges(
            "an evolution",
            *not_below(self, ("population",), 2),
            ("a sample from 1 to its population", self.sample, 1 <= self.sample <= self.population),
        )

    def asking(self, choices: Choices, seed: int) -> Asking:
        """Start asking."""

        def propose(history: Sequence[Tried], rng: np.random.Generator) -> Answers:
            if len(history) < self.population:
                return choices.draw(rng)
            alive = history[-self.population :]
            parent = best_of([alive[i] for i in rng.choice(len(alive), self.sample, replace=False)])
            assert parent is not None, "a tournament has somebody in it"
            return choices.neighbour(parent.answers, rng)

        return Proposals(propose, seed)
