"""Gradients of the validation loss with respect to the alphas: at the present weights, or after one weight step.

All losses here are functions of weights and logits that are handed in, so nothing is ever written to the network: its
weights cannot be left moved, its BatchNorm statistics do not advance, and there is no copy of it, only lists of
tensors. What no gradient is wanted for does not require one, so nothing is computed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hwnas.learn.device import read
from hwnas.learn.distributed import ALONE, World

Values = Mapping[str, Tensor]
Loss = Callable[[Values, Values], Tensor]  # of weights and logits; several of them are the parts of one batch
Grads = list[Tensor | None]  # None: the loss does not read it
Order = Literal["first", "second", "second-exact"]
STEP = 0.01  # length of the step of finite differences, over the norm of their direction (DARTS, footnote 2)


@dataclass(frozen=True)
class WeightStep:
    """The step of SGD that the second order unrolls, without the clipping of gradients, as in DARTS' code.

    Attributes:
        lr: Learning rate of weights now.
        momentum: Factor of the buffers.
        decay: Weight decay.
        buffers: Momentum buffers by the names of weights; one that is missing is 0.
    """

    lr: float
    momentum: float = 0.0
    decay: float = 0.0
    buffers: Values = field(default_factory=dict)


class Gradient(NamedTuple):
    """The validation loss where its gradient was taken, and the gradient by group."""

    loss: Tensor  # (), float64, where the network computes; nobody has read it
    logits: dict[str, Tensor]


def alpha_gradient(
    order: Order,
    val: Sequence[Loss],
    train: Sequence[Loss],
    weights: Values,
    logits: Values,
    step: WeightStep,
    world: World = ALONE,
) -> Gradient:
    """Return the gradient of the validation loss with respect to the logits.

    Args:
        order: ``"first"`` takes it at `weights` (xi = 0). The others take it at ``w' = w - lr * (momentum * buffer +
            grad L_train(w) + decay * w)`` and add how w' depends on the logits (DARTS, equations 6 to 8):
            ``"second"`` by finite differences at `weights`, ``"second-exact"`` by differentiating twice.
        val: The parts of the validation batch; their mean is the loss.
        train: The parts of the training batch; not evaluated in first order.
        weights: Of the supernet; not changed.
        logits: Of the alphas; not changed.
        step: The weight step to unroll.
        world: The processes that share each batch: their losses are summed.
    """
    if order == "first":
        loss, _, direct = _grads(val, weights, logits, world, of_weights=False, of_logits=True)
        return Gradient(loss, _by_group(direct, logits))
    _, grads, _ = _grads(train, weights, logits, world, of_weights=True, of_logits=False)
    ahead = _unrolled(weights, grads, step)
    loss, v, direct = _grads(val, ahead, logits, world, of_weights=True, of_logits=True)
    mixed = _mixed_exact if order == "second-exact" else _mixed_by_differences
    through = mixed(train, weights, logits, v, world)
    return Gradient(loss, {k: g - step.lr * through[k] for k, g in _by_group(direct, logits).items()})


def _grads(
    losses: Sequence[Loss], weights: Values, logits: Values, world: World, of_weights: bool, of_logits: bool
) -> tuple[Tensor, Grads, Grads]:
    """Return the mean of the losses and its derivatives by weights and by logits, in their order; of all processes."""
    w, a = _leaves(weights, of_weights), _leaves(logits, of_logits)
    inputs = [*(w.values() if of_weights else ()), *(a.values() if of_logits else ())]
    total, sums = list[Tensor](), Grads([None] * len(inputs))
    for loss in losses:
        value = loss(w, a) / len(losses)
        total.append(value.detach().double())
        sums = _plus(sums, torch.autograd.grad(value, inputs, allow_unused=True))
    n = len(w) if of_weights else 0
    sums = _of_all(sums, world)
    return world.total(summed(total)), sums[:n], sums[n:]


def _of_all(sums: Grads, world: World) -> Grads:
    """Return gradients summed over processes; which there are is the same in each."""
    whole = iter(world.reduced([s for s in sums if s is not None]))
    return [None if s is None else next(whole) for s in sums]


def summed(losses: Sequence[Tensor]) -> Tensor:
    """Return the sum of the parts of a loss in their order, ()."""
    return sum(losses[1:], losses[0])


def _unrolled(weights: Values, grads: Grads, step: WeightStep) -> Values:
    """Return the weights after a step; those that the loss does not read stay, as they do in the real step."""
    moved = {k: g for k, g in zip(weights, grads, strict=True) if g is not None}
    old = [weights[k].detach() for k in moved]
    direction = torch._foreach_add(list(moved.values()), old, alpha=step.decay)
    pushed = [(d, step.buffers[k]) for k, d in zip(moved, direction, strict=True) if k in step.buffers]
    if pushed:
        torch._foreach_add_([d for d, _ in pushed], [b for _, b in pushed], alpha=step.momentum)
    return {**weights, **dict(zip(moved, torch._foreach_add(old, direction, alpha=-step.lr), strict=True))}


def _mixed_by_differences(
    train: Sequence[Loss], weights: Values, logits: Values, v: Grads, world: World
) -> dict[str, Tensor]:
    """Return ``(grad_alpha L(w + eps v) - grad_alpha L(w - eps v)) / (2 eps)`` with eps = 0.01 / |v|, at w, not w'.

    Kinks of ReLU and max pooling within that distance dominate its error. The norm of v is read from the device: eps is
    a factor in many sums, and a number there is rounded once less than a tensor.
    """
    along = {k: g for k, g in zip(weights, v, strict=True) if g is not None}
    norm = float(read(torch.stack([n.double() for n in torch._foreach_norm(list(along.values()))]).norm()))
    if norm == 0:
        return {k: torch.zeros_like(a) for k, a in logits.items()}
    eps = STEP / norm
    ends = []
    for way in (eps, -eps):
        moved = torch._foreach_add([weights[k].detach() for k in along], list(along.values()), alpha=way)
        at = {**weights, **dict(zip(along, moved, strict=True))}
        ends.append(_by_group(_grads(train, at, logits, world, of_weights=False, of_logits=True)[2], logits))
    forward, backward = ends
    return {k: (forward[k] - backward[k]) / (2 * eps) for k in logits}


def _mixed_exact(train: Sequence[Loss], weights: Values, logits: Values, v: Grads, world: World) -> dict[str, Tensor]:
    """Return ``grad_alpha (v . grad_w L(w, alpha))``: no graph has to reach here from the validation loss."""
    w, a = _leaves(weights, True), _leaves(logits, True)
    sums = Grads([None] * len(a))
    for loss in train:
        grads = torch.autograd.grad(loss(w, a) / len(train), list(w.values()), create_graph=True, allow_unused=True)
        products = [(g * d).sum() for g, d in zip(grads, v, strict=True) if g is not None and d is not None]
        if any(p.requires_grad for p in products):
            along = torch.stack(products).sum()
            sums = _plus(sums, torch.autograd.grad(along, list(a.values()), allow_unused=True))
    return _by_group(_of_all(sums, world), logits)


def _leaves(values: Values, requires_grad: bool) -> dict[str, Tensor]:
    return {k: p.detach().requires_grad_(requires_grad) for k, p in values.items()}


def _plus(sums: Grads, more: Sequence[Tensor | None]) -> Grads:
    return [g if s is None else s if g is None else s + g for s, g in zip(sums, more, strict=True)]


def _by_group(grads: Grads, logits: Values) -> dict[str, Tensor]:
    """Name the gradients of logits; where the loss reads none, as where `none` was sampled, they are 0."""
    return {k: torch.zeros_like(a) if g is None else g for (k, a), g in zip(logits.items(), grads, strict=True)}
