"""Between samplers and Optuna: what is imported when a study is opened, and not before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.errors import BudgetError, HwnasError
from hwnas.optional import require
from hwnas.search.study.choices import Answers, Choices, Tried

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.samplers import BaseSampler, NSGAIISampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState
else:
    optuna = require("optuna", "trials")
    CategoricalDistribution = optuna.distributions.CategoricalDistribution
    BaseSampler, TrialState = optuna.samplers.BaseSampler, optuna.trial.TrialState
    NSGAIISampler = optuna.samplers.NSGAIISampler

NUMBER = "number"  # of a trial that is done again: that of the first try; an attribute in the database
Space = dict[str, "BaseDistribution"]


def numbers(trials: Sequence[FrozenTrial]) -> list[int]:
    """Return the number of each trial of a study, given all up to the last of them in Optuna's order.

    Optuna counts a trial that is done again once more. Here it has the number of the first try, and others are counted
    without it. So what is asked does not depend on kills.
    """
    again, out = 0, []
    for t in trials:
        own = t.user_attrs.get(NUMBER)
        out.append(t.number - again if own is None else int(own))
        again += own is not None
    return out


def finished(study: Study) -> dict[int, FrozenTrial]:
    """Return the trials that have a score, by number."""
    trials = study.get_trials(deepcopy=False)
    out: dict[int, FrozenTrial] = {}
    for number, t in zip(numbers(trials), trials, strict=True):
        if t.state == TrialState.COMPLETE:
            out.setdefault(number, t)
    return dict(sorted(out.items()))


def tried(number: int, trial: FrozenTrial) -> Tried:
    """Return a trial that has a score."""
    assert trial.value is not None, "a complete trial has a value"
    return Tried(number, trial.params, trial.value, trial.user_attrs)


class Proposing(BaseSampler):
    """A sampler that answers all decisions at once."""

    def __init__(self, propose: Callable[[Sequence[Tried]], Answers]) -> None:
        """Take what proposes, from the trials that are done."""
        self.propose = propose
        self._history: list[Tried] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """Return none: the answers are what there is."""
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """Return answers to all decisions."""
        if self._history is None:
            self._history = [tried(n, t) for n, t in finished(study).items()]
        return dict(self.propose(self._history))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: there is nothing left to sample."""
        raise AssertionError(f"{param_name} was not proposed")


class OrderedParents(NSGAIISampler):
    """NSGA-II whose parents have one order: Optuna's differs when they are chosen and when they are read again.

    Children are drawn by position, so that a trial which is done again would have others.
    """

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return them by number."""
        return sorted(super().get_parent_population(study, generation), key=lambda t: t.number)


class Admitted(BaseSampler):
    """Asks another sampler until it asks for a network that obeys the rules and is predicted to be within the bounds.

    Answers that break a rule are repaired first, see `Choices.network`. The study keeps the answers as asked.

    Attributes:
        rejected: How many networks were refused by their prediction, or by a rule that no repair helps with.
    """

    def __init__(self, inner: BaseSampler, choices: Choices, most: int, fixed: Answers | None = None) -> None:
        """Take the sampler.

        Args:
            inner: What asks.
            choices: What is asked about.
            most: Asks, of which one has to be good.
            fixed: Answers that were asked before, for a trial that is done again.
        """
        self.inner, self.choices, self.most, self.fixed = inner, choices, most, fixed
        self.distributions = distributions(choices)
        self.rejected = 0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """Return all decisions."""
        return dict(self.distributions)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        """Return answers that make a network to try.

        Raises:
            BudgetError: If none of `most` networks is one.
        """
        if self.fixed is not None:
            self._asked(study, trial)  # a sampler may take down with the trial that it was asked: of which generation
            return dict(self.fixed)
        nearest: tuple[float, str] | None = None
        for rejected in range(self.most):
            self.rejected = rejected
            answers = self._asked(study, trial)
            arch = self.choices.network(answers)
            if self.choices.problem.broken(arch) is None:
                used = self.choices.used(arch)
                if all(share <= 1 + 1e-9 for share in used.values()):
                    return answers
                worst = max(used, key=lambda name: used[name])
                nearest = min(nearest or (used[worst], worst), (used[worst], worst))
        if nearest is None:
            raise HwnasError(f"none of {self.most} architectures asked for obeys all rules; allow more asks")
        share, name = nearest
        raise BudgetError(
            f"none of {self.most} architectures asked for is predicted to be within the budgets, the nearest takes "
            f"{share:.2f} times that of {name!r}; ease the budget, allow more asks, or take another sampler"
        )

    def _asked(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        space = self.inner.infer_relative_search_space(study, trial)
        answers = self.inner.sample_relative(study, trial, space)
        one = self.inner.sample_independent
        return {k: answers[k] if k in answers else one(study, trial, k, d) for k, d in self.distributions.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: there is nothing left to sample."""
        raise AssertionError(f"{param_name} was not asked for")

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Hand it on."""
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Hand it on."""
        self.inner.after_trial(study, trial, state, values)


def distributions(choices: Choices) -> dict[str, CategoricalDistribution]:
    """Return the open decisions as parameters of Optuna."""
    return {name: CategoricalDistribution(options) for name, options in choices.options.items()}


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a trial as JSON has it, so that it is the same before and after the database."""
    out: dict[str, Any] = json.loads(json.dumps(dict(facts)))
    return out
