"""What a fused cell is computed of, forward and backward, in two implementations: C++ for CPUs, and torch anywhere.

Maps are (N, H, W, C), contiguous: channels last. "Same" padding, ``ceil(size / stride)``. BatchNorm has no affine
parameters and uses the statistics of the batch.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.ops.native import library

EPS = 1e-5  # of torch.nn.BatchNorm2d


class Moments(NamedTuple):
    """What the way back through `Primitives.normed_linear` needs.

    Attributes:
        mean_z: (G, 1, A).
        cov_z: (G, A, A).
        mean: Of ``z w^T``, (M, B).
        var: Of ``z w^T``, biased, (M, B).
    """

    mean_z: Tensor
    cov_z: Tensor
    mean: Tensor
    var: Tensor


class Primitives(Protocol):
    """The computations a fused cell needs."""

    def depthwise(self, x: Tensor, weight: Tensor, dilation: int, stride: int) -> Tensor:
        """Convolve the ReLU of maps depthwise, each with several kernels.

        Args:
            x: (G, N, H, W, C).
            weight: (G, M, C, 1, k, k).
            dilation: Of the kernels.
            stride: 1 or 2.

        Returns:
            (G, M, N, H', W', C).
        """

    def depthwise_data(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor, into: Tensor) -> None:
        """Add the gradient of x, given that of the result (G, M, N, H', W', C), to `into`, of the shape of x."""

    def depthwise_weight(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor) -> Tensor:
        """Return the gradient of `weight`, which is read for its shape."""

    def max_pool(self, x: Tensor, stride: int, out: Tensor) -> Tensor:
        """Write the 3x3 maximum of x (N, H, W, C) to `out`; return where the maxima are, for `max_pool_data`."""

    def max_pool_data(self, g: Tensor, which: Tensor, stride: int, into: Tensor) -> None:
        """Add the gradient of x to `into`."""

    def avg_pool(self, x: Tensor, stride: int, out: Tensor) -> None:
        """Write the 3x3 mean of x (N, H, W, C), over what lies inside, to `out`."""

    def avg_pool_data(self, g: Tensor, stride: int, into: Tensor) -> None:
        """Add the gradient of x to `into`."""

    def batch_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise x (G, rows, C) in place, over the rows of each group; return mean and biased variance (G, C)."""

    def batch_norm_data(self, y: Tensor, var: Tensor, g: Tensor) -> None:
        """Turn gradients of `batch_norm`'s result y into those of its input, in place."""

    def multiply(self, x: Tensor, w: Tensor) -> Tensor:
        """Return x (G, rows, A) times w (G, A, B)."""

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the transpose of a (G, rows, A) times b (G, rows, B)."""

    def normed_linear(self, z: Tensor, w: Tensor, p: Tensor, out: Tensor, bias: Tensor) -> Moments:
        """Add ``p * BN(z w^T)``, less its constant, to `out`, and the constant to `bias`.

        Mean and variance of ``z w^T`` follow from those of z, so that it is never computed on its own.

        Args:
            z: (M or 1, rows, A).
            w: (M, B, A).
            p: (M,).
            out: (M, rows, B), possibly some columns of a wider matrix.
            bias: (M, B), likewise.
        """

    def normed_linear_data(
        self, z: Tensor, w: Tensor, p: Tensor, kept: Moments, g: Tensor, sums: Tensor, parameters: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the gradients of p, of w if `parameters`, and of z as each edge sees it (M, rows, A).

        Args:
            z: As given to `normed_linear`.
            w: Likewise.
            p: Likewise.
            kept: What it returned.
            g: The gradient of `out`.
            sums: Of g over rows, (M, B).
            parameters: Whether that of w is wanted.
        """

    def combine(self, weights: Tensor, x: Tensor, bias: Tensor, into: Tensor) -> None:
        """Add ``sum over k of weights[m, k] * x[k] + bias[m]`` to `into`.

        Args:
            weights: (M, K).
            x: (K, rows, C).
            bias: (M, C).
            into: (M, rows, C).
        """

    def combine_data(self, weights: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, weights and bias, given that of `into`."""


def primitives(x: Tensor) -> Primitives:
    """Return what computes on tensors like `x`: C++ for float32 on a CPU where there is a compiler, else torch."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and library() is not None:
        return Native()
    return Torch()


class Torch:
    """In torch, on any device and in any type."""

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

    def normed_linear(self, z: Tensor, w: Tensor, p: Tensor, out: Tensor, bias: Tensor) -> Moments:
        """See `Primitives`."""
        rows = z.shape[1]
        mean_z = z.mean(1, keepdim=True)
        cov_z = torch.baddbmm(mean_z.transpose(1, 2) @ mean_z, z.transpose(1, 2), z, beta=-1, alpha=1 / rows)
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
        dot = ((crossed * w).sum(2) - kept.mean * sums) * r  # of g and the normalised output
        gain = p[:, None] * r
        slope = gain * r * dot / rows
        dw = None
        if parameters:
            unlike = sums[:, :, None] * kept.mean_z + (dot * r)[:, :, None] * (w @ kept.cov_z)
            dw = gain[:, :, None] * (crossed - unlike)
        offset = ((slope * kept.mean - gain * sums / rows)[:, None] @ w).expand(-1, rows, -1)
        dz = torch.baddbmm(offset, g, gain[:, :, None] * w)
        dz.baddbmm_(each, (slope[:, :, None] * w).transpose(1, 2) @ w, alpha=-1)
        return dot.sum(1), dw, dz

    def combine(self, weights: Tensor, x: Tensor, bias: Tensor, into: Tensor) -> None:
        """See `Primitives`."""
        into.view(len(into), -1).addmm_(weights, x.flatten(1))
        into += bias[:, None]

    def combine_data(self, weights: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Primitives`."""
        flat = g.reshape(len(g), -1)
        return (weights.T @ flat).reshape(x.shape), flat @ x.flatten(1).T, g.sum(1)


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


def _columns(t: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_long, ctypes.c_long]:
    """Return where some columns of matrices begin, how far the matrices are apart, and how far their rows."""
    assert t.stride(2) == 1, "a kernel reads whole rows"
    return ctypes.c_void_p(t.data_ptr()), ctypes.c_long(t.stride(0)), ctypes.c_long(t.stride(1))


def _at(t: Tensor) -> ctypes.c_void_p:
    assert t.is_contiguous(), "a kernel reads whole tensors"
    return ctypes.c_void_p(t.data_ptr())


class Native:
    """In C++, for contiguous float32 on a CPU; see kernels/cpu/supernet.cpp."""

    def __init__(self) -> None:
        lib = library()
        assert lib is not None, "asked for without a compiler"
        self._lib = lib

    def _sizes(self, x: Tensor, weight: Tensor, dilation: int, stride: int) -> tuple[int, ...]:
        groups, n, h, w, c = x.shape
        assert weight.shape[-1] in (3, 5), "kernels of 3 and 5 taps are compiled"
        return groups, weight.shape[1], n, h, w, c, weight.shape[-1], dilation, stride

    def depthwise(self, x: Tensor, weight: Tensor, dilation: int, stride: int) -> Tensor:
        """See `Primitives`."""
        groups, n, h, w, c = x.shape
        out = x.new_empty(groups, weight.shape[1], n, -(-h // stride), -(-w // stride), c)
        self._lib.hwnas_depthwise(*self._sizes(x, weight, dilation, stride), _at(x), 1, _at(weight), _at(out))
        return out

    def depthwise_data(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor, into: Tensor) -> None:
        """See `Primitives`."""
        sizes = self._sizes(x, weight, dilation, stride)
        self._lib.hwnas_depthwise_data(*sizes, _at(x), 1, _at(weight), _at(g), _at(into))

    def depthwise_weight(self, x: Tensor, weight: Tensor, dilation: int, stride: int, g: Tensor) -> Tensor:
        """See `Primitives`."""
        out = torch.empty_like(weight)
        self._lib.hwnas_depthwise_weight(*self._sizes(x, weight, dilation, stride), _at(x), 1, _at(g), _at(out))
        return out

    def max_pool(self, x: Tensor, stride: int, out: Tensor) -> Tensor:
        """See `Primitives`."""
        which = torch.empty_like(out, dtype=torch.uint8)
        self._lib.hwnas_max_pool(*x.shape, stride, _at(x), _at(out), _at(which))
        return which

    def max_pool_data(self, g: Tensor, which: Tensor, stride: int, into: Tensor) -> None:
        """See `Primitives`."""
        self._lib.hwnas_max_pool_data(*into.shape, stride, _at(g), _at(which), _at(into))

    def avg_pool(self, x: Tensor, stride: int, out: Tensor) -> None:
        """See `Primitives`."""
        self._lib.hwnas_avg_pool(*x.shape, stride, _at(x), _at(out))

    def avg_pool_data(self, g: Tensor, stride: int, into: Tensor) -> None:
        """See `Primitives`."""
        self._lib.hwnas_avg_pool_data(*into.shape, stride, _at(g), _at(into))

    def batch_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Primitives`."""
        groups, rows, c = x.shape
        mean, var = x.new_empty(groups, c), x.new_empty(groups, c)
        self._lib.hwnas_batch_norm(groups, ctypes.c_long(rows), c, ctypes.c_float(EPS), _at(x), _at(mean), _at(var))
        return mean, var

    def batch_norm_data(self, y: Tensor, var: Tensor, g: Tensor) -> None:
        """See `Primitives`."""
        groups, rows, c = y.shape
        self._lib.hwnas_batch_norm_data(groups, ctypes.c_long(rows), c, ctypes.c_float(EPS), _at(y), _at(var), _at(g))

    def multiply(self, x: Tensor, w: Tensor) -> Tensor:
        """See `Primitives`."""
        (m, rows, a), b = x.shape, w.shape[2]
        out, whole = x.new_empty(m, rows, b), w.contiguous()
        self._lib.hwnas_multiply(m, ctypes.c_long(rows), a, b, _at(x), _at(whole), 0, _at(out))
        return out

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Primitives`."""
        m, rows, ka = a.shape
        out = a.new_empty(m, ka, b.shape[2])
        self._lib.hwnas_cross(m, ctypes.c_long(rows), ka, b.shape[2], _at(a), _at(b), _at(out))
        return out

    def normed_linear(self, z: Tensor, w: Tensor, p: Tensor, out: Tensor, bias: Tensor) -> Moments:
        """See `Primitives`."""
        (groups, rows, a), (m, b, _) = z.shape, w.shape
        kept = Moments(z.new_empty(groups, 1, a), z.new_empty(groups, a, a), z.new_empty(m, b), z.new_empty(m, b))
        self._lib.hwnas_normed_linear(
            *(m, groups, ctypes.c_long(rows), a, b, ctypes.c_float(EPS), _at(z), _at(w), _at(p)),
            *_columns(out),
            ctypes.c_void_p(bias.data_ptr()),
            ctypes.c_long(bias.stride(0)),
            *(_at(k) for k in kept),
        )
        return kept

    def normed_linear_data(
        self, z: Tensor, w: Tensor, p: Tensor, kept: Moments, g: Tensor, sums: Tensor, parameters: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """See `Primitives`."""
        (groups, rows, a), (m, b, _) = z.shape, w.shape
        dp, dw, dz = z.new_empty(m), torch.empty_like(w) if parameters else None, z.new_empty(m, rows, a)
        self._lib.hwnas_normed_linear_data(
            *(m, groups, ctypes.c_long(rows), a, b, ctypes.c_float(EPS), _at(z), _at(w), _at(p)),
            *(_at(k) for k in kept),
            *_columns(g),
            ctypes.c_void_p(sums.data_ptr()),
            ctypes.c_long(sums.stride(0)),
            *(_at(dp), None if dw is None else _at(dw), _at(dz)),
        )
        return dp, dw, dz

    def combine(self, weights: Tensor, x: Tensor, bias: Tensor, into: Tensor) -> None:
        """See `Primitives`."""
        (m, terms), (_, rows, c) = weights.shape, x.shape
        self._lib.hwnas_combine(m, terms, ctypes.c_long(rows), c, _at(weights), _at(x), _at(bias), _at(into))

    def combine_data(self, weights: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Primitives`."""
        (m, terms), (_, rows, c) = weights.shape, x.shape
        dx, dweights, dbias = torch.empty_like(x), torch.empty_like(weights), g.new_empty(m, c)
        self._lib.hwnas_combine_data(
            m, terms, ctypes.c_long(rows), c, _at(weights), _at(x), _at(g), _at(dx), _at(dweights), _at(dbias)
        )
        return dx, dweights, dbias
