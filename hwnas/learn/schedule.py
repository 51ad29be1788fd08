"""The learning rate of a step, in closed form.

torch's schedulers count their own steps and keep state. Here a rate is a function of the step alone, so that there is
nothing to resume, and a training that is extended follows the curve of its new length from where it stands.
"""

from __future__ import annotations

import math

from hwnas.learn.settings import TrainConfig

WARMUP = {"adamw": 0.05, "sgd": 0.0}  # share of the steps, where none is set


def learning_rate(config: TrainConfig, step: int, steps: int | None = None) -> float:
    """Return the learning rate of a step: that of the schedule, or of the linear warm-up while it is lower.

    ``"cosine"`` is SGDR without restarts (Loshchilov and Hutter 2017, equation 5) to 0, ``"poly"`` that of DeepLab
    (Chen et al. 2017, section 4.1), whose power is 0.9.

    Args:
        config: The settings.
        step: From 0.
        steps: In all; None for those of the settings.
    """
    n = config.steps if steps is None else steps
    rate = _shape(config, step, n)
    share = WARMUP[config.optimizer] if config.warmup is None else config.warmup
    return config.lr * (min((step + 1) / max(1, int(share * n)), rate) if share else rate)


def _shape(config: TrainConfig, step: int, steps: int) -> float:
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "poly":
        return float((1 - step / steps) ** config.power)
    return (1 + math.cos(math.pi * step / steps)) / 2
