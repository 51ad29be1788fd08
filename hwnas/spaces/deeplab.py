"""The head of DeepLabv3+: atrous spatial pyramid pooling, and a decoder with a low-level map (Chen et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from hwnas.ops import layers

LOW_CHANNELS = 48  # that the low-level map is projected to (section 4.1 of the paper)
_RATES = (96, 192, 288)  # of the three atrous branches, in pixels of the image: 12, 24 and 36 at stride 8


def _conv3x3(c_in: int, c_out: int, dilation: int, separable: bool) -> nn.Module:
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
        self.atrous = nn.ModuleList(_conv3x3(c_in, c_out, rate // stride, separable) for rate in _RATES)
        self.pooling = layers.ImagePooling(c_in, c_out)
        self.concat = layers.Concat()
        self.project = layers.ConvBN(5 * c_out, c_out, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        branches = [self.pooling(x), self.point(x), *(atrous(x) for atrous in self.atrous)]
        out: Tensor = self.project(self.concat(*branches))
        return out


class DeepLabHead(nn.Module):
    """ASPP, the result brought to the size of a low-level map, two 3x3 convolutions over both, a classifier.

    The 3x3 convolutions are separable in DeepLabv3+, and are not in Auto-DeepLab.
    """

    def __init__(
        self,
        c_in: int,
        c_low: int,
        classes: int,
        stride: int,
        labels: bool,
        width: int = 256,
        separable: bool = False,
    ) -> None:
        """Build it.

        Args:
            c_in: Channels of the last map.
            c_low: Of the low-level map.
            classes: Number of classes.
            stride: Of the last map.
            labels: Whether it ends in the label map instead of scores.
            width: Channels of ASPP and decoder.
            separable: Whether the 3x3 convolutions of both are.
        """
        super().__init__()
        self.aspp = ASPP(c_in, width, stride, separable)
        self.low = layers.ConvBN(c_low, LOW_CHANNELS, relu=True)
        self.concat = layers.Concat()
        self.decoder = nn.Sequential(
            _conv3x3(width + LOW_CHANNELS, width, 1, separable), _conv3x3(width, width, 1, separable)
        )
        self.classifier = layers.Classifier(width, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def forward(self, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Compute scores of the size of `image`, (N, classes, H, W), or the label map (N, H, W)."""
        return self.decode(image, self.low(low), layers.resized(self.aspp(high), (low.shape[2], low.shape[3])))

    def decode(self, image: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Compute scores or labels from both maps after their projections, of one size."""
        scores = self.classifier(self.decoder(self.concat(high, low)))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out
