"""What a study chooses among: decisions as categorical parameters, and which answers to them make a network to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, sha256
from hwnas.latency.model import LatencyModel
from hwnas.problem import Architecture, Decision, NoTwins, Problem
from hwnas.search.costs import Bound
from hwnas.search.strategy import Inputs

Answers = Mapping[str, str]
TRIES = 20  # of a change that a repair undoes
NOISE = 1e-3  # against an answer, which counts 1: it breaks ties among answers alone


@dataclass(frozen=True)
class Tried:
    """A trial that is done.

    Attributes:
        number: Of the trial, from 0.
        answers: As they were asked, before a repair.
        score: What it is worth; larger is better.
        facts: What else was kept of it.
    """

    number: int
    answers: Answers
    score: float
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Choices:
    """The open decisions of a problem.

    Attributes:
        problem: With all rules that a derived network must obey.
        bounds: What networks are held to before they are tried.
    """

    problem: Problem
    bounds: tuple[Bound, ...] = ()

    @classmethod
    def of(cls, inputs: Inputs, limits: Mapping[str, float]) -> Choices:
        """Return what a stage of a search chooses among.

        Args:
            inputs: Of the stage.
            limits: Budgets of counts, by the name of the bound; they take the place of what a typical network has.

        Raises:
            HwnasError: If a group is left open for a later stage, or nothing is decided.
        """
        problem = inputs.problem
        decided = {g.name for g in inputs.groups}
        later = [d.name for g in problem.groups if g.name not in decided for d in g.decisions]
        if left := [d for d in later if d not in problem.answers]:
            raise HwnasError(
                f"a search by trials tries complete networks, and {left[0]!r} is left to a later stage; put the stage "
                "that decides it first"
            )
        bounds = tuple(Bound(b.name, b.resource, limits.get(b.name, b.budget)) for b in inputs.bounds)
        return cls(problem.with_rules(NoTwins(inputs.space.twins())), bounds)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """Those that are open, in the order of the groups."""
        return tuple(d for d in self.problem.decisions if d.name not in self.problem.answers)

    @cached_property
    def options(self) -> dict[str, tuple[str, ...]]:
        """By open decision, what may be asked: all options but closed ones; dropping it, where a rule may drop it."""
        dropped = self.problem.is_dropped
        return {d.name: tuple(o for o in d.options if o not in d.closed or dropped(d.name, o)) for d in self.decisions}

    def answers(self, arch: Architecture) -> dict[str, str]:
        """Return the answers of a complete architecture to the open decisions, in their order."""
        return {d.name: str(arch.get(d.name)) for d in self.decisions}

    def network(self, answers: Answers) -> Architecture:
        """Return the complete architecture that answers stand for.

        Valid answers stand for themselves. Others are repaired: of what each rule allows that is taken which agrees
        with most answers, as the derivation takes the most probable (`Problem.strongest`). Ties are broken at random,
        with the answers as the seed, so that equal answers make equal networks.
        """
        problem = self.problem
        arch = Architecture.of(problem.name, problem.answers | dict(answers))
        if problem.broken(arch) is None:
            return arch
        one_hot = problem.one_hot(arch)
        seed = int(sha256(canonical_json(dict(answers)))[:16], 16)
        noise = np.random.default_rng(seed).random(len(one_hot.vector))
        return problem.strongest(one_hot.with_vector(one_hot.vector.double() + NOISE * torch.from_numpy(noise)))

    def used(self, arch: Architecture) -> dict[str, float]:
        """Return what a network is predicted to take of each bound, as a share of it."""
        one_hot = None
        out: dict[str, float] = {}
        for b in self.bounds:
            if isinstance(b.resource, LatencyModel):
                taken = b.resource.predict_ms(arch)
            else:
                one_hot = self.problem.one_hot(arch) if one_hot is None else one_hot
                taken = float(b.resource(one_hot))
            out[b.name] = taken / b.budget
        return out

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Draw the answers of a valid architecture over rules and options; bounds are not held."""
        return self.answers(self.problem.draw(rng))

    def neighbour(self, answers: Answers, rng: np.random.Generator, changes: int = 1) -> dict[str, str]:
        """Return answers of which some were changed at random, repaired; others than before, if there are such near.

        Args:
            answers: To start from.
            rng: Draws which decisions change, and to what.
            changes: How many decisions at most; those without another option do not.
        """
        free = [d.name for d in self.decisions if len(self.options[d.name]) > 1]
        start, out = self.network(answers), dict(answers)
        for _ in range(TRIES if free else 0):
            out = dict(answers)
            for name in rng.choice(free, size=min(changes, len(free)), replace=False):
                others = [o for o in self.options[name] if o != out[name]]
                out[str(name)] = others[int(rng.integers(len(others)))]
            if self.network(out) != start:
                break
        return self.answers(self.network(out))


def best_of(history: Sequence[Tried]) -> Tried | None:
    """Return the trial of the highest score, the first of equals; None if there is none."""
    return max(history, key=lambda t: (t.score, -t.number), default=None)
