"""The head of DDRNet: the sum of a fine and a coarse feature, normalised before its convolutions (Hong et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.heads.joined import Fitted, PreActivated
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task
from hwnas.spaces.registry import head


@head("dual")
@dataclass(frozen=True)
class DualHead(Head):
    """The first and the last feature, added at the size of the first, and a classifier.

    Attributes:
        channels: Of the sum: 128 in 23-slim.
        hidden: Before the classifier: 64 in 23-slim.
    """

    channels: int = 128
    hidden: int = 64
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels", "hidden"), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _DualNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head; that of the public code has a BatchNorm and a ReLU more, before it."""
        return AuxiliarySegmentation(feature, self.hidden, classes)


class _DualNet(HeadNet):
    def __init__(self, own: DualHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(0, -1))  # the sum is what is rectified
        fine, coarse = features[0], features[-1]
        self.fine = Fitted(fine, own.channels, fine.stride)
        self.coarse = Fitted(coarse, own.channels, fine.stride)
        self.add = layers.Add(after_conv=False)
        self.top = PreActivated(own.channels, own.hidden, classes, labels)

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring a feature to the channels of the head and to the size of the first one."""
        fit = self.fine if index == 0 else self.coarse
        out: Tensor = fit(x, image)
        return out

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores or labels of the size of the image."""
        out: Tensor = self.top(self.add(*necks), image)
        return out
