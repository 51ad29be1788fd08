"""A recipe names everything a run needs: space, scales, search, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from hwnas.errors import check_ranges, not_below, unknown
from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.records import stored
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.gradient import SearchConfig
from hwnas.search.relax import GumbelSoftmax, SinglePath, Temperature
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
        search: The search; it sees images at the size of its scale.
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
    search: SearchConfig
    train: TrainConfig
    data: str | None = "synthetic"
    needs: str = "a folder in CamVid's layout"
    calibration: Calibration = field(default_factory=Calibration)
    budget_percentile: float = 30.0
    width_utility: float = 0.7
    depths: tuple[int, ...] = ()
    depth_utility: float = 0.5
    rerank_steps: int = 100
    stop: StopRule = field(default_factory=StopRule)

    def __post_init__(self) -> None:
        check_ranges(
            "a recipe",
            ("widths of 1 or more, narrowest first", self.widths, _ascends(self.widths) and len(self.widths) > 0),
            ("depths of 1 or more, least first", self.depths, _ascends(self.depths)),
            ("a budget_percentile from 0 to 100", self.budget_percentile, 0 <= self.budget_percentile <= 100),
            *not_below(self, ("width_utility", "depth_utility"), 0),
            *not_below(self, ("rerank_steps",), 1),
        )

    def scales(self) -> tuple[Scale, ...]:
        """Return the deployment scale at each width and depth, narrowest first, then shallowest."""
        scale = self.space.scale
        return tuple(replace(scale, channels=w, cells=d) for w in self.widths for d in self.depths or (scale.cells,))


def _ascends(sizes: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise((0, *sizes)))


_RECIPES: dict[str, Callable[[], Recipe]] = {}


def recipe(make: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a function that returns a recipe, under its name with ``-`` for ``_``."""
    _RECIPES[make.__name__.replace("_", "-")] = make
    return make


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
