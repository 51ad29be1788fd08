"""The multi-scale cell: what ASPP is by hand, its edges searched (CAS, abstract; DeepLabv3, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture
from hwnas.spaces.cell import Cell, CellSpec
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task, size_at
from hwnas.spaces.registry import head

RATES = (96, 192, 288)  # of the atrous convolutions, in pixels of the image: 6, 12 and 18 at stride 16 (DeepLabv3)


def multiscale_ops(stride: int = 16) -> tuple[str, ...]:
    """Return the options of an edge of the multi-scale cell at a stride, 8, 16 or 32; rates scale with 16 / stride."""
    atrous = (f"dil_sep_conv_3x3_r{rate // stride}" for rate in RATES)
    return (NONE, "skip_connect", "conv_1x1", *atrous, "image_pool", "grid_pool_2x2", "grid_pool_4x4")


@head("multiscale")
@dataclass(frozen=True)
class MultiScaleHead(Head):
    """A cell at one stride, whose inputs are features of the encoder; a classifier on its nodes, upsampled.

    The papers say that the cell is modelled on ASPP and that its ops are of several scales; ops, nodes and edges kept
    are our choices. Of the three ways to look at a map in more than one scale it has all: rates of atrous convolutions,
    a mean over the image (ParseNet), and means over grids (PSPNet).

    Attributes:
        channels: Of each node.
        ops: Options of every edge; `none` is a dropped edge. See `multiscale_ops`.
        nodes: Nodes in the cell.
        keep: Incoming edges a node keeps.
        inputs: Which features it reads, as indices: the last one, as in the paper, or low-level ones beside it.
        stride: Of the map it is computed at, in pixels of the image; features of other strides are resized to it.

    Raises:
        HwnasError: If it reads nothing, or one feature twice.
    """

    channels: int = 64
    ops: tuple[str, ...] = multiscale_ops()
    nodes: int = 4
    keep: int = 2
    inputs: tuple[int, ...] = (-1,)
    stride: int = 16
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if not self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise HwnasError(f"a multi-scale cell reads different features, one or more; got inputs {self.inputs}")

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """The cell."""
        return (CellSpec("multiscale", self.ops, self.nodes, self.keep, inputs=len(self.inputs)),)

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _MultiScaleNet(self, features, classes, labels, arch, form == "search")

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)


class _MultiScaleNet(HeadNet):
    def __init__(
        self,
        own: MultiScaleHead,
        features: Sequence[Feature],
        classes: int,
        labels: bool,
        arch: Architecture,
        search: bool,
    ) -> None:
        n = len(features)
        if any(not -n <= i < n for i in own.inputs) or len({i % n for i in own.inputs}) < len(own.inputs):
            raise HwnasError(f"a multi-scale cell reads the features {own.inputs} of an encoder that has {n}")
        super().__init__(features, reads=own.inputs, activates=own.inputs)
        (spec,) = own.cells
        self.stride, self.group = own.stride, spec.name
        # In the necks, not in the cell: alternatives of a feature differ in their channels.
        self.preprocess = nn.ModuleList(
            layers.ConvBN(features[i].channels, own.channels, affine=not search) for i in self.reads
        )
        self.cell = Cell(spec, arch, [nn.Identity() for _ in self.reads], own.channels, search)
        self.classifier = layers.Classifier(spec.nodes * own.channels, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring a feature to the channels and the stride of the cell."""
        return layers.resized(self.preprocess[self.reads.index(index)](x), size_at(image.shape, self.stride))

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute the cell, and scores or labels at full size."""
        weights, on = (None if of is None else of[self.group] for of in (probs, sampled))
        joined = self.cell(necks, weights, on)
        out: Tensor = self.argmax(layers.resize(self.classifier(joined), image))
        return out
