"""Every encoder with every head: those that are registered, and a head with decisions of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces import (
    Cell,
    CellSpec,
    Encoder,
    Feature,
    Form,
    Head,
    HeadNet,
    Scale,
    Space,
    registered_encoders,
    registered_heads,
)
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Probs, Sampled, Task, size_at

from .contracts import PairContract

OPS = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")
CLASSES: Mapping[Task, int] = {"classification": 10, "segmentation": 11}  # of the drawn data


@dataclass(frozen=True)
class CellHead(Head):
    """A cell on the last feature and what is decided in it; a classifier."""

    channels: int = 4
    name: ClassVar[str] = "cell-head"
    task: ClassVar[Task] = "segmentation"

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """One cell of one input."""
        return (CellSpec("top", OPS, nodes=2, keep=1, inputs=1),)

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it."""
        return CellHeadNet(self, features, classes, labels, arch, form == "search")

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)


class CellHeadNet(HeadNet):
    """The network of a `CellHead`."""

    def __init__(
        self,
        own: CellHead,
        features: Sequence[Feature],
        classes: int,
        labels: bool,
        arch: Architecture,
        search: bool,
    ) -> None:
        """Build it."""
        super().__init__(features, reads=(-1,))
        self.stride = features[0].stride
        self.project = layers.ConvBN(features[-1].channels, own.channels, relu=True)
        (spec,) = own.cells
        self.cell = Cell(spec, arch, [layers.ConvBN(own.channels, own.channels)], own.channels, search)
        self.classifier = layers.Classifier(spec.nodes * own.channels, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring the feature to channels of the head, and to the size of the first one."""
        return layers.resized(self.project(x), size_at(image.shape, self.stride))

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute the cell, and scores or labels."""
        weights, on = (None if of is None else of["top"] for of in (probs, sampled))
        scores = self.classifier(self.cell(necks, weights, on))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out


SCALES = {
    "chain": Scale(4, 3, (25, 35)),
    "independent": Scale(4, 3, (25, 35)),
    "trellis": Scale(2, 4, (25, 35)),
    "xception": Scale(2, 1, (25, 35)),
    "fast-scnn": Scale(4, 1, (25, 35)),
    "bisenetv2": Scale(4, 1, (25, 35)),
    "stdc": Scale(2, 1, (25, 35)),
    "pidnet": Scale(2, 1, (25, 35)),
    "ddrnet": Scale(2, 1, (25, 35)),
    "lmffnet": Scale(4, 1, (25, 35)),
    "lite": Scale(8, 7, (25, 35)),
    "mobilenetv2": Scale(8, 5, (25, 35)),
    "resnet": Scale(4, 4, (25, 35)),
}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "chain": {"nodes": 2, "ops": OPS},
    "independent": {"ops": OPS},
    "trellis": {"nodes": 2, "ops": OPS, "weighting": "path"},
}
FURTHER = {
    "chain, cifar": ("chain", {"stem": "cifar"}),
    "independent, shared": ("independent", {"shared": True}),
    "independent, three nodes": ("independent", {"nodes": 3, "stem": "imagenet"}),
    "trellis, step": ("trellis", {"weighting": "step"}),
    "lite, stride 16": ("lite", {"stride": 16}),
    "resnet, stride 8": ("resnet", {"stride": 8}),
}


def encoders() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return all encoders, with what is not as usual of them; some in two ways."""
    return {name: (name, {}) for name in registered_encoders()} | FURTHER


# Settings of heads that are narrow, and of one form whatever the encoder decides.
SMALL = {
    "channels": 4,
    "hidden": 4,
    "nodes": 2,
    "branches": 2,
    "rates": (1, 6),
    "grids": (1, 2),
    "adapter": 6,
}


def heads() -> dict[str, Head]:
    """Return all heads, narrow ones, and one with decisions."""
    out: dict[str, Head] = {}
    for name, make in registered_heads().items():
        there = {f.name for f in fields(make)}  # type: ignore[arg-type]
        out[name] = make(**{k: v for k, v in SMALL.items() if k in there})
    return out | {"cell-head": CellHead()}


def encoder_of(own: str, size: tuple[int, int] | None = None) -> Encoder:
    """Return an encoder of `encoders`, at its small scale or of another size."""
    name, settings = encoders()[own]
    scale = SCALES[name]
    at = Scale(scale.channels, scale.cells, size or scale.size)
    return registered_encoders()[name](at, **SETTINGS.get(name, {}) | settings)


def features(own: str) -> int:
    """Return how many features an encoder gives; heads that read more are refused, see `Head.least_features`."""
    encoder = encoder_of(own)
    return len(encoder.features(Architecture.of(encoder.name, {}), "deploy"))


def pairs() -> list[tuple[str, str]]:
    """Return all pairs that fit; for further ways of an encoder those heads that tell the difference."""
    further = {("independent, shared", "aspp"), ("independent, three nodes", "cell-head")}
    further |= {("lite, stride 16", "aspp"), ("resnet, stride 8", "fpn")}
    further |= {("chain, cifar", "classifier"), ("trellis, step", "decoder"), ("trellis, step", "cell-head")}
    given, least = {e: features(e) for e in encoders()}, {h: head.least_features for h, head in heads().items()}
    fit = [(e, h) for e in given for h in least if given[e] >= least[h]]
    return [(e, h) for e, h in fit if e not in FURTHER or (e, h) in further]


# With these, each encoder and each head is in several pairs; the others of these encoders and heads are slow tests.
QUICK = {
    ("chain", "classifier"),
    ("chain", "context"),
    ("chain", "multiscale"),
    ("independent", "aspp"),
    ("independent", "classifier"),
    ("independent, three nodes", "cell-head"),
    ("trellis", "decoder"),
    ("trellis", "multiscale"),
    ("trellis", "aspp"),
    ("trellis, step", "cell-head"),
    ("xception", "context"),
    ("xception", "decoder"),
    ("fast-scnn", "fusion"),
    ("bisenetv2", "guided"),
    ("stdc", "refinement"),
    ("pidnet", "boundary"),
    ("ddrnet", "dual"),
    ("lmffnet", "multiattention"),
    ("trellis", "guided"),
    ("lite", "fpn"),
    ("mobilenetv2", "context"),
    ("resnet", "multiscale"),
    ("trellis", "fpn"),
    ("mobilenetv2", "dpc"),
    ("trellis", "dpc"),
    ("mobilenetv2", "fastnas"),
}


def params() -> Iterator[Any]:
    """Yield all pairs, those that are known and not quick as slow ones."""
    known = ({e for e, _ in QUICK} | FURTHER.keys(), {h for _, h in QUICK})
    for pair in pairs():
        slow = pair not in QUICK and all(name in names for name, names in zip(pair, known, strict=True))
        yield pytest.param(pair, id=" + ".join(pair), marks=pytest.mark.slow if slow else ())


class TestPairs(PairContract):
    """What holds for all of them."""

    @pytest.fixture(params=params())
    def space(self, request: pytest.FixtureRequest) -> Space:
        own, on = request.param
        head = heads()[on]
        encoder = encoder_of(own)
        auxiliary = encoder.auxiliary(Architecture.of(encoder.name, {}), "deploy")
        # An auxiliary head that classifies reads maps of 7x7 and more.
        if on == "classifier" and min(size_at(encoder.scale.size, auxiliary.stride)) < 7:
            encoder = encoder_of(own, (99, 113))
        return Space(encoder, head, CLASSES[head.task])
