"""DARTS on CIFAR-10: the paper's system, and small versions of it that need no data."""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import CHAIN_SEARCH, Recipe, once, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.search.costs import CostConfig
from hwnas.spaces import Scale, Space, darts_space

SIZE = (32, 32)
CLASSES = 10
NEEDS = "the folder cifar-10-batches-py or cifar-10-python.tar.gz"
TRAIN_IMAGES = 45_000  # 50,000 less those held out as val


def _space(channels: int, cells: int, nodes: int = 4) -> Space:
    return darts_space(Scale(channels, cells, SIZE), CLASSES, "cifar", "classification", nodes=nodes)


@recipe
def darts_cifar10() -> Recipe:
    """Return the system of the paper (sections 3.1 and 3.2, appendix A): a GPU's work of days, not a CPU's.

    The one difference is the images that are held out: the search has halves of 22,500, the training 45,000.
    """
    return Recipe(
        name="darts-cifar10",
        title="DARTS on CIFAR-10 as in the paper, 32x32: days on a GPU",
        space=_space(36, 20),
        widths=(36,),
        stages=once(
            SearchConfig(
                scale=Scale(16, 8, SIZE),
                steps=50 * (TRAIN_IMAGES // 2) // 64,
                warmup=0,
                batch=64,
                crop=SIZE,
                cost=CostConfig(weight=0.0),
            )
        ),
        train=TrainConfig(
            steps=600 * TRAIN_IMAGES // 96,
            batch=96,
            crop=SIZE,
            lr=0.025,
            decay=3e-4,
            evaluate_every=2000,
            optimizer="sgd",
            aux_weight=0.4,
            drop_path=0.2,
            cutout=16,
            checkpoint_every=200,
        ),
        data=None,
        needs=NEEDS,
        budget_percentile=100.0,  # the paper has no budget
    )


@recipe
def darts_cifar10_quick() -> Recipe:
    """Return the whole job on drawn shapes, or with --data on CIFAR-10, in minutes on two CPU cores."""
    return Recipe(
        name="darts-cifar10-quick",
        title="DARTS cells that classify, synthetic shapes or CIFAR-10, 32x32: minutes on a laptop",
        space=_space(16, 6),
        widths=(16, 32),
        stages=once(
            SearchConfig(scale=Scale(8, 3, SIZE), steps=150, warmup=30, batch=16, crop=SIZE, cutout=8, **CHAIN_SEARCH)
        ),
        train=TrainConfig(
            steps=500,
            batch=32,
            crop=SIZE,
            evaluate_every=125,
            aux_weight=0.4,
            drop_path=0.1,
            cutout=8,
        ),
        data="synthetic-shapes",
        needs=NEEDS,
    )


@recipe
def darts_cifar10_tiny() -> Recipe:
    """Return the smallest whole job that classifies, for trying things out: networks that are of no use."""
    return Recipe(
        name="darts-cifar10-tiny",
        title="DARTS cells that classify, synthetic shapes, 32x32: seconds, for trying things out",
        space=_space(4, 3, nodes=2),
        widths=(4, 8),
        stages=once(
            SearchConfig(
                scale=Scale(4, 3, SIZE),
                steps=4,
                warmup=1,
                batch=4,
                crop=SIZE,
                cutout=8,
                **{**CHAIN_SEARCH, "alpha_lr": 0.5},
            )
        ),
        train=TrainConfig(
            steps=6,
            batch=4,
            crop=SIZE,
            evaluate_every=3,
            optimizer="sgd",
            lr=0.025,
            decay=3e-4,
            aux_weight=0.4,
            drop_path=0.2,
            cutout=8,
        ),
        data="synthetic-shapes",
        needs=NEEDS,
        calibration=Calibration(fit=6, test=3, refit=0, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
