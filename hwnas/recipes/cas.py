"""Customizable Architecture Search: cells under the cost of a resource, and a multi-scale cell (Zhang et al. 2019)."""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import Recipe, once, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.search.costs import CostConfig
from hwnas.spaces import Scale, cas_space

CAMVID_CLASSES = 11
# Of every op of every edge its cost times softmax(alpha), in the sum a number: the form of the paper, not its number.
COST = CostConfig(form="linear", weight=0.1, expectation="mixture")


@recipe
def cas_tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: networks that are of no use."""
    size = (48, 64)
    search = SearchConfig(
        scale=Scale(4, 3, size), steps=6, warmup=2, batch=2, crop=(32, 48), w_lr=0.1, alpha_lr=0.5, cost=COST
    )
    return Recipe(
        name="cas-tiny",
        title="CAS, synthetic streets, 48x64: for trying things out",
        space=cas_space(Scale(8, 3, size), CAMVID_CLASSES, nodes=2, head_channels=8, head_nodes=2),
        widths=(4, 8),
        stages=once(search),
        train=TrainConfig(steps=6, batch=2, crop=(32, 48), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, refit=0, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
