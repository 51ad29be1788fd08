"""Uniform over valid architectures: the baseline that every search has to beat (Li and Talwalkar 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.records import stored
from hwnas.search.study.choices import Choices
from hwnas.search.study.samplers.base import Asking, Proposals, Sampler


@stored("uniform")
@dataclass(frozen=True)
class Uniform(Sampler):
    """Draws each architecture anew, over rules and options: see `hwnas.problem.Problem.draw`."""

    def asking(self, choices: Choices, seed: int) -> Asking:
        """Start asking."""
        return Proposals(lambda history, rng: choices.draw(rng), seed)
