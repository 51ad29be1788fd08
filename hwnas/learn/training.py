"""Training of a derived network, in its deploy form."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.data.augment import batch_source
from hwnas.data.base import SegmentationData, task_of
from hwnas.errors import HwnasError
from hwnas.learn import loop
from hwnas.learn.average import averaged, norms, recalibrated
from hwnas.learn.batches import Batches
from hwnas.learn.compiled import compiled, forward_of
from hwnas.learn.device import CPU, Context, title
from hwnas.learn.distributed import ALONE, World
from hwnas.learn.evaluation import evaluate
from hwnas.learn.losses import criterion, tensors, weights_of
from hwnas.learn.optim import HEAD, clip, make_optimizer, set_learning_rate
from hwnas.learn.pretrained import start_encoder
from hwnas.learn.scaling import LossScaler
from hwnas.learn.schedule import learning_rate
from hwnas.learn.settings import TrainConfig
from hwnas.learn.weights import read_weights, write_weights
from hwnas.metrics import score_of
from hwnas.ops.drop_path import set_drop_path
from hwnas.ops.synced import synchronise
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.seeding import seeded
from hwnas.spaces import Form, Space, SpaceNet
from hwnas.steplog import StepLog

__all__ = ["TrainConfig", "Training", "learning_rate", "read_weights", "train"]
# A further loss () of a step, from its images (N, 3, H, W) and the network's scores in float32: distillation.
Teacher = Callable[[Tensor, Tensor], Tensor]
_DROP_PATH = 2  # a stream of random numbers of its own, beside order and augmentation


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
        steps: int | None = None,
        world: World = ALONE,
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
            steps: How many there are to be in the end, also where a checkpoint was made with another number; None for
                as many as its checkpoint says, or the settings.
            world: The processes that train it together, with a part of each batch in each.

        Raises:
            HwnasError: If the settings ask for what the data, the device, this machine or several processes do not
                allow.
        """
        if config.precision == "fp16" and device.type == "cpu":
            raise HwnasError("a training needs a GPU for a precision of fp16; take bf16, or --device cuda")
        if config.compile and world.shared:
            raise HwnasError("a training with compile runs in one process, got several; leave out train.compile")
        world.share(config.batch, "a training")
        self.config, self.world = config, world
        self.steps, self._asked = steps or config.steps, steps
        self.context = Context(device, config.precision, config.channels_last)
        self.task = task_of(data)
        with seeded(config.seed):
            net = space.build(arch, form=form)
            # Not a module of the network, so that it is never exported.
            auxiliary = space.build_auxiliary(arch) if config.aux_weight else None
        # What a checkpoint must have started from too; a checkpoint then takes the place of these weights.
        self.started_from: dict[str, str] = {}
        if config.encoder_weights:
            assert isinstance(net, SpaceNet), "a complete architecture computes"
            digest = start_encoder(net, space.encoder, config.encoder_weights, data.mean, data.std)
            self.started_from = {"encoder_weights": digest}
        for part in (net, auxiliary):
            if part is not None:
                synchronise(part, world.size)
        self.averaged = averaged(net, self.context, config.average) if config.average else None
        self.net = self.context.module(net)
        self.auxiliary = None if auxiliary is None else self.context.module(auxiliary)
        self._frozen = norms(self.net, HEAD) if config.freeze_norm else []
        for p in [p for layer in self._frozen for p in layer.parameters()]:
            p.requires_grad = False
        forward = forward_of(self.net, self.auxiliary)
        self._forward = compiled(forward, device) if config.compile else forward
        self.teacher = teacher
        batches = batch_source(data, range(len(data)), config.batch, config.crop, config.seed, config.augmentation)
        self.batches = world.source(batches)
        self._made = Batches(device, workers)
        weights = weights_of(config, data)
        self.weights = None if weights is None else self.context.tensor(weights)
        self.criterion = criterion(config, self.task, self.weights, world)
        self.optimizer = make_optimizer(config, self.net, self.auxiliary)
        self.scaler = LossScaler(device) if config.precision == "fp16" else None
        self.step = 0
        self.best_score, self.best_step = -1.0, 0
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
        return self.step >= self.steps

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept: that of the averaged weights, where there are such."""
        network: nn.Module = self.net if self.averaged is None else self.averaged.module
        return network

    def advance(self) -> dict[str, Any]:
        """Do one step and return its number and its loss, a tensor (); nothing is read from the device."""
        c, parameters = self.config, self._parameters()
        set_learning_rate(self.optimizer, learning_rate(c, self.step, self.steps))
        set_drop_path(self.net, c.drop_path * self.step / self.steps, self.world.part)
        self.net.train()
        for layer in self._frozen:
            layer.eval()
        self.optimizer.zero_grad()
        losses = [self._backward(self.step * c.accumulate + k) for k in range(c.accumulate)]
        self.world.reduce_gradients(parameters)
        if self.scaler is not None:
            self.scaler.unscale(parameters)
        clip(parameters, c.clip)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.net)
        self.step += 1
        return {"step": self.step - 1, "loss": self.world.total(sum(losses[1:], losses[0]))}

    def _backward(self, number: int) -> Tensor:
        """Add the gradients of batch `number` to those there are, and return its share of the loss, ().

        Where there are several processes, both are of the part of the batch that this one has.
        """
        c = self.config
        images, labels = self.context.batch(self._made(self.batches, number))
        seed = int(np.random.SeedSequence([c.seed, _DROP_PATH, number]).generate_state(1)[0])
        with seeded(seed), self.context.autocast():
            outputs = list(zip((1.0, c.aux_weight), self._forward(images), strict=False))
        losses = [w * self.criterion(scores.float(), labels) for w, scores in outputs]
        if self.teacher is not None:
            # A mean over images, of which every process has as many.
            losses.append(self.teacher(images, outputs[0][1].float()) / self.world.size)
        loss = torch.stack(losses).sum() / c.accumulate
        (loss if self.scaler is None else self.scaler.scaled(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach().double()

    def judge(self, val: SegmentationData) -> float:
        """Evaluate on val, keep the weights if they are the best so far, and return the score of the task."""
        network = self.judged.eval()
        batches = (self.context.batch(tensors(self.batches(k)))[0] for k in range(self.config.recalibrate))
        with recalibrated(network, batches) if self.config.recalibrate else nullcontext():
            confusion = evaluate(network, val, device=self.context.device, world=self.world)
            score = score_of(confusion, self.task)
            if score > self.best_score:
                self.best_score, self.best_step = score, self.step
                self.best = {k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}
        return score

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from; batches are functions of the step."""
        return {
            "step": self.step,
            "steps": self.steps,
            "net": self.net.state_dict(),
            "auxiliary": {} if self.auxiliary is None else self.auxiliary.state_dict(),
            "averaged": {} if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state(),
            "best_score": self.best_score,
            "best_step": self.best_step,
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            HwnasError: If it is of more steps than there are to be.
        """
        self.step, self.best_score, self.best = int(state["step"]), float(state["best_score"]), dict(state["best"])
        self.best_step = int(state["best_step"])
        self.steps = self._asked or int(state["steps"])
        if self.step > self.steps:
            raise HwnasError(
                f"expected more steps than the training has behind it, got {self.steps} after {self.step}; ask for more"
            )
        self.net.load_state_dict(state["net"])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(state["auxiliary"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.restore(state["scaler"])

    def close(self) -> None:
        """End the processes that make batches."""
        self._made.close()


class _Evaluated:
    """A training whose steps end in an evaluation where one is due."""

    def __init__(self, training: Training, val: SegmentationData) -> None:
        self.training, self.val = training, val
        self.title, self.remedy = training.title, training.remedy
        self.state, self.restore, self.close = training.state, training.restore, training.close
        self.score = ""  # the last one, for people
        self._pace = _Pace()

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
        self._pace.images += t.config.batch * t.config.accumulate
        if t.step % t.config.evaluate_every == 0 or t.finished:
            start_s = time.monotonic()
            score = metrics[f"val_{t.task.metric}"] = t.judge(self.val)
            self._pace.begin_s += time.monotonic() - start_s
            self.score = f", val {t.task.title} {score:.3f}, best {t.best_score:.3f}"
        return metrics

    def note(self, metrics: Mapping[str, Any]) -> str:
        """Return what is shown while a training runs."""
        return f"loss {metrics['loss']:.3f}{self._pace.text()}{self.score}"


class _Pace:
    """Images a second, without evaluations; looked at when losses are read, so that a device has kept up."""

    LEAST_S = 1.0  # between two figures

    def __init__(self) -> None:
        self.images, self.begin_s, self._rate = 0, time.monotonic(), 0.0

    def text(self) -> str:
        now_s = time.monotonic()
        if self.images and now_s - self.begin_s >= self.LEAST_S:
            self._rate = self.images / (now_s - self.begin_s)
            self.images, self.begin_s = 0, now_s
        return f", {self._rate:.3g} images/s" if self._rate else ""


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
        HwnasError: If the checkpoint is damaged, of other settings, or of more steps than there are to be, or the loss
            is no longer finite.
    """
    steps = _Evaluated(training, val)

    def told(done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
        del total, left_s
        if training.steps == training.config.steps:
            update(done, note)
        else:  # as was asked for, or the checkpoint says
            update(done, note, training.steps)

    world = training.world
    run_settings = {"config": asdict(training.config), "settings": settings, **training.started_from}
    also: dict[str, Any] = {"device": title(training.context.device)}
    if world.shared:
        also["processes"] = world.size
    # An evaluation takes long: a kill after it does not cost it.
    every = min(training.config.checkpoint_every, training.config.evaluate_every)
    path, note = folder / "checkpoint.pt", steps.note
    loop.run(steps, path, run_settings, log, told, every=every, note=note, also=also, world=world)
    write_weights(folder / "model.safetensors", training.best)
    return training.best_score


def follow(training: Training, val: SegmentationData) -> None:
    """Take part in a training that the process of rank 0 runs by `train`, with the same arguments.

    Raises:
        HwnasError: See `hwnas.learn.loop.follow`.
    """
    loop.follow(_Evaluated(training, val), training.world)
