"""Recipes over these parts: each part with what hwnas has, and all together."""

from __future__ import annotations

from dataclasses import replace

from hwnas import recipes
from hwnas.recipes import Recipe
from hwnas.recipes.base import once, recipe
from hwnas.spaces import Chain, ContextHead, Scale, Space
from tests.extension.encoder import Ladder
from tests.extension.head import Fuse

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
    """Return encoder, rule and head on the dataset."""
    return small("with-all", Space(Ladder(SCALE, least=2), Fuse(), 3), "stripes")
