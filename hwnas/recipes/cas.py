"""Customizable Architecture Search: cells under the cost of a resource, and a multi-scale cell (Zhang et al. 2019).

What is known of the paper is its form: normal, reduction and multi-scale cells, DARTS with the cost of each op added to
the loss, and the order of the work: the cells, pre-training on ImageNet, the multi-scale cell, training. Numbers of
cells, channels and steps, learning rates and the weight of the cost are ours.
"""

from __future__ import annotations

from dataclasses import replace

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import Recipe, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.search.costs import CostConfig
from hwnas.search.pretrain import Pretraining
from hwnas.search.strategy import Stage
from hwnas.spaces import ClassifierHead, Scale, cas_space

CAMVID_CLASSES = 11
EPOCH = 744  # of the 2,975 training images of Cityscapes weights see one half and alphas the other, two at a time
# The sum over ops and edges of softmax(alpha) times what the op takes, times a number. Latency here; a variant with
# other `resources` is a recipe of one's own.
COST = CostConfig("linear", weight=0.1, expectation="mixture", resources={"ms": 1.0})


def in_stages(search: SearchConfig, steps: int, pretraining: TrainConfig, data: str) -> tuple[Stage, ...]:
    """Return the stages of the paper; for a joint search a recipe has ``once(search)`` in their place.

    Args:
        search: Of the cells.
        steps: Of the search of the multi-scale cell, which is otherwise the same and has no warm-up but its weights'.
        pretraining: Of the encoder, between the two.
        data: Which is classified: a name or a path.
    """
    before = Pretraining(search.scale, ClassifierHead(), pretraining, data)
    last = replace(search, steps=steps, warmup=steps // 5)
    cells = Stage("cells", search, ("normal", "reduce"))
    return (cells, Stage("multiscale", last, ("multiscale",), before=before))


@recipe
def cas() -> Recipe:
    """Return the paper's size, 768x1536, on large GPUs; a day and more.

    Half-size images and crops of 321 as Auto-DeepLab searches on Cityscapes. The pre-training reads a folder `imagenet`
    of class folders, `train` and `val`; another place is ``--set multiscale.before.data=DIR``.
    """
    size = (768, 1536)
    return Recipe(
        name="cas",
        title="CAS at the paper's size, Cityscapes or images of yours, and ImageNet, 768x1536: for large GPUs",
        space=cas_space(Scale(32, 9, size), CAMVID_CLASSES, head_channels=128),
        widths=(16, 32, 48),
        depths=(9, 12),
        stages=in_stages(
            SearchConfig(
                scale=Scale(16, 6, (384, 768)),
                steps=40 * EPOCH,
                warmup=20 * EPOCH,
                batch=2,
                crop=(321, 321),
                alpha_lr=3e-3,
                cost=COST,
                checkpoint_every=200,
            ),
            steps=20 * EPOCH,
            pretraining=TrainConfig(
                steps=100 * 5_000, batch=256, crop=(224, 224), lr=0.1, decay=3e-5, optimizer="sgd", evaluate_every=5_000
            ),
            data="imagenet",
        ),
        train=TrainConfig(
            steps=120_000, batch=16, crop=(768, 768), lr=0.01, decay=5e-4, optimizer="sgd", evaluate_every=5_000
        ),
        data=None,
    )


@recipe
def cas_camvid() -> Recipe:
    """Return CamVid at the paper's 720x960, searched on crops at half that size; hours on two CPU cores."""
    size = (720, 960)
    return Recipe(
        name="cas-camvid",
        title="CAS, CamVid or images of yours, 720x960",
        space=cas_space(Scale(16, 6, size), CAMVID_CLASSES, nodes=3, head_nodes=3),
        widths=(16, 32),
        depths=(6, 9),
        stages=in_stages(
            SearchConfig(
                scale=Scale(8, 3, (360, 480)),
                steps=300,
                warmup=60,
                batch=4,
                crop=(160, 224),
                w_lr=0.1,
                alpha_lr=0.05,
                cost=COST,
            ),
            steps=150,
            pretraining=TrainConfig(steps=600, batch=32, crop=(64, 64), evaluate_every=150),
            data="synthetic-shapes",
        ),
        train=TrainConfig(steps=1500, batch=8, crop=(320, 480), evaluate_every=250),
        data=None,
    )


@recipe
def cas_quick() -> Recipe:
    """Return the whole job on drawn streets in minutes on two CPU cores."""
    size = (192, 256)
    return Recipe(
        name="cas-quick",
        title="CAS, synthetic streets, 192x256: minutes on a laptop",
        space=cas_space(Scale(16, 4, size), CAMVID_CLASSES, nodes=2, head_channels=32, head_nodes=2),
        widths=(16, 32),
        stages=in_stages(
            SearchConfig(
                scale=Scale(8, 3, size),
                steps=100,
                warmup=20,
                batch=4,
                crop=(96, 128),
                w_lr=0.1,
                alpha_lr=0.05,
                cost=COST,
            ),
            steps=60,
            pretraining=TrainConfig(steps=150, batch=16, crop=(48, 48), evaluate_every=75),
            data="synthetic-shapes",
        ),
        train=TrainConfig(steps=400, batch=8, crop=(128, 160), evaluate_every=100),
        calibration=Calibration(fit=12, test=12, refit=6, derived=6, isolated=False),
        stop=StopRule(min_visits=20, max_visits=60, min_s=30.0, net_relative_ci=0.01),
    )


@recipe
def cas_tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: networks that are of no use."""
    size = (48, 64)
    return Recipe(
        name="cas-tiny",
        title="CAS, synthetic streets, 48x64: for trying things out",
        space=cas_space(Scale(8, 3, size), CAMVID_CLASSES, nodes=2, head_channels=8, head_nodes=2),
        widths=(4, 8),
        stages=in_stages(
            SearchConfig(
                scale=Scale(4, 3, size),
                steps=6,
                warmup=2,
                batch=2,
                crop=(32, 48),
                w_lr=0.1,
                alpha_lr=0.5,
                cost=replace(COST, resources={"ms": 1.0, "macs": 1.0}),
            ),
            steps=4,
            pretraining=TrainConfig(steps=4, batch=4, crop=(32, 32), evaluate_every=2, checkpoint_every=1),
            data="synthetic-shapes",
        ),
        train=TrainConfig(steps=6, batch=2, crop=(32, 48), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, refit=0, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
