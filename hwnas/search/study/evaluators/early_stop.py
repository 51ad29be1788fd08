"""Which architectures go on to the second stage of their evaluation (Nekrasov et al. 2019, section 3.2).

The rule, its constants and what was done about its milestones are from the code that the authors published
(DrSleep/nas-segm-pytorch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import check_ranges, not_below
from hwnas.records import stored

_DRAW = 0x57A9  # tells the draws of this rule from others of one seed


@stored("early-stop")
@dataclass(frozen=True)
class EarlyStop:
    """An architecture goes on if its first score is above the running mean of first scores, or not far below by chance.

    With ``m`` the mean, this score included, and ``U`` uniform from 0 to `delta`, it goes on if its score is above
    ``m``, or by chance if it is above ``m * (1 - U)``.

    Attributes:
        decay: Of the mean, exponential.
        start: Of the mean.
        delta: The greatest share that a score may be below the mean.
        milestones: At which counts `delta` is multiplied, and by what. Each architecture counts 1, and one above ``m``
            counts 2. The published code asks for equality and so may step over one; here each is reached.

    Raises:
        HwnasError: If a setting is out of range.
    """

    decay: float = 0.99
    start: float = 0.01
    delta: float = 0.9
    milestones: tuple[tuple[int, float], ...] = ((100, 0.9), (200, 0.8), (300, 0.7), (400, 0.6))

    def __post_init__(self) -> None:
        check_ranges(
            "an early stop",
            ("a decay from 0 to less than 1", self.decay, 0 <= self.decay < 1),
            ("a delta from 0 to 1", self.delta, 0 <= self.delta <= 1),
            *not_below(self, ("start",), 0),
            ("milestones of factors from 0 to 1", self.milestones, all(0 <= f <= 1 for _, f in self.milestones)),
        )

    def goes_on(self, before: Sequence[tuple[int, float]], number: int, score: float, seed: int) -> bool:
        """Tell whether an architecture goes on; a function of what is handed over.

        Args:
            before: Number and first score of the trials before it, in order.
            number: Of the trial.
            score: Its first.
            seed: Of the chance.
        """
        mean, count, answer = self.start, 0, False
        for n, first in (*before, (number, score)):
            delta = self.delta
            for at, factor in self.milestones:
                delta *= factor if count >= at else 1.0
            mean = self.decay * mean + (1 - self.decay) * first
            below = np.random.default_rng([seed, _DRAW, n]).random() * delta
            answer = first > mean or first > mean * (1 - below)
            count += 2 if first > mean else 1
        return answer
