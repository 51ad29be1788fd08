"""Convolutions padded as TensorFlow pads them, in torch and as the one node that they are in ONNX."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, ...]  # of height and width


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's ``SAME``: of the pixels that ``ceil(size / stride)`` needs, half come first.

    Of an odd number the smaller half does. So a strided one looks a pixel further to the right and down where a size is
    even, and weights that were trained like that expect it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, ceil(H/stride), ceil(W/stride))."""
        before, after = [], []
        for i in (0, 1):
            size, stride, reach = int(x.shape[2 + i]), self.stride[i], self.dilation[i] * (self.kernel_size[i] - 1)
            total = max((size + stride - 1) // stride * stride - stride + reach + 1 - size, 0)
            before.append(total // 2)
            after.append(total - total // 2)
        if before == after:
            return F.conv2d(x, self.weight, None, self.stride, (before[0], before[1]), self.dilation, self.groups)
        pads, own = (*before, *after), (self.stride, self.dilation, self.groups)
        if torch.onnx.is_in_onnx_export():
            out: Tensor = _UnevenConv.apply(x, self.weight, pads, *own)  # type: ignore[no-untyped-call]  # torch has no types
            return out
        return _uneven(x, self.weight, pads, *own)


def _uneven(x: Tensor, weight: Tensor, pads: Pair, stride: Pair, dilation: Pair, groups: int) -> Tensor:
    """Convolve with pads (top, left, bottom, right)."""
    top, left, bottom, right = pads
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, stride, 0, dilation, groups)


class _UnevenConv(torch.autograd.Function):
    """`_uneven` as the one node that it is in ONNX; torch writes a dozen, which engines compute one by one."""

    @staticmethod
    def forward(
        ctx: object, x: Tensor, weight: Tensor, pads: Pair, stride: Pair, dilation: Pair, groups: int
    ) -> Tensor:
        return _uneven(x, weight, pads, stride, dilation, groups)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, pads: Pair, stride: Pair, dilation: Pair, groups: int) -> Any:
        kernel = weight.type().sizes()[2:]
        attrs = {"kernel_shape_i": kernel, "pads_i": pads, "strides_i": stride, "dilations_i": dilation}
        return g.op("Conv", x, weight, **attrs, group_i=groups)
