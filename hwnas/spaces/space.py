"""A search space: an encoder and a head, with the decisions and rules of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.ops.trace import Trace, trace
from hwnas.problem import Answers, Architecture, Decision, Group, Problem, Rule
from hwnas.spaces.cell import CellSpec
from hwnas.spaces.net import OpenNet, SpaceNet
from hwnas.spaces.parts import Encoder, Form, Head, Scale, Task, size_at


class GenotypePair(NamedTuple):
    """Of encoder and head; reads as one after the other."""

    encoder: object
    head: object

    def __str__(self) -> str:
        return f"{self.encoder}, {self.head}"


@dataclass(frozen=True)
class Space:
    """A family of networks: frozen, hashable, cheap; holds sizes, never tensors.

    Attributes:
        encoder: Turns an image into features.
        head: Turns features into scores.
        classes: Number of classes.

    Raises:
        HwnasError: If there is no class, or the encoder gives fewer features than the head reads.
    """

    encoder: Encoder
    head: Head
    classes: int

    def __post_init__(self) -> None:
        check_ranges("a space", *not_below(self, ("classes",), 1))
        least = self.head.least_features
        if least < 2 and not self.head.needs_one_form:
            return
        given = self.encoder.features(Architecture.of(self.name, {}), "deploy")
        if len(given) < least:
            raise HwnasError(
                f"the head {self.head.name!r} reads {least} features, the encoder {self.encoder.name!r} gives "
                f"{len(given)}; take another head, or an encoder that gives more"
            )
        if self.head.needs_one_form and any(len(alternatives) > 1 for alternatives in given):
            raise HwnasError(
                f"the head {self.head.name!r} reads features of the encoder {self.encoder.name!r} as they are, and "
                "their channels or strides follow from decisions; give the head an adapter, or take another encoder"
            )

    @property
    def name(self) -> str:
        """Name of the family, which architectures carry: that of the encoder, and of a head that has decisions."""
        return f"{self.encoder.name}-{self.head.name}" if self.head.groups else self.encoder.name

    @property
    def scale(self) -> Scale:
        """The scale networks are built at."""
        return self.encoder.scale

    @property
    def task(self) -> Task:
        """What its networks are for."""
        return self.head.task

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The decisions, by the matrix of logits they share."""
        return self.encoder.groups + self.head.groups

    def rules(self) -> list[Rule]:
        """Return what every valid architecture obeys."""
        return [*self.encoder.rules(), *self.head.rules()]

    @cached_property
    def problem(self) -> Problem:
        """What a search of the space decides."""
        return Problem(self.name, self.groups, tuple(self.rules()))

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """The cells that decisions are about."""
        return self.encoder.cells + self.head.cells

    def twins(self) -> tuple[Answers, ...]:
        """Return which answers make two nodes compute the same: each time, those that do so together."""
        return self.encoder.twins() + self.head.twins()

    def at(self, scale: Scale) -> Space:
        """Return the same decisions at another scale.

        Raises:
            HwnasError: If the decisions follow from what is to change.
        """
        return replace(self, encoder=self.encoder.at(scale))

    def build(self, arch: Architecture | None = None, form: Form = "search", labels: bool = False) -> nn.Module:
        """Build the network with the decisions of `arch` fixed; all mixed without it.

        Args:
            arch: Possibly partial.
            form: ``"search"`` for the supernet and its one-hots, ``"deploy"`` for the network that ships.
            labels: Whether it ends in the label map instead of scores, where that is a choice.

        Returns:
            A module ``net(image, probs=None, sampled=None)`` with image (N, 3, H, W) and probs
            ``{group: (decisions, options)}``; see `SpaceNet`. Where shapes in what ships depend on open decisions, it
            can be traced and does not compute.
        """
        arch = self._checked(arch)
        features = self.encoder.features(arch, form)
        if any(len(f) > 1 and not f[0].weighted for f in features):
            return OpenNet(self.encoder, self.head, self.classes, arch, labels)
        return SpaceNet(self.encoder, self.head, self.classes, arch, form, labels)

    def build_auxiliary(self, arch: Architecture | None = None, form: Form = "deploy") -> nn.Module:
        """Build the head that is trained on a map in the middle of a network and never ships.

        Returns:
            A module ``auxiliary(image, map) -> scores`` for the map of `SpaceNet.with_auxiliary`.

        Raises:
            HwnasError: If that map is too small.
        """
        feature = self.encoder.auxiliary(self._checked(arch), form)
        return self.head.build_auxiliary(feature, size_at(self.scale.size, feature.stride), self.classes)

    def _checked(self, arch: Architecture | None) -> Architecture:
        arch = arch or Architecture.of(self.name, {})
        check(self, arch, partial=True)
        return arch

    def genotype(self, arch: Architecture) -> object:
        """Return a complete architecture in the notation of its system; people read its ``str``.

        Where the head decides something, it is a pair: of the encoder, and of the head.
        """
        own, of_head = self.encoder.genotype(arch), self.head.genotype(arch)
        return own if of_head is None else GenotypePair(own, of_head)

    def dot(self, arch: Architecture) -> str:
        """Return a drawing of a complete architecture for Graphviz: an arrow for each kept edge."""
        lines = [f'digraph "{self.name}" {{', "  rankdir=LR;", *self.encoder.dot(arch), *self.head.dot(arch)]
        return "\n".join([*lines, "}"]) + "\n"

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw a complete architecture.

        Args:
            figure: Of matplotlib, empty.
            arch: The architecture.
            probs: ``{group: (decisions, options)}`` that it was derived from.
            ms: What each part of its network takes, by the path of the module.
        """
        rows = self.head.drawings
        if not rows:
            self.encoder.draw(figure, arch, probs, ms)
            return
        above, below = figure.subfigures(2, height_ratios=[2, rows])
        figure.set_size_inches(12, 8 + 4 * rows)
        self.encoder.draw(above, arch, probs, ms)
        self.head.draw(below, arch)


def decisions(space: Space) -> tuple[Decision, ...]:
    """Return all decisions of a space in the order of its groups."""
    return space.problem.decisions


def check(space: Space, arch: Architecture, partial: bool = False) -> None:
    """Hold an architecture against a space's decisions and, if it is complete, its rules.

    Raises:
        HwnasError: If it is of another space, answers wrongly, leaves open what it may not, or breaks a rule.
    """
    space.problem.check(arch, partial)


def sample(space: Space, rng: np.random.Generator, concentration: float | None = None) -> Architecture:
    """Draw an architecture over rules and options; see `Problem.draw`."""
    return space.problem.draw(rng, concentration)


def trace_space(space: Space, arch: Architecture | None = None, labels: bool = True, merge: bool = True) -> Trace:
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


@lru_cache(maxsize=32)
def trace_alternatives(space: Space, merge: bool = True) -> Trace:
    """Return `trace_space` of all alternatives; it takes a second or two, and plans, tables and counts share it."""
    return trace_space(space, merge=merge)
