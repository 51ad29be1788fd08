"""DARTS cells for real-time segmentation."""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import CHAIN_SEARCH, Recipe, once, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.spaces import Scale, darts_space

CAMVID_CLASSES = 11


@recipe
def darts_quick() -> Recipe:
    """Return the whole job on synthetic streets in minutes on two CPU cores."""
    size = (192, 256)
    return Recipe(
        name="darts-quick",
        title="DARTS cells, synthetic streets, 192x256: minutes on a laptop",
        space=darts_space(Scale(16, 6, size), CAMVID_CLASSES),
        # Cells are the finer step: with one depth there are budgets between the widths that no network comes near.
        # 24 channels are no way to that, see docs/architecture.md: ONNX Runtime computes 16 at once.
        widths=(16, 32),
        depths=(6, 8, 10, 12, 14),
        depth_utility=0.3,
        stages=once(
            SearchConfig(scale=Scale(8, 3, size), steps=150, warmup=30, batch=4, crop=(96, 128), **CHAIN_SEARCH)
        ),
        train=TrainConfig(steps=500, batch=8, crop=(128, 160), evaluate_every=125),
        # Half of a table's time went into networks that were visited until they were known to 0.5 %, where predictions
        # are held to some percent, and a seventh into ops alone, which only a comparison needs.
        calibration=Calibration(fit=16, refit=6, derived=8, isolated=False),
        stop=StopRule(min_visits=20, max_visits=60, min_s=30.0, net_relative_ci=0.01),
    )


@recipe
def darts_camvid() -> Recipe:
    """Return CamVid at 360x480, from scratch, in some 20 minutes on two CPU cores."""
    size = (360, 480)
    return Recipe(
        name="darts-camvid",
        title="DARTS cells, CamVid or images of yours, 360x480",
        space=darts_space(Scale(16, 8, size), CAMVID_CLASSES),
        widths=(16, 32),
        depths=(6, 8, 10, 12),
        depth_utility=0.3,
        stages=once(
            SearchConfig(scale=Scale(8, 5, size), steps=200, warmup=40, batch=4, crop=(120, 160), **CHAIN_SEARCH)
        ),
        train=TrainConfig(steps=900, batch=8, crop=(240, 320), evaluate_every=150),
        data=None,
    )


@recipe
def darts_tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: seconds, and networks that are of no use."""
    size = (48, 64)
    return Recipe(
        name="darts-tiny",
        title="DARTS cells, synthetic streets, 48x64: seconds, for trying things out",
        space=darts_space(Scale(8, 3, size), CAMVID_CLASSES),
        widths=(4, 8),
        stages=once(
            SearchConfig(
                scale=Scale(4, 3, size), steps=6, warmup=2, batch=2, crop=(32, 48), **{**CHAIN_SEARCH, "alpha_lr": 0.5}
            )
        ),
        train=TrainConfig(steps=6, batch=2, crop=(32, 48), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, refit=0, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )


@recipe
def darts_gpu() -> Recipe:
    """Return 1024x2048, the size of Cityscapes: the ops and networks that tables of GPUs are measured on."""
    size = (1024, 2048)
    return Recipe(
        name="darts-gpu",
        title="DARTS cells, synthetic streets, 1024x2048: for tables of GPUs",
        space=darts_space(Scale(16, 6, size), CAMVID_CLASSES),
        # TensorRT computes 8 channels of float16 at once, and tensor cores like 16 and more.
        widths=(16, 32, 64),
        stages=once(
            SearchConfig(scale=Scale(8, 3, size), steps=150, warmup=30, batch=4, crop=(256, 512), **CHAIN_SEARCH)
        ),
        train=TrainConfig(steps=500, batch=8, crop=(256, 512), evaluate_every=250),
        calibration=Calibration(fit=12, test=30, derived=12),
    )
