"""What a rule is: a constraint on architectures, in each of the forms that samplers, losses and the solver need."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from hwnas.problem.arch import Architecture
from hwnas.problem.linear import Row
from hwnas.problem.probabilities import Literal, Literals, Probabilities

Fixed = Mapping[str, str]  # answers by decision that are not up for decision any more


class Rule(Protocol):
    """What every valid architecture obeys.

    The defaults are those of a rule that answers no decision itself and only excludes some architectures. One that
    answers decisions implements all of it. Rules are frozen and hashable.

    Attributes:
        decisions: Those it answers: no two rules of a problem share one.
        none: The option of these that means dropped: it costs 0, and scores 0 where `score` does not have it. None
            where there is none.
    """

    # Not properties at run time: a dataclass would take them for the defaults of its fields.
    if TYPE_CHECKING:

        @property
        def decisions(self) -> tuple[str, ...]:
            """The decisions it answers."""

        @property
        def none(self) -> str | None:
            """The option that means dropped."""

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Draw which decisions are dropped, and the answers to others as far as the rule is about them."""
        del rng
        return {}

    def strongest(self, probs: Probabilities) -> dict[str, str]:
        """Return the answers of the derivation without a budget, for all of its decisions."""
        del probs
        return {}

    def score(self, probs: Probabilities) -> dict[Literal, float]:
        """Return the score of each option, of `none` too if it is not 0: among valid answers `strongest` has most."""
        del probs
        return {}

    def relax(self, q: Tensor, literals: Literals) -> Tensor:
        """Turn probabilities (n_literals,) into marginals of the derived network; the identity on valid one-hots."""
        del literals
        return q

    @abstractmethod
    def given(self, fixed: Fixed) -> Rule:
        """Return the same rule where some answers are fixed, as one about the rest.

        Raises:
            HwnasError: If the fixed answers break it already.
        """

    @abstractmethod
    def rows(self) -> list[Row]:
        """Return the same as linear constraints on 0/1 literals."""

    @abstractmethod
    def holds(self, arch: Architecture) -> bool:
        """Tell whether an architecture obeys."""
