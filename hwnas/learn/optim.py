"""What moves the weights: the optimizer, its groups of parameters, and the norm that a step is clipped to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hwnas.learn.settings import TrainConfig

HEAD = ("head.", "heads.")  # how the names of a head's parameters begin, see `hwnas.spaces.net.SpaceNet`
_FACTOR = "lr_factor"  # of a group of parameters, on the learning rate


def make_optimizer(config: TrainConfig, net: nn.Module, auxiliary: nn.Module | None = None) -> torch.optim.Optimizer:
    """Return the optimizer of a network and its auxiliary head.

    AdamW decays kernels only, SGD everything. With ``encoder_lr`` other than 1 the encoder has groups of its own.
    """
    named = list(net.named_parameters())
    encoder, head = [p for name, p in named if not name.startswith(HEAD)], [p for n, p in named if n.startswith(HEAD)]
    beside = [] if auxiliary is None else list(auxiliary.parameters())
    if config.encoder_lr == 1:
        parts = [(1.0, [p for _, p in named] + beside)]
    else:
        parts = [(config.encoder_lr, encoder), (1.0, head + beside)]
    groups = [group for factor, parameters in parts for group in _groups(config, factor, parameters)]
    # `foreach` computes the same bits as a loop over the parameters, in a tenth of the calls.
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, foreach=True)
    return torch.optim.AdamW(groups, config.lr, foreach=True)


def _groups(config: TrainConfig, factor: float, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    extra = {} if factor == 1 else {_FACTOR: factor}
    if config.optimizer == "sgd":
        return [{"params": parameters, "weight_decay": config.decay, **extra}]
    decayed, free = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    return [
        {"params": decayed, "weight_decay": config.decay, **extra},
        {"params": free, "weight_decay": 0.0, **extra},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups the learning rate of a step, times their own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_FACTOR, 1.0)


def clip(parameters: Iterable[nn.Parameter], norm: float) -> None:
    """Scale gradients to a norm of at most `norm`; 0 leaves them."""
    if norm:
        nn.utils.clip_grad_norm_(list(parameters), norm)
