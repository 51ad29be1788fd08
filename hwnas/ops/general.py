"""Ops of networks made by hand: convolutions with every setting, what comes before them, pools, gates and attention.

As in `hwnas.ops.layers`, strided ops give ``ceil(size / stride)`` for every size.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.ops.norm import normed
from hwnas.ops.registry import Op, op

Act = Literal["none", "relu", "prelu"]
Before = Literal["none", "bn", "bn_relu"]


def _activation(act: str, c: int) -> nn.Module:
    if act == "none":
        return nn.Identity()
    return nn.ReLU() if act == "relu" else nn.PReLU(c)


@op("conv", convolves=True)
class Conv(Op):
    """Convolution, then BatchNorm if `norm`, then an activation.

    Padding is ``dilation * (kernel // 2)``, so kernels are odd.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: bool = True,
        bias: bool = False,
        act: Act = "relu",
    ) -> None:
        """Build with `c_in` to `c_out` channels in `groups`; `bias` is the convolution's, `act` may be ``"none"``."""
        super().__init__(
            c_in=c_in,
            c_out=c_out,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            groups=groups,
            norm=norm,
            bias=bias,
            act=act,
        )
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias)
        self.bn = nn.BatchNorm2d(c_out) if norm else None
        self.act = _activation(act, c_out)

    @property
    def ends_in_conv(self) -> bool:
        """Whether a convolution makes its result."""
        return self.attrs["act"] == "none"

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        x = self.conv(x)
        y: Tensor = self.act(x if self.bn is None else normed(self.bn, x))
        return y


@op("norm_act")
class NormAct(Op):
    """BatchNorm and an activation where no convolution comes before: of sums, and pre-activation."""

    def __init__(self, c: int, act: Act = "relu") -> None:
        """Build for `c` channels."""
        super().__init__(c=c, act=act)
        self.bn = nn.BatchNorm2d(c)
        self.act = _activation(act, c)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        y: Tensor = self.act(normed(self.bn, x))
        return y


@op("mean_conv")
class MeanConv(Op):
    """Mean over the map and a 1x1 convolution of it: the context of a whole image, one value per channel.

    `ImagePooling` is the same with the result at every place. Here what reads it broadcasts.
    """

    def __init__(self, c_in: int, c_out: int, before: Before = "none", after: bool = True) -> None:
        """Build it.

        Args:
            c_in: Channels of the map.
            c_out: Of the result.
            before: What comes between the mean and the convolution.
            after: Whether BatchNorm and ReLU follow.
        """
        super().__init__(c_in=c_in, c_out=c_out, before=before, after=after)
        self.before = None if before == "none" else nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.after = nn.BatchNorm2d(c_out) if after else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, 1, 1)."""
        x = x.mean(dim=(2, 3), keepdim=True)
        if self.before is not None:
            x = normed(self.before, x)
            x = F.relu(x) if self.attrs["before"] == "bn_relu" else x
        x = self.conv(x)
        return x if self.after is None else F.relu(normed(self.after, x))


@op("pool", pure=True)
class Pool(Op):
    """Average or maximum over a window of any size.

    Odd windows are centred, and an average counts the zeros around the map, which is the default of PyTorch. Even ones
    begin at the first pixel, and the last one may lie half outside.
    """

    def __init__(self, kernel: int, stride: int, kind: Literal["avg", "max"] = "avg") -> None:
        """Build for windows of `kernel` pixels a side; an even one is its stride and a maximum."""
        super().__init__(kernel=kernel, stride=stride, kind=kind)
        assert kernel % 2 or (kind == "max" and kernel == stride), "an even window is a maximum over tiles"
        self.kernel, self.stride, self.average = kernel, stride, kind == "avg"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride))."""
        padding = (self.kernel - 1) // 2
        if self.average:
            return F.avg_pool2d(x, self.kernel, self.stride, padding)
        return F.max_pool2d(x, self.kernel, self.stride, padding, ceil_mode=self.kernel % 2 == 0)


