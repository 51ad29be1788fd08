"""Ops that look further along one axis of a map than along the other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.ops.layers import resized
from hwnas.ops.norm import normed
from hwnas.ops.registry import Op, op


@op("atrous_separable")
class AtrousSeparable(Op):
    """3x3 depthwise convolution with a rate for rows and one for columns, then a 1x1 one, each with BatchNorm and ReLU.

    ``split_separable_conv2d`` of tensorflow/models, research/deeplab/core/utils.py. `SeparableConv` has one rate.
    """

    def __init__(self, c_in: int, c_out: int, rate_height: int, rate_width: int, affine: bool = True) -> None:
        """Build with `c_in` to `c_out` channels; `affine` is BatchNorm's."""
        super().__init__(c_in=c_in, c_out=c_out, rate_height=rate_height, rate_width=rate_width, affine=affine)
        rates = (rate_height, rate_width)
        self.depthwise = nn.Conv2d(c_in, c_in, 3, padding=rates, dilation=rates, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in, affine=affine)
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        x = F.relu(normed(self.bn1, self.depthwise(x)))
        return F.relu(normed(self.bn2, self.pointwise(x)))


@op("window_pool", pure=True)
class WindowPool(Op):
    """Mean over every window of a size that lies within the map, one beside each other pixel by pixel."""

    def __init__(self, height: int, width: int) -> None:
        """Build for windows of so many rows and columns."""
        super().__init__(height=height, width=width)
        self.window = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H - height + 1, W - width + 1)."""
        return F.avg_pool2d(x, self.window, stride=1)


class WindowPooling(nn.Module):
    """Means over windows that are a share of the map, a 1x1 convolution with BatchNorm and ReLU, back to its size."""

    def __init__(self, point: nn.Module, rows: int, columns: int) -> None:
        """Build it.

        Args:
            point: The 1x1 convolution.
            rows: A window has the height of the map divided by this, rounded up.
            columns: The same of its width.
        """
        super().__init__()
        self.grid = (rows, columns)
        self.point = point

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        size = (x.shape[2], x.shape[3])
        height, width = ((n + grid - 1) // grid for n, grid in zip(size, self.grid, strict=True))
        # A window of one pixel is that pixel.
        pooled = x if (height, width) == (1, 1) else WindowPool(height, width)(x)
        return resized(self.point(pooled), size)
