"""Real-time networks made by hand, to be trained, priced and exported as searched ones are: nothing is decided."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes.base import Recipe, register
from hwnas.runtime.measuring.measure import StopRule
from hwnas.spaces import Scale, Space, alone_names, own_space

CAMVID = ((360, 480), 11)  # size and classes
TITLES = {
    "FAST_SCNN": "Fast-SCNN",
    "BISENETV2": "BiSeNetV2",
    "STDC1": "STDC1-Seg",
    "PIDNET_S": "PIDNet-S",
    "DDRNET_23_SLIM": "DDRNet-23-slim",
    "LMFFNET": "LMFFNet-3-8",
    "FAST_NAS_0": "Fast NAS arch0",
    "FAST_NAS_1": "Fast NAS arch1",
    "FAST_NAS_2": "Fast NAS arch2",
}


def of_one(name: str, title: str, space: Space, train: TrainConfig) -> Recipe:
    """Return a recipe whose space has one network; there is no other one to fit a correction on."""
    scale = space.scale
    return Recipe(
        name=name,
        title=title,
        space=space,
        widths=(scale.channels,),
        stages=(),
        train=train,
        calibration=Calibration(fit=1, test=0, refit=0, derived=0),
        data=None,
    )


def camvid(network: str) -> Recipe:
    """Return CamVid at 360x480, from scratch: trained as networks that were searched there, with an auxiliary head."""
    space = own_space(network, *CAMVID)
    assert space is not None, f"{network} is no space of its own"
    return of_one(
        recipe_name(network),
        f"{TITLES[network]}, not searched, CamVid or images of yours, 360x480",
        space,
        TrainConfig(steps=1500, batch=8, crop=(320, 480), aux_weight=0.4, evaluate_every=250),
    )


def recipe_name(network: str) -> str:
    """Return what the recipe of a published network is called."""
    return f"{network.lower().replace('_', '-')}-camvid"


def tiny() -> Recipe:
    """Return the smallest whole job, for trying things out: a network that is of no use."""
    space = own_space("FAST_SCNN", (64, 96), CAMVID[1])
    assert space is not None
    made = of_one(
        "fast-scnn-tiny",
        "Fast-SCNN a quarter as wide, not searched, synthetic streets, 64x96: for trying things out",
        replace(space.at(Scale(8, 1, (64, 96))), head=replace(space.head, channels=16)),  # type: ignore[type-var]  # heads are dataclasses
        TrainConfig(steps=6, batch=2, crop=(32, 48), aux_weight=0.4, evaluate_every=3),
    )
    return replace(made, data="synthetic", stop=StopRule(min_visits=3, max_visits=12, min_s=0.0))


for _network in alone_names():
    register(recipe_name(_network), partial(camvid, _network))
register("fast-scnn-tiny", tiny)
