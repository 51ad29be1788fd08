"""Weights that others trained: what their networks call the parts of an encoder, and what images they learned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The names of the convolution that reads the image and of the BatchNorm after it, in every encoder that has sources.
FIRST = ("stem.conv", "stem.bn")


@dataclass(frozen=True)
class Source:
    """How a public code names the weights of an encoder.

    Attributes:
        title: For people: the code, and its version or its file.
        names: Names there, by our names of convolutions and BatchNorms.
        ignored: Beginnings of names there that an encoder has no part for: the classifier.
        mean: Of R, G, B, where white is 1: what was subtracted from images.
        std: What they were divided by.
        eps: Of the BatchNorms there.
        package: Module of the Python package that brings the file with the weights; empty where no package does.
    """

    title: str
    names: Mapping[str, str]
    ignored: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    eps: float = 1e-5
    package: str = ""

    def __post_init__(self) -> None:
        assert set(FIRST) <= self.names.keys(), f"{self.title} does not say what reads the image"
