"""No more than so many decisions take one option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hwnas.errors import HwnasError, unknown
from hwnas.problem.arch import Architecture, Group
from hwnas.problem.linear import Row
from hwnas.problem.rules.base import Fixed, Rule


@dataclass(frozen=True)
class AtMost(Rule):
    """At most `most` of the decisions take one option: two skips in a cell (P-DARTS 3.3, DARTS+).

    Attributes:
        counted: Names of the decisions that are counted.
        option: The option.
        most: How many of them may take it.
    """

    counted: tuple[str, ...]
    option: str
    most: int
    decisions: ClassVar[tuple[str, ...]] = ()
    none: ClassVar[str | None] = None

    @classmethod
    def of(cls, group: Group, option: str, most: int) -> AtMost:
        """Return the limit on an option within a group.

        Raises:
            HwnasError: If the group has no such option, or `most` is negative.
        """
        if option not in group.options:
            raise unknown(f"option of {group.name}", option, group.options)
        if most < 0:
            raise HwnasError(f"at most how many {option} a cell may have is 0 or more, got {most}")
        return cls(tuple(d.name for d in group.decisions), option, most)

    def __str__(self) -> str:
        """Return it as messages have it."""
        return f"{self.most} {self.option} at most"

    def given(self, fixed: Fixed) -> AtMost:
        """Return how many more may take it, of the decisions that are open."""
        left = self.most - sum(fixed.get(d) == self.option for d in self.counted)
        if left < 0:
            raise HwnasError(f"the fixed answers break the rule: {self}")
        return replace(self, counted=tuple(d for d in self.counted if d not in fixed), most=left)

    def rows(self) -> list[Row]:
        """Return the limit as one linear constraint."""
        return [Row({(d, self.option): 1.0 for d in self.counted}, 0.0, float(self.most))]

    def holds(self, arch: Architecture) -> bool:
        """Tell whether an architecture keeps it."""
        return sum(arch.get(d) == self.option for d in self.counted) <= self.most
