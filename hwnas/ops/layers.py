"""All ops, each defined once.

A leading ReLU is an op of its own, because engines compute it once per tensor however many ops read it. No op changes
its meaning with the size of its input, and strided ops give ``ceil(size / stride)`` for every size, odd ones too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.ops.norm import normed
from hwnas.ops.registry import Op, op
from hwnas.ops.same import SameConv


def _conv(
    c_in: int, c_out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1, same: bool = False
) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    make = SameConv if same else nn.Conv2d
    return make(c_in, c_out, kernel, stride, padding, dilation, groups, bias=False)


@op("relu", pure=True)
class ReLU(Op):
    """``max(x, 0)``, out of place: the input is read by other edges too."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return F.relu(x)


@op("conv_bn", convolves=True)
class ConvBN(Op):
    """Convolution and BatchNorm, then ReLU if `relu`: stems, 1x1 preprocessing of cell inputs, heads."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, relu: bool = False, affine: bool = True
    ) -> None:
        """Build with `c_in` to `c_out` channels; `affine` is BatchNorm's."""
        super().__init__(c_in=c_in, c_out=c_out, kernel=kernel, stride=stride, relu=relu, affine=affine)
        self.conv = _conv(c_in, c_out, kernel, stride)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        x = normed(self.bn, self.conv(x))
        return F.relu(x) if self.relu else x


@op("sep_conv", convolves=True)
class SepConv(Op):
    """Depthwise-separable convolution twice, the stride on the first (DARTS `sep_conv`, less its first ReLU)."""

    def __init__(self, c: int, kernel: int, stride: int, affine: bool = True) -> None:
        """Build for `c` channels."""
        super().__init__(c=c, kernel=kernel, stride=stride, affine=affine)
        self.depthwise1 = _conv(c, c, kernel, stride, groups=c)
        self.pointwise1 = _conv(c, c, 1)
        self.bn1 = nn.BatchNorm2d(c, affine=affine)
        self.depthwise2 = _conv(c, c, kernel, groups=c)
        self.pointwise2 = _conv(c, c, 1)
        self.bn2 = nn.BatchNorm2d(c, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> (N, c, ceil(H/stride), ceil(W/stride))."""
        x = F.relu(self.bn1(self.pointwise1(self.depthwise1(x))))
        y: Tensor = self.bn2(self.pointwise2(self.depthwise2(x)))
        return y


@op("dil_conv", convolves=True)
class DilConv(Op):
    """Depthwise-separable convolution of dilation 2, applied once (DARTS `dil_conv`, less its ReLU)."""

    def __init__(self, c: int, kernel: int, stride: int, dilation: int = 2, affine: bool = True) -> None:
        """Build for `c` channels."""
        super().__init__(c=c, kernel=kernel, stride=stride, dilation=dilation, affine=affine)
        self.depthwise = _conv(c, c, kernel, stride, dilation, groups=c)
        self.pointwise = _conv(c, c, 1)
        self.bn = nn.BatchNorm2d(c, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> (N, c, ceil(H/stride), ceil(W/stride))."""
        y: Tensor = self.bn(self.pointwise(self.depthwise(x)))
        return y


@op("separable_conv", convolves=True)
class SeparableConv(Op):
    """Depthwise convolution, then a 1x1 one, each with a BatchNorm, and a ReLU after it if `relu` (DeepLabv3+)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = False,
        affine: bool = True,
    ) -> None:
        """Build with `c_in` to `c_out` channels; `affine` is BatchNorm's."""
        super().__init__(
            c_in=c_in, c_out=c_out, kernel=kernel, stride=stride, dilation=dilation, relu=relu, affine=affine
        )
        self.depthwise = _conv(c_in, c_in, kernel, stride, dilation, groups=c_in)
        self.bn1 = nn.BatchNorm2d(c_in, affine=affine)
        self.pointwise = _conv(c_in, c_out, 1)
        self.bn2 = nn.BatchNorm2d(c_out, affine=affine)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        x = self.bn1(self.depthwise(x))
        x = self.bn2(self.pointwise(F.relu(x) if self.relu else x))
        return F.relu(x) if self.relu else x


@op("atrous_conv", convolves=True)
class AtrousConv(Op):
    """Full convolution of any dilation and BatchNorm, then ReLU if `relu` (DeepLab; `atrous` of Auto-DeepLab)."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, dilation: int, relu: bool = False, affine: bool = True
    ) -> None:
        """Build with `c_in` to `c_out` channels; `affine` is BatchNorm's."""
        super().__init__(c_in=c_in, c_out=c_out, kernel=kernel, dilation=dilation, relu=relu, affine=affine)
        self.conv = _conv(c_in, c_out, kernel, dilation=dilation)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


@op("conv_bn_relu6")
class ConvBNReLU6(Op):
    """Convolution, BatchNorm, and ReLU up to 6: the stem of MobileNetV2 and of EfficientNet-Lite."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, same: bool = False) -> None:
        """Build with `c_in` to `c_out` channels; `same` is for padding as in TensorFlow."""
        super().__init__(c_in=c_in, c_out=c_out, kernel=kernel, stride=stride, same=same)
        self.conv = _conv(c_in, c_out, kernel, stride, same=same)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        return F.relu6(self.bn(self.conv(x)))


@op("inverted_residual", convolves=True)
class InvertedResidual(Op):
    """1x1 convolution to more channels, depthwise one, 1x1 one to few, linear at the end (MobileNetV2, section 3.3).

    Each has a BatchNorm, the first two a ReLU up to 6. The sum with its input is an `Add`. Without more channels
    (`expand` of 1) there is no first convolution.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        expand: int = 6,
        dilation: int = 1,
        same: bool = False,
    ) -> None:
        """Build with `c_in`, then `expand` times as many, to `c_out` channels; `same` as in `ConvBNReLU6`."""
        super().__init__(
            c_in=c_in, c_out=c_out, kernel=kernel, stride=stride, expand=expand, dilation=dilation, same=same
        )
        wide = expand * c_in
        if expand != 1:
            self.expand = _conv(c_in, wide, 1)
            self.bn1 = nn.BatchNorm2d(wide)
        self.expands = expand != 1
        self.depthwise = _conv(wide, wide, kernel, stride, dilation, groups=wide, same=same)
        self.bn2 = nn.BatchNorm2d(wide)
        self.project = _conv(wide, c_out, 1)
        self.bn3 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        if self.expands:
            x = F.relu6(self.bn1(self.expand(x)))
        y: Tensor = self.bn3(self.project(F.relu6(self.bn2(self.depthwise(x)))))
        return y


