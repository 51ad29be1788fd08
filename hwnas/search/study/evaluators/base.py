"""What an architecture is worth: settings, and what evaluates one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from hwnas.data.base import SEGMENTATION, ClassList, Sample, SegmentationData, Task
from hwnas.errors import HwnasError
from hwnas.metrics import ConfusionMatrix, score_of
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.search.strategy import Inputs
from hwnas.search.study.choices import Tried

Reward = Literal["score", "geometric"]
LEAST = 1e-6  # of a score: they are above 0
_HELD_OUT = 0x7EA1  # tells the draw of the images that are held out from others of one seed


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        score: What the architecture is worth, above 0; larger is better.
        facts: What else is kept of it, as JSON values.
    """

    score: float
    facts: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Settings of evaluations: a frozen dataclass with a stored name."""

    def evaluation(self, inputs: Inputs, folder: Path, seed: int) -> Evaluation:
        """Begin to evaluate.

        Args:
            inputs: Of the stage.
            folder: For what all trials share; there may be several processes that have the same.
            seed: Of everything random.
        """


class Evaluation(Protocol):
    """Evaluates architectures; the same one scores the same again."""

    def evaluate(
        self, arch: Architecture, number: int, folder: Path, history: Sequence[Tried], update: Update = ignore
    ) -> Outcome:
        """Return what an architecture is worth.

        Args:
            arch: Complete, within the bounds.
            number: Of the trial.
            folder: For this trial alone: what a trial that was killed had left there is there still.
            history: The trials that are done.
            update: Told how far it is.
        """

    def close(self) -> None:
        """End what works for it."""
        return


class Part:
    """Some samples of a split."""

    def __init__(self, data: SegmentationData, indices: Sequence[int]) -> None:
        """Take the split, and which of its samples there are."""
        self.data, self.indices = data, tuple(indices)

    @property
    def name(self) -> str:
        """That of the split."""
        return self.data.name

    @property
    def classes(self) -> ClassList:
        """Those of the split."""
        return self.data.classes

    @property
    def mean(self) -> tuple[float, float, float]:
        """That of the split."""
        return self.data.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """That of the split."""
        return self.data.std

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample."""
        return self.data[self.indices[index]]


def parts(data: SegmentationData, held_out: float, seed: int, most: int = 0) -> tuple[Part, Part]:
    """Split the training set at random into what is learned from and what is scored on.

    Args:
        data: The training set.
        held_out: Share that is scored on, one image at least (a tenth in Nekrasov et al. 2019).
        seed: Of the split.
        most: Images to learn from at most, 0 for all.

    Raises:
        HwnasError: If nothing is left to learn from.
    """
    n = len(data)
    held = max(1, round(held_out * n))
    if held >= n:
        raise HwnasError(f"a search by trials holds out {held} of {n} images, which leaves none; use more images")
    order = np.random.default_rng([seed, _HELD_OUT]).permutation(n).tolist()
    learned = sorted(order[held:][: most or n])
    return Part(data, learned), Part(data, sorted(order[:held]))


def reward(counts: ConfusionMatrix, task: Task, by: Reward) -> float:
    """Return what predictions are worth, above 0.

    Args:
        counts: Of the predictions.
        task: Of the data.
        by: ``"score"`` is that of the task: mIoU, or accuracy. ``"geometric"`` is the geometric mean of mIoU,
            frequency-weighted IoU and mean accuracy of the classes (Nekrasov et al. 2019, section 3.2), of images that
            are classified the accuracy.
    """
    value = score_of(counts, task)
    if by == "geometric" and task is SEGMENTATION:
        value = (counts.miou() * counts.frequency_weighted_iou() * counts.mean_accuracy()) ** (1 / 3)
    return max(LEAST, value)
