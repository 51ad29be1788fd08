"""GAS: every cell searched for itself, neighbours coupled by a graph over edges (Lin et al. 2020).

Of the paper are: candidate ops, independent cells with two reductions, sampling by the Gumbel-softmax from 1.0 to 0.03,
the graph module on logits, the logarithm of the latency in the loss, ASPP. It has been read in excerpts, so the number
of cells (14) and of nodes (2) and the single level are recalled from it; stem, widths, steps, learning rates, gamma and
the weight of the latency are ours. The paper pre-trains what it found on ImageNet, which these recipes do not.
"""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import Recipe, once, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.search.costs import CostConfig
from hwnas.search.graph_logits import GraphLogits
from hwnas.search.relax import GumbelSoftmax, Temperature
from hwnas.search.strategy import Stage
from hwnas.spaces import Scale, gas_space

CAMVID_CLASSES = 11
EPOCH = 1487  # of the 2,975 training images of Cityscapes, two at a time: a single level has no halves


def jointly(scale: Scale, steps: int, crop: tuple[int, int], batch: int, alpha_lr: float) -> tuple[Stage, ...]:
    """Return the search: weights and logits learn from one loss on the same images, after a fifth of the steps."""
    return once(
        SearchConfig(
            scale=scale,
            steps=steps,
            warmup=steps // 5,
            batch=batch,
            crop=crop,
            w_lr=0.1,
            alpha_lr=alpha_lr,
            level="single",
            logits=GraphLogits(),
            relaxation=GumbelSoftmax(Temperature(1.0, 0.03)),
            cost=CostConfig("log", weight=0.1, expectation="mixture"),
        )
    )


@recipe
def gas() -> Recipe:
    """Return the paper's size, 769x1537, on large GPUs; a day and more. Images are searched at half of it."""
    size = (769, 1537)
    return Recipe(
        name="gas",
        title="GAS at the paper's size, Cityscapes or images of yours, 769x1537: for large GPUs",
        space=gas_space(Scale(32, 14, size), CAMVID_CLASSES),
        widths=(16, 32, 48),
        stages=jointly(Scale(16, 14, (385, 769)), 40 * EPOCH, (321, 321), batch=2, alpha_lr=3e-3),
        train=TrainConfig(
            steps=120_000, batch=16, crop=(769, 769), lr=0.01, decay=5e-4, optimizer="sgd", evaluate_every=5_000
        ),
        data=None,
    )


@recipe
def gas_camvid() -> Recipe:
    """Return CamVid at the paper's 720x960, searched on crops at half that size; hours on two CPU cores."""
    return Recipe(
        name="gas-camvid",
        title="GAS with 8 cells, CamVid or images of yours, 720x960",
        space=gas_space(Scale(16, 8, (720, 960)), CAMVID_CLASSES, head_channels=64),
        widths=(16, 32),
        stages=jointly(Scale(8, 8, (360, 480)), 400, (160, 224), batch=4, alpha_lr=0.02),
        train=TrainConfig(steps=1500, batch=8, crop=(320, 480), evaluate_every=250),
        data=None,
    )


@recipe
def gas_quick() -> Recipe:
    """Return the whole job on drawn streets in minutes on two CPU cores."""
    size = (192, 256)
    return Recipe(
        name="gas-quick",
        title="GAS with 6 cells, synthetic streets, 192x256: minutes on a laptop",
        space=gas_space(Scale(16, 6, size), CAMVID_CLASSES, head_channels=32),
        widths=(16, 32),
        stages=jointly(Scale(8, 6, size), 150, (96, 128), batch=4, alpha_lr=0.02),
        train=TrainConfig(steps=400, batch=8, crop=(128, 160), evaluate_every=100),
        calibration=Calibration(fit=12, test=12, refit=6, derived=6, isolated=False),
        stop=StopRule(min_visits=20, max_visits=60, min_s=30.0, net_relative_ci=0.01),
    )


@recipe
def gas_tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: networks that are of no use."""
    size = (49, 65)
    return Recipe(
        name="gas-tiny",
        title="GAS with 3 cells, synthetic streets, 49x65: for trying things out",
        space=gas_space(Scale(8, 3, size), CAMVID_CLASSES, head_channels=8),
        widths=(4, 8),
        stages=jointly(Scale(4, 3, size), 6, (33, 49), batch=2, alpha_lr=0.5),
        train=TrainConfig(steps=6, batch=2, crop=(33, 49), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, refit=0, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
