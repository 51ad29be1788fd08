"""A feature pyramid with a light form of the semantic branch (Lin et al. 2017; Kirillov et al. 2019, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.heads.deeplab import conv3x3
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task, size_at
from hwnas.spaces.registry import head

Merge = Literal["sum", "concat"]


@head("fpn")
@dataclass(frozen=True)
class FPNHead(Head):
    """All features, each by a 1x1 convolution, added from coarse to fine; a 3x3 one on each sum; then all at once.

    Level i of the pyramid has the stride of the finest feature times 2^i. A feature of another stride is resized to its
    level after its 1x1 convolution: one that several alternatives may give is at one stride whichever it is.

    The semantic branch of the paper brings each level to the finest one in steps of 3x3 convolution and doubling, and
    adds them. Here a level has one 3x3 convolution and one resize. Features are read as they are, without a ReLU
    before.

    Attributes:
        channels: Of all levels.
        separable: Whether the 3x3 convolutions are.
        merge: How the levels become one map at the finest stride: ``"sum"``, as in the paper, or ``"concat"``.
    """

    channels: int = 64
    separable: bool = False
    merge: Merge = "sum"
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        check_ranges(
            "a head",
            *not_below(self, ("channels",), 1),
            (f"a merge of {' or '.join(get_args(Merge))}", self.merge, self.merge in get_args(Merge)),
        )

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _FPNNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)


class _FPNNet(HeadNet):
    def __init__(self, own: FPNHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        n, c = len(features), own.channels
        super().__init__(features, reads=range(n))
        self.strides = [features[0].stride << i for i in range(n)]
        self.lateral = nn.ModuleList(layers.ConvBN(f.channels, c) for f in features)
        resized = [f.stride != stride for f, stride in zip(features, self.strides, strict=True)]
        self.adds = nn.ModuleList(layers.Add(after_conv=not r) for r in resized[:-1])
        self.smooth = nn.ModuleList(conv3x3(c, c, 1, own.separable) for _ in features)
        self.sum = own.merge == "sum"
        self.join = layers.Add(after_conv=False) if self.sum else layers.Concat()
        self.classifier = layers.Classifier(c if self.sum else n * c, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring a feature to the channels and the stride of its level."""
        return layers.resized(self.lateral[index](x), size_at(image.shape, self.strides[index]))

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute the pyramid, and scores or labels at full size."""
        levels = list(necks)
        for i in reversed(range(len(levels) - 1)):
            levels[i] = self.adds[i](levels[i], layers.resized(levels[i + 1], (levels[i].shape[2], levels[i].shape[3])))
        finest = (levels[0].shape[2], levels[0].shape[3])
        maps = [layers.resized(smooth(x), finest) for smooth, x in zip(self.smooth, levels, strict=True)]
        joined = maps[0]
        if self.sum:
            for x in maps[1:]:
                joined = self.join(joined, x)
        else:
            joined = self.join(*maps)
        out: Tensor = self.argmax(layers.resize(self.classifier(joined), image))
        return out
