"""Residual blocks whose last ReLU may be left to what reads them (DDRNet, PIDNet)."""

from __future__ import annotations

from torch import Tensor, nn

from hwnas.ops.general import Conv
from hwnas.ops.layers import Add, ReLU


class Residual(nn.Module):
    """Convolutions, to which the input is added: itself, or a 1x1 convolution of it where sizes differ."""

    def __init__(self, convs: nn.Module, c_in: int, c_out: int, stride: int, relu: bool) -> None:
        """Build it for convolutions of `c_in` to `c_out` channels."""
        super().__init__()
        self.convs = convs
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else Conv(c_in, c_out, stride=stride, act="none")
        self.add = Add(after_conv=True)
        self.relu = ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        out: Tensor = self.relu(self.add(self.convs(x), self.shortcut(x)))
        return out


def basic_block(c_in: int, c_out: int, stride: int = 1, relu: bool = True) -> Residual:
    """Return two 3x3 convolutions."""
    convs = nn.Sequential(Conv(c_in, c_out, 3, stride), Conv(c_out, c_out, 3, act="none"))
    return Residual(convs, c_in, c_out, stride, relu)


def bottleneck(c_in: int, c: int, stride: int = 1) -> Residual:
    """Return 1x1, 3x3 and 1x1 convolutions of `c`, `c` and ``2 c`` channels; no ReLU follows."""
    convs = nn.Sequential(Conv(c_in, c), Conv(c, c, 3, stride), Conv(c, 2 * c, act="none"))
    return Residual(convs, c_in, 2 * c, stride, relu=False)


def basic_stage(c_in: int, c_out: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Return several basic blocks, the first one strided, the last one without its ReLU."""
    return nn.Sequential(
        *(
            basic_block(c_out if i else c_in, c_out, 1 if i else stride, relu=i < blocks - 1 or blocks == 1)
            for i in range(blocks)
        )
    )


def stem(c: int) -> nn.Sequential:
    """Return two 3x3 convolutions that halve the size each; these have a bias before their BatchNorm."""
    return nn.Sequential(Conv(3, c, 3, 2, bias=True), Conv(c, c, 3, 2, bias=True))
