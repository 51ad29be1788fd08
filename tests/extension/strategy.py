"""A strategy: architectures drawn at random, scored by how little they repeat themselves, and nothing trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.problem import Architecture
from hwnas.records import stored
from hwnas.search.strategy import Findings, Inputs, Search, Strategy, Trial


@stored("random-search")
@dataclass(frozen=True)
class RandomSearch(Strategy):
    """Draws one architecture in each step.

    Attributes:
        steps: Architectures in all.
        seed: Of the draws.
        checkpoint_every: Steps between checkpoints.
    """

    steps: int = 20
    seed: int = 0
    checkpoint_every: int = 10

    def begin(self, inputs: Inputs) -> Draws:
        """Start with nothing drawn."""
        return Draws(self, inputs)

    def note(self, metrics: Mapping[str, Any]) -> str:
        """Return the score."""
        return f"score {metrics['score']:.3f}"


class Draws(Search):
    """The architectures drawn so far."""

    def __init__(self, config: RandomSearch, inputs: Inputs) -> None:
        self.config, self.problem, self.step = config, inputs.problem, 0
        self.names = {d.name for g in inputs.groups for d in g.decisions}
        self.trials: list[Trial] = []

    @property
    def strategy(self) -> RandomSearch:
        """Its settings."""
        return self.config

    def advance(self) -> dict[str, Any]:
        """Draw one: a function of seed and step."""
        arch = self.problem.draw(np.random.default_rng([self.config.seed, self.step]))
        own = Architecture.of(arch.space, {d: o for d, o in arch.answers if d in self.names})
        score = len({o for _, o in own.answers}) / len(own.answers)
        self.trials.append(Trial(own, score))
        self.step += 1
        return {"step": self.step - 1, "score": score}

    def state(self) -> dict[str, Any]:
        """Return what was drawn."""
        return {"step": self.step, "trials": [[t.architecture.to_json(), t.score] for t in self.trials]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self.step = state["step"]
        self.trials = [Trial(Architecture.from_json(arch), score) for arch, score in state["trials"]]

    def findings(self) -> Findings:
        """Return all of them."""
        return Findings({}, {}, tuple(self.trials))
