"""Auto-DeepLab: the cell and the strides of its layers (Liu et al. 2019)."""

from __future__ import annotations

from hwnas.profile import Calibration
from hwnas.recipes.base import Recipe, recipe
from hwnas.runtime.measure import StopRule
from hwnas.search.gradient import SearchConfig
from hwnas.spaces import Scale
from hwnas.spaces.trellis import TrellisSpace
from hwnas.train import TrainConfig

CAMVID_CLASSES = 11


@recipe
def autodeeplab_tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: networks that are of no use."""
    size = (65, 97)
    return Recipe(
        name="autodeeplab-tiny",
        title="Auto-DeepLab, synthetic streets, 65x97: for trying things out",
        space=TrellisSpace(Scale(4, 4, size), CAMVID_CLASSES, nodes=2, head_channels=16),
        widths=(4, 8),
        search=SearchConfig(
            scale=Scale(2, 4, size), steps=6, warmup=2, batch=2, crop=(33, 49), w_lr=0.1, alpha_lr=0.02
        ),
        train=TrainConfig(steps=6, batch=2, crop=(33, 49), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
