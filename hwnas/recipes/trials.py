"""Searches by trials: heads that are trained on what a fixed encoder gives, or whole networks for a few steps."""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import Recipe, once, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.study import Evolution, HeadOnFeatures, ShortTraining, Trials
from hwnas.spaces import Lite, MultiScaleHead, Scale, Space

CAMVID_CLASSES = 11


@recipe
def trials_tiny() -> Recipe:
    """Return the smallest whole job of a search by trials, for trying things out: networks that are of no use."""
    size = (64, 96)
    return Recipe(
        name="trials-tiny",
        title="EfficientNet-Lite0, narrow, a cell by trials, synthetic streets, 64x96: for trying things out",
        space=Space(Lite(Scale(8, 7, size)), MultiScaleHead(8, nodes=2, inputs=(2, -1)), CAMVID_CLASSES),
        widths=(8,),
        stages=once(
            Trials(
                HeadOnFeatures(
                    TrainConfig(steps=4, batch=4, crop=(32, 48), lr=3e-3, average=0.9),
                    images=12,
                    then=ShortTraining(TrainConfig(steps=2, batch=2, crop=(32, 48))),
                ),
                Evolution(population=4, sample=2),
                steps=6,
            )
        ),
        train=TrainConfig(steps=6, batch=2, crop=(32, 48), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, refit=0, derived=2, isolated=False),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )


@recipe
def lite0_multiscale_camvid() -> Recipe:
    """Return the multi-scale cell on EfficientNet-Lite0 from weights of ImageNet, CamVid at 360x480, by evolution.

    The head learns on the features of a few hundred crops; what is promising is trained end to end for a while.
    """
    return Recipe(
        name="lite0-multiscale-camvid",
        title="EfficientNet-Lite0 from ImageNet, a multi-scale cell by trials, CamVid or images of yours, 360x480",
        space=Space(Lite(Scale(32, 7, (360, 480))), MultiScaleHead(64, inputs=(2, -1)), CAMVID_CLASSES),
        widths=(32,),
        stages=once(
            Trials(
                HeadOnFeatures(
                    TrainConfig(
                        steps=150,
                        batch=16,
                        crop=(240, 320),
                        lr=3e-3,
                        decay=1e-5,
                        clip=3.0,
                        average=0.9,
                        encoder_weights="imagenet",
                    ),
                    reward="geometric",
                    then=ShortTraining(
                        TrainConfig(
                            steps=60, batch=8, crop=(240, 320), lr=1e-3, average=0.99, encoder_weights="imagenet"
                        )
                    ),
                ),
                Evolution(),
                steps=100,
            )
        ),
        train=TrainConfig(
            steps=1500, batch=8, crop=(240, 320), lr=1e-3, evaluate_every=150, encoder_weights="imagenet"
        ),
        data=None,
    )
