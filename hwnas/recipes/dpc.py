"""The dense prediction cell on a published encoder (Chen et al. 2018).

Of the paper are: the cell and its 81 ops, MobileNetV2 at output stride 16, and of the training its schedule, batch and
crop. Steps are ours. The paper searches by 28,000 trials on cached features; `decided` says how it is done here.
"""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import COOLING, Recipe, once, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.search.relax import SinglePath
from hwnas.search.strategy import Stage
from hwnas.spaces import DPCHead, Lite, MobileNetV2, Scale, Space

CAMVID_CLASSES = 11
# 160 and more different ops: each that reads the encoder, each that reads a branch.
CALIBRATION = Calibration(fit=12, test=12, refit=6, derived=6, isolated=False)


def decided(scale: Scale, steps: int, crop: tuple[int, int], batch: int, alpha_lr: float) -> tuple[Stage, ...]:
    """Return the search: one sampled op and input of each branch at a time, so that memory is that of one cell."""
    relaxation = SinglePath(COOLING)
    return once(SearchConfig(scale, steps, steps // 5, batch, crop, w_lr=0.1, alpha_lr=alpha_lr, relaxation=relaxation))


@recipe
def dpc() -> Recipe:
    """Return the paper's size, 1024x2048, on MobileNetV2; large GPUs. It has not been run.

    The training starts from weights of ImageNet if a file of them is named: ``--set train.encoder_weights=FILE``.
    """
    size = (1024, 2048)
    return Recipe(
        name="dpc",
        title="DPC on MobileNetV2 at the paper's size, Cityscapes or images of yours, 1024x2048: for large GPUs",
        space=Space(MobileNetV2(Scale(32, 7, size), stride=16), DPCHead(), CAMVID_CLASSES),
        widths=(32,),
        stages=decided(Scale(32, 7, size), 30_000, (769, 769), batch=8, alpha_lr=3e-3),
        train=TrainConfig(
            steps=90_000,
            batch=16,
            crop=(769, 769),
            lr=0.01,
            decay=4e-5,
            optimizer="sgd",
            schedule="poly",
            evaluate_every=5_000,
        ),
        data=None,
        calibration=CALIBRATION,
    )


@recipe
def dpc_camvid() -> Recipe:
    """Return CamVid at 360x480 on EfficientNet-Lite0, whose weights of ImageNet come as a package; CPU cores."""
    size = (360, 480)
    return Recipe(
        name="dpc-camvid",
        title="DPC on EfficientNet-Lite0 from ImageNet, CamVid or images of yours, 360x480",
        space=Space(Lite(Scale(32, 7, size), stride=16), DPCHead(channels=64), CAMVID_CLASSES),
        widths=(32,),
        stages=decided(Scale(32, 7, size), 400, (160, 224), batch=4, alpha_lr=0.05),
        train=TrainConfig(
            steps=1500,
            batch=8,
            crop=(240, 320),
            lr=1e-3,
            encoder_lr=0.3,
            freeze_norm=True,
            encoder_weights="imagenet",
            evaluate_every=150,
        ),
        data=None,
        calibration=CALIBRATION,
    )


@recipe
def dpc_tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: three branches of nine ops, networks that are of no use."""
    size = (65, 97)
    head = DPCHead(8, branches=3, rates=(1, 6), grids=(1, 2))
    return Recipe(
        name="dpc-tiny",
        title="DPC with 3 branches on a narrow MobileNetV2, synthetic streets, 65x97: for trying things out",
        space=Space(MobileNetV2(Scale(8, 5, size), stride=16), head, CAMVID_CLASSES),
        widths=(8, 16),
        stages=decided(Scale(8, 5, size), 6, (33, 49), batch=2, alpha_lr=0.5),
        train=TrainConfig(steps=6, batch=2, crop=(33, 49), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, refit=0, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
