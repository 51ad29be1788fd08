"""The head of BiSeNetV2: bilateral guided aggregation, and a wide classifier (Yu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.general import Conv, Gate, Pool
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.heads.joined import Fitted
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task
from hwnas.spaces.registry import head

RATIO = 4  # of the strides of the two features
BOOSTER = 128  # channels of the auxiliary heads (section 4.4)


@head("guided")
@dataclass(frozen=True)
class GuidedHead(Head):
    """Detail and semantics gate each other at both sizes (section 4.3 of the paper; figure 6).

    The public code resizes to the nearest pixel, the paper bilinearly, as here.

    Attributes:
        channels: Of the two features; others are projected.
        hidden: Between the aggregation and the classifier: 1024 in CoinCheung/BiSeNet, 128 * 8.
    """

    channels: int = 128
    hidden: int = 1024
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels", "hidden"), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _GuidedNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head, as wide as a booster head."""
        return AuxiliarySegmentation(feature, min(BOOSTER, self.channels), classes)


class _GuidedNet(HeadNet):
    def __init__(self, own: GuidedHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(0, -1), activates=(0, -1))
        c, fine, coarse = own.channels, features[0], features[-1]
        self.fit_detail = Fitted(fine, c, fine.stride)
        self.fit_semantic = Fitted(coarse, c, RATIO * fine.stride)
        self.detail = nn.Sequential(Conv(c, c, 3, groups=c, act="none"), Conv(c, c, norm=False, act="none"))
        self.detail_down = nn.Sequential(Conv(c, c, 3, 2, act="none"), Pool(3, 2))
        self.semantic_up = Conv(c, c, 3, act="none")
        self.semantic = nn.Sequential(Conv(c, c, 3, groups=c, act="none"), Conv(c, c, norm=False, act="none"))
        self.gate = Gate()
        self.add = layers.Add(after_conv=False)
        self.join = Conv(c, c, 3)
        self.conv = Conv(c, own.hidden, 3)
        self.classifier = layers.Classifier(own.hidden, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring a feature to the channels of the head, the coarse one to four times the stride of the fine one."""
        fit = self.fit_detail if index == 0 else self.fit_semantic
        out: Tensor = fit(x, image)
        return out

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores or labels of the size of the image."""
        detail, semantic = necks
        fine = self.gate(self.detail(detail), layers.resize(self.semantic_up(semantic), detail))
        coarse = self.gate(self.detail_down(detail), self.semantic(semantic))
        joined = self.join(self.add(fine, layers.resize(coarse, detail)))
        out: Tensor = self.argmax(layers.resize(self.classifier(self.conv(joined)), image))
        return out
