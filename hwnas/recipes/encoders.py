"""Encoders that were published, with weights of ImageNet: networks that are profiled and trained, not searched."""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import Recipe, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.spaces import FPNHead, Lite, Scale, Space

CAMVID_CLASSES = 11
# The only network there is; one gives no correction, so that its price is the sum of its ops in context.
ONE_NETWORK = Calibration(fit=1, test=0, refit=0, derived=0)


@recipe
def lite0_fpn_camvid() -> Recipe:
    """Return EfficientNet-Lite0 with a feature pyramid on CamVid at 360x480, from weights of ImageNet.

    The training takes some 25 minutes on two CPU cores.
    """
    return Recipe(
        name="lite0-fpn-camvid",
        title="EfficientNet-Lite0 from ImageNet, feature pyramid, CamVid or images of yours, 360x480: no search",
        space=Space(Lite(Scale(32, 7, (360, 480))), FPNHead(64, separable=True), CAMVID_CLASSES),
        widths=(32,),
        stages=(),
        train=TrainConfig(
            steps=2100,
            batch=8,
            crop=(256, 352),
            lr=1e-3,
            encoder_lr=0.5,
            evaluate_every=175,
            average=0.999,
            dice_weight=0.5,
            scale_range=(0.6, 1.8),
            jitter=0.3,
            encoder_weights="imagenet",
        ),
        data=None,
        calibration=ONE_NETWORK,
    )


@recipe
def lite0_fpn_tiny() -> Recipe:
    """Return the smallest whole job of a network without decisions, for trying things out: of two widths, narrow."""
    size = (64, 96)
    return Recipe(
        name="lite0-fpn-tiny",
        title="EfficientNet-Lite0, narrow, feature pyramid, synthetic streets, 64x96: for trying things out",
        space=Space(Lite(Scale(8, 7, size)), FPNHead(8, separable=True), CAMVID_CLASSES),
        widths=(8, 16),
        stages=(),
        train=TrainConfig(steps=6, batch=2, crop=(32, 48), evaluate_every=3),
        calibration=Calibration(fit=2, test=0, refit=0, derived=0, isolated=False),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
