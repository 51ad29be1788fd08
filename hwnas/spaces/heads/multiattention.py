"""The head of LMFFNet: a multi-attention decoder, whose gates are of classes (Shi et al. 2022, section III-C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.general import Conv, Gate
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.heads.joined import Fitted
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task
from hwnas.spaces.registry import head

RATIO = 2  # of the strides of the two features
WIDTHS = (16, 32)  # that the features are projected to, for the gate


@head("multiattention")
@dataclass(frozen=True)
class MultiAttentionHead(Head):
    """Scores of the last feature, gated for each class by what the first and the last one are together.

    Attributes:
        channels: Of the last feature, 259 in LMFFNet; others are projected.
    """

    channels: int = 259
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("channels",), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _MultiAttentionNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head; the paper has none."""
        return AuxiliarySegmentation(feature, min(64, self.channels), classes)


class _MultiAttentionNet(HeadNet):
    def __init__(self, own: MultiAttentionHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(0, -1))
        fine, coarse = features[0], features[-1]
        c, both = own.channels, sum(WIDTHS)
        self.fit = Fitted(coarse, c, RATIO * fine.stride)
        self.fine = Conv(fine.channels, WIDTHS[0], norm=False, act="none")
        self.coarse = Conv(c, WIDTHS[1], norm=False, act="none")
        self.concat = layers.Concat()
        self.gates = nn.Sequential(
            Conv(both, both, 3, groups=both, act="prelu"), Conv(both, classes, norm=False, act="none")
        )
        self.scores = nn.Sequential(Conv(c, c, 3, groups=c, act="prelu"), Conv(c, classes, norm=False, act="none"))
        self.gate = Gate()
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Project the fine feature; bring the coarse one to the channels of the head and twice the stride."""
        out: Tensor = self.fine(x) if index == 0 else self.fit(x, image)
        return out

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores or labels of the size of the image."""
        fine, coarse = necks
        gates = self.gates(self.concat(fine, layers.resize(self.coarse(coarse), fine)))
        scores = self.gate(layers.resize(self.scores(coarse), fine), gates)
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out
