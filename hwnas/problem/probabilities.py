"""Literals in a fixed order, and probabilities over them: one vector, seen by group or by decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.problem.arch import Architecture, Group

Literal = tuple[str, str]  # a decision and one of its options
Matrices = Mapping[str, Any]  # {group: (n_decisions, n_options)}, tensors or arrays; `Probabilities` are such
Answers = tuple[Literal, ...]


class Literals:
    """The order of literals in vectors: groups in order, rows in order, options in order.

    Attributes:
        groups: Whose decisions they are of.
        names: All literals in order.
        index: The place of each.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        """Index the literals of `groups`."""
        self.groups = tuple(groups)
        self.names: list[Literal] = [(d.name, o) for g in groups for d in g.decisions for o in d.options]
        self.index = {literal: i for i, literal in enumerate(self.names)}
        self.shapes = {g.name: g.shape for g in self.groups}
        self._of = {d.name: [(d.name, o) for o in d.options] for g in groups for d in g.decisions}
        self._first: dict[str, int] = {}
        first = 0
        for g in self.groups:
            self._first[g.name] = first
            first += g.shape[0] * g.shape[1]

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Literals) and self.names == other.names and self.shapes == other.shapes
        )

    __hash__ = None  # type: ignore[assignment]

    def options_of(self, decision: str) -> list[Literal]:
        """Return the literals of a decision, in the order of its options."""
        return self._of[decision]

    def span(self, group: str) -> slice:
        """Return where the literals of a group lie."""
        rows, columns = self.shapes[group]
        return slice(self._first[group], self._first[group] + rows * columns)

    def vector(self, arch: Architecture) -> np.ndarray:
        """Return the one-hot vector of an architecture: (n_literals,) of 0.0 and 1.0."""
        return np.array([float(arch.get(d) == o) for d, o in self.names])


@dataclass(frozen=True, eq=False)
class Probabilities(Mapping[str, Tensor]):
    """How probable each literal is; a mapping from group to its matrix, as networks read it.

    Attributes:
        literals: Their order.
        vector: (n_literals,), of any floating type and with or without a graph.
    """

    literals: Literals
    vector: Tensor

    @classmethod
    def of(cls, groups: Sequence[Group] | Literals, matrices: Matrices) -> Probabilities:
        """Return the probabilities of matrices ``{group: (n_decisions, n_options)}``, tensors or arrays.

        Raises:
            HwnasError: If a group is missing, or a matrix has another shape than its group.
        """
        literals = groups if isinstance(groups, Literals) else Literals(groups)
        if isinstance(matrices, Probabilities) and matrices.literals == literals:
            return matrices
        parts: list[Tensor] = []
        for name, shape in literals.shapes.items():
            if name not in matrices:
                raise HwnasError(f"probabilities of {name!r} are missing; got those of {', '.join(matrices) or 'none'}")
            part = torch.as_tensor(matrices[name])
            if tuple(part.shape) != shape:
                raise HwnasError(f"probabilities of {name!r} have the shape {tuple(part.shape)}, expected {shape}")
            parts.append(part.reshape(-1))
        return cls(literals, torch.cat(parts) if parts else torch.empty(0))

    @classmethod
    def one_hot(cls, groups: Sequence[Group] | Literals, arch: Architecture) -> Probabilities:
        """Return 1 for the answers of an architecture, uniform probabilities where it is open, in float32."""
        literals = groups if isinstance(groups, Literals) else Literals(groups)
        values = [
            1.0 / len(d.options) if arch.get(d.name) is None else float(arch.get(d.name) == o)
            for g in literals.groups
            for d in g.decisions
            for o in d.options
        ]
        return cls(literals, torch.tensor(values))

    def __getitem__(self, group: str) -> Tensor:
        """Return the matrix of a group, (n_decisions, n_options): a view of the vector."""
        return self.vector[self.literals.span(group)].view(self.literals.shapes[group])

    def __iter__(self) -> Iterator[str]:
        return iter(self.literals.shapes)

    def __len__(self) -> int:
        return len(self.literals.shapes)

    @cached_property
    def by_decision(self) -> dict[str, dict[str, float]]:
        """The same as numbers, ``{decision: {option: probability}}``."""
        out: dict[str, dict[str, float]] = {}
        for (d, o), p in zip(self.literals.names, self.vector.detach().tolist(), strict=True):
            out.setdefault(d, {})[o] = p
        return out

    def numpy(self) -> np.ndarray:
        """Return the vector in float64, (n_literals,)."""
        return self.vector.detach().cpu().double().numpy()

    def matrices(self) -> dict[str, np.ndarray]:
        """Return the matrix of each group as an array, of the vector's own type."""
        return {name: self[name].detach().cpu().numpy() for name in self}

    def with_vector(self, vector: Tensor) -> Probabilities:
        """Return other probabilities of the same literals."""
        return Probabilities(self.literals, vector)

    def double(self) -> Probabilities:
        """Return the same in float64."""
        return self.with_vector(self.vector.double())

    def float(self) -> Probabilities:
        """Return the same in float32."""
        return self.with_vector(self.vector.float())