@op("image_pooling")
class ImagePooling(Op):
    """Mean over the map, 1x1 convolution, BatchNorm, ReLU, the same at every place (ParseNet; ASPP of DeepLabv3)."""

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        """Build with `c_in` to `c_out` channels; `affine` is BatchNorm's."""
        super().__init__(c_in=c_in, c_out=c_out, affine=affine)
        self.conv = _conv(c_in, c_out, 1)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        pooled = self.conv(x.mean(dim=(2, 3), keepdim=True))
        pooled = F.relu(normed(self.bn, pooled))
        return pooled.expand(-1, -1, x.shape[2], x.shape[3])


@op("grid_pool", pure=True)
class GridPool(Op):
    """Mean over each cell of a grid over a map (spatial pyramid pooling, He et al. 2014; PSPNet).

    Cells are of one size. Where they do not divide the map they overlap by less than a cell, so that the grid covers
    all of it: engines know this as an average pooling, and an adaptive one with uneven cells they do not.
    """

    def __init__(self, height: int, width: int, grid: int) -> None:
        """Build for maps of (height, width); `grid` is the number of rows and of columns, at most that of pixels."""
        super().__init__(height=height, width=width, grid=grid)
        self.stride = tuple(n // min(grid, n) for n in (height, width))
        self.kernel = tuple(n - (min(grid, n) - 1) * s for n, s in zip((height, width), self.stride, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, height, width) -> (N, C, min(grid, height), min(grid, width))."""
        return F.avg_pool2d(x, self.kernel, self.stride)


@op("shift", pure=True)
class Shift(Op):
    """The map without its first row and column: what the second half of a factorized reduction reads.

    An op of its own, because engines compute it, and the layout conversions around it, once per tensor.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 ceil(H/2) - 1, 2 ceil(W/2) - 1)."""
        shifted = x[:, :, 1:, 1:]
        # The shift loses the last sample of an odd size; a zero stands in for it, an even size needs none.
        if x.shape[2] % 2 or x.shape[3] % 2:
            shifted = F.pad(shifted, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return shifted


@op("factorized_reduce")
class ReduceBoth(Op):
    """Two strided 1x1 convolutions, one of the input and one of the shifted input, side by side."""

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        """Build with `c_in` to `c_out` channels; `c_out` is even or the first half is one narrower."""
        super().__init__(c_in=c_in, c_out=c_out, affine=affine)
        self.conv1 = _conv(c_in, c_out // 2, 1, 2)
        self.conv2 = _conv(c_in, c_out - c_out // 2, 1, 2)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        """(N, c_in, H, W) and its `Shift` -> (N, c_out, ceil(H/2), ceil(W/2))."""
        y: Tensor = self.bn(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))
        return y


class FactorizedReduce(nn.Module):
    """Halves the size by two strided 1x1 convolutions, the second on the input shifted by one pixel (DARTS)."""

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        """Build with `c_in` to `c_out` channels."""
        super().__init__()
        self.shift = Shift()
        self.reduce = ReduceBoth(c_in, c_out, affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2))."""
        y: Tensor = self.reduce(x, self.shift(x))
        return y


@op("max_pool", pure=True)
class MaxPool(Op):
    """3x3 max pooling, padding 1."""

    def __init__(self, stride: int) -> None:
        """Build with stride 1 or 2."""
        super().__init__(stride=stride)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride))."""
        return F.max_pool2d(x, 3, self.stride, 1)


@op("avg_pool", pure=True)
class AvgPool(Op):
    """3x3 average pooling, padding 1 that is not counted."""

    def __init__(self, stride: int) -> None:
        """Build with stride 1 or 2."""
        super().__init__(stride=stride)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride))."""
        return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)


