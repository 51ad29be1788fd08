"""What a space is put together from: an encoder turns an image into features, a head turns features into scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.ops.mixed import On
from hwnas.problem import ALWAYS, Answers, Architecture, Gate, Group, Rule
from hwnas.spaces.cell import CellSpec
from hwnas.spaces.picture import draw_cell
from hwnas.spaces.sources import Source

Form = Literal["search", "deploy"]
Task = Literal["classification", "segmentation"]
Probs = Mapping[str, Tensor]  # {group: (decisions, options)}
Sampled = Mapping[str, On]  # the same of options that are computed


@dataclass(frozen=True)
class Scale:
    """How large the networks of a space are; says nothing about their decisions.

    Attributes:
        channels: Width of the first cells.
        cells: Number of cells.
        size: (height, width) of the input image.
    """

    channels: int
    cells: int
    size: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        if min(self.channels, self.cells, *self.size) < 1 or len(self.size) != 2:
            raise HwnasError(f"a scale needs positive channels, cells and (height, width); got {self}")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; ``Scale(**...)`` reads it."""
        return asdict(self)


@dataclass(frozen=True)
class Feature:
    """A map that an encoder gives, or one of the alternatives for it.

    Attributes:
        channels: Of the map.
        stride: In pixels of the image; sizes are rounded up.
        activated: Whether a ReLU was the last to be computed.
        gate: When the derived network has this alternative.
        active_gate: When a ReLU of it is computed for it, if that is to be said in other terms: those of what else
            reads it after a ReLU. None for `gate`.
        weighted: Whether it is one of several that a supernet computes beside each other, each with a weight.
    """

    channels: int
    stride: int
    activated: bool = False
    gate: Gate = ALWAYS
    active_gate: Gate | None = None
    weighted: bool = False


Features = tuple[tuple[Feature, ...], ...]  # fine to coarse; each a tuple of alternatives


