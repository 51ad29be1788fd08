"""No two nodes of a cell compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hwnas.errors import HwnasError
from hwnas.problem.arch import Architecture
from hwnas.problem.linear import Row
from hwnas.problem.probabilities import Answers
from hwnas.problem.rules.base import Fixed, Rule


@dataclass(frozen=True)
class NoTwins(Rule):
    """No two states of a cell are the same, called twins: the second adds nothing, and engines leave it out.

    The score would count it, and a prediction that is a sum over decisions would price it.

    Attributes:
        twins: Answers that together make two states the same, see `Space.twins`.
    """

    twins: tuple[Answers, ...]
    decisions: ClassVar[tuple[str, ...]] = ()
    none: ClassVar[str | None] = None

    def __str__(self) -> str:
        """Return it as messages have it."""
        return "no two nodes that compute the same"

    def given(self, fixed: Fixed) -> NoTwins:
        """Return what must not be answered together of the decisions that are open."""
        left: list[Answers] = []
        for answers in self.twins:
            if all(fixed.get(d, o) == o for d, o in answers):
                rest = tuple((d, o) for d, o in answers if d not in fixed)
                if not rest:
                    raise HwnasError(f"the fixed answers break the rule: {self}")
                left.append(rest)
        return NoTwins(tuple(left))

    def rows(self) -> list[Row]:
        """Return the limit as linear constraints: of each set of answers one is given otherwise."""
        return [Row(dict.fromkeys(answers, 1.0), 0.0, len(answers) - 1.0) for answers in self.twins]

    def holds(self, arch: Architecture) -> bool:
        """Tell whether an architecture keeps it."""
        given = set(arch.answers)
        return not any(given.issuperset(answers) for answers in self.twins)
