"""Bilevel search by gradient descent: weights on one half of the training set, alphas on the other (DARTS)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas import checkpoint
from hwnas.arch import Group
from hwnas.data.augment import BatchSource
from hwnas.data.base import SegmentationData, split_halves
from hwnas.errors import HwnasError
from hwnas.search.objective import task_loss
from hwnas.seeding import seeded
from hwnas.spaces.base import Scale, SearchSpace
from hwnas.steplog import StepLog
from hwnas.ui import Update, ignore

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; the defaults are those of DARTS (section 3.1 and its code), the steps are the recipe's.

    Attributes:
        scale: Of the supernet: the proxy the search runs at.
        steps: Weight steps in all.
        warmup: First steps in which alphas stay where they are.
        batch: Images a step, for weights and for alphas each.
        crop: (height, width) of training crops.
        w_lr: Learning rate of weights at the start; cosine to `w_lr_end`.
        w_lr_end: At the end.
        w_momentum: Of SGD.
        w_decay: Weight decay of weights.
        w_clip: Gradient norm of weights is clipped to this.
        alpha_lr: Learning rate of alphas (Adam, betas 0.5 and 0.999).
        alpha_decay: Weight decay of alphas.
        latency_weight: See `LatencyTerm`.
        seed: Of everything random.
    """

    scale: Scale
    steps: int
    warmup: int
    batch: int
    crop: tuple[int, int]
    w_lr: float = 0.025
    w_lr_end: float = 0.001
    w_momentum: float = 0.9
    w_decay: float = 3e-4
    w_clip: float = 5.0
    alpha_lr: float = 3e-4
    alpha_decay: float = 1e-3
    latency_weight: float = 0.1
    seed: int = 2


class Alphas(nn.Module):
    """The logits of a space's decisions, one matrix per group."""

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        """Initialise with 1e-3 * N(0, 1), as DARTS does."""
        super().__init__()
        rng = np.random.default_rng(seed)
        self.logits = nn.ParameterDict(
            {g.name: nn.Parameter(torch.from_numpy(1e-3 * rng.standard_normal(g.shape)).float()) for g in groups}
        )

    def forward(self) -> dict[str, Tensor]:
        """Return ``{group: (decisions, options)}`` after the softmax over options."""
        return {name: torch.softmax(a, dim=-1) for name, a in self.logits.items()}

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the logits as arrays."""
        return {name: a.detach().numpy().copy() for name, a in self.logits.items()}


def alpha_gradients(
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    alphas: Alphas,
    penalty: Callable[[Mapping[str, Tensor]], Tensor] | None,
) -> float:
    """Set the gradients of alphas to those of the validation loss at the present weights: first order, xi = 0.

    Weights get no gradient, and none is computed for them.

    Args:
        loss: Of the probabilities, on a validation batch.
        alphas: Their ``grad`` is set.
        penalty: Added to the loss, e.g. a `LatencyTerm`.

    Returns:
        The loss without the penalty.
    """
    probs = alphas()
    value = loss(probs)
    total = value if penalty is None else value + penalty(probs)
    parameters = list(alphas.parameters())
    for a, g in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
        a.grad = g
    return float(value.detach())


class BilevelSearch:
    """The state of a search and its two kinds of steps, alphas first, then weights."""

    def __init__(
        self,
        space: SearchSpace,
        config: SearchConfig,
        data: SegmentationData,
        penalty: Callable[[Mapping[str, Tensor]], Tensor] | None,
    ) -> None:
        """Build the supernet at the proxy scale and split the training set in two.

        Args:
            space: At any scale.
            config: The settings.
            data: The training set.
            penalty: Latency term of the objective, or None.
        """
        self.config = config
        self.penalty = penalty
        with seeded(config.seed):
            net = space.at(config.scale).build(form="search")
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.alphas = Alphas(space.groups, config.seed)
        for_weights, for_alphas = split_halves(len(data), config.seed)
        # A seed of its own: the two streams must not pick the same crops.
        self.weight_batches = BatchSource(data, for_weights, config.batch, config.crop, 2 * config.seed)
        self.alpha_batches = BatchSource(data, for_alphas, config.batch, config.crop, 2 * config.seed + 1)
        self.w_optimizer = torch.optim.SGD(
            self.net.parameters(), config.w_lr, momentum=config.w_momentum, weight_decay=config.w_decay
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas.parameters(), config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_decay
        )
        self.step = 0

    def advance(self) -> dict[str, float]:
        """Do one step of alphas (after the warm-up) and one of weights; return what happened."""
        c = self.config
        metrics: dict[str, float] = {"step": self.step}
        self.net.train()
        if self.step >= c.warmup:
            images, labels = _tensors(self.alpha_batches(self.step))
            metrics["val_loss"] = alpha_gradients(
                lambda probs: task_loss(self.net(images, probs), labels), self.alphas, self.penalty
            )
            self.alpha_optimizer.step()
        lr = c.w_lr_end + (c.w_lr - c.w_lr_end) * (1 + math.cos(math.pi * self.step / c.steps)) / 2
        for group in self.w_optimizer.param_groups:
            group["lr"] = lr
        images, labels = _tensors(self.weight_batches(self.step))
        with torch.no_grad():
            probs = self.alphas()
            if self.penalty is not None:
                metrics["penalty"] = float(self.penalty(probs))
        loss = task_loss(self.net(images, probs), labels)
        self.w_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), c.w_clip)
        self.w_optimizer.step()
        self.step += 1
        metrics["train_loss"] = float(loss.detach())
        if not math.isfinite(metrics["train_loss"]):
            raise HwnasError(f"the search diverged: loss {metrics['train_loss']} at step {self.step}; lower its w_lr")
        return metrics

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from; batches are functions of the step."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "alphas": self.alphas.state_dict(),
            "w_optimizer": self.w_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step = int(state["step"])
        self.net.load_state_dict(state["net"])
        self.alphas.load_state_dict(state["alphas"])
        self.w_optimizer.load_state_dict(state["w_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])


def search(
    bilevel: BilevelSearch, path: Path, settings: object, log: StepLog, update: Update = ignore
) -> dict[str, np.ndarray]:
    """Run a search to its end, from its checkpoint if there is one.

    Args:
        bilevel: The search.
        path: Of the checkpoint, written every 10 steps.
        settings: What a checkpoint must have been made with, beside the search's own configuration.
        log: Gets the metrics of each step.
        update: Told after each step.

    Returns:
        The logits by group.

    Raises:
        HwnasError: If the checkpoint is damaged or of other settings.
    """
    said = {"config": asdict(bilevel.config), "settings": settings}
    state = checkpoint.load(path, said)
    if state is not None:
        bilevel.restore(state)
    log.start(bilevel.step)
    update(bilevel.step)
    while bilevel.step < bilevel.config.steps:
        metrics = bilevel.advance()
        log.append(metrics)
        update(bilevel.step, f"loss {metrics['train_loss']:.3f}")
        if bilevel.step % 10 == 0 or bilevel.step == bilevel.config.steps:
            checkpoint.save(path, bilevel.state(), said)
    return bilevel.alphas.numpy()


def _tensors(batch: tuple[np.ndarray, np.ndarray]) -> Batch:
    images, labels = batch
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)
