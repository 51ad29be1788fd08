"""What a network costs, in the loss of the alphas: how much of each budget is used, and in what form that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.latency.model import LatencyModel
from hwnas.problem import Architecture, Matrices, Problem
from hwnas.search.multiplier import Multiplier

Form = Literal["linear", "log", "two-sided", "product"]

# Of the task loss, the share of the budget that is used, and the weight.
_FORMS: dict[Form, Callable[[Tensor, Tensor, float], Tensor]] = {
    "linear": lambda task, used, weight: task + weight * used,
    "log": lambda task, used, weight: task + weight * used.log(),
    "two-sided": lambda task, used, weight: task + weight * (used - 1).abs(),
    "product": lambda task, used, weight: task * used**weight,
}


class Resource(Protocol):
    """What a network takes of something: a `LatencyModel`, of whatever its table lists."""

    def __call__(self, probs: Matrices, /) -> Tensor:
        """Return the expectation (), differentiable; under one-hot probabilities what that network takes."""


@dataclass(frozen=True)
class Bound:
    """A resource and how much of it a network may take.

    Attributes:
        name: In logs, with its unit: ``"ms"``.
        resource: Priced at the deployment scale.
        budget: In that unit; of a resource that has none, what the typical network takes.
    """

    name: str
    resource: Resource
    budget: float


@dataclass(frozen=True)
class CostConfig:
    """How resources count in the loss of the alphas.

    Attributes:
        form: Of ``u``, the share of the budget that is used: ``"linear"``: ``+ weight * u`` (CAS). ``"log"``:
            ``+ weight * log u`` (GAS; whatever the unit, the gradient is the same). ``"two-sided"``:
            ``+ weight * |u - 1|`` (TF-NAS). ``"product"``: ``* u ** weight`` (MnasNet, equation 2; FBNet's product
            with a power of the logarithm depends on the unit).
        weight: The factor in these forms: a number, in units of the task loss where the form is a sum; or how it is
            learned, for ``"linear"`` and ``"log"``.
        expectation: ``"derived"``: of the network that would be derived, its edges chosen by a relaxed top-k.
            ``"mixture"``: every op of every edge by its probability, as CAS and GAS have it.
        resources: Which resources count, and how much each: the share ``u`` is the mean of theirs with these weights.
            ``"ms"`` is latency by the run's table, ``"ms_2"`` by the second ``--table`` and so on: GPU and CPU time.
            ``"macs"`` and ``"params"`` are counted, and relative to the typical network of the scale. None for the
            budgets alone, of which the most used one counts.

    Raises:
        HwnasError: If it names no resource, or a weight is not above 0.
    """

    form: Form = "linear"
    weight: float | Multiplier = field(default_factory=Multiplier)
    expectation: Literal["derived", "mixture"] = "derived"
    resources: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.resources is not None and not (self.resources and min(self.resources.values()) > 0):
            raise HwnasError(f"a cost needs one resource or more with weights above 0, got {dict(self.resources)}")
        if self.form not in _FORMS:
            raise HwnasError(f"unknown form of cost {self.form!r}; use one of {', '.join(_FORMS)}")
        if not isinstance(self.weight, Multiplier):
            check_ranges("a cost", *not_below(self, ("weight",), 0))
        elif self.form not in ("linear", "log"):
            raise HwnasError(f"a multiplier is learned for the forms linear and log; give {self.form!r} a number")


class Cost:
    """The cost term of a search: a form, and resources with their budgets.

    With several budgets the largest share counts: a sum would also shrink a network for a budget that it meets
    already. Where the settings weigh resources, their weighted mean counts.
    """

    def __init__(self, config: CostConfig, bounds: Sequence[Bound]) -> None:
        """Take a form and at least one resource.

        Raises:
            HwnasError: If a resource is weighed that no bound is of, or a plain mixture is asked of what is no
                `LatencyModel`.
        """
        assert bounds, "a cost is that of something"
        names = [b.name for b in bounds]
        if unpriced := [r for r in config.resources or () if r not in names]:
            raise HwnasError(f"the cost weighs {unpriced[0]!r}, which is not priced here; there are {', '.join(names)}")
        self.config = config
        self.bounds = tuple(bounds)
        self._expected = [_expectation(b, config.expectation) for b in bounds]

    @property
    def multiplies(self) -> bool:
        """Whether it multiplies the task loss, so that its gradient depends on that."""
        return self.config.form == "product"

    def expected(self, probs: Matrices) -> list[Tensor]:
        """Return the expectation of each resource, in its unit."""
        return [e(probs) for e in self._expected]

    def used(self, probs: Matrices) -> Tensor:
        """Return the expected share: of the most used budget, or the weighted mean of the resources, ()."""
        expected = zip(self.expected(probs), self.bounds, strict=True)
        return self._share(torch.stack([e / b.budget for e, b in expected]))

    def total(self, task: Tensor, probs: Matrices, weight: float) -> Tensor:
        """Return the objective for a task loss () and a weight: that of the settings, or what was learned so far."""
        return _FORMS[self.config.form](task, self.used(probs), weight)

    def usage(self, arch: Architecture, problem: Problem) -> dict[str, float]:
        """Return what one architecture takes of each resource, by name."""
        one_hot = problem.one_hot(arch)
        return {b.name: float(b.resource(one_hot)) for b in self.bounds}

    def violation(self, usage: Mapping[str, float]) -> float:
        """Return by which share the budgets are exceeded, of these as `used` has it; below 0 if they are not."""
        return float(self._share(torch.tensor([usage[b.name] / b.budget for b in self.bounds]).double())) - 1

    def _share(self, shares: Tensor) -> Tensor:
        """Return one share () for those of all bounds (n,)."""
        if self.config.resources is None:
            return shares.max()
        weights = shares.new_tensor([self.config.resources.get(b.name, 0.0) for b in self.bounds])
        return shares @ weights / weights.sum()


def _expectation(bound: Bound, expectation: str) -> Resource:
    if expectation == "derived":
        return bound.resource
    if not isinstance(bound.resource, LatencyModel):
        raise HwnasError(f"the plain mixture is made of a latency model, and {bound.name!r} is none; use 'derived'")
    return Mixture(bound.resource)


@dataclass(frozen=True)
class Mixture:
    """The expectation over the plain mixture: the rules of the derivation are ignored (CAS, section 3.3; GAS).

    Attributes:
        model: Whose gates and prices it reads.
    """

    model: LatencyModel

    def __call__(self, probs: Matrices, /) -> Tensor:
        """Return it, in the unit of the model."""
        gates = self.model.marginals
        q = gates.problem.probabilities(probs).vector
        out: Tensor = self.model.base_ms + gates.gate_probs(q) @ self.model.gate_weights.to(q)
        return out
