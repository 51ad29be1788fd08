"""The head of STDC-Seg, that of BiSeNet without its spatial path: attention refinement, and feature fusion.

Yu et al. 2018; Fan et al. 2021; MichaelFan01/STDC-Seg, models/model_stages.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.general import ChannelAttention, Conv, MeanConv, Nearest
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task, size_at
from hwnas.spaces.registry import head


@head("refinement")
@dataclass(frozen=True)
class RefinementHead(Head):
    """The last two features, refined by attention and added from coarse to fine; fused with the one before them.

    Attributes:
        channels: Of a refined feature; what is fused has twice as many.
    """

    channels: int = 128
    task: ClassVar[Task] = "segmentation"
    least_features: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels",), 2))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _RefinementNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head, as wide as those of the public code."""
        return AuxiliarySegmentation(feature, self.channels // 2, classes)


class _RefinementNet(HeadNet):
    def __init__(self, own: RefinementHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(-1, -2, -3), activates=(-1, -2, -3))
        c, (fine, middle, coarse) = own.channels, features[-3:]
        self.last, self.stride, self.middle_stride = len(features) - 1, fine.stride, middle.stride
        self.mean = MeanConv(coarse.channels, c)
        self.refine_coarse = nn.Sequential(Conv(coarse.channels, c, 3), ChannelAttention(c))
        self.refine_middle = nn.Sequential(Conv(middle.channels, c, 3), ChannelAttention(c))
        self.add = layers.Add(after_conv=False)
        self.conv_coarse = Conv(c, c, 3)
        self.conv_middle = Conv(c, c, 3)
        self.concat = layers.Concat()
        self.fuse = nn.Sequential(
            Conv(fine.channels + c, 2 * c), ChannelAttention(2 * c, squeeze=max(1, c // 2), residual=True)
        )
        self.conv = Conv(2 * c, 2 * c, 3)
        self.classifier = Conv(2 * c, classes, norm=False, act="none")
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Refine a feature, the coarse one brought to the size of the middle one; the fine one is read as it is."""
        if index == self.last:
            x = self.add(self.refine_coarse(x), self.mean(x))
            return Nearest(*size_at(image.shape, self.middle_stride))(x)
        out: Tensor = self.refine_middle(x) if index == self.last - 1 else x
        return out

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores or labels of the size of the image."""
        coarse, middle, fine = necks
        x = self.add(middle, self.conv_coarse(coarse))
        x = self.conv_middle(Nearest(*size_at(image.shape, self.stride))(x))
        scores = self.classifier(self.conv(self.fuse(self.concat(fine, x))))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out
