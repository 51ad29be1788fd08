"""Parts of the heads of DeepLab: atrous spatial pyramid pooling, and the light form of it in a supernet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.spaces.parts import Feature, HeadNet, Probs, Sampled

RATES = (96, 192, 288)  # of the three atrous branches, in pixels of the image: 12, 24 and 36 at stride 8


def conv3x3(c_in: int, c_out: int, dilation: int, separable: bool) -> nn.Module:
    """Return a 3x3 convolution with BatchNorm and ReLU."""
    if separable:
        return layers.SeparableConv(c_in, c_out, 3, dilation=dilation, relu=True)
    if dilation == 1:
        return layers.ConvBN(c_in, c_out, 3, relu=True)
    return layers.AtrousConv(c_in, c_out, 3, dilation, relu=True)


class ASPP(nn.Module):
    """One 1x1 convolution, three atrous ones and image pooling side by side, then a 1x1 projection (DeepLabv3, 3.3)."""

    def __init__(self, c_in: int, c_out: int, stride: int, separable: bool = False) -> None:
        """Build it.

        Args:
            c_in: Channels of the map.
            c_out: Of each branch and of the result.
            stride: Of the map, in pixels of the image.
            separable: Whether the atrous convolutions are.
        """
        super().__init__()
        self.point = layers.ConvBN(c_in, c_out, relu=True)
        self.atrous = nn.ModuleList(conv3x3(c_in, c_out, rate // stride, separable) for rate in RATES)
        self.pooling = layers.ImagePooling(c_in, c_out)
        self.concat = layers.Concat()
        self.project = layers.ConvBN(5 * c_out, c_out, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        branches = [self.pooling(x), self.point(x), *(atrous(x) for atrous in self.atrous)]
        out: Tensor = self.project(self.concat(*branches))
        return out


class LightNet(HeadNet):
    """ASPP of three branches as wide as the map and a classifier, for each stride of a supernet (Auto-DeepLab, 4.2)."""

    def __init__(self, features: Sequence[Feature], classes: int) -> None:
        """Build it for the last of the features."""
        super().__init__(features, reads=(-1,), activates=(-1,))
        last = features[-1]
        self.point = layers.ConvBN(last.channels, last.channels, relu=True)
        self.atrous = layers.AtrousConv(last.channels, last.channels, 3, RATES[0] // last.stride, relu=True)
        self.pooling = layers.ImagePooling(last.channels, last.channels)
        self.concat = layers.Concat()
        self.classifier = layers.Classifier(3 * last.channels, classes)

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute scores at full size."""
        scores = self.classifier(self.concat(self.point(x), self.atrous(x), self.pooling(x)))
        return layers.resize(scores, image)

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Return the scores."""
        return necks[0]