@op("nearest", pure=True)
class Nearest(Op):
    """Resize to a fixed size by the nearest pixel: ``floor(i * in / out)``, as in PyTorch."""

    def __init__(self, height: int, width: int) -> None:
        """Build for an output size."""
        super().__init__(height=height, width=width)
        self.size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, height, width)."""
        return F.interpolate(x, size=self.size, mode="nearest")


@op("channel_slice", pure=True)
class ChannelSlice(Op):
    """Some of the channels."""

    def __init__(self, start: int, stop: int) -> None:
        """Build for channels from `start` to before `stop`."""
        super().__init__(start=start, stop=stop)
        self.channels = slice(start, stop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, stop - start, H, W)."""
        return x[:, self.channels]


@op("sigmoid", pure=True)
class Sigmoid(Op):
    """Logistic function."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return torch.sigmoid(x)


@op("gate", pure=True)
class Gate(Op):
    """``x * sigmoid(gate)`` (bilateral guided aggregation, BiSeNetV2)."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Two of (N, C, H, W) -> the same."""
        return x * torch.sigmoid(gate)


@op("weighted_add", pure=True)
class WeightedAdd(Op):
    """``x + w * y``, or ``x + (1 - w) * y`` if `complement` (boundary attention, PIDNet)."""

    def __init__(self, complement: bool) -> None:
        """Build it."""
        super().__init__(complement=complement)
        self.complement = complement

    def forward(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Three of (N, C, H, W) -> the same."""
        return x + (1 - w if self.complement else w) * y


@op("pixel_attention", pure=True)
class PixelAttention(Op):
    """From `x` towards `y` by how alike their projections are at each pixel (PIDNet, section 3.2).

    ``(1 - s) x + s y`` with ``s = sigmoid(sum over channels of a * b)``.
    """

    def forward(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Two of (N, C, H, W) and two of (N, K, H, W) -> (N, C, H, W)."""
        return x + torch.sigmoid((a * b).sum(dim=1, keepdim=True)) * (y - x)


@op("channel_attention")
class ChannelAttention(Op):
    """Channels weighted by a gate made from the mean of the map (BiSeNet, section 3.2; squeeze and excitation)."""

    def __init__(self, c: int, squeeze: int = 0, residual: bool = False) -> None:
        """Build it.

        Args:
            c: Channels.
            squeeze: Channels between the two convolutions of the gate, as in feature fusion; 0 for one convolution and
                a BatchNorm, as in attention refinement.
            residual: Whether the map itself is added.
        """
        super().__init__(c=c, squeeze=squeeze, residual=residual)
        self.conv1 = nn.Conv2d(c, squeeze or c, 1, bias=False)
        self.bn = None if squeeze else nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(squeeze, c, 1, bias=False) if squeeze else None
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        gate = self.conv1(x.mean(dim=(2, 3), keepdim=True))
        gate = gate if self.bn is None else normed(self.bn, gate)
        gate = torch.sigmoid(gate if self.conv2 is None else self.conv2(F.relu(gate)))
        return x * (1 + gate) if self.residual else x * gate


@op("partition_attention")
class PartitionAttention(Op):
    """Channels weighted by a gate made from the means of the map and of its quarters (LMFFNet, PMCA).

    Quarters of odd maps overlap by a row or column, see `hwnas.ops.layers.GridPool`.
    """

    def __init__(self, c: int, reduction: int = 8) -> None:
        """Build for `c` channels, ``c // reduction`` between the two layers of the gate."""
        super().__init__(c=c, reduction=reduction)
        within = max(1, c // reduction)
        self.quarters = nn.Conv2d(c, c, 2, groups=c, bias=False)
        self.squeeze = nn.Conv2d(c, within, 1, bias=False)
        self.act = nn.PReLU()
        self.excite = nn.Conv2d(within, c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c, H, W) -> the same."""
        stride = tuple(max(1, n // 2) for n in x.shape[2:])
        kernel = tuple(n - (s if n > 1 else 0) for n, s in zip(x.shape[2:], stride, strict=True))
        means = F.avg_pool2d(x, kernel, stride).expand(-1, -1, 2, 2)  # a single row is both halves
        context = self.quarters(means) + x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(self.act(self.squeeze(context))))
