"""Linear expressions over 0/1 variables: what rules and gates are to a solver."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hwnas.problem.probabilities import Literal, Literals

Linear = dict[int, float]  # coefficients by variable
Bounded = tuple[Linear, float, float]  # with the least and the greatest value it may have


@dataclass(frozen=True)
class Row:
    """One linear constraint ``low <= sum(coefficient * literal) <= high``."""

    coefficients: Mapping[Literal, float]
    low: float
    high: float


class LinearForm(Protocol):
    """What expressions are built in: a mixed-integer program, whose first variables are the literals."""

    @property
    def literals(self) -> Literals:
        """The order of the literals."""

    def once(self, key: Hashable, make: Callable[[], Linear]) -> Linear:
        """Return the expression under a key, made when it is first asked for."""

    def variable(self) -> int:
        """Return a new variable, from 0 to 1."""

    def constrain(self, expression: Linear, low: float, high: float) -> None:
        """Keep an expression between two bounds."""

    def any_of(self, parts: Sequence[Linear]) -> Linear:
        """Return "at least one part holds", for parts that are 0 or 1."""

    def all_of(self, parts: Sequence[Linear]) -> Linear:
        """Return "all parts hold", for parts that are 0 or 1."""


def add(to: Linear, what: Mapping[int, float], times: float = 1.0) -> None:
    """Add an expression to another, in place."""
    for i, c in what.items():
        to[i] = to.get(i, 0.0) + times * c


def less(a: Linear, b: Linear) -> Linear:
    """Return the difference of two expressions."""
    out = dict(a)
    add(out, b, -1.0)
    return out
