"""Optuna's own samplers, as they are: TPE and NSGA-II, over decisions as categorical parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.errors import check_ranges, not_below
from hwnas.optional import require
from hwnas.records import stored
from hwnas.search.study.choices import Choices
from hwnas.search.study.samplers.base import Asking, Sampler, seed_of

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Foreign(Asking):
    """Makes a sampler of Optuna anew for each trial: what it knows it reads from the study."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Take what makes one from a seed."""
        self.make, self.seed = make, seed

    def sampler(self, number: int) -> BaseSampler:
        """Return one that starts from the seed of the trial."""
        return self.make(seed_of(self.seed, number))


@stored("tpe")
@dataclass(frozen=True)
class TPE(Sampler):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), by ``optuna.samplers.TPESampler``.

    Attributes:
        startup: Trials at random before it begins.
        multivariate: Whether decisions are estimated together.

    Raises:
        HwnasError: If a setting is out of range.
    """

    startup: int = 10
    multivariate: bool = False

    def __post_init__(self) -> None:
        check_ranges("a sampler", *not_below(self, ("startup",), 1))

    def asking(self, choices: Choices, seed: int) -> Asking:
        """Start asking."""
        samplers = require("optuna.samplers", "trials")
        settings = {"n_startup_trials": self.startup, "multivariate": self.multivariate, "constant_liar": True}
        return Foreign(lambda s: samplers.TPESampler(seed=s, **settings), seed)


@stored("nsga2")
@dataclass(frozen=True)
class NSGA2(Sampler):
    """A genetic algorithm (Deb et al. 2002), by ``optuna.samplers.NSGAIISampler``; here of one objective.

    Attributes:
        population: Trials of a generation.

    Raises:
        HwnasError: If a setting is out of range.
    """

    population: int = 20

    def __post_init__(self) -> None:
        check_ranges("a sampler", *not_below(self, ("population",), 2))

    def asking(self, choices: Choices, seed: int) -> Asking:
        """Start asking."""
        from hwnas.search.study.bridge import OrderedParents

        return Foreign(lambda s: OrderedParents(population_size=self.population, seed=s), seed)
