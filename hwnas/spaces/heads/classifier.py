"""The head of networks that classify: a mean over the last feature, a linear layer (DARTS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliaryClassification
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task
from hwnas.spaces.registry import head


@head("classifier")
@dataclass(frozen=True)
class ClassifierHead(Head):
    """A mean over the last feature and a linear layer.

    Attributes:
        pool_stride: Of the pooling of the auxiliary head; the public DARTS code has 3 for CIFAR and 2 for ImageNet.
        second_norm: Whether that has a second BatchNorm: left out for ImageNet in that code.
    """

    pool_stride: int = 2
    second_norm: bool = True
    task: ClassVar[Task] = "classification"

    def __post_init__(self) -> None:
        check_ranges("a head", *not_below(self, ("pool_stride",), 1))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _ClassifierNet(features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build that of the public DARTS code, model.py."""
        return AuxiliaryClassification(feature, size, classes, self.pool_stride, self.second_norm)


class _ClassifierNet(HeadNet):
    def __init__(self, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=(-1,))
        self.pool = layers.GlobalPool()
        self.linear = layers.Linear(features[-1].channels, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores (N, classes)."""
        scores: Tensor = self.linear(self.pool(x))
        return scores

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Return scores or labels."""
        out: Tensor = self.argmax(necks[0])
        return out
