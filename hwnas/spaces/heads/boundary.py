"""The head of PIDNet-S: boundaries choose between detail and context (Light-Bag; Xu et al. 2023, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.general import Conv, Sigmoid, WeightedAdd
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.heads.joined import Fitted, PreActivated
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task
from hwnas.spaces.registry import head


@head("boundary")
@dataclass(frozen=True)
class BoundaryHead(Head):
    """The first feature is detail, the second tells boundaries, the last is context; and a classifier.

    Attributes:
        channels: Of each: 128 in PIDNet-S.
        hidden: Before the classifier.
    """

    channels: int = 128
    hidden: int = 128
    task: ClassVar[Task] = "segmentation"
    least_features: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels", "hidden"), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _BoundaryNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head; that of the public code has a BatchNorm and a ReLU more, before it."""
        return AuxiliarySegmentation(feature, self.hidden, classes)


class _BoundaryNet(HeadNet):
    def __init__(self, own: BoundaryHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(0, 1, -1))
        c, stride = own.channels, features[0].stride
        self.fitted = nn.ModuleDict({str(i): Fitted(features[i], c, stride) for i in self.reads})
        self.sigmoid = Sigmoid()
        self.to_detail = WeightedAdd(complement=True)
        self.to_context = WeightedAdd(complement=False)
        self.detail = Conv(c, c, act="none")
        self.context = Conv(c, c, act="none")
        self.add = layers.Add(after_conv=True)
        self.top = PreActivated(c, own.hidden, classes, labels)

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring a feature to the channels of the head and to the size of the first one."""
        out: Tensor = self.fitted[str(index)](x, image)
        return out

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores or labels of the size of the image."""
        detail, boundary, context = necks
        edge = self.sigmoid(boundary)
        joined = self.add(
            self.detail(self.to_detail(detail, context, edge)), self.context(self.to_context(context, detail, edge))
        )
        out: Tensor = self.top(joined, image)
        return out
