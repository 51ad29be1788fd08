"""Averages over a training: of the weights, and of what BatchNorm saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from hwnas.learn.device import Context


def decay_of(decay: float, updates: int) -> float:
    """Return the decay of an exponential average at its n-th update: ``min(decay, (1 + n) / (10 + n))``.

    So an average of 0.999 over a training of some hundred steps is not that of its first weights (TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``).
    """
    return min(decay, (1 + updates) / (10 + updates))


def averaged(net: nn.Module, context: Context, decay: float) -> AveragedModel:
    """Return the exponential average of a network, of its BatchNorm statistics too; the first update copies it."""

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
        del updates  # it is on the device, where it cannot be read without waiting
        share = 1 - decay_of(decay, int(out.n_averaged))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(values), share)
        else:
            for average, value in zip(averages, values, strict=True):  # counts of batches
                average.copy_(value)

    out = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    context.module(out.module)  # alone: torch asks for the number of updates at each one, so that is on the host
    return out


@contextmanager
def recalibrated(network: nn.Module, images: Iterable[Tensor]) -> Iterator[None]:
    """Let a network have the statistics of BatchNorm that these images give, as long as the context is open.

    Statistics kept during a training are those of weights as they changed; an average of weights, or a short training,
    has others (Izmailov et al. 2018, section 3.2). They are the mean over batches, as of
    `torch.optim.swa_utils.update_bn`, which reads a count from the device for each.

    Args:
        network: In evaluation when the context is open. Its buffers are put back in the end, so that a training goes on
            as if nothing had been.
        images: Batches (N, 3, H, W), where the network is.
    """
    before = [(b, b.clone()) for b in network.buffers()]
    layers = norms(network)
    momenta = [layer.momentum for layer in layers]
    try:
        network.eval()
        for layer in layers:
            layer.train()
        with torch.no_grad():
            for k, batch in enumerate(images):
                for layer in layers:
                    layer.momentum = 1 / (k + 1)
                network(batch)
        network.eval()
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def norms(network: nn.Module, but: tuple[str, ...] = ()) -> list[_BatchNorm]:
    """Return the BatchNorms of a network but for those whose names begin with one of `but`."""
    return [m for name, m in network.named_modules() if isinstance(m, _BatchNorm) and not name.startswith(but)]
