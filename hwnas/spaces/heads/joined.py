"""Parts of heads that join features of networks made by hand: each feature is brought to one form."""

from __future__ import annotations

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.general import Conv, NormAct
from hwnas.spaces.parts import Feature, size_at


class Fitted(nn.Module):
    """Brings a feature to a number of channels and a stride; what has them already is left as it is."""

    def __init__(self, feature: Feature, channels: int, stride: int) -> None:
        """Build it for a feature."""
        super().__init__()
        self.project = Conv(feature.channels, channels) if feature.channels != channels else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(N, C, h, w) and (N, 3, H, W) -> (N, channels, ceil(H/stride), ceil(W/stride))."""
        return layers.resized(self.project(x), size_at(image.shape, self.stride))


class PreActivated(nn.Module):
    """BatchNorm, ReLU, a 3x3 convolution and a classifier; scores or labels of the size of the image (DDRNet)."""

    def __init__(self, c: int, hidden: int, classes: int, labels: bool) -> None:
        """Build for `c` channels, with `hidden` between."""
        super().__init__()
        self.norm = NormAct(c)
        self.conv = Conv(c, hidden, 3)
        self.classifier = layers.Classifier(hidden, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(N, c, h, w) and (N, 3, H, W) -> (N, classes, H, W), or (N, H, W) of labels."""
        scores = self.classifier(self.conv(self.norm(x)))
        out: Tensor = self.argmax(layers.resize(scores, image))
        return out
