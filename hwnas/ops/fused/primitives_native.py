"""The primitives of fused cells in C++, for contiguous float32 on a CPU; see kernels/cpu/supernet.cpp."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hwnas.ops.fused.native import library
from hwnas.ops.fused.primitives import EPS, Moments
from hwnas.ops.fused.primitives_torch import convolve, convolve_data


def _columns(t: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_long, ctypes.c_long]:
    """Return where some columns of matrices begin, how far the matrices are apart, and how far their rows."""
    assert t.stride(2) == 1, "a kernel reads whole rows"
    return ctypes.c_void_p(t.data_ptr()), ctypes.c_long(t.stride(0)), ctypes.c_long(t.stride(1))


def _at(t: Tensor) -> ctypes.c_void_p:
    assert t.is_contiguous(), "a kernel reads whole tensors"
    return ctypes.c_void_p(t.data_ptr())


class Native:
    """In C++, for contiguous float32 on a CPU; see kernels/cpu/supernet.cpp."""

    processes = 1

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
        self._lib.hwnas_multiply(m, ctypes.c_long(rows), a, b, _at(x), _at(whole), _at(out))
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
