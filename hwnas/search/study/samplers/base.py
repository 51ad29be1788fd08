"""What asks a study for architectures: settings, and the Optuna sampler that they make for each trial.

Nothing here imports Optuna: recipes hold settings of samplers, also where it is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hwnas.search.study.choices import Answers, Choices, Tried

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Sampler(Protocol):
    """Settings of a sampler: a frozen dataclass with a stored name."""

    def asking(self, choices: Choices, seed: int) -> Asking:
        """Start asking, with nothing known."""


class Asking(Protocol):
    """Asks for one architecture after the other.

    What is asked is a function of the seed, the number of the trial and the trials that are done; all else that it
    keeps is in `state`.
    """

    def sampler(self, number: int) -> BaseSampler:
        """Return the sampler of a trial; it may be asked again and again until the answers are good."""

    def state(self) -> dict[str, Any]:
        """Return what would take long to compute anew from the trials that are done."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` returned."""
        del state


class Proposer(Protocol):
    """Proposes answers; bounds are not its business."""

    def __call__(self, history: Sequence[Tried], rng: np.random.Generator) -> Answers:
        """Return answers to all open decisions.

        Args:
            history: The trials that are done, by number.
            rng: Of this trial.
        """


class Proposals(Asking):
    """Asks for what a function proposes, which keeps nothing."""

    def __init__(self, propose: Proposer, seed: int) -> None:
        """Take the function, and the seed of its generators."""
        self.propose, self.seed = propose, seed

    def sampler(self, number: int) -> BaseSampler:
        """Return a sampler whose generator is that of the trial."""
        from hwnas.search.study.bridge import Proposing

        rng = np.random.default_rng([self.seed, number])
        return Proposing(lambda history: self.propose(history, rng))


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a trial for generators that take one number of 32 bits."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
