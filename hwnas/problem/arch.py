"""Decisions, groups of them, and architectures: an architecture is a set of answers, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hwnas.errors import HwnasError, unknown
from hwnas.files import canonical_json, sha256

SCHEMA = 1


@dataclass(frozen=True)
class Decision:
    """One categorical question a search answers, e.g. which op sits on an edge.

    Attributes:
        name: Unique in its space, path-like from coarse to fine: ``"normal/0-2"``.
        options: At least one; order is the order of logits everywhere.
        closed: Those of them that a search gives no probability: what follows from other answers, and what is an option
            in other rows of the matrix alone.
    """

    name: str
    options: tuple[str, ...]
    closed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) != len(self.options):
            raise HwnasError(f"decision {self.name!r} needs distinct options, at least one; got {self.options}")
        if not self.closed < set(self.options):
            raise HwnasError(f"decision {self.name!r} has no open option: {self.closed} are closed")


@dataclass(frozen=True)
class Group:
    """Decisions that share their options, so that their logits are one matrix.

    Attributes:
        name: Unique in its space: ``"normal"``.
        decisions: The rows of the matrix, in order.
    """

    name: str
    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        if len({d.options for d in self.decisions}) != 1:
            raise HwnasError(f"group {self.name!r} needs at least one decision, all with the same options")

    @property
    def options(self) -> tuple[str, ...]:
        """The columns of the group's matrix."""
        return self.decisions[0].options

    @property
    def closed(self) -> list[list[bool]]:
        """Which options a search gives no probability, by row and column."""
        return [[o in d.closed for o in d.options] for d in self.decisions]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the group's matrix."""
        return len(self.decisions), len(self.options)


@dataclass(frozen=True)
class Architecture:
    """Answers to a space's decisions, possibly to some of them only.

    Frozen and hashable; equal answers make equal architectures, in whatever order they were given.

    Attributes:
        space: Name of the family of spaces it belongs to: ``"chain"``.
        answers: Pairs (decision, option), sorted by decision.
    """

    space: str
    answers: tuple[tuple[str, str], ...]
    _by_name: dict[str, str] = field(init=False, repr=False, compare=False, hash=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(sorted(self.answers)))
        self._by_name.update(self.answers)
        if len(self._by_name) != len(self.answers):
            raise HwnasError("an architecture answers each decision once")

    @classmethod
    def of(cls, space: str, answers: Mapping[str, str]) -> Architecture:
        """Return the architecture with these answers."""
        return cls(space, tuple(answers.items()))

    def get(self, decision: str) -> str | None:
        """Return the answer to a decision, None where it is open."""
        return self._by_name.get(decision)

    @cached_property
    def id(self) -> str:
        """A short name that is the same in every process and on every machine."""
        return sha256(canonical_json(self.to_json()))[:12]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {"schema": SCHEMA, "space": self.space, "answers": dict(self.answers)}

    @classmethod
    def from_json(cls, data: Any) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            HwnasError: If it is no architecture or of an unknown schema.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise HwnasError(f"an architecture of schema {SCHEMA} was expected, got schema {found!r}")
        answers = data.get("answers")
        if not isinstance(answers, dict) or not all(isinstance(v, str) for v in answers.values()):
            raise HwnasError("an architecture needs 'answers': a mapping from decision to option")
        return cls.of(str(data.get("space")), answers)

    def check(self, decisions: Iterable[Decision], partial: bool = False) -> None:
        """Hold the answers against a space's decisions.

        Args:
            decisions: Those of the space.
            partial: Whether open decisions are allowed.

        Raises:
            HwnasError: If an answer is to no decision of the space, is not one of its options, or is missing.
        """
        known = {d.name: d for d in decisions}
        for name, option in self.answers:
            if name not in known:
                raise unknown("decision", name, known)
            if option not in known[name].options:
                raise unknown(f"option of {name}", option, known[name].options)
        missing = [n for n in known if self.get(n) is None]
        if missing and not partial:
            raise HwnasError(f"{len(missing)} decisions are open, the first is {missing[0]!r}; answer them all")
