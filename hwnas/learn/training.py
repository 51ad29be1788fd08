"""Training of a derived network, in its deploy form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from hwnas import checkpoint
from hwnas.data.augment import batch_source
from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, SegmentationData, task_of
from hwnas.errors import DataError, HwnasError
from hwnas.files import write_atomic
from hwnas.images import normalise
from hwnas.learn.losses import task_loss, tensors
from hwnas.metrics import ConfusionMatrix, score_of
from hwnas.ops.drop_path import set_drop_path
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.seeding import seeded
from hwnas.spaces import Form, Space
from hwnas.steplog import StepLog

Optimizer = Literal["adamw", "sgd"]
MOMENTUM = 0.9  # of SGD
CLIP = 5.0  # norm of the gradients of a step
EVALUATED = 64  # images at once, where they are classified: all of one size, and small
_DROP_PATH = 2  # a stream of random numbers of its own, beside order and augmentation


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; with ``optimizer="sgd"`` those of DARTS (appendix A.2) but for what is 0 by default.

    Attributes:
        steps: Weight steps.
        batch: Images a step, times `accumulate`.
        crop: (height, width) of training crops.
        lr: Peak learning rate: cosine to 0; of AdamW after a linear warm-up over 5 % of the steps.
        decay: Weight decay; of AdamW none on BatchNorm and biases, of SGD on everything.
        evaluate_every: Steps between evaluations on val; the best one's weights are kept.
        seed: Of weights, order, augmentation and drop path.
        optimizer: ``"adamw"``, or ``"sgd"`` with a momentum of 0.9. Gradients are clipped to a norm of 5 in both.
        accumulate: Batches whose gradients are averaged in one step.
        aux_weight: What the loss of an auxiliary head counts, 0 for none; see `Space.build_auxiliary`.
        drop_path: Probability that an edge is left out, at the end of the training: it grows from 0 linearly.
        cutout: Side of the square cut out of images that are classified, in pixels.
        smoothing: Of labels.
        bf16: Compute the network in bfloat16 where torch's autocast does; weights stay in float32.
        checkpoint_every: Steps between checkpoints.

    Raises:
        HwnasError: If a setting is out of range.
    """

    steps: int
    batch: int
    crop: tuple[int, int]
    lr: float = 4e-3
    decay: float = 1e-2
    evaluate_every: int = 100
    seed: int = 0
    optimizer: Optimizer = "adamw"
    accumulate: int = 1
    aux_weight: float = 0.0
    drop_path: float = 0.0
    cutout: int = 0
    smoothing: float = 0.0
    bf16: bool = False
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch, self.accumulate, self.evaluate_every, self.checkpoint_every)
        shares = (self.drop_path, self.smoothing)
        optimizers = get_args(Optimizer)
        good = {
            "steps, batch, accumulate, evaluate_every and checkpoint_every of 1 or more": min(counts) >= 1,
            "drop_path and smoothing from 0 to less than 1": min(shares) >= 0 and max(shares) < 1,
            "an aux_weight of 0 or more": self.aux_weight >= 0,
            f"an optimizer of {', '.join(optimizers)}": self.optimizer in optimizers,
        }
        wrong = next((what for what, holds in good.items() if not holds), None)
        if wrong is not None:
            raise HwnasError(f"a training needs {wrong}; got {self}")


def class_weights(data: SegmentationData, sample: int = 64) -> Tensor:
    """Return ``1 / ln(1.02 + share of pixels)`` per class (ENet, section 4), from up to `sample` images.

    Returns:
        (K,), scaled to mean 1 over pixels, so that the loss keeps its size.

    Raises:
        DataError: If none of these images has a labelled pixel.
    """
    counts = np.zeros(len(data.classes.names))
    for i in np.linspace(0, len(data) - 1, min(sample, len(data))).astype(int):
        label = data[int(i)].label
        counts += np.bincount(label[label != IGNORE_LABEL].reshape(-1), minlength=len(counts))
    if not counts.any():
        raise DataError(f"expected labels in {data.name}, got void pixels only; check the label files")
    share = counts / counts.sum()
    weights = 1 / np.log(1.02 + share)
    return torch.from_numpy(weights / (weights @ share)).float()


def evaluate(network: Callable[[Tensor], Tensor], data: SegmentationData, update: Update = ignore) -> ConfusionMatrix:
    """Run a network over a whole split: one image at a time at its own size, or `EVALUATED` where they are classified.

    Args:
        network: From (N, 3, H, W) to labels (N, H, W) or (N,), or to scores (N, K, H, W) or (N, K).
        data: The split.
        update: Told after each batch.
    """
    confusion = ConfusionMatrix(len(data.classes.names))
    n = EVALUATED if task_of(data) is CLASSIFICATION else 1
    with torch.no_grad():
        for first in range(0, len(data), n):
            samples = [data[i] for i in range(first, min(first + n, len(data)))]
            images = np.stack([normalise(s.image, data.mean, data.std) for s in samples])
            out = network(torch.from_numpy(images))
            labels = out.argmax(1) if out.is_floating_point() else out
            confusion.update(labels.numpy(), np.stack([s.label for s in samples]))
            update(first + len(samples))
    return confusion


