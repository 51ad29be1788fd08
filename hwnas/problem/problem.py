"""What a search decides: groups of decisions, the rules on them, and what is fixed already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from hwnas.errors import HwnasError
from hwnas.problem.arch import Architecture, Decision, Group
from hwnas.problem.probabilities import Answers, Literal, Literals, Matrices, Probabilities
from hwnas.problem.rules.base import Rule

TRIES = 10_000  # draws until one obeys all rules; seen: of the tightest limits that make sense one in a hundred does


@dataclass(frozen=True)
class Problem:
    """A search problem: its architectures answer every decision and obey every rule.

    Attributes:
        name: Of the space; architectures carry it.
        groups: The decisions, by the matrix of logits they share.
        rules: Of the space, and whatever else an architecture must obey.
        fixed: Answers that are not up for decision: those of an earlier stage.

    Raises:
        HwnasError: If the fixed answers are none of this problem, or break a rule by themselves.
    """

    name: str
    groups: tuple[Group, ...]
    rules: tuple[Rule, ...] = ()
    fixed: Answers = ()

    def __post_init__(self) -> None:
        if self.fixed:
            Architecture(self.name, self.fixed).check(self.decisions, partial=True)
            _ = self.open_rules

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions, in the order of the groups."""
        return tuple(d for g in self.groups for d in g.decisions)

    @cached_property
    def literals(self) -> Literals:
        """The order of literals in vectors."""
        return Literals(self.groups)

    @cached_property
    def answers(self) -> dict[str, str]:
        """The fixed answers by decision."""
        return dict(self.fixed)

    @cached_property
    def open_rules(self) -> tuple[Rule, ...]:
        """The rules that answer open decisions, given what is fixed."""
        rules = [r.given(self.answers) for r in self.rules] if self.fixed else self.rules
        return tuple(r for r in rules if r.decisions)

    @cached_property
    def rule_of(self) -> dict[str, Rule]:
        """By open decision, the rule that answers it; decisions outside of every rule are free."""
        return {d: r for r in self.open_rules for d in r.decisions}

    @cached_property
    def dropped(self) -> dict[str, int]:
        """By decision that can be dropped, the literal that says so."""
        return {d: self.literals.index[d, r.none] for r in self.rules if r.none is not None for d in r.decisions}

    def with_rules(self, *rules: Rule) -> Problem:
        """Return the same with further rules."""
        return replace(self, rules=(*self.rules, *rules))

    def fix(self, arch: Architecture) -> Problem:
        """Return the same with the answers of a partial architecture fixed.

        Raises:
            HwnasError: If it is of another space, or answers what is fixed otherwise.
        """
        self.check(arch, partial=True)
        return replace(self, fixed=tuple((self.answers | dict(arch.answers)).items()))

    def check(self, arch: Architecture, partial: bool = False) -> None:
        """Hold an architecture against the decisions and, if it is complete, the rules.

        Raises:
            HwnasError: If it is of another space, answers wrongly, leaves open what it may not, or breaks a rule.
        """
        if arch.space != self.name:
            raise HwnasError(f"an architecture of space {self.name!r} was expected, got one of {arch.space!r}")
        arch.check(self.decisions, partial)
        for decision, option in self.fixed:
            if arch.get(decision) not in (option, None):
                raise HwnasError(f"{decision} is fixed to {option!r}, got {arch.get(decision)!r}")
        broken = None if partial else self.broken(arch)
        if broken is not None:
            raise HwnasError(f"the architecture breaks a rule of its space: {broken}")

    def completed(self, arch: Architecture) -> Architecture:
        """Return a partial architecture with the fixed answers added.

        Raises:
            HwnasError: If it leaves other decisions open, or answers what is fixed otherwise.
        """
        self.check(arch, partial=True)
        out = Architecture.of(self.name, self.answers | dict(arch.answers))
        out.check(self.decisions)
        return out

    def broken(self, arch: Architecture) -> Rule | None:
        """Return the first rule that a complete architecture breaks."""
        return next((r for r in self.rules if not r.holds(arch)), None)

    def is_dropped(self, decision: str, option: str) -> bool:
        """Tell whether an answer drops its decision: it costs 0 and scores 0."""
        return self.dropped.get(decision) == self.literals.index[decision, option]

    def draw(self, rng: np.random.Generator, concentration: float | None = None) -> Architecture:
        """Draw an architecture over rules and options: which edges survive, then what sits on them.

        Args:
            rng: Where chance comes from.
            concentration: None draws options uniformly. Else each group of decisions draws the weights of its options
                first, from a Dirichlet distribution with this concentration: below 1, few ops dominate a network.

        Raises:
            HwnasError: If none of `TRIES` draws obeys all rules.
        """
        for _ in range(TRIES):
            arch = self._draw(rng, concentration)
            if all(r.holds(arch) for r in self.rules if not r.decisions):  # the others hold by how they draw
                return arch
        limits = ", ".join(str(r) for r in self.rules if not r.decisions)
        raise HwnasError(f"none of {TRIES} random architectures of space {self.name!r} has {limits}; allow more of it")

    def _draw(self, rng: np.random.Generator, concentration: float | None) -> Architecture:
        answers = dict(self.answers)
        for rule in self.open_rules:
            answers |= rule.draw(rng)
        for g in self.groups:
            weights = np.ones(len(g.options))
            if concentration is not None:
                weights = np.maximum(rng.dirichlet(concentration * weights), 1e-9)
            weight = dict(zip(g.options, weights, strict=True))
            for d in g.decisions:
                if d.name not in answers:
                    allowed = [o for o in d.options if not self.is_dropped(d.name, o)]
                    p = np.array([weight[o] for o in allowed])
                    answers[d.name] = str(rng.choice(allowed, p=p / p.sum()))
        return Architecture.of(self.name, answers)

    def strongest(self, probs: Probabilities) -> Architecture:
        """Return the strongest answers of each rule; other decisions take their most probable option, ties the first.

        Rules that only exclude architectures may be broken; `hwnas.search.derive.strongest` obeys them too.
        """
        answers = dict(self.answers)
        for g in self.groups:
            best = probs[g.name].detach().cpu().numpy().argmax(axis=1).tolist()  # numpy takes the first of equals
            answers |= {d.name: d.options[i] for d, i in zip(g.decisions, best, strict=True) if d.name not in answers}
        for rule in self.open_rules:
            answers |= rule.strongest(probs)
        return Architecture.of(self.name, answers)

    def scores(self, probs: Probabilities) -> np.ndarray:
        """Return what each literal adds to the score of an architecture, (n_literals,).

        That is what its rule says; 0 for what is dropped. Decisions outside of every rule count their probability.
        """
        by_rule: dict[Literal, float] = {}
        for rule in self.open_rules:
            by_rule |= dict.fromkeys(((d, rule.none) for d in rule.decisions if rule.none is not None), 0.0)
            by_rule |= rule.score(probs)
        p = probs.numpy().tolist()
        return np.array([by_rule.get(literal, value) for literal, value in zip(self.literals.names, p, strict=True)])

    def relax(self, probs: Probabilities) -> torch.Tensor:
        """Return the marginals of literals in the derived network, (n_literals,), differentiable in `probs`."""
        q = self.pin(probs).vector
        for rule in self.open_rules:
            q = rule.relax(q, self.literals)
        return q

    def pin(self, probs: Probabilities) -> Probabilities:
        """Return the same probabilities with those of fixed decisions at 0 and 1."""
        if not self.fixed:
            return probs
        names, answers, vector = self.literals.names, self.answers, probs.vector
        fixed = torch.tensor([d in answers for d, _ in names], device=vector.device)
        on = torch.tensor([answers.get(d) == o for d, o in names], device=vector.device).to(vector)
        return probs.with_vector(torch.where(fixed, on, vector))

    def probabilities(self, matrices: Matrices) -> Probabilities:
        """Return the probabilities of matrices ``{group: (n_decisions, n_options)}``.

        Raises:
            HwnasError: If a group is missing or has another shape.
        """
        return Probabilities.of(self.literals, matrices)

    def uniform(self) -> Probabilities:
        """Return equal probabilities for all options of each decision, closed ones too, in float32."""
        return Probabilities.one_hot(self.literals, Architecture.of(self.name, {}))

    def one_hot(self, arch: Architecture) -> Probabilities:
        """Return 1 for the answers of an architecture, uniform where it is open, in float32."""
        return Probabilities.one_hot(self.literals, arch)
