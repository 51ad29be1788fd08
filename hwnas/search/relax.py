"""Relaxations: from the logits of the decisions to what multiplies each candidate in the supernet.

A relaxation is a frozen dataclass that a recipe names in `SearchConfig.relaxation`; another one is another class, with
a name that stored recipes know it by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.errors import check_ranges, positive
from hwnas.problem import Group
from hwnas.records import stored

Matrices = Mapping[str, Tensor]  # {group: (decisions, options)}

FOR_WEIGHTS, FOR_ALPHAS = 0, 1  # streams of random numbers: the two steps draw different samples


@dataclass(frozen=True)
class Moment:
    """Where a search is: whatever a relaxation draws or anneals is a function of this and nothing else.

    Attributes:
        seed: Of the search.
        step: From 0.
        steps: In all.
        stream: `FOR_WEIGHTS` or `FOR_ALPHAS`. The weight step that a second-order step unrolls is of the former, so
            it sees the sample that the real one will see.
        part: Which part of an accumulated batch.
    """

    seed: int
    step: int
    steps: int
    stream: int = FOR_WEIGHTS
    part: int = 0

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the last."""
        return min(1.0, self.step / max(1, self.steps - 1))


class Relaxation(Protocol):
    """What makes discrete decisions differentiable.

    Attributes:
        sampled: Whether weights may be exactly 0, and such candidates are then not computed: see `on`.
    """

    sampled: ClassVar[bool]

    def weights(self, logits: Matrices, at: Moment) -> dict[str, Tensor]:
        """Return what multiplies each candidate in this pass, ``{group: (decisions, options)}``."""

    def probs(self, logits: Matrices) -> dict[str, Tensor]:
        """Return the probabilities that costs, guards and the derivation read; nothing about them is random."""

    def own_loss(self, logits: Matrices) -> Tensor:
        """Return a loss () of the relaxation's own that is added to that of the alphas; 0 if it has none."""


def open_logits(logits: Matrices, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return the logits with -inf where an option is closed, so that a softmax gives it none of the probability."""
    out = dict(logits)
    for g in groups:
        if any(d.closed for d in g.decisions):
            closed = torch.tensor(g.closed, device=logits[g.name].device)
            out[g.name] = logits[g.name].masked_fill(closed, -torch.inf)
    return out


def on(weights: Matrices) -> dict[str, NDArray[np.bool_]]:
    """Return which candidates weights on the host leave to be computed, ``{group: (decisions, options)}``."""
    return {name: w.detach().cpu().numpy() != 0 for name, w in weights.items()}


def softmax(logits: Matrices) -> dict[str, Tensor]:
    """Return the softmax over options of each group."""
    return {name: torch.softmax(a, dim=-1) for name, a in logits.items()}


def gumbel(logits: Matrices, at: Moment) -> dict[str, Tensor]:
    """Return standard Gumbel noise of the logits' shapes: a pure function of the moment, groups in order."""
    rng = np.random.default_rng([at.seed, at.step, at.stream, at.part])
    return {name: torch.from_numpy(rng.gumbel(size=tuple(a.shape))).to(a) for name, a in logits.items()}


@dataclass(frozen=True)
class Temperature:
    """A temperature that goes from `start` to `end` over the search.

    SNAS and GAS: 1.0 to 0.03; FBNet: 5.0, times 0.956 an epoch; GDAS: linear from 10 to 0.1.

    Attributes:
        start: At the first step.
        end: At the last.
        schedule: ``"geometric"`` (the same factor at every step) or ``"linear"``.
    """

    start: float = 1.0
    end: float = 0.03
    schedule: Literal["geometric", "linear"] = "geometric"

    def __post_init__(self) -> None:
        check_ranges("a temperature", *positive(self, ("start", "end")))

    def __call__(self, at: Moment) -> float:
        """Return the temperature of a moment."""
        if self.schedule == "linear":
            return self.start + (self.end - self.start) * at.progress
        return float(self.start * (self.end / self.start) ** at.progress)


class Categorical:
    """What relaxations of categorical distributions by a softmax of logits share."""

    sampled: ClassVar[bool] = False

    def probs(self, logits: Matrices) -> dict[str, Tensor]:
        """Return the probabilities."""
        return softmax(logits)

    def own_loss(self, logits: Matrices) -> Tensor:
        """Return 0."""
        del logits
        return torch.zeros(())


@stored("softmax")
@dataclass(frozen=True)
class Softmax(Categorical):
    """The mixture of all candidates by their probabilities (DARTS, equation 2)."""

    def weights(self, logits: Matrices, at: Moment) -> dict[str, Tensor]:
        """Return the probabilities."""
        del at
        return softmax(logits)


@stored("gumbel-softmax")
@dataclass(frozen=True)
class GumbelSoftmax(Categorical):
    """The mixture by a sample of the Gumbel-softmax, ever harder as it cools (SNAS, equation 5; FBNet, GAS).

    Attributes:
        temperature: Divides logits and noise.
    """

    temperature: Temperature = field(default_factory=Temperature)

    def weights(self, logits: Matrices, at: Moment) -> dict[str, Tensor]:
        """Return a sample."""
        noise, tau = gumbel(logits, at), self.temperature(at)
        return softmax({name: (a + noise[name]) / tau for name, a in logits.items()})


@stored("single-path")
@dataclass(frozen=True)
class SinglePath(Categorical):
    """One sampled candidate for each decision, straight through (GDAS, equations 4 to 6).

    Weights are exactly one-hot, so the candidates that were not drawn are not computed, and take no memory. The
    gradient is that of the Gumbel-softmax probability of the candidate that was drawn.

    Attributes:
        temperature: Of that probability; which candidate is drawn does not depend on it.
    """

    temperature: Temperature = field(default_factory=lambda: Temperature(10.0, 0.1, "linear"))
    sampled: ClassVar[bool] = True

    def weights(self, logits: Matrices, at: Moment) -> dict[str, Tensor]:
        """Return one-hot rows."""
        noise, tau = gumbel(logits, at), self.temperature(at)
        return {name: _straight_through((a + noise[name]) / tau) for name, a in logits.items()}


def _straight_through(scores: Tensor) -> Tensor:
    p = torch.softmax(scores, dim=-1)
    hard = torch.zeros_like(p).scatter(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
    # The difference is exactly 0, so the value is exactly one-hot; options that are not computed get no gradient.
    return hard * (1 + (p - p.detach()))
