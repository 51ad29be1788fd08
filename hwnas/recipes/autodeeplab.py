"""Auto-DeepLab: the cell and the strides of its layers (Liu et al. 2019)."""

from __future__ import annotations

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import TRELLIS_SEARCH, Recipe, once, recipe
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.config import SearchConfig
from hwnas.spaces import Scale, autodeeplab_space

CAMVID_CLASSES = 11
# Of the 2,975 training images of Cityscapes weights see one half and alphas the other, two at a time (section 5.1).
EPOCH = 744


@recipe
def autodeeplab() -> Recipe:
    """Return the paper's search: 12 layers, 5 blocks, 40 epochs of Cityscapes, alphas in the last 20 (section 5.1).

    Half-size images, crops of 321. The widths are those of S, M and L. The training has the paper's number of steps and
    size of crops, but a cosine where it has a polynomial; how many images a step takes the paper does not say. A day
    and more on a large GPU.
    """
    size = (1024, 2048)
    return Recipe(
        name="autodeeplab",
        title="Auto-DeepLab as in the paper, Cityscapes or images of yours, 1024x2048: for large GPUs",
        space=autodeeplab_space(Scale(20, 12, size), CAMVID_CLASSES),
        widths=(20, 32, 48),
        stages=once(
            SearchConfig(
                scale=Scale(8, 12, (512, 1024)),
                steps=40 * EPOCH,
                warmup=20 * EPOCH,
                batch=2,
                crop=(321, 321),
                alpha_lr=3e-3,
                checkpoint_every=200,
            )
        ),
        train=TrainConfig(
            steps=1_500_000, batch=16, crop=(769, 769), lr=0.05, decay=4e-5, optimizer="sgd", evaluate_every=10_000
        ),
        data=None,
    )


@recipe
def autodeeplab_quick() -> Recipe:
    """Return the whole job on synthetic streets on two CPU cores: six layers, three blocks."""
    size = (192, 256)
    return Recipe(
        name="autodeeplab-quick",
        title="Auto-DeepLab with 6 layers and 3 blocks, synthetic streets, 192x256: minutes on a laptop",
        space=autodeeplab_space(Scale(8, 6, size), CAMVID_CLASSES, nodes=3, head_channels=32, weighting="path"),
        widths=(8, 16),
        stages=once(
            SearchConfig(scale=Scale(4, 6, size), steps=150, warmup=30, batch=4, crop=(97, 129), **TRELLIS_SEARCH)
        ),
        train=TrainConfig(steps=500, batch=8, crop=(128, 160), evaluate_every=125),
    )


@recipe
def autodeeplab_camvid() -> Recipe:
    """Return CamVid at 360x480, from scratch, on two CPU cores: six layers, three blocks."""
    size = (360, 480)
    return Recipe(
        name="autodeeplab-camvid",
        title="Auto-DeepLab with 6 layers and 3 blocks, CamVid or images of yours, 360x480",
        space=autodeeplab_space(Scale(8, 6, size), CAMVID_CLASSES, nodes=3, head_channels=32, weighting="path"),
        widths=(8, 16),
        stages=once(
            SearchConfig(scale=Scale(4, 6, size), steps=200, warmup=40, batch=4, crop=(121, 161), **TRELLIS_SEARCH)
        ),
        train=TrainConfig(steps=900, batch=8, crop=(240, 320), evaluate_every=150),
        data=None,
    )


@recipe
def autodeeplab_tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: networks that are of no use."""
    size = (65, 97)
    return Recipe(
        name="autodeeplab-tiny",
        title="Auto-DeepLab, synthetic streets, 65x97: for trying things out",
        space=autodeeplab_space(Scale(4, 4, size), CAMVID_CLASSES, nodes=2, head_channels=16, weighting="path"),
        widths=(4, 8),
        stages=once(
            SearchConfig(
                scale=Scale(2, 4, size),
                steps=6,
                warmup=2,
                batch=2,
                crop=(33, 49),
                **{**TRELLIS_SEARCH, "alpha_lr": 0.5},
            )
        ),
        train=TrainConfig(steps=6, batch=2, crop=(33, 49), evaluate_every=3),
        calibration=Calibration(fit=6, test=3, refit=0, derived=2),
        stop=StopRule(min_visits=3, max_visits=12, min_s=0.0),
    )
