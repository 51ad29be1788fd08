"""A light head for real-time segmentation: global context from the last feature, detail from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task, size_at
from hwnas.spaces.registry import head


@head("context")
@dataclass(frozen=True)
class ContextHead(Head):
    """Scores of the last feature and of the one before it, added and brought to full size (MobileNetV3, section 6.4).

    Attributes:
        channels: Of the context.
    """

    channels: int = 64
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels",), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _ContextNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)


class _ContextNet(HeadNet):
    def __init__(self, own: ContextHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(-1, -2), activates=(-1, -2))
        low, high = features[-2:]
        self.last, self.stride = len(features) - 1, low.stride
        self.context = layers.Context(high.channels, own.channels)
        self.score_high = layers.Classifier(own.channels, classes)
        self.score_low = layers.Classifier(low.channels, classes)
        self.add = layers.Add(after_conv=True)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores of one feature at the size of the finer one."""
        if index == self.last:
            x = layers.resized(self.context(x), size_at(image.shape, self.stride))
        scores: Tensor = self.score_high(x) if index == self.last else self.score_low(x)
        return scores

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Add the scores; return them or labels at the size of the image."""
        out: Tensor = self.argmax(layers.resize(self.add(*necks), image))
        return out
