"""An op, and a candidate of decisions that is made of it."""

from __future__ import annotations

from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.mixed import candidate
from hwnas.ops.registry import Op, op


@op("gate_conv", convolves=False)
class GateConv(Op):
    """A 1x1 convolution and BatchNorm, times the sigmoid of another one (gated convolution)."""

    def __init__(self, channels: int, stride: int = 1, affine: bool = True) -> None:
        """Build it for so many channels in and out."""
        super().__init__(channels=channels, stride=stride, affine=affine)
        self.conv = nn.Conv2d(channels, channels, 1, stride, bias=False)
        self.gate = nn.Conv2d(channels, channels, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride))."""
        out: Tensor = self.bn(self.conv(x)) * self.gate(x).sigmoid()
        return out


@candidate("gate_conv_1x1")
def gate_conv_1x1(channels: int, stride: int, search: bool) -> nn.Module:
    """Return the candidate: a ReLU and the op."""
    return nn.Sequential(layers.ReLU(), GateConv(channels, stride, affine=not search))
