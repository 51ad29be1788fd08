"""The head of Fast-SCNN: feature fusion, and a classifier of separable convolutions (Poudel et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.general import Conv
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task, size_at
from hwnas.spaces.registry import head


@head("fusion")
@dataclass(frozen=True)
class FusionHead(Head):
    """The last feature, brought to the size of the first one and added to it; two separable convolutions.

    Attributes:
        channels: Of the sum, and of all that follows.
    """

    channels: int = 128
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels",), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _FusionNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head; the public code has one of 32 channels on the first feature."""
        return AuxiliarySegmentation(feature, max(1, self.channels // 4), classes)


class _FusionNet(HeadNet):
    def __init__(self, own: FusionHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(0, -1), activates=(0, -1))
        c, fine, coarse = own.channels, features[0], features[-1]
        self.stride = fine.stride
        # The convolutions of the sum have a bias before their BatchNorm, as in Tramac/Fast-SCNN-pytorch.
        self.fine = Conv(fine.channels, c, bias=True, act="none")
        self.depthwise = Conv(coarse.channels, coarse.channels, 3, groups=coarse.channels)
        self.coarse = Conv(coarse.channels, c, bias=True, act="none")
        self.add = layers.Add(after_conv=True)
        self.after = layers.ReLU()
        self.convs = nn.Sequential(*(layers.SeparableConv(c, c, relu=True) for _ in range(2)))
        self.classifier = layers.Classifier(c, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Project a feature, the coarse one at the size of the fine one."""
        if index == 0:
            fine: Tensor = self.fine(x)
            return fine
        coarse: Tensor = self.coarse(self.depthwise(layers.resized(x, size_at(image.shape, self.stride))))
        return coarse

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores or labels of the size of the image."""
        scores = self.classifier(self.convs(self.after(self.add(*necks))))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out
