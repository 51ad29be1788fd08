"""What `arch.json` holds: a derived network, what was asked of it, and what else could have been derived."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hwnas.errors import HwnasError
from hwnas.problem import Architecture
from hwnas.records import File, stored
from hwnas.spaces import Scale

Rerank = Literal["supernet", "train"]


@dataclass(frozen=True)
class TableBudget:
    """One more latency table, and what a network may take by it."""

    table: str
    budget_ms: float


@dataclass(frozen=True)
class Demands:
    """What is asked of a derived network beside its first budget; None for what is not asked.

    Attributes:
        candidates: How many of each width and depth.
        rerank: What chooses among them: supernet or short trainings; by default their utility.
        rerank_steps: Steps of such a training; by default the recipe's.
        max_skips: How many `skip_connect` each cell may have that keeps the resolution.
        max_macs: How many multiply-adds the network may have.
        max_params: How many parameters.
        measure: Whether networks are measured here until one is at the budget.
        others: Tables after the first, and the budget by each.

    Raises:
        HwnasError: If one cannot be met by any network, or goes with another that is not there.
    """

    candidates: int | None = None
    rerank: Rerank | None = None
    rerank_steps: int | None = None
    max_skips: int | None = None
    max_macs: float | None = None
    max_params: float | None = None
    measure: bool = False
    others: tuple[TableBudget, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("candidates", 1), ("rerank_steps", 1), ("max_skips", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise HwnasError(f"{_flag(name)} must be {least} or more, got {value}")
        for name in ("max_macs", "max_params"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise HwnasError(f"{_flag(name)} must be a positive number, got {value}")
        if self.rerank_steps is not None and self.rerank != "train":
            raise HwnasError("--rerank-steps is for --rerank train")
        if self.rerank is not None and self.candidates == 1:
            raise HwnasError("--rerank chooses among several: ask for --candidates 2 or more")
        if self.measure and self.rerank is not None:
            raise HwnasError("--measure lands on the network of the highest utility: leave --rerank away")

    def asked(self) -> dict[str, Any]:
        """Return what was asked for, by name."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False, ())}

    def flags(self) -> str:
        """Return it as the command line has it, with a blank before each; without further tables."""
        asked = {k: v for k, v in self.asked().items() if k != "others"}
        return "".join(f" {_flag(k)}" if v is True else f" {_flag(k)} {v}" for k, v in asked.items())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class ConstraintValue:
    """What is predicted for something else that a network may not exceed.

    Attributes:
        name: A table, ``"macs"`` or ``"params"``.
        most: Milliseconds, or a count.
        predicted: Of this network.
    """

    name: str
    most: float
    predicted: float


@dataclass(frozen=True)
class Contender:
    """A candidate of one width and depth, see `hwnas.search.widths.Candidate`; without an architecture if none fits."""

    scale: Scale
    latency_ms: float
    architecture: Architecture | None = None
    score: float | None = None
    utility: float | None = None
    interval_ms: tuple[float, float] | None = None
    constraints: tuple[ConstraintValue, ...] = ()
    chosen: bool = False


@dataclass(frozen=True)
class Step:
    """A network of a higher utility than the one that was landed on."""

    network: str
    predicted_ms: float
    utility: float


@dataclass(frozen=True)
class Measurement:
    """One round of a landing: `verdict` is on the network, after all rounds so far."""

    target_ms: float
    network: str
    predicted_ms: float
    measured_ms: float
    slowdown: float | None
    verdict: str


@dataclass(frozen=True)
class Tried:
    """A network that was measured."""

    architecture: Architecture
    scale: Scale
    utility: float


@dataclass(frozen=True)
class Landing:
    """How networks were measured until one was at the budget, see `hwnas.search.landing`."""

    verdict: str
    why: str
    tolerance: float
    repeatability: float
    next_up: Step | None
    rounds: tuple[Measurement, ...]
    tried: Mapping[str, Tried]


@dataclass(frozen=True)
class Judged:
    """A candidate that was judged by what it scores.

    Attributes:
        id: Of the architecture.
        channels: Of the network.
        cells: Of the network.
        score: Of the task, on held-out images.
        loss: On the same images.
        utility: What it would have been chosen by otherwise.
        difference: By how much it is better than the choice of utility, with the interval of that (low, high).
    """

    id: str
    channels: int
    cells: int
    score: float
    loss: float
    utility: float
    difference: tuple[float, float, float]


@dataclass(frozen=True)
class Reranking:
    """How candidates were compared by what they score.

    Attributes:
        by: The weights of the search, or short trainings.
        reason: Why this one was taken, for people.
        candidates: All that were judged.
        kept: Index of the choice of utility.
        chosen: Index of the one that was taken.
        images: Held-out images they were judged on.
        metric: Name of the score, for people.
    """

    by: Rerank
    reason: str
    candidates: tuple[Judged, ...]
    kept: int
    chosen: int
    images: int
    metric: str


@dataclass(frozen=True)
class Gap:
    """How much worse the supernet is as the derived network than as the mixture that was searched.

    Both on the same held-out images, with BatchNorm recalibrated for each.

    Attributes:
        reason: Why it is not known; empty where it is.
        gap: `derived_loss` less `mixture_loss`.
        mixture_loss: Of the mixture.
        derived_loss: Of the one network.
        standard_error: Of the gap, over images.
        images: How many.
        device: Where it was computed.
    """

    reason: str = ""
    gap: float | None = None
    mixture_loss: float | None = None
    derived_loss: float | None = None
    standard_error: float | None = None
    images: int = 0
    device: str | None = None


@stored("derived", version=2)
@dataclass(frozen=True)
class Derived:
    """A derived network.

    Attributes:
        architecture: Complete.
        scale: The deployment scale.
        budget_ms: What it may take.
        predicted_ms: What the table says it takes.
        table: The file of that.
        measured_ms: What it took, where networks were measured to land on the budget.
        macs: Multiply-adds of its convolutions and linear layers, counted by fvcore.
        params: Parameters, counted by fvcore.
        genotype: As the space writes it, for people.
        candidates: What competed, by width and depth.
        margins: By decision: its best probability less the second best.
        coin_tosses: Undecided decisions: that is less than 0.01.
        cost_of_change: By decision: the least score lost by another answer; None where no network has another.
        flips: Decisions where that is less than 0.01.
        discretisation_gap: Loss of the derived network in the supernet less that of the mixture.
        by_kind_ms: Predicted milliseconds of each kind of op.
        constraints: What else the network may not exceed.
        landing: None without measuring.
        rerank: None where utility chose.
    """

    architecture: Architecture
    scale: Scale
    budget_ms: float
    predicted_ms: float
    table: str = ""
    measured_ms: float | None = None
    macs: int | None = None
    params: int | None = None
    genotype: str = ""
    candidates: tuple[Contender, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)
    coin_tosses: tuple[str, ...] = ()
    cost_of_change: Mapping[str, float | None] = field(default_factory=dict)
    flips: tuple[str, ...] = ()
    discretisation_gap: Gap = field(default_factory=Gap)
    by_kind_ms: Mapping[str, float] = field(default_factory=dict)
    constraints: tuple[ConstraintValue, ...] = ()
    landing: Landing | None = None
    rerank: Reranking | None = None


def _first_version(data: dict[str, Any]) -> dict[str, Any]:
    """Keep what later verbs need of an `arch.json` that has no checksum."""
    return {
        k: data[k] for k in ("architecture", "scale", "budget_ms", "predicted_ms", "table", "genotype") if k in data
    }


FILE = File("a derived architecture", "derive it again", _first_version)
