"""Training of a derived network, in its deploy form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hwnas.data.augment import batch_source
from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, SegmentationData, task_of
from hwnas.errors import DataError, HwnasError, check_ranges, not_below, positive
from hwnas.files import write_atomic
from hwnas.learn import loop
from hwnas.learn.batches import Batches
from hwnas.learn.device import CPU, Context, title
from hwnas.learn.evaluation import evaluate
from hwnas.learn.losses import task_loss
from hwnas.metrics import score_of
from hwnas.ops.drop_path import set_drop_path
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.seeding import seeded
from hwnas.spaces import Form, Space
from hwnas.steplog import StepLog

Optimizer = Literal["adamw", "sgd"]
# A further loss () of a step, from its images (N, 3, H, W) and the network's scores in float32: distillation.
Teacher = Callable[[Tensor, Tensor], Tensor]
MOMENTUM = 0.9  # of SGD
CLIP = 5.0  # norm of the gradients of a step
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
        checkpoint_every: Steps between checkpoints at most; they are more frequent where they cost little time.
        average: Decay of an exponential average of the weights, which is then what is evaluated and kept; 0 for none.

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
    average: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch, self.accumulate, self.evaluate_every, self.checkpoint_every)
        shares = (self.drop_path, self.smoothing, self.average)
        optimizers = get_args(Optimizer)
        good = {
            "steps, batch, accumulate, evaluate_every and checkpoint_every of 1 or more": min(counts) >= 1,
            "drop_path, smoothing and average from 0 to less than 1": min(shares) >= 0 and max(shares) < 1,
            "an aux_weight of 0 or more": self.aux_weight >= 0,
            f"an optimizer of {', '.join(optimizers)}": self.optimizer in optimizers,
        }
        check_ranges(
            "a training",
            *positive(self, ("lr",)),
            *not_below(self, ("decay", "cutout", "seed"), 0),
            ("a crop (height, width) of 1 or more", self.crop, len(self.crop) == 2 and min(self.crop) >= 1),
        )
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


class Training:
    """The state of a training and its step."""

    title, remedy = "training", "lower its learning rate"

    def __init__(
        self,
        space: Space,
        arch: Architecture,
        config: TrainConfig,
        data: SegmentationData,
        device: torch.device = CPU,
        workers: int | None = 0,
        teacher: Teacher | None = None,
        form: Form = "deploy",
    ) -> None:
        """Build the network at the space's scale.

        Args:
            space: At the deployment scale.
            arch: Complete.
            config: The settings.
            data: The training set.
            device: Where the network computes.
            workers: Processes that make batches ahead; None for as many as help.
            teacher: Adds a loss of its own, see `Teacher`.
            form: Of the network.
        """
        self.config = config
        self.context = Context(device, "bf16" if config.bf16 else "fp32")
        self.task = task_of(data)
        with seeded(config.seed):
            net = space.build(arch, form=form)
            # Not a module of the network, so that it is never exported.
            auxiliary = space.build_auxiliary(arch) if config.aux_weight else None
        self.averaged = _averaged(net, self.context, config.average) if config.average else None
        self.net = self.context.module(net)
        self.auxiliary = None if auxiliary is None else self.context.module(auxiliary)
        self.teacher = teacher
        self.batches = batch_source(
            data, range(len(data)), config.batch, config.crop, config.seed, cutout=config.cutout
        )
        self._made = Batches(device, workers)
        self.weights = None if self.task is CLASSIFICATION else self.context.tensor(class_weights(data))
        self.optimizer = _optimizer(config, self._parameters())
        self.step = 0
        self.best_score = -1.0
        self.best: dict[str, Tensor] = {}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Start from the weights of a part of the network, by name; the rest starts at random."""
        unknown = self.net.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, f"the network has no {unknown[0]}"

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.net.parameters(), *(self.auxiliary.parameters() if self.auxiliary is not None else ())]

    @property
    def finished(self) -> bool:
        """Whether there is no step left to do."""
        return self.step >= self.config.steps

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept: that of the averaged weights, where there are such."""
        network: nn.Module = self.net if self.averaged is None else self.averaged.module
        return network

    def advance(self) -> dict[str, Any]:
        """Do one step and return its number and its loss, a tensor (); nothing is read from the device."""
        c = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(c, self.step)
        set_drop_path(self.net, c.drop_path * self.step / c.steps)
        self.net.train()
        self.optimizer.zero_grad()
        losses = [self._backward(self.step * c.accumulate + k) for k in range(c.accumulate)]
        nn.utils.clip_grad_norm_(self._parameters(), CLIP)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.net)
        self.step += 1
        return {"step": self.step - 1, "loss": sum(losses[1:], losses[0])}

    def _backward(self, number: int) -> Tensor:
        """Add the gradients of batch `number` to those there are, and return its share of the loss, ()."""
        c = self.config
        images, labels = self.context.batch(self._made(self.batches, number))
        seed = int(np.random.SeedSequence([c.seed, _DROP_PATH, number]).generate_state(1)[0])
        with seeded(seed), self.context.autocast():
            if self.auxiliary is None:
                outputs = [(1.0, self.net(images))]
            else:
                scores, tap = self.net.with_auxiliary(images)  # type: ignore[operator]
                outputs = [(1.0, scores), (c.aux_weight, self.auxiliary(images, tap))]
        losses = [w * task_loss(scores.float(), labels, self.weights, c.smoothing) for w, scores in outputs]
        if self.teacher is not None:
            losses.append(self.teacher(images, outputs[0][1].float()))
        loss = torch.stack(losses).sum() / c.accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().double()

    def judge(self, val: SegmentationData) -> float:
        """Evaluate on val, keep the weights if they are the best so far, and return the score of the task."""
        network = self.judged.eval()
        score = score_of(evaluate(network, val, device=self.context.device), self.task)
        if score > self.best_score:
            self.best_score = score
            self.best = {k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}
        return score

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from; batches are functions of the step."""
        return {
            "step": self.step,
            "net": self.net.state_dict(),
            "auxiliary": {} if self.auxiliary is None else self.auxiliary.state_dict(),
            "averaged": {} if self.averaged is None else self.averaged.state_dict(),
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
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])

    def close(self) -> None:
        """End the processes that make batches."""
        self._made.close()


