"""Training of a derived network, in its deploy form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from hwnas import checkpoint
from hwnas.arch import Architecture
from hwnas.data.augment import BatchSource, normalise
from hwnas.data.base import IGNORE_LABEL, SegmentationData
from hwnas.errors import DataError, HwnasError
from hwnas.files import write_atomic
from hwnas.metrics import ConfusionMatrix
from hwnas.search.objective import task_loss
from hwnas.seeding import seeded
from hwnas.spaces.base import SearchSpace
from hwnas.steplog import StepLog
from hwnas.ui import Update, ignore


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
        steps: Weight steps.
        batch: Images a step.
        crop: (height, width) of training crops.
        lr: Peak learning rate of AdamW: linear warm-up over 5 % of the steps, then cosine to 0.
        decay: Weight decay; none on BatchNorm and biases.
        evaluate_every: Steps between evaluations on val; the best one's weights are kept.
        seed: Of weights, order and augmentation.
    """

    steps: int
    batch: int
    crop: tuple[int, int]
    lr: float = 4e-3
    decay: float = 1e-2
    evaluate_every: int = 100
    seed: int = 0


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
    """Run a network over a whole split, one image at a time at its own size.

    Args:
        network: From (1, 3, H, W) to labels (1, H, W) or scores (1, K, H, W).
        data: The split.
        update: Told after each image.
    """
    confusion = ConfusionMatrix(len(data.classes.names))
    with torch.no_grad():
        for i in range(len(data)):
            image, label, _ = data[i]
            out = network(torch.from_numpy(normalise(image, data.mean, data.std))[None])
            confusion.update((out.argmax(1) if out.dim() == 4 else out)[0].numpy(), label)
            update(i + 1)
    return confusion


class Training:
    """The state of a training and its step."""

    def __init__(self, space: SearchSpace, arch: Architecture, config: TrainConfig, data: SegmentationData) -> None:
        """Build the network at the space's scale.

        Args:
            space: At the deployment scale.
            arch: Complete.
            config: The settings.
            data: The training set.
        """
        self.config = config
        with seeded(config.seed):
            net = space.build(arch, form="deploy")
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches = BatchSource(data, range(len(data)), config.batch, config.crop, config.seed)
        self.weights = class_weights(data)
        decayed = [p for p in self.net.parameters() if p.dim() > 1]
        free = [p for p in self.net.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.decay}, {"params": free, "weight_decay": 0.0}], config.lr
        )
        self.step = 0
        self.best_miou = -1.0
        self.best: dict[str, Tensor] = {}

    def advance(self) -> float:
        """Do one step and return its loss."""
        c = self.config
        warm = max(1, c.steps // 20)
        rate = min((self.step + 1) / warm, (1 + math.cos(math.pi * self.step / c.steps)) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = c.lr * rate
        images, labels = (torch.from_numpy(a) for a in self.batches(self.step))
        self.net.train()
        scores = self.net(images.contiguous(memory_format=torch.channels_last))
        loss = task_loss(scores, labels, self.weights)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise HwnasError(f"the training diverged: loss {value} at step {self.step}; lower its learning rate")
        return value

    def judge(self, val: SegmentationData) -> float:
        """Evaluate on val, keep the weights if they are the best so far, and return the mIoU."""
        self.net.eval()
        miou = evaluate(self.net, val).miou()
        if miou > self.best_miou:
            self.best_miou = miou
            self.best = {k: v.detach().clone().contiguous() for k, v in self.net.state_dict().items()}
        return miou

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from; batches are functions of the step."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_miou": self.best_miou,
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step, self.best_miou, self.best = int(state["step"]), float(state["best_miou"]), dict(state["best"])
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def train(
    training: Training, val: SegmentationData, folder: Path, settings: object, log: StepLog, update: Update = ignore
) -> float:
    """Train to the end, from the checkpoint if there is one, and write the best weights.

    Args:
        training: The training.
        val: What the best weights are chosen on.
        folder: Gets ``checkpoint.pt`` (every 20 steps) and at the end ``model.safetensors``.
        settings: What a checkpoint must have been made with, beside the training's own configuration.
        log: Gets loss, and mIoU where it was evaluated.
        update: Told after each step.

    Returns:
        The best mIoU on val.

    Raises:
        HwnasError: If the checkpoint is damaged or of other settings, or the loss is no longer finite.
    """
    c = training.config
    path, said = folder / "checkpoint.pt", {"config": asdict(c), "settings": settings}
    state = checkpoint.load(path, said)
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
            metrics["val_miou"] = training.judge(val)
            note = f", val mIoU {metrics['val_miou']:.3f}"
        log.append(metrics)
        update(training.step, f"loss {metrics['loss']:.3f}{note}")
        if due or training.step % 20 == 0:
            checkpoint.save(path, training.state(), said)
    write_atomic(folder / "model.safetensors", save_safetensors(training.best))
    return training.best_miou
