"""The primitives of fused cells with the statistics of the maps of several processes.

What has statistics is computed in torch, with sums over all processes. Gradients of weights and probabilities are the
share of this process: their sum over processes is the gradient of the sum of the losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwnas.ops.fused.primitives import EPS, Moments
from hwnas.ops.fused.primitives_native import Native
from hwnas.ops.fused.primitives_torch import Torch
from hwnas.ops.synced import moments, reduce_


class _Synced:
    """What needs statistics; every process has as many rows."""

    def __init__(self, processes: int) -> None:
        """Take the number of processes."""
        super().__init__()
        self.processes = processes

    def batch_norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Primitives`."""
        own_var, own_mean = torch.var_mean(x, dim=1, correction=0)
        mean, var = moments(own_mean, own_var)
        x.sub_(mean[:, None]).mul_((var + EPS).rsqrt()[:, None])
        return mean, var

    def batch_norm_data(self, y: Tensor, var: Tensor, g: Tensor) -> None:
        """See `Primitives`."""
        rows = y.shape[1] * self.processes
        mean, dot = reduce_(torch.stack([g.sum(1), (g * y).sum(1)])) / rows
        g.sub_(mean[:, None]).sub_(y * dot[:, None]).mul_((var + EPS).rsqrt()[:, None])

    def normed_linear(self, z: Tensor, w: Tensor, p: Tensor, out: Tensor, bias: Tensor) -> Moments:
        """See `Primitives`."""
        rows, a = z.shape[1] * self.processes, z.shape[2]
        # Sums and products in one exchange.
        sums = reduce_(torch.cat([z.sum(1, keepdim=True), torch.bmm(z.transpose(1, 2), z)], 1)) / rows
        mean_z, product = torch.split(sums, [1, a], 1)
        cov_z = torch.baddbmm(product, mean_z.transpose(1, 2), mean_z, alpha=-1)
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
        all_dot, all_sums = reduce_(torch.stack([dot, sums])) / (rows * self.processes)
        slope = gain * r * all_dot
        offset = ((slope * kept.mean - gain * all_sums)[:, None] @ w).expand(-1, rows, -1)
        dz = torch.baddbmm(offset, g, gain[:, :, None] * w)
        dz.baddbmm_(each, (slope[:, :, None] * w).transpose(1, 2) @ w, alpha=-1)
        return dot.sum(1), dw, dz


class SyncedTorch(_Synced, Torch):
    """The rest in torch, on any device and in any type."""


class SyncedNative(_Synced, Native):
    """The rest in C++, on CPUs in float32."""