class Training:
    """The state of a training and its step."""

    def __init__(
        self, space: Space, arch: Architecture, config: TrainConfig, data: SegmentationData, form: Form = "deploy"
    ) -> None:
        """Build the network at the space's scale.

        Args:
            space: At the deployment scale.
            arch: Complete.
            config: The settings.
            data: The training set.
            form: Of the network.
        """
        self.config = config
        self.task = task_of(data)
        with seeded(config.seed):
            net = space.build(arch, form=form)
            # Not a module of the network, so that it is never exported.
            self.auxiliary = space.build_auxiliary(arch) if config.aux_weight else None
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches = batch_source(
            data, range(len(data)), config.batch, config.crop, config.seed, cutout=config.cutout
        )
        self.weights = None if self.task is CLASSIFICATION else class_weights(data)
        self.optimizer = _optimizer(config, self._parameters())
        self.step = 0
        self.best_score = -1.0
        self.best: dict[str, Tensor] = {}

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.net.parameters(), *(self.auxiliary.parameters() if self.auxiliary is not None else ())]

    def advance(self) -> float:
        """Do one step and return its loss."""
        c = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(c, self.step)
        set_drop_path(self.net, c.drop_path * self.step / c.steps)
        self.net.train()
        self.optimizer.zero_grad()
        value = sum(self._backward(self.step * c.accumulate + k) for k in range(c.accumulate))
        nn.utils.clip_grad_norm_(self._parameters(), CLIP)
        self.optimizer.step()
        self.step += 1
        if not math.isfinite(value):
            raise HwnasError(f"the training diverged: loss {value} at step {self.step}; lower its learning rate")
        return value

    def _backward(self, number: int) -> float:
        """Add the gradients of batch `number` to those there are, and return its share of the loss."""
        c = self.config
        images, labels = tensors(self.batches(number))
        seed = int(np.random.SeedSequence([c.seed, _DROP_PATH, number]).generate_state(1)[0])
        with seeded(seed), torch.autocast(images.device.type, torch.bfloat16, enabled=c.bf16):
            if self.auxiliary is None:
                outputs = [(1.0, self.net(images))]
            else:
                scores, tap = self.net.with_auxiliary(images)
                outputs = [(1.0, scores), (c.aux_weight, self.auxiliary(images, tap))]
        losses = [w * task_loss(scores.float(), labels, self.weights, c.smoothing) for w, scores in outputs]
        loss = torch.stack(losses).sum() / c.accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def judge(self, val: SegmentationData) -> float:
        """Evaluate on val, keep the weights if they are the best so far, and return the score of the task."""
        self.net.eval()
        score = score_of(evaluate(self.net, val), self.task)
        if score > self.best_score:
            self.best_score = score
            self.best = {k: v.detach().clone().contiguous() for k, v in self.net.state_dict().items()}
        return score

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from; batches are functions of the step."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "auxiliary": {} if self.auxiliary is None else self.auxiliary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_score": self.best_score,
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step, self.best_score, self.best = int(state["step"]), float(state["best_score"]), dict(state["best"])
        self.net.load_state_dict(state["net"])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.optimizer.load_state_dict(state["optimizer"])


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: cosine to 0, for AdamW after a linear warm-up."""
    rate = (1 + math.cos(math.pi * step / config.steps)) / 2
    if config.optimizer == "adamw":
        rate = min((step + 1) / max(1, config.steps // 20), rate)
    return config.lr * rate


def _optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=MOMENTUM, weight_decay=config.decay)
    decayed, free = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.lr)


def train(
    training: Training, val: SegmentationData, folder: Path, settings: object, log: StepLog, update: Update = ignore
) -> float:
    """Train to the end, from the checkpoint if there is one, and write the best weights.

    Args:
        training: The training.
        val: What the best weights are chosen on.
        folder: Gets ``checkpoint.pt`` and at the end ``model.safetensors``.
        settings: What a checkpoint must have been made with, beside the training's own configuration.
        log: Gets loss, and the score where it was evaluated: ``val_miou`` or ``val_accuracy``.
        update: Told after each step.

    Returns:
        The best score on val.

    Raises:
        HwnasError: If the checkpoint is damaged or of other settings, or the loss is no longer finite.
    """
    c = training.config
    path, run_settings = folder / "checkpoint.pt", {"config": asdict(c), "settings": settings}
    state = checkpoint.load(path, run_settings)
    if state is not None:
        training.restore(state)
    log.start(training.step)
    note = ""
    update(training.step)
    while training.step < c.steps:
        step = training.step
        metrics = {"step": step, "loss": training.advance()}
        due = training.step % c.evaluate_every == 0 or training.step == c.steps
        if due:
            score = metrics[f"val_{training.task.metric}"] = training.judge(val)
            note = f", val {training.task.title} {score:.3f}"
        log.append(metrics)
        update(training.step, f"loss {metrics['loss']:.3f}{note}")
        if due or training.step % c.checkpoint_every == 0:
            checkpoint.save(path, training.state(), run_settings)
    write_atomic(folder / "model.safetensors", save_safetensors(training.best))
    return training.best_score