def _averaged(net: nn.Module, context: Context, decay: float) -> AveragedModel:
    """Return the exponential average of a network, of its BatchNorm statistics too; the first update copies it."""
    out = AveragedModel(
        net,
        multi_avg_fn=get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    context.module(out.module)  # alone: torch asks for the number of updates at each one, so that is on the host
    return out


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


class _Evaluated:
    """A training whose steps end in an evaluation where one is due."""

    def __init__(self, training: Training, val: SegmentationData) -> None:
        self.training, self.val = training, val
        self.title, self.remedy = training.title, training.remedy
        self.state, self.restore, self.close = training.state, training.restore, training.close
        self.score = ""  # the last one, for people

    @property
    def step(self) -> int:
        return self.training.step

    @property
    def finished(self) -> bool:
        return self.training.finished

    def advance(self) -> dict[str, Any]:
        """Do a step, and judge the weights after every `evaluate_every` of them and after the last."""
        t = self.training
        metrics = t.advance()
        if t.step % t.config.evaluate_every == 0 or t.finished:
            score = metrics[f"val_{t.task.metric}"] = t.judge(self.val)
            self.score = f", val {t.task.title} {score:.3f}"
        return metrics

    def note(self, metrics: Mapping[str, Any]) -> str:
        """Return what is shown while a training runs."""
        return f"loss {metrics['loss']:.3f}{self.score}"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights that a training wrote, by name, on the host."""
    weights: dict[str, Tensor] = load_safetensors(path.read_bytes())
    return weights


def train(
    training: Training, val: SegmentationData, folder: Path, settings: object, log: StepLog, update: Update = ignore
) -> float:
    """Train to the end, from the checkpoint if there is one, and write the best weights.

    Args:
        training: The training.
        val: What the best weights are chosen on.
        folder: Gets ``checkpoint.pt`` and at the end ``model.safetensors``.
        settings: What a checkpoint must have been made with, beside the training's own configuration.
        log: Gets loss and device, and the score where it was evaluated: ``val_miou`` or ``val_accuracy``.
        update: Told after each step.

    Returns:
        The best score on val.

    Raises:
        HwnasError: If the checkpoint is damaged or of other settings, or the loss is no longer finite.
    """
    steps = _Evaluated(training, val)
    run_settings = {"config": asdict(training.config), "settings": settings}
    also = {"device": title(training.context.device)}
    # An evaluation takes long: a kill after it does not cost it.
    every = min(training.config.checkpoint_every, training.config.evaluate_every)
    loop.run(steps, folder / "checkpoint.pt", run_settings, log, update, every=every, note=steps.note, also=also)
    write_atomic(folder / "model.safetensors", save_safetensors({k: v.cpu() for k, v in training.best.items()}))
    return training.best_score
