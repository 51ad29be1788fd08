"""Search by gradient descent: weights on one half of the training set, alphas on the other, or both on all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.data.augment import batch_source
from hwnas.data.base import SegmentationData, split_halves
from hwnas.errors import HwnasError
from hwnas.learn.batches import Batches, Source
from hwnas.learn.device import CPU, Context, read
from hwnas.learn.distributed import ALONE, World
from hwnas.learn.losses import Batch, task_loss
from hwnas.ops.synced import synchronise
from hwnas.problem import Architecture, Probabilities
from hwnas.search.bilevel import Gradient, Loss, Values, WeightStep, alpha_gradient, summed
from hwnas.search.config import SearchConfig
from hwnas.search.costs import Bound, Cost
from hwnas.search.derive import strongest
from hwnas.search.functional import Functional
from hwnas.search.guards import decidedness
from hwnas.search.logits import Drawable
from hwnas.search.multiplier import Multiplier
from hwnas.search.relax import FOR_ALPHAS, FOR_WEIGHTS, Moment, on, open_logits
from hwnas.search.strategy import Findings, Inputs, Search
from hwnas.seeding import seeded
from hwnas.spaces import Space
from hwnas.spaces.cell import set_evaluation

__all__ = ["BilevelSearch", "SearchConfig"]

SNAPSHOTS = 200  # of the probabilities in the log of a search, at most and one: enough for a picture
DIGITS = 4  # that they are logged with


class BilevelSearch(Search):
    """The state of a search and its step: alphas first, then weights, or both at once.

    BatchNorm computes with the statistics of the batch throughout; its running statistics follow the weight steps and
    nothing else. The network, its optimiser and its batches are on a device; logits, cost and guards are on the host.

    Attributes:
        context: Where the network computes.
        multiplier: The learned one, 0 where none is.
        weight: Of the cost now.
        stopped: Why the search ended before its last step, None if it did not.
    """

    title, remedy = "search", "lower its w_lr"

    def __init__(
        self,
        space: Space,
        config: SearchConfig,
        data: SegmentationData,
        bounds: Sequence[Bound] = (),
        fixed: Architecture | None = None,
        open_groups: Sequence[str] = (),
        weights: Mapping[str, Tensor] | None = None,
        device: torch.device = CPU,
        workers: int | None = 0,
        world: World = ALONE,
    ) -> None:
        """Build the supernet at the proxy scale and split the training set.

        Args:
            space: At any scale.
            config: The settings.
            data: The training set.
            bounds: What the objective holds networks to.
            fixed: Answers that are not searched: those of an earlier stage. The supernet mixes the others.
            open_groups: Names of the groups that are searched; none for all. The options of others are mixed evenly.
            weights: Of another supernet of the same scale, to start from, by name; what it lacks starts at random.
            device: Where the supernet computes.
            workers: Processes that make batches ahead, for weights and for alphas each; None for as many as help.
            world: The processes that search together, with a part of each batch in each.

        Raises:
            HwnasError: If no decision is open, the fixed answers break a rule, the weights are those of another
                scale, or the processes cannot share a batch evenly.
        """
        world.share(config.batch, "a search")
        self.world = world
        self.config, self.space = config, space
        inputs = Inputs(space, data, bounds, tuple(open_groups), fixed, weights)
        self.problem, searched = inputs.problem, inputs.groups
        self._searched = tuple(g.name for g in searched)
        self.cost = Cost(config.cost, bounds) if bounds else None
        config.guards.check(self.problem.groups)
        with seeded(config.seed):
            net = space.at(config.scale).build(fixed, form="search")
        synchronise(net, world.size)
        self.context = Context(device, config.precision)
        self.net = self.context.module(net)
        set_evaluation(self.net, config.evaluation)
        self.net.train()
        if weights is not None:
            _start_from(self.net, weights)
        self._weights = dict(self.net.named_parameters())  # by name: collecting them takes longer than a cell
        self.alphas = config.logits.build(searched, config.seed)
        self._even = {g.name: torch.zeros(g.shape) for g in self.problem.groups if g not in searched}
        self._functional = Functional(self.net)
        for_weights, for_alphas = split_halves(len(data), config.seed)
        if config.level == "single":
            for_weights = sorted(for_weights + for_alphas)
        # A seed of its own: the two streams must not pick the same crops.
        settings = (config.batch, config.crop)
        self.weight_batches, self.alpha_batches = (
            world.source(batch_source(data, half, *settings, 2 * config.seed + i, cutout=config.cutout))
            for i, half in enumerate((for_weights, for_alphas))
        )
        self._made = Batches(device, workers)
        self.w_optimizer = torch.optim.SGD(
            self._weights.values(), config.w_lr, momentum=config.w_momentum, weight_decay=config.w_decay
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas.parameters(), config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_decay
        )
        self.step = 0
        weight = config.cost.weight
        self.multiplier, self.weight = 0.0, 0.0 if isinstance(weight, Multiplier) else weight
        self.stopped: str | None = None
        self._last_checked, self._unchanged = "", 0

    @property
    def strategy(self) -> SearchConfig:
        """Its settings."""
        return self.config

    def logits(self) -> dict[str, Tensor]:
        """Return ``{group: (decisions, options)}`` of all groups, differentiable: -inf for closed options."""
        return self._completed(self.alphas())

    def _completed(self, own: Values) -> dict[str, Tensor]:
        """Return the logits of all groups from those that the model gives."""
        return open_logits({**self._even, **own}, self.problem.groups)

    def findings(self) -> Findings:
        """Return the logits of the groups that are searched, and their probabilities by the relaxation."""
        with torch.no_grad():
            own = self.alphas()
            probs = self.config.relaxation.probs(self._completed(own))
        return Findings(
            {name: probs[name].detach().float().cpu().numpy().copy() for name in own},
            {name: a.detach().float().cpu().numpy().copy() for name, a in own.items()},
        )

    def advance(self) -> dict[str, Any]:
        """Do one step of alphas (after the warm-up) and one of weights; return what happened, losses as tensors ().

        Of the device nothing is read but the gradient of the logits, once for each pass that has one, the norm that
        the second order by differences divides by, and the loss where the cost multiplies it.
        """
        c = self.config
        lr = c.w_lr_end + (c.w_lr - c.w_lr_end) * (1 + math.cos(math.pi * self.step / c.steps)) / 2
        for group in self.w_optimizer.param_groups:
            group["lr"] = lr
        metrics: dict[str, Any] = {"step": self.step, "w_lr": lr}
        trains_alphas = self.step >= c.warmup
        batches = self._batches(self.weight_batches)
        if trains_alphas and c.level == "bilevel":
            gradient = self._alpha_gradient(batches, lr)
            metrics["val_loss"] = gradient.loss
            self._move_alphas(gradient)
        gradient = self._move_weights(batches)
        metrics["train_loss"] = gradient.loss
        if trains_alphas and c.level == "single":
            self._move_alphas(gradient)
        metrics |= self._monitor(trains_alphas)
        self.step += 1
        return metrics

    def _batches(self, source: Source) -> list[Batch]:
        first = self.step * self.config.accumulate
        return [self.context.batch(self._made(source, first + j)) for j in range(self.config.accumulate)]

    def _losses(self, batches: Sequence[Batch], stream: int) -> list[Loss]:
        """Return the loss on each batch, as a function of weights and logits."""

        def on(part: int, batch: Batch) -> Loss:
            return lambda weights, logits: self._loss(weights, logits, batch, self._moment(stream, part))

        return [on(part, batch) for part, batch in enumerate(batches)]

    def _moment(self, stream: int, part: int) -> Moment:
        return Moment(self.config.seed, self.step, self.config.steps, stream, part)

    def _loss(self, weights: Values | None, logits: Values, batch: Batch, at: Moment) -> Tensor:
        """Return the task loss of the supernet, with its own weights if none are given."""
        c = self.config
        images, labels = batch
        mixture = c.guards.assist(c.relaxation.weights(logits, at), self.problem.groups, at.progress)
        options = {"sampled": on(mixture)} if c.relaxation.sampled else {}
        mixture = self.context.mixture(mixture)
        with self.context.autocast():
            if weights is None:
                scores = self.net(images, mixture, **options)
            else:
                scores = self._functional(weights, images, mixture, **options)
        return task_loss(scores.float() if scores.dtype is torch.bfloat16 else scores, labels, world=self.world)

    def _alpha_gradient(self, batches: Sequence[Batch], lr: float) -> Gradient:
        """Return the gradient of the task loss on a batch of the alphas' half."""
        state = self.w_optimizer.state
        buffers = {k: b for k, p in self._weights.items() if (b := state[p].get("momentum_buffer")) is not None}
        return alpha_gradient(
            self.config.order,
            self._losses(self._batches(self.alpha_batches), FOR_ALPHAS),
            self._losses(batches, FOR_WEIGHTS),
            self._weights,
            self.logits(),
            WeightStep(lr, self.config.w_momentum, self.config.w_decay, buffers),
            self.world,
        )

    def _move_alphas(self, task: Gradient) -> None:
        """Add the gradients of the cost and of the relaxation to that of the task loss, and step."""
        own, relaxation = self.alphas(), self.config.relaxation
        logits = {name: a.detach().requires_grad_() for name, a in self._completed(own).items()}
        # A sum has the same gradients at any loss: it is read where the cost multiplies it.
        loss = float(read(task.loss)) if self.cost is not None and self.cost.multiplies else 0.0
        value = torch.tensor(loss, requires_grad=True)
        total: Tensor = value
        if self.cost is not None:
            total = self.cost.total(value, self._probs(logits), self.weight)
        total = total + relaxation.own_loss(logits)
        # The first gradient is that of the total by the task loss: not 1 where the cost is a product.
        scale, *grads = torch.autograd.grad(total, [value, *logits.values()], materialize_grads=True)
        through = {name: scale * task.logits[name] + g for name, g in zip(logits, grads, strict=True)}
        self.alpha_optimizer.zero_grad()
        torch.autograd.backward(list(own.values()), [through[name] for name in own])
        self.alpha_optimizer.step()

    def _move_weights(self, batches: Sequence[Batch]) -> Gradient:
        """Step the weights; in a single-level search, return the gradient of the alphas from the same passes."""
        single = self.config.level == "single"
        logits = {k: a.detach().requires_grad_(single) for k, a in self.logits().items()}
        self.w_optimizer.zero_grad()
        losses: list[Tensor] = []
        for part, batch in enumerate(batches):
            loss = self._loss(None, logits, batch, self._moment(FOR_WEIGHTS, part)) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach().double())
        self.world.reduce_gradients([*self._weights.values(), *logits.values()])
        nn.utils.clip_grad_norm_(self._weights.values(), self.config.w_clip)
        self.w_optimizer.step()
        return Gradient(
            self.world.total(summed(losses)),
            {k: torch.zeros_like(a) if a.grad is None else a.grad for k, a in logits.items()},
        )

    @torch.no_grad()
    def _monitor(self, trains_alphas: bool) -> dict[str, Any]:
        """Derive a network from the present probabilities; update the multiplier and the guards by it."""
        c = self.config
        probs = self._probs(self.logits())
        metrics: dict[str, Any] = decidedness(probs)
        arch = strongest(self.problem, probs)
        if self.cost is not None:
            expected = zip(self.cost.bounds, self.cost.expected(probs), strict=True)
            metrics |= {f"expected_{b.name}": float(e) for b, e in expected}
            usage = self.cost.usage(arch, self.problem)
            metrics |= {f"derived_{name}": amount for name, amount in usage.items()}
            metrics["lambda"] = self.weight
            if trains_alphas and isinstance(c.cost.weight, Multiplier):
                violation = self.cost.violation(usage)
                self.multiplier = c.cost.weight.ascend(self.multiplier, violation)
                self.weight = c.cost.weight.weight(self.multiplier, violation)
        if trains_alphas:
            self._check(arch)
        return metrics | self._snapshot(probs)

    def _snapshot(self, probs: Probabilities) -> dict[str, Any]:
        """Return what is logged now and then: probabilities by group, and at the end what the logits have to show."""
        last = self.stopped is not None or self.step + 1 == self.config.steps
        if not last and self.step % math.ceil(self.config.steps / SNAPSHOTS):
            return {}
        known = {name: probs[name].double().cpu().numpy() for name in self._searched}
        out: dict[str, Any] = {"probabilities": {name: np.round(p, DIGITS).tolist() for name, p in known.items()}}
        if last and isinstance(self.alphas, Drawable):
            out["drawings"] = [asdict(drawing) for drawing in self.alphas.drawings()]
        return out

    def _check(self, arch: Architecture) -> None:
        guards = self.config.guards
        if (self.step + 1) % guards.check_every == 0:
            self._unchanged = self._unchanged + 1 if arch.id == self._last_checked else 1
            self._last_checked = arch.id
            self.stopped = guards.reason(arch, self._unchanged, self.problem.groups)

    def _probs(self, logits: Values) -> Probabilities:
        """Return the probabilities that costs, guards and the derivation read."""
        return self.problem.pin(self.problem.probabilities(self.config.relaxation.probs(logits)))

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from; batches and samples are functions of the step."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "alphas": self.alphas.state_dict(),
            "w_optimizer": self.w_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "weight": [self.multiplier, self.weight],
            "checks": [self.stopped, self._last_checked, self._unchanged],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step = int(state["step"])
        self.net.load_state_dict(state["net"])
        self.alphas.load_state_dict(state["alphas"])
        self.w_optimizer.load_state_dict(state["w_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.multiplier, self.weight = state["weight"]
        self.stopped, self._last_checked, self._unchanged = state["checks"]

    def close(self) -> None:
        """End the processes that make batches."""
        self._made.close()


def _start_from(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what a supernet shares with another by name.

    Raises:
        HwnasError: If they share nothing, or one of the tensors has another shape.
    """
    own = net.state_dict()
    shared = {name: w for name, w in weights.items() if name in own}
    other = [name for name, w in shared.items() if w.shape != own[name].shape]
    if other or not shared:
        what = f"{other[0]} has another shape there" if other else "they share no name"
        raise HwnasError(f"the search cannot start from the weights of the earlier stage: {what}; give both one scale")
    net.load_state_dict(shared, strict=False)
