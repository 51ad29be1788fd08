"""Encoders that decide nothing: what they have in common. Each of them is another file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from torch import nn

from hwnas.errors import HwnasError
from hwnas.problem import Architecture
from hwnas.spaces.parts import Encoder, EncoderNet, Feature, Features, Form
from hwnas.spaces.picture import draw_times

STRIDES = (8, 16, 32)  # that the output can have, where it is a choice


class FixedEncoder(Encoder, Protocol):
    """One network: each feature has one form, and both forms of the network are the same.

    `scale.channels` is the width of its first convolution, which all others follow; `scale.cells` a number of blocks,
    or of stages.
    """

    @abstractmethod
    def given(self) -> tuple[Feature, ...]:
        """Return the features, fine to coarse."""

    @abstractmethod
    def network(self) -> EncoderNet:
        """Build the network."""

    def features(self, arch: Architecture, form: Form) -> Features:
        """Return what it gives; see `Encoder.features`."""
        return tuple((feature,) for feature in self.given())

    def build(self, arch: Architecture, form: Form) -> EncoderNet:
        """Build the network; see `Encoder.build`."""
        return self.network()

    def genotype(self, arch: Architecture) -> object:
        """Return its name and sizes."""
        return f"{self.name}, {self.scale.channels} channels, {self.scale.cells} blocks"

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing for Graphviz: an arrow for each feature, with its stride."""
        lines = [f'  "{self.name}" [shape=box];']
        for i, feature in enumerate(self.given()):
            lines.append(f'  "{self.name}" -> "{i}: {feature.channels} channels" [label="{feature.stride}"];')
        return lines

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the milliseconds of each part."""
        draw_times(figure, self.name, ms)


def check_stride(stride: int) -> None:
    """Hold the stride of an output against `STRIDES`.

    Raises:
        HwnasError: If it is none of them.
    """
    if stride not in STRIDES:
        raise HwnasError(f"an output stride of {', '.join(map(str, STRIDES))} was expected, got {stride}")


def dot_chain(stride: int, parts: Iterable[tuple[str, int]]) -> list[str]:
    """Return a drawing for Graphviz of parts one after the other, with the strides of what they give.

    Args:
        stride: Of what the first one reads, the stem's.
        parts: What each is, and by how much it is strided.
    """
    lines, before = [], "stem"
    for i, (what, step) in enumerate(parts):
        stride *= step
        name = f"{i}: {what}"
        lines.append(f'  "{before}" -> "{name}" [label="{stride}"];')
        before = name
    return lines


def repeated(
    block: Callable[[int, int, int], nn.Module], c_in: int, c_out: int, times: int, stride: int = 2
) -> list[nn.Module]:
    """Return the blocks of a stage: `block` builds each from channels before and after it and a stride.

    The first one changes the channels and is strided.
    """
    return [block(c_out if i else c_in, c_out, 1 if i else stride) for i in range(times)]


def scaled(published: int, channels: int, base: int) -> int:
    """Return the channels of a layer whose network is not as wide as published.

    Args:
        published: Channels of the layer.
        channels: Of the first convolution here.
        base: Of the first convolution as published.

    Raises:
        HwnasError: If that is no whole number.
    """
    if published * channels % base:
        raise HwnasError(f"{published} channels of {base} cannot be scaled to {channels}: take a multiple of 4")
    return published * channels // base
