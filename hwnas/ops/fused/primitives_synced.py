"""The primitives of fused cells with the statistics of the maps of several processes.

What has statistics is computed in torch, with sums over all processes. Gradients of weights and probabilities are the
share of this process: their sum over processes is the gradient of the sum of the losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwnas.ops.fused.primitives import EPS
from hwnas.ops.fused.primitives_native import Native
from hwnas.ops.fused.primitives_torch import Normed, Torch
from hwnas.ops.synced import moments, reduce_


class _Synced(Normed):
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

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `Normed`."""
        rows, a = z.shape[1] * self.processes, z.shape[2]
        # Sums and products in one exchange.
        sums = reduce_(torch.cat([z.sum(1, keepdim=True), torch.bmm(z.transpose(1, 2), z)], 1)) / rows
        mean_z, product = torch.split(sums, [1, a], 1)
        return mean_z, torch.baddbmm(product, mean_z.transpose(1, 2), mean_z, alpha=-1)

    def _means(self, gain: Tensor, r: Tensor, dot: Tensor, sums: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """See `Normed`."""
        all_dot, all_sums = reduce_(torch.stack([dot, sums])) / (rows * self.processes)
        return gain * r * all_dot, gain * all_sums


class SyncedTorch(_Synced, Torch):
    """The rest in torch, on any device and in any type."""


class SyncedNative(_Synced, Native):
    """The rest in C++, on CPUs in float32."""