@op("batch_norm")
class BatchNorm(Op):
    """BatchNorm without affine parameters, as it follows pools in the DARTS supernet."""

    def __init__(self, c: int) -> None:
        """Build for `c` channels."""
        super().__init__(c=c)
        self.bn = nn.BatchNorm2d(c, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        y: Tensor = self.bn(x)
        return y


@op("add", pure=True)
class Add(Op):
    """Sum of two tensors.

    Engines fuse it into the convolution that gives one of them, where it costs little. After pools, and where others
    read the result of the convolution, it reads and writes whole maps. Measured apart, these are two ops.
    """

    def __init__(self, after_conv: bool) -> None:
        """Build it; `after_conv` is whether a convolution gives one of the tensors, and nothing else reads that."""
        super().__init__(after_conv=after_conv)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two of (N, C, H, W) -> the same."""
        return a + b


@op("concat", pure=True)
class Concat(Op):
    """Concatenation over channels."""

    def forward(self, *xs: Tensor) -> Tensor:
        """Several (N, C_i, H, W) -> (N, sum of C_i, H, W)."""
        return torch.cat(xs, dim=1)


@op("resize", pure=True)
class Resize(Op):
    """Bilinear resize to a fixed size with half-pixel centres, the convention all engines agree on."""

    def __init__(self, height: int, width: int) -> None:
        """Build for an output size."""
        super().__init__(height=height, width=width)
        self.size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, height, width)."""
        return F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` resized to the height and width of `like`; the op is made on the spot, so any input size works."""
    return Resize(like.shape[2], like.shape[3])(x)


class ResizedTo(nn.Module):
    """Brings a map to the size of another; the op is made in the forward pass."""

    ends_in_conv = False

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """(N, C, h, w) and (N, _, H, W) -> (N, C, H, W)."""
        return resize(x, like)


class GridPooling(nn.Module):
    """Means over the cells of a grid, a 1x1 convolution and BatchNorm, brought back to the size of the map (PSPNet)."""

    def __init__(self, c: int, grid: int, affine: bool = True) -> None:
        """Build for `c` channels and so many rows and columns."""
        super().__init__()
        self.grid = grid
        self.point = ConvBN(c, c, affine=affine)
        self.back = ResizedTo()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        out: Tensor = self.back(self.point(GridPool(x.shape[2], x.shape[3], self.grid)(x)), x)
        return out


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `x` resized to (height, width); itself, without an op, if it has that size."""
    return x if x.shape[2:] == size else Resize(*size)(x)


@op("context")
class Context(Op):
    """1x1 convolution scaled by a gate made from the whole image (the light head of MobileNetV3, section 6.4)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        """Build with `c_in` to `c_out` channels."""
        super().__init__(c_in=c_in, c_out=c_out)
        self.conv = _conv(c_in, c_out, 1)
        self.bn = nn.BatchNorm2d(c_out)
        self.gate = _conv(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        gate = torch.sigmoid(self.gate(x.mean(dim=(2, 3), keepdim=True)))
        return F.relu(self.bn(self.conv(x))) * gate


@op("classifier", convolves=True)
class Classifier(Op):
    """1x1 convolution with bias to class scores."""

    def __init__(self, c_in: int, classes: int) -> None:
        """Build with `c_in` channels to `classes` scores."""
        super().__init__(c_in=c_in, classes=classes)
        self.conv = nn.Conv2d(c_in, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, classes, H, W)."""
        y: Tensor = self.conv(x)
        return y


@op("global_pool", pure=True)
class GlobalPool(Op):
    """Mean over the whole map."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return x.mean(dim=(2, 3))


@op("linear")
class Linear(Op):
    """Fully connected layer with bias."""

    def __init__(self, c_in: int, c_out: int) -> None:
        """Build with `c_in` to `c_out` features."""
        super().__init__(c_in=c_in, c_out=c_out)
        self.linear = nn.Linear(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in) -> (N, c_out)."""
        y: Tensor = self.linear(x)
        return y


@op("argmax", pure=True)
class ArgMax(Op):
    """Class of the highest score, of each pixel or of the image; the first one on ties."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, classes, H, W) -> (N, H, W), or (N, classes) -> (N,), uint8."""
        return x.argmax(dim=1).to(torch.uint8)
