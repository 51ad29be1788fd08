"""BatchNorm over the batch of several processes, and the sums over processes that it is made of.

`torch.nn.SyncBatchNorm` computes on GPUs only. This one computes anywhere, and is differentiable as often as one likes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwnas.errors import ProcessLost

LOST = "another process of this command has ended"
# What gloo and NCCL say then: neither has a type of error for it.
_GONE = re.compile(r"closed|reset by peer|broken pipe|refused|unreachable|timed? ?out|remote process", re.IGNORECASE)


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turn what torch raises where another process has ended into an error of ours.

    Raises:
        ProcessLost: If one has.
    """
    try:
        yield
    except RuntimeError as e:
        if _GONE.search(str(e)) is None:
            raise
        raise ProcessLost(LOST) from e


def reduce_(tensor: Tensor) -> Tensor:
    """Sum a contiguous tensor over all processes, in place; all of them call this in the same order.

    Raises:
        ProcessLost: If one of them has ended.
    """
    with lost_processes():
        dist.all_reduce(tensor)
    return tensor


def all_reduced(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; differentiable.

    Where each process goes backward from its own loss, all gradients are those of the sum of these losses.
    """
    out: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]  # torch has no types for it
    return out


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return reduce_(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduced(grad)


def all_gathered(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, of one shape, stacked in the order of ranks; differentiable."""
    out: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]  # torch has no types for it
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        out = tensor.new_zeros(dist.get_world_size(), *tensor.shape)
        out[dist.get_rank()] = tensor
        return reduce_(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduced(grad)[dist.get_rank()]


def moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over all processes, given those of this one; each has as many values.

    In one exchange, and without squares of values far from 0, of which nothing of a small variance would be left
    (Chan et al. 1979, for sums of squares).
    """
    means, variances = all_gathered(torch.stack([mean, var])).unbind(1)
    whole = means.mean(0)
    return whole, (variances + (means - whole).square()).mean(0)


class SyncedBatchNorm(nn.BatchNorm2d):
    """BatchNorm that in training has the statistics of the maps of all processes, equally many in each.

    Attributes:
        processes: How many there are.
    """

    def __init__(self, norm: nn.BatchNorm2d, processes: int) -> None:
        """Take the place of a BatchNorm: its parameters and statistics are the same tensors."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.processes = processes
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        self.training = norm.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same; computed in float32 at least."""
        if not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        values, shape = wide.numel() // wide.shape[1] * self.processes, (1, -1, 1, 1)
        own_var, own_mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        mean, var = moments(own_mean, own_var)
        if self.track_running_stats:
            self._move(mean.detach(), var.detach() * (values / (values - 1)))
        gain = (var + self.eps).rsqrt()
        if self.weight is not None:
            gain = gain * self.weight
        shift = -mean * gain
        if self.bias is not None:
            shift = shift + self.bias
        # As torch computes it on CPUs, so that no map but x is kept for the way back.
        return torch.addcmul(shift.view(shape), wide, gain.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None, "no network here averages over all batches by the count of its BatchNorm"
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)
        self.num_batches_tracked += 1


def processes_of(norm: nn.Module) -> int:
    """Return over how many processes a BatchNorm takes its statistics."""
    return norm.processes if isinstance(norm, SyncedBatchNorm) else 1


def synchronise(network: nn.Module, processes: int) -> None:
    """Exchange all BatchNorms of a network for `SyncedBatchNorm`; before anything else holds them.

    Args:
        network: Changed in place; names, parameters and buffers stay.
        processes: How many there are; with one nothing is changed.
    """
    if processes == 1:
        return
    exchanged: dict[nn.Module, SyncedBatchNorm] = {}
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                if child not in exchanged:
                    exchanged[child] = SyncedBatchNorm(child, processes)
                setattr(module, name, exchanged[child])
