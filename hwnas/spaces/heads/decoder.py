"""The head of DeepLabv3+: ASPP, and a decoder that joins it with a low-level map (Chen et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.heads.deeplab import ASPP, LightNet, conv3x3
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task, size_at
from hwnas.spaces.registry import head

LOW_CHANNELS = 48  # that the low-level map is projected to (section 4.1 of the paper)


@head("decoder")
@dataclass(frozen=True)
class DecoderHead(Head):
    """ASPP on the last feature, brought to the size of the first one, two 3x3 convolutions over both, a classifier.

    In a supernet with alternatives of the last feature it is the light ASPP of Auto-DeepLab, for each of them.

    Attributes:
        channels: Of ASPP and decoder.
        separable: Whether the 3x3 convolutions of both are: in DeepLabv3+ they are, in Auto-DeepLab they are not.
    """

    channels: int = 256
    separable: bool = False
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels",), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return LightNet(features, classes) if features[-1].weighted else _DecoderNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)


class _DecoderNet(HeadNet):
    def __init__(self, own: DecoderHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(0, -1), activates=(-1,))  # the low-level map is read as it is
        low, high = features[0], features[-1]
        self.stride = low.stride
        self.aspp = ASPP(high.channels, own.channels, high.stride, own.separable)
        self.low = layers.ConvBN(low.channels, LOW_CHANNELS, relu=True)
        self.concat = layers.Concat()
        self.decoder = nn.Sequential(
            conv3x3(own.channels + LOW_CHANNELS, own.channels, 1, own.separable),
            conv3x3(own.channels, own.channels, 1, own.separable),
        )
        self.classifier = layers.Classifier(own.channels, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Project the low-level map, or bring the ASPP of the last to its size."""
        if index == 0:
            low: Tensor = self.low(x)
            return low
        return layers.resized(self.aspp(x), size_at(image.shape, self.stride))

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores or labels of the size of the image."""
        low, high = necks
        scores = self.classifier(self.decoder(self.concat(high, low)))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out
