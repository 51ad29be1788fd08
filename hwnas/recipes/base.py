"""A recipe names everything a run needs: space, scales, search, training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from hwnas import records
from hwnas.errors import HwnasError, check_ranges, not_below, unknown
from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.records import Difference, stored
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.search.relax import GumbelSoftmax, SinglePath, Temperature
from hwnas.search.strategy import SEARCH, Stage, Strategy, check_stages
from hwnas.spaces import Scale, Space

# How searches under a budget relax decisions, and how fast they learn: the settings that find a planted network under
# one (docs/results/planted.md). The mixture of all candidates does not: it solves the task whatever the alphas say.
COOLING = Temperature(1.0, 0.3)
CHAIN_SEARCH: Mapping[str, Any] = {"relaxation": SinglePath(COOLING), "w_lr": 0.1, "alpha_lr": 0.05}
TRELLIS_SEARCH: Mapping[str, Any] = {"relaxation": GumbelSoftmax(COOLING), "w_lr": 0.1, "alpha_lr": 0.05}


@stored("recipe")
@dataclass(frozen=True)
class Recipe:
    """A run as data; variants by ``dataclasses.replace``.

    Attributes:
        name: What the command line calls it.
        title: One line for people.
        space: At the deployment scale.
        widths: Channels the derived network may have, narrowest first: multiples of what the engine computes at once.
        stages: Of the search, in their order; one, called ``"search"``, where all is decided at once. None where the
            space has no decisions, or none of them counts: see `searched`.
        train: The training of the derived network.
        data: ``"synthetic"`` or ``"synthetic-shapes"``, or None where the user names a folder.
        needs: What that folder is, for people.
        calibration: Whole networks measured beside the ops.
        budget_percentile: The default budget: this percentile of latency over random architectures of all widths.
        width_utility: What doubling the channels is worth, as a share of the score of the paper's rule. The default is
            about what it was worth in `docs/results/against_random.md`.
        depths: Numbers of cells the derived network may have, least first; empty for that of `space` alone. Cells of
            one kind share their architecture, so that one search serves all.
        depth_utility: What doubling the cells is worth, as a share of the score of the paper's rule.
        rerank_steps: Of the short trainings that derived networks are compared by, where that is asked for.
        stop: When an entry of the table has been visited often enough.
    """

    name: str
    title: str
    space: Space
    widths: tuple[int, ...]
    stages: tuple[Stage, ...]
    train: TrainConfig
    data: str | None = "synthetic"
    needs: str = "a folder of images and labels, see hwnas data"
    calibration: Calibration = field(default_factory=Calibration)
    budget_percentile: float = 30.0
    width_utility: float = 0.7
    depths: tuple[int, ...] = ()
    depth_utility: float = 0.5
    rerank_steps: int = 100
    stop: StopRule = field(default_factory=StopRule)

    def __post_init__(self) -> None:
        """Raise HwnasError if a setting is out of range, or the stages do not decide each group of the space once."""
        check_stages(self.stages, self.space.groups, self.space.encoder.groups)
        if clash := {s.name for s in self.stages} & {f.name for f in fields(self)}:
            raise HwnasError(f"a stage cannot be called {min(clash)!r}: that is a setting of recipes")
        check_ranges(
            "a recipe",
            ("widths of 1 or more, narrowest first", self.widths, _ascends(self.widths) and len(self.widths) > 0),
            ("depths of 1 or more, least first", self.depths, _ascends(self.depths)),
            ("a budget_percentile from 0 to 100", self.budget_percentile, 0 <= self.budget_percentile <= 100),
            *not_below(self, ("width_utility", "depth_utility"), 0),
            *not_below(self, ("rerank_steps",), 1),
        )

    @property
    def searched(self) -> tuple[Stage, ...]:
        """The stages that decide something: none in a space of one network, whatever stages the recipe had before."""
        return self.stages if self.space.groups else ()

    @property
    def search(self) -> SearchConfig:
        """The settings of the one stage of gradient search.

        Raises:
            HwnasError: If the recipe has several stages, or another strategy.
        """
        strategy = self.stages[0].strategy if self.stages else None
        if len(self.stages) > 1 or not isinstance(strategy, SearchConfig):
            raise HwnasError(f"the recipe {self.name} has no single stage of gradient search; see its stages")
        return strategy

    def searching(self, **settings: Any) -> Recipe:
        """Return the same with other settings of `search`."""
        return replace(self, stages=once(replace(self.search, **settings)))

    def seeded(self, seed: int | None) -> Recipe:
        """Return the same with another seed of all stages, and of the training; None for its own."""
        if seed is None:
            return self
        stages = tuple(s.with_seed(seed) for s in self.stages)
        return replace(self, stages=stages, train=replace(self.train, seed=seed))

    @staticmethod
    def older(fields: dict[str, Any]) -> dict[str, Any]:
        """Bring a stored recipe from before there were stages to the present form."""
        if "search" not in fields:
            return fields
        rest = {k: v for k, v in fields.items() if k != "search"}
        return {**rest, "stages": [{"name": SEARCH, "strategy": {"type": "gradient", **fields["search"]}}]}

    def scales(self) -> tuple[Scale, ...]:
        """Return the deployment scale at each width and depth, narrowest first, then shallowest."""
        scale = self.space.scale
        return tuple(replace(scale, channels=w, cells=d) for w in self.widths for d in self.depths or (scale.cells,))


def changed_settings(old: Recipe, new: Recipe) -> tuple[Difference, ...]:
    """Return which settings two recipes have otherwise; those of a strategy go by the name of its stage."""
    return tuple(
        replace(d, name=re.sub(r"^stages\.(\w+)\.strategy\.", r"\1.", d.name)) for d in records.differences(old, new)
    )


def once(strategy: Strategy) -> tuple[Stage, ...]:
    """Return the stages of a search that decides everything at once."""
    return (Stage(SEARCH, strategy),)


def _ascends(sizes: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise((0, *sizes)))


_RECIPES: dict[str, Callable[[], Recipe]] = {}


def recipe(make: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a function that returns a recipe, under its name with ``-`` for ``_``."""
    register(make.__name__.replace("_", "-"), make)
    return make


def register(name: str, make: Callable[[], Recipe]) -> None:
    """Register what returns a recipe under a name: one of several that a table says."""
    assert name not in _RECIPES, f"two recipes are called {name}"
    _RECIPES[name] = make


def names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(_RECIPES)


def get(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        HwnasError: If there is none of this name; the message has the nearest.
    """
    if name not in _RECIPES:
        raise unknown("recipe", name, _RECIPES)
    made = _RECIPES[name]()
    assert made.name == name, f"the recipe {name} calls itself {made.name}"
    return made
