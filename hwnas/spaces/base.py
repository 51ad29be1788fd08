"""What a search space is: decisions, rules and one network definition in two forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from hwnas.errors import HwnasError
from hwnas.ops.trace import Trace, trace
from hwnas.problem import Answers, Architecture, Decision, Group, Problem, Rule

Form = Literal["search", "deploy"]


@dataclass(frozen=True)
class Scale:
    """How large the networks of a space are; says nothing about their decisions.

    Attributes:
        channels: Width of the first cells.
        cells: Number of cells.
        size: (height, width) of the input image.
    """

    channels: int
    cells: int
    size: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        if min(self.channels, self.cells, *self.size) < 1 or len(self.size) != 2:
            raise HwnasError(f"a scale needs positive channels, cells and (height, width); got {self}")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; ``Scale(**...)`` reads it."""
        return asdict(self)


class SearchSpace(Protocol):
    """A family of networks. Frozen, hashable, cheap; holds sizes, never tensors."""

    @property
    def name(self) -> str:
        """Name of the family; architectures carry it."""

    @property
    def scale(self) -> Scale:
        """The scale networks are built at."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def head(self) -> Literal["classification", "segmentation"]:
        """What its networks are for."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The decisions, by the matrix of logits they share."""

    def rules(self) -> Sequence[Rule]:
        """What every valid architecture obeys: declared once, used by loss and solver."""

    @property
    def problem(self) -> Problem:
        """What a search of the space decides."""

    def twins(self) -> tuple[Answers, ...]:
        """Return which answers make two nodes compute the same: each time, those that do so together."""

    def at(self, scale: Scale) -> SearchSpace:
        """Return the same decisions at another scale."""

    def build(self, arch: Architecture | None = None, form: Form = "search", labels: bool = False) -> nn.Module:
        """Build the network with the decisions of `arch` fixed; all mixed without it.

        Args:
            arch: Possibly partial.
            form: ``"search"`` for the supernet and its one-hots, ``"deploy"`` for the network that ships.
            labels: Whether it ends in the label map instead of scores, where that is a choice.

        Returns:
            A module ``net(image, probs=None)`` with image (N, 3, H, W) and probs ``{group: (decisions, options)}``.
        """

    def genotype(self, arch: Architecture) -> object:
        """Return a complete architecture in the notation of its system; people read its ``str``."""

    def dot(self, arch: Architecture) -> str:
        """Return a drawing of a complete architecture for Graphviz."""

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw a complete architecture.

        Args:
            figure: Of matplotlib, empty.
            arch: The architecture.
            probs: ``{group: (decisions, options)}`` that it was derived from.
            ms: What each part of its network takes, by the path of the module.
        """


def decisions(space: SearchSpace) -> tuple[Decision, ...]:
    """Return all decisions of a space in the order of its groups."""
    return tuple(d for g in space.groups for d in g.decisions)


def check(space: SearchSpace, arch: Architecture, partial: bool = False) -> None:
    """Hold an architecture against a space's decisions and, if it is complete, its rules.

    Raises:
        HwnasError: If it is of another space, answers wrongly, leaves open what it may not, or breaks a rule.
    """
    space.problem.check(arch, partial)


def sample(space: SearchSpace, rng: np.random.Generator, concentration: float | None = None) -> Architecture:
    """Draw an architecture over rules and options: which edges survive, then what sits on them.

    Args:
        space: The space.
        rng: Where chance comes from.
        concentration: None draws options uniformly. Else each group of decisions draws the weights of its options
            first, from a Dirichlet distribution with this concentration: below 1, few ops dominate a network.
    """
    return space.problem.draw(rng, concentration)


def trace_space(space: SearchSpace, arch: Architecture | None = None, labels: bool = True, merge: bool = True) -> Trace:
    """Trace the deploy form at the space's scale: what is measured, priced and exported.

    Args:
        space: At the deployment scale.
        arch: None for all alternatives, each under its gate.
        labels: Whether upsampling ends in the label map.
        merge: See `hwnas.ops.trace.trace`.
    """
    with torch.device("meta"):
        network = space.build(arch, form="deploy", labels=labels)
    return trace(network.eval(), (1, 3, *space.scale.size), merge)
