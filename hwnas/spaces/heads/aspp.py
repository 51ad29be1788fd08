"""The head of DeepLabv3: ASPP on the last feature, a classifier, scores brought to full size (Chen et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.heads.deeplab import ASPP, LightNet
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task
from hwnas.spaces.registry import head


@head("aspp")
@dataclass(frozen=True)
class ASPPHead(Head):
    """ASPP and a classifier; in a supernet with alternatives the light form of Auto-DeepLab for each of them.

    Attributes:
        channels: Of the ASPP.
        separable: Whether its atrous convolutions are.
    """

    channels: int = 256
    separable: bool = False
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels",), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return LightNet(features, classes) if features[-1].weighted else _ASPPNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)


class _ASPPNet(HeadNet):
    def __init__(self, own: ASPPHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(-1,), activates=(-1,))
        last = features[-1]
        self.aspp = ASPP(last.channels, own.channels, last.stride, own.separable)
        self.classifier = layers.Classifier(own.channels, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores at full size: the one size that does not depend on the stride of the feature."""
        return layers.resize(self.classifier(self.aspp(x)), image)

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Return scores or labels."""
        out: Tensor = self.argmax(necks[0])
        return out
