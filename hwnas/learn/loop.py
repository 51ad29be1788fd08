"""The one loop: steps from a checkpoint to the end, logged, shown, and kept often enough that a kill costs little."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hwnas import checkpoint
from hwnas.errors import Diverged
from hwnas.learn.batches import worker_errors
from hwnas.learn.device import read
from hwnas.learn.distributed import ALONE, World
from hwnas.progress import Update, ignore
from hwnas.steplog import StepLog

CHECKPOINT_SHARE = 0.05  # of the time, at most, for checkpoints more frequent than every so many steps
SHOWN_S = 1.0  # between two looks at losses: reading one waits for its device

Metrics = dict[str, Any]


class Steps(Protocol):
    """What a loop runs.

    Attributes:
        step: Of the next step, from 0.
        title: What it is called in messages: ``"search"``.
        remedy: What helps where a loss is no longer finite.
        finished: Whether there is no step left to do.
    """

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def remedy(self) -> str: ...  # noqa: D102
    @property
    def finished(self) -> bool: ...  # noqa: D102

    def advance(self) -> Metrics:
        """Do one step and return what happened: numbers, text, and losses as tensors (), which nobody has read."""

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""

    def close(self) -> None:
        """End what works for it."""


def run(
    steps: Steps,
    path: Path,
    settings: object,
    log: StepLog,
    update: Update = ignore,
    *,
    every: int,
    note: Callable[[Metrics], str],
    also: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> None:
    """Run steps to their end, from their checkpoint if there is one.

    Losses are read, checked and logged several at once: before each checkpoint, at the end, and when the last look at
    them was a second ago. What comes after a loss that is not finite is neither logged nor kept.

    Args:
        steps: What to run; it is closed in the end.
        path: Of the checkpoint, written every `every` steps, and after every step that took long enough for it to cost
            at most `CHECKPOINT_SHARE` of the time.
        settings: What a checkpoint must have been made with.
        log: Gets the metrics of each step.
        update: Told after each step.
        every: Steps between checkpoints at most.
        note: What is shown of the metrics of a step.
        also: What is logged beside the metrics of each step.
        world: The processes that do the steps together, this one of rank 0; the others `follow`.

    Raises:
        Diverged: If a loss is not finite.
        HwnasError: If the checkpoint is damaged or of other settings, or a batch cannot be made.
    """
    state = checkpoint.load(path, settings)
    if state is not None:
        steps.restore(state)
    log.start(steps.step)
    update(steps.step)
    pending = _Pending(steps, log, note)
    saved_step, saved_s, cost_s = steps.step, time.monotonic(), 0.0
    try:
        with worker_errors():
            world.begin(steps.state)
            while not steps.finished:
                start_s = time.monotonic()
                with world.step():
                    metrics = pending.advance()
                now_s = time.monotonic()
                pending.add(metrics | dict(also or {}) | {"seconds": round(now_s - start_s, 4)})
                due = steps.finished or steps.step - saved_step >= every
                due = due or cost_s <= CHECKPOINT_SHARE * (now_s - saved_s)
                if due or pending.age_s >= SHOWN_S:
                    pending.flush()
                update(steps.step, pending.note)
                if due:
                    begin_s = time.monotonic()
                    checkpoint.save(path, steps.state(), settings)
                    saved_step, saved_s = steps.step, time.monotonic()
                    cost_s = saved_s - begin_s
            world.finish()
    finally:
        steps.close()


def follow(steps: Steps, world: World) -> None:
    """Do the steps that the process of rank 0 does in `run`, from its state on; nothing is written.

    Raises:
        HwnasError: If a batch cannot be made, or another process has ended.
    """
    try:
        with worker_errors():
            for state in world.steps():
                if state is not None:
                    steps.restore(state)
                else:
                    steps.advance()
    finally:
        steps.close()


class _Pending:
    """Metrics of steps whose losses have not been read yet."""

    def __init__(self, steps: Steps, log: StepLog, note: Callable[[Metrics], str]) -> None:
        self._steps, self._log, self._note = steps, log, note
        self._metrics: list[Metrics] = []
        self._looked_s = -math.inf
        self.note = ""

    @property
    def age_s(self) -> float:
        """Since losses were last read."""
        return time.monotonic() - self._looked_s

    def advance(self) -> Metrics:
        """Do a step; an error that follows from a loss that was not finite before is reported as that."""
        try:
            return self._steps.advance()
        except Exception:
            self.flush()
            raise

    def add(self, metrics: Metrics) -> None:
        self._metrics.append(metrics)

    def flush(self) -> None:
        """Read all losses at once, and log the steps up to the first that is not finite.

        Raises:
            Diverged: If there is one.
        """
        pending, self._metrics, self._looked_s = self._metrics, [], time.monotonic()
        losses = [(metrics, key) for metrics in pending for key, value in metrics.items() if isinstance(value, Tensor)]
        if losses:
            values = read(torch.stack([metrics[key].detach().double() for metrics, key in losses]))
            for (metrics, key), value in zip(losses, np.asarray(values).tolist(), strict=True):
                metrics[key] = value
        checked = {id(metrics): key for metrics, key in losses if not math.isfinite(metrics[key])}
        for metrics in pending:
            if id(metrics) in checked:
                loss, step = metrics[checked[id(metrics)]], metrics["step"] + 1
                raise Diverged(f"the {self._steps.title} diverged: loss {loss} at step {step}; {self._steps.remedy}")
            self._log.append(metrics)
            self.note = self._note(metrics)
