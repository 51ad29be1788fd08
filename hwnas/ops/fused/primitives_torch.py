"""The primitives of fused cells in torch, on any device and in any type."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.ops.fused.primitives import EPS, Moments


class Normed(ABC):
    """A linear map and BatchNorm, wherever their statistics come from."""

    @abstractmethod
    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (G, 1, A) and covariance (G, A, A) of inputs (G, rows, A)."""

    @abstractmethod
    def _means(self, gain: Tensor, r: Tensor, dot: Tensor, sums: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return the means over all rows that the gradient of the input is centred by, from sums over those here.

        Returns:
            ``gain * r`` times that of `dot`, and ``gain`` times that of `sums`.
        """

    def normed_linear(self, z: Tensor, w: Tensor, p: Tensor, out: Tensor, bias: Tensor) -> Moments:
        """See `Primitives`."""
        mean_z, cov_z = self._moments(z)
        mean, var = (w * mean_z).sum(2), ((w @ cov_z) * w).sum(2).clamp_min_(0)
        gain = p[:, None] * (var + EPS).rsqrt()
        out.baddbmm_(z.expand(len(w), -1, -1), (gain[:, :, None] * w).transpose(1, 2))
        bias -= gain * mean
        return Moments(mean_z, cov_z, mean, var)

    def normed_linear_data(
        self, z: Tensor, w: Tensor, p: Tensor, kept: Moments, g: Tensor, sums: Tensor, parameters: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """See `Primitives`."""
        rows = z.shape[1]
        each = z.expand(len(w), -1, -1)
        r = (kept.var + EPS).rsqrt()
        crossed = torch.bmm(g.transpose(1, 2), each)
        dot = ((crossed * w).sum(2) - kept.mean * sums) * r  # of g and the normalised output, in this process
        gain = p[:, None] * r
        dw = None
        if parameters:
            unlike = sums[:, :, None] * kept.mean_z + (dot * r)[:, :, None] * (w @ kept.cov_z)
            dw = gain[:, :, None] * (crossed - unlike)
        slope, level = self._means(gain, r, dot, sums, rows)
        offset = ((slope * kept.mean - level)[:, None] @ w).expand(-1, rows, -1)
        dz = torch.baddbmm(offset, g, gain[:, :, None] * w)
        dz.baddbmm_(each, (slope[:, :, None] * w).transpose(1, 2) @ w, alpha=-1)
        return dot.sum(1), dw, dz


class Torch(Normed):
    """In torch, on any device and in any type."""

    processes = 1

    def depthwise(self, x: Tensor, weight: Tensor, dilation: int, stride: int) -> Tensor:
        """See `Primitives`."""
        wide, kernels = _wide(x, weight)
        y = F.conv2d(wide.relu(), kernels, None, stride, _pad(weight, dilation), dilation, wide.shape[1])
        return _planes(y, weight)

    def depthwise_data(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor, into: Tensor) -> None:
        """See `Primitives`."""
        wide, kernels = _wide(x, weight)
        pad = _pad(weight, dilation)
        if stride == 1:  # a convolution itself, which CPUs compute several times faster under this name
            dx = F.conv2d(_channels(g), kernels.flip(-2, -1), None, 1, pad, dilation, wide.shape[1])
        else:
            dx = self._backward(wide, kernels, _channels(g), pad, dilation, stride, 0)
        n, _, h, w = wide.shape
        each = dx.reshape(n, x.shape[0], weight.shape[1], x.shape[-1], h, w).sum(2)
        into += each.permute(1, 0, 3, 4, 2) * (x > 0)

    def depthwise_weight(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor) -> Tensor:
        """See `Primitives`."""
        wide, kernels = _wide(x, weight)
        dw = self._backward(wide.relu(), kernels, _channels(g), _pad(weight, dilation), dilation, stride, 1)
        return dw.reshape(weight.shape)

    def _backward(
        self, x: Tensor, kernels: Tensor, g: Tensor, padding: int, dilation: int, stride: int, of: int
    ) -> Tensor:
        wanted = [of == 0, of == 1, False]
        grads = torch.ops.aten.convolution_backward(
            g, x, kernels, None, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], x.shape[1], wanted
        )
        out: Tensor = grads[of]
        return out

    def convolve(self, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        """See `Primitives`."""
        return convolve(x, weight, dilation)

    def convolve_data(
        self, x: Tensor, weight: Tensor, dilation: int, g: Tensor, into: Tensor | None, parameters: bool
    ) -> Tensor | None:
        """See `Primitives`."""
        return convolve_data(x, weight, dilation, g, into, parameters)

    def max_pool(self, x: Tensor, stride: int, out: Tensor) -> Tensor:
        """See `Primitives`."""
        y, which = F.max_pool2d(x.permute(0, 3, 1, 2), 3, stride, 1, return_indices=True)
        out.copy_(y.permute(0, 2, 3, 1))
        return which

    def max_pool_data(self, g: Tensor, which: Tensor, stride: int, into: Tensor) -> None:
        """See `Primitives`."""
        n, h, w, c = into.shape
        flat = torch.zeros(n, c, h * w, device=g.device, dtype=g.dtype)
        flat.scatter_add_(2, which.reshape(n, c, -1), g.permute(0, 3, 1, 2).reshape(n, c, -1))
        into += flat.reshape(n, c, h, w).permute(0, 2, 3, 1)

    def avg_pool(self, x: Tensor, stride: int, out: Tensor) -> None:
        """See `Primitives`."""
        out.copy_(F.avg_pool2d(x.permute(0, 3, 1, 2), 3, stride, 1, count_include_pad=False).permute(0, 2, 3, 1))

    def avg_pool_data(self, g: Tensor, stride: int, into: Tensor) -> None:
        """See `Primitives`."""
        like = into.permute(0, 3, 1, 2)
        dx = torch.ops.aten.avg_pool2d_backward(
            g.permute(0, 3, 1, 2), like, [3, 3], [stride] * 2, [1, 1], False, False, None
        )
        into += dx.permute(0, 2, 3, 1)

    def batch_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Primitives`."""
        var, mean = torch.var_mean(x, dim=1, correction=0)
        x.sub_(mean[:, None]).mul_((var + EPS).rsqrt()[:, None])
        return mean, var

    def batch_norm_data(self, y: Tensor, var: Tensor, g: Tensor) -> None:
        """See `Primitives`."""
        mean, dot = g.mean(1, keepdim=True), (g * y).mean(1, keepdim=True)
        g.sub_(mean).sub_(y * dot).mul_((var + EPS).rsqrt()[:, None])

    def multiply(self, x: Tensor, w: Tensor) -> Tensor:
        """See `Primitives`."""
        return torch.bmm(x, w)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Primitives`."""
        return torch.bmm(a.transpose(1, 2), b)

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `Normed`."""
        mean_z = z.mean(1, keepdim=True)
        square = mean_z.transpose(1, 2) @ mean_z
        return mean_z, torch.baddbmm(square, z.transpose(1, 2), z, beta=-1, alpha=1 / z.shape[1])

    def _means(self, gain: Tensor, r: Tensor, dot: Tensor, sums: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """See `Normed`."""
        return gain * r * dot / rows, gain * sums / rows

    def combine(self, weights: Tensor, x: Tensor, bias: Tensor, into: Tensor) -> None:
        """See `Primitives`."""
        into.view(len(into), -1).addmm_(weights, x.flatten(1))
        into += bias[:, None]

    def combine_data(self, weights: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Primitives`."""
        flat = g.reshape(len(g), -1)
        return (weights.T @ flat).reshape(x.shape), flat @ x.flatten(1).T, g.sum(1)


def convolve(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """See `Primitives.convolve`; torch's own convolution is as fast as any where a kernel mixes channels."""
    m, c = weight.shape[:2]
    image = x.relu().permute(0, 3, 1, 2)
    y = F.conv2d(image, weight.flatten(0, 1), None, 1, _pad(weight, dilation), dilation)
    n, _, h, w = y.shape
    return y.reshape(n, m, c, h, w).permute(1, 0, 3, 4, 2).contiguous()


def convolve_data(
    x: Tensor, weight: Tensor, dilation: int, g: Tensor, into: Tensor | None, parameters: bool
) -> Tensor | None:
    """See `Primitives.convolve_data`."""
    m, n, h, w, c = g.shape
    image = x.relu().permute(0, 3, 1, 2)
    wide = g.permute(1, 0, 4, 2, 3).reshape(n, m * c, h, w).contiguous(memory_format=torch.channels_last)
    pad = [_pad(weight, dilation)] * 2
    wanted = [into is not None, parameters, False]
    dx, dw, _ = torch.ops.aten.convolution_backward(
        wide, image, weight.flatten(0, 1), None, [1, 1], pad, [dilation] * 2, False, [0, 0], 1, wanted
    )
    if into is not None:
        into += dx.permute(0, 2, 3, 1) * (x > 0)
    return dw.reshape(weight.shape) if parameters else None


def _pad(weight: Tensor, dilation: int) -> int:
    return dilation * (weight.shape[-1] // 2)


def _wide(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps (N, G * M * C, H, W), each repeated for its kernels, and the kernels (G * M * C, 1, k, k)."""
    groups, n, h, w, c = x.shape
    m = weight.shape[1]
    wide = x[:, None].expand(groups, m, n, h, w, c).permute(2, 0, 1, 5, 3, 4).reshape(n, groups * m * c, h, w)
    return wide.contiguous(memory_format=torch.channels_last), weight.reshape(-1, 1, *weight.shape[-2:])


def _planes(y: Tensor, weight: Tensor) -> Tensor:
    n, _, h, w = y.shape
    groups, m, c = weight.shape[:3]
    return y.reshape(n, groups, m, c, h, w).permute(1, 2, 0, 4, 5, 3).contiguous()


def _channels(g: Tensor) -> Tensor:
    groups, m, n, h, w, c = g.shape
    wide = g.permute(2, 0, 1, 5, 3, 4).reshape(n, groups * m * c, h, w)
    return wide.contiguous(memory_format=torch.channels_last)