def size_at(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Return (height, width) of a map of a stride, of an image of a size or of a tensor of this shape."""
    # Not -(-size // stride): torch's exporter turns sizes into tensors, and rounds their negatives towards zero.
    return (size[-2] + stride - 1) // stride, (size[-1] + stride - 1) // stride


class Map(NamedTuple):
    """The value of a feature.

    Attributes:
        value: (N, C, H, W).
        weight: (), what the scores that are made of it count; None for 1.
    """

    value: Tensor
    weight: Tensor | None = None


class Maps(NamedTuple):
    """What an encoder computes.

    Attributes:
        features: As `Encoder.features` promises; None for an alternative that was not sampled.
        auxiliary: What an auxiliary head reads.
    """

    features: tuple[tuple[Map | None, ...], ...]
    auxiliary: Tensor


class EncoderNet(nn.Module):
    """The network of an encoder. Its parts, not itself, are named in the networks it is a part of."""

    @abstractmethod
    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features.

        Args:
            image: (N, 3, H, W).
            probs: ``{group: (decisions, options)}`` where decisions are open.
            sampled: Which options are computed: memory is that of these. None for all.
        """


class OpenEncoderNet(nn.Module):
    """All networks of an encoder whose features have alternatives, to be traced: it computes nothing."""

    @abstractmethod
    def forward(self, image: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Yield feature, alternative and what stands for its value, in the order in which a network comes to them."""


class Part(Protocol):
    """The decisions of an encoder or a head; by default those of its cells.

    Attributes:
        name: Of the family.
        groups: The decisions, by the matrix of logits they share.
        cells: The cells these decisions are about.
    """

    name: ClassVar[str] = ""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of the cells."""
        return tuple(spec.group for spec in self.cells)

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """The cells: none by default."""
        return ()

    def rules(self) -> list[Rule]:
        """Return what every valid architecture obeys."""
        return [rule for spec in self.cells for rule in spec.rules()]

    def twins(self) -> tuple[Answers, ...]:
        """Return which answers make two nodes compute the same: each time, those that do so together."""
        return tuple(answers for spec in self.cells for answers in spec.twins())


class Encoder(Part, Protocol):
    """Turns an image into features, fine to coarse. Frozen, hashable, cheap; holds sizes, never tensors.

    Subclasses are frozen dataclasses whose first field is `scale`; `hwnas.spaces.registry.encoder` names them.

    Architectures carry its name, with that of the head where the head decides something.

    Attributes:
        scale: What networks are built at.
    """

    # Not properties at run time: a dataclass would take them for the defaults of its fields.
    if TYPE_CHECKING:

        @property
        def scale(self) -> Scale:
            """What networks are built at."""

    def at(self, scale: Scale) -> Self:
        """Return the same decisions at another scale."""
        return replace(self, scale=scale)  # type: ignore[type-var]  # subclasses are dataclasses

    @abstractmethod
    def features(self, arch: Architecture, form: Form) -> Features:
        """Return what the network gives: the last map of each stride it stops at, two of them or more.

        Each is one alternative unless `arch` leaves open where it comes from.
        """

    def auxiliary(self, arch: Architecture, form: Form) -> Feature:
        """Return what an auxiliary head reads: the last feature but one, if nothing else is better."""
        return self.features(arch, form)[-2][0]

    @abstractmethod
    def build(self, arch: Architecture, form: Form) -> EncoderNet | OpenEncoderNet:
        """Build the network with the decisions of `arch` fixed, the others mixed."""

    def sources(self) -> tuple[Source, ...]:
        """Return how public codes name the weights of its network; none by default."""
        return ()

    @abstractmethod
    def genotype(self, arch: Architecture) -> object:
        """Return a complete architecture in the notation of its system; people read its ``str``."""

    @abstractmethod
    def dot(self, arch: Architecture) -> list[str]:
        """Return the lines of a drawing of a complete architecture for Graphviz, without those around it."""

    @abstractmethod
    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw a complete architecture; see `hwnas.spaces.space.Space.draw`."""


class HeadNet(nn.Module):
    """The network of a head: a neck for each feature it reads, and a body that joins them.

    A neck brings one alternative of a feature to a form that does not depend on which alternative it is, so that the
    body is the same for all of them.

    Attributes:
        reads: Indices of the features, in the order in which the necks are computed.
        activates: Those of them that a ReLU comes before.
    """

    def __init__(self, features: Sequence[Feature], reads: Sequence[int], activates: Sequence[int] = ()) -> None:
        """Say what it reads.

        Args:
            features: One alternative each.
            reads: Indices of features, negative ones from the end.
            activates: Those of `reads` that are read after a ReLU.
        """
        super().__init__()
        n = len(features)
        self.reads = tuple(i % n for i in reads)
        self.activates = tuple(i % n for i in activates if not features[i].activated)
        self.relu = layers.ReLU()

    def active(self, index: int, x: Tensor) -> Tensor:
        """Return a feature as its neck reads it."""
        return self.relu(x) if index in self.activates else x

    @abstractmethod
    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute the neck of a feature.

        Args:
            index: Which: one of `reads`.
            x: (N, C, H, W), the feature, after its ReLU where there is to be one.
            image: (N, 3, H, W), for its size.
            probs: ``{group: (decisions, options)}`` where decisions of the head are open.
            sampled: Which options are computed; None for all.
        """

    @abstractmethod
    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores, (N, classes) or (N, classes, H, W), or labels from the necks, in the order of `reads`."""

    def forward(
        self, image: Tensor, maps: Sequence[Tensor], probs: Probs | None = None, sampled: Sampled | None = None
    ) -> Tensor:
        """Compute scores or labels from all features of an encoder, one alternative each."""
        necks = [self.neck(i, self.active(i, maps[i]), image, probs, sampled) for i in self.reads]
        return self.body(image, necks, probs, sampled)


class Head(Part, Protocol):
    """Turns features into scores. Frozen, hashable, cheap; `hwnas.spaces.registry.head` names its subclasses.

    Names of its groups differ from those of every encoder.

    Attributes:
        task: What its scores are for.
        least_features: How many features it reads of an encoder at least; a space with fewer is refused.
    """

    task: ClassVar[Task]
    least_features: ClassVar[int] = 1

    @property
    def needs_one_form(self) -> bool:
        """Whether the features must have the same channels and strides whatever is decided; a space refuses others."""
        return False

    @abstractmethod
    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build the network.

        Args:
            features: All of the encoder, fine to coarse, one alternative each.
            classes: Number of classes.
            labels: Whether it ends in labels instead of scores.
            arch: Answers to some or all decisions.
            form: As of the whole network.
        """

    @abstractmethod
    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build the head that is trained on a map in the middle of a network, ``auxiliary(image, map) -> scores``.

        Args:
            feature: What it reads.
            size: (height, width) of that.
            classes: Number of classes.

        Raises:
            HwnasError: If the map is too small.
        """

    @property
    def drawings(self) -> int:
        """How many drawings it has, one below the other: one of each cell."""
        return len(self.cells)

    def genotype(self, arch: Architecture) -> object | None:
        """Return a complete architecture in the notation of its system; by default kept edges of each node by cell."""
        return {spec.name: spec.blocks(arch) for spec in self.cells} or None

    def dot(self, arch: Architecture) -> list[str]:
        """Return the lines of a drawing of a complete architecture for Graphviz, without those around it."""
        return [line for spec in self.cells for line in spec.dot(arch)]

    def draw(self, figure: Any, arch: Architecture) -> None:
        """Draw a complete architecture, where there are `drawings`."""
        for axes, spec in zip(figure.subplots(len(self.cells), squeeze=False)[:, 0], self.cells, strict=True):
            draw_cell(axes, spec, arch)
