"""Recipes over these parts: each part with what hwnas has, all together, and searches in other ways."""

from __future__ import annotations

from dataclasses import replace

from hwnas import recipes
from hwnas.recipes import Recipe
from hwnas.recipes.base import once, recipe
from hwnas.search.strategy import Stage
from hwnas.spaces import Chain, ContextHead, Scale, Space
from tests.extension.encoder import Ladder
from tests.extension.head import Fuse
from tests.extension.logits import Chained
from tests.extension.relaxation import Sparsemax
from tests.extension.strategy import RandomSearch

SCALE = Scale(4, 3, (33, 48))


def small(name: str, space: Space, data: str = "synthetic") -> Recipe:
    """Return the settings of the smallest recipe with another space."""
    base = recipes.get("darts-tiny")
    scale = replace(space.scale, channels=2)
    stages = once(replace(base.search, scale=scale))
    return replace(base, name=name, title=f"{name}: for tests", space=space, widths=(4, 8), stages=stages, data=data)


@recipe
def with_encoder() -> Recipe:
    """Return the encoder, with its rule, and a head that hwnas has."""
    return small("with-encoder", Space(Ladder(SCALE), ContextHead(8), 11))


@recipe
def with_head() -> Recipe:
    """Return the head, and an encoder that hwnas has with one candidate more."""
    encoder = Chain(SCALE, ops=("none", "skip_connect", "sep_conv_3x3", "gate_conv_1x1"), nodes=2)
    return small("with-head", Space(encoder, Fuse(), 11))


@recipe
def with_all() -> Recipe:
    """Return encoder, rule and head on the dataset; the encoder is searched by trials, then the head by gradients."""
    base = small("with-all", Space(Ladder(SCALE, least=2), Fuse(), 3), "stripes")
    return replace(base, stages=(Stage("encoder", RandomSearch(), ("stage",)), Stage("head", base.search)))


@recipe
def with_random() -> Recipe:
    """Return the same searched by a strategy that trains nothing."""
    return replace(small("with-random", Space(Ladder(SCALE, least=2), Fuse(), 11)), stages=once(RandomSearch()))


@recipe
def with_stages() -> Recipe:
    """Return the encoder first, by the relaxation, then the head from its weights, by the logit model."""
    base = small("with-stages", with_head().space)
    stages = (
        Stage(
            "encoder", replace(base.search, relaxation=Sparsemax()), tuple(g.name for g in base.space.encoder.groups)
        ),
        Stage("head", replace(base.search, logits=Chained()), weights_from="encoder"),
    )
    return replace(base, stages=stages)
