"""A head with decisions of its own: a cell that joins the last two features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces import Cell, CellSpec, Feature, Form, Head, HeadNet, head
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Probs, Sampled, Task, size_at

OPS = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")


@head("fuse")
@dataclass(frozen=True)
class Fuse(Head):
    """A cell of two inputs, the last two features at the size of the finer one, and a classifier.

    Attributes:
        channels: Of the cell.
    """

    channels: int = 4
    task: ClassVar[Task] = "segmentation"

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """The cell."""
        return (CellSpec("fuse", OPS, nodes=2, keep=2),)

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it."""
        return FuseNet(self, features, classes, labels, arch, form == "search")

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)


class FuseNet(HeadNet):
    """The network of a `Fuse`."""

    def __init__(
        self, own: Fuse, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, search: bool
    ) -> None:
        """Build it; use `Fuse.build`."""
        super().__init__(features, reads=(-2, -1))
        (spec,) = own.cells
        self.stride, self.first = features[-2].stride, len(features) - 2
        self.projections = nn.ModuleList(layers.ConvBN(f.channels, own.channels, relu=True) for f in features[-2:])
        inputs = [layers.ConvBN(own.channels, own.channels, affine=not search) for _ in range(2)]
        self.cell = Cell(spec, arch, inputs, own.channels, search)
        self.classifier = layers.Classifier(spec.nodes * own.channels, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring a feature to the channels of the cell and to the size of the finer one."""
        return layers.resized(self.projections[index - self.first](x), size_at(image.shape, self.stride))

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute the cell, and scores or labels at full size."""
        weights, on = (None if of is None else of["fuse"] for of in (probs, sampled))
        joined = self.cell(necks, weights, on)
        out: Tensor = self.argmax(layers.resize(self.classifier(joined), image))
        return out
