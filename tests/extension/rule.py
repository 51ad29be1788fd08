"""A rule: at least so many decisions take one option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hwnas.errors import HwnasError
from hwnas.problem import Architecture, Row, Rule
from hwnas.problem.rules.base import Fixed


@dataclass(frozen=True)
class AtLeast(Rule):
    """At least `least` of the decisions take an option.

    Attributes:
        counted: Names of the decisions.
        option: The option.
        least: How many of them take it.
    """

    counted: tuple[str, ...]
    option: str
    least: int
    decisions: ClassVar[tuple[str, ...]] = ()
    none: ClassVar[str | None] = None

    def __str__(self) -> str:
        return f"{self.least} {self.option} at least"

    def given(self, fixed: Fixed) -> AtLeast:
        """Return how many more are needed of the decisions that are open."""
        rest = tuple(d for d in self.counted if d not in fixed)
        left = max(0, self.least - sum(fixed.get(d) == self.option for d in self.counted))
        if left > len(rest):
            raise HwnasError(f"the fixed answers break the rule: {self}")
        return replace(self, counted=rest, least=left)

    def rows(self) -> list[Row]:
        """Return the rule as one linear constraint."""
        return [Row({(d, self.option): 1.0 for d in self.counted}, float(self.least), float(len(self.counted)))]

    def holds(self, arch: Architecture) -> bool:
        """Tell whether an architecture has enough of them."""
        return sum(arch.get(d) == self.option for d in self.counted) >= self.least
