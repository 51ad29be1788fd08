"""Choosing among derived networks by what they score, and refusing to choose on noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.data.augment import batch_source
from hwnas.data.base import IGNORE_LABEL, SegmentationData, Task, split_halves, task_of
from hwnas.errors import HwnasError
from hwnas.images import normalise
from hwnas.learn.device import CPU, ON_HOST, Context, read
from hwnas.learn.losses import Batch, tensors
from hwnas.learn.training import TrainConfig, Training, train
from hwnas.metrics import confusion, scores
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.search.config import SearchConfig
from hwnas.spaces import Space
from hwnas.steplog import StepLog

IMAGES = 64  # a network is judged on at most so many
RECALIBRATION = 8  # batches that BatchNorm takes its statistics from
DRAWS = 2000  # of the bootstrap
LEVEL = 0.05  # chance, over all comparisons, to prefer a network that is no better

Forward = Callable[[Tensor], Tensor]
Merit = Literal["score", "loss"]


@dataclass(frozen=True)
class Judgement:
    """What a network scores on some images.

    Attributes:
        task: What decides the score.
        losses: Cross-entropy of each image, mean over its labelled pixels, (images,).
        confusions: (images, classes, classes); rows are labels, columns predictions.
    """

    task: Task
    losses: NDArray[np.float64]
    confusions: NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Mean over images."""
        return float(self.losses.mean())

    @property
    def score(self) -> float:
        """Score of the task over all images: mIoU, or accuracy."""
        return float(scores(self.task, self.confusions.sum(0)[None])[0])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; `from_json` reads it."""
        flat = self.confusions.reshape(len(self.confusions), -1)
        return {"losses": self.losses.tolist(), "confusions": flat.tolist()}

    @classmethod
    def from_json(cls, task: Task, data: Mapping[str, Any]) -> Judgement:
        """Read what `to_json` wrote."""
        flat = np.array(data["confusions"], np.int64)
        k = round(flat.shape[1] ** 0.5)
        return cls(task, np.array(data["losses"], np.float64), flat.reshape(-1, k, k))


@torch.no_grad()
def judge(
    forward: Forward, batches: Iterable[Batch], task: Task, update: Update = ignore, context: Context = ON_HOST
) -> Judgement:
    """Judge a network image by image.

    Args:
        forward: From images (N, 3, H, W) to scores (N, K, H, W), or (N, K) where images are classified.
        batches: Images and labels.
        task: Of the data.
        update: Told the images so far.
        context: Where the network computes; scores are read once for each batch.
    """
    losses: list[float] = []
    confusions: list[NDArray[np.int64]] = []
    for images, labels in batches:
        out = torch.from_numpy(read(forward(context.tensor(images))))
        k = out.shape[1]
        for one, label in zip(out, labels, strict=True):
            labelled = (label != IGNORE_LABEL if label.dim() else torch.ones((), dtype=torch.bool)).reshape(-1)
            predicted, targets = one.reshape(k, -1).T[labelled], label.reshape(-1)[labelled]
            losses.append(float(F.cross_entropy(predicted, targets)) if len(targets) else 0.0)
            confusions.append(confusion(predicted.argmax(1).cpu().numpy(), targets.cpu().numpy(), k))
        update(len(losses))
    return Judgement(task, np.array(losses), np.stack(confusions))


@torch.no_grad()
def recalibrate(net: nn.Module, forward: Forward, batches: Iterable[Batch], context: Context = ON_HOST) -> None:
    """Recompute the BatchNorm statistics of a network, then set it to evaluation.

    The statistics of a supernet are those of the mixture, with which the score of a single network means nothing. The
    new ones are the mean over batches, not a decaying average.

    Args:
        net: Its BatchNorms are changed, and left in evaluation mode.
        forward: Runs it.
        batches: At least one; labels are not read.
        context: Where the network computes.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
    net.train()
    for n, (images, _) in enumerate(batches, start=1):
        for m in norms:
            m.momentum = 1 / n  # the plain mean; with None torch would read n from the device, norm by norm
        forward(context.tensor(images))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    net.eval()


class Supernet:
    """The weights of a finished search, and images that its weights did not learn on."""

    def __init__(
        self,
        space: Space,
        config: SearchConfig,
        weights: Mapping[str, Tensor],
        data: SegmentationData,
        fixed: Architecture | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Take the weights, and draw the batches that all networks are judged on.

        Args:
            space: At any scale.
            config: Of the search.
            weights: Of the supernet: ``net`` in the state of the search.
            data: The training set.
            fixed: Answers of earlier stages, which the supernet has no alternatives to.
            device: Where networks compute.

        Raises:
            HwnasError: If the weights are those of another supernet, or learned on all images.
        """
        if config.level == "single":
            raise HwnasError("a single-level search leaves no image that its weights have not learned on")
        self.context = Context(device)
        self.space, self.config, self.weights, self.task = space.at(config.scale), config, weights, task_of(data)
        self.fixed = fixed
        learned, held_out = split_halves(len(data), config.seed)
        # Seeds of their own: crops that the search has not seen.
        first = batch_source(data, learned, config.batch, config.crop, 3 * config.seed + 1)
        second = batch_source(data, held_out, config.batch, config.crop, 3 * config.seed + 2)
        n = max(1, min(IMAGES, len(held_out)) // config.batch)
        self.recalibration = [
            tensors(first(i)) for i in range(min(RECALIBRATION, max(1, len(learned) // config.batch)))
        ]
        self.batches = [tensors(second(i)) for i in range(n)]

    @property
    def images(self) -> int:
        """How many images a network is judged on."""
        return sum(len(labels) for _, labels in self.batches)

    def judge(self, arch: Architecture | None, probs: Mapping[str, Tensor] | None = None) -> Judgement:
        """Judge one network with the supernet's weights, or the mixture of all, its BatchNorm recalibrated.

        Args:
            arch: Complete; None for the mixture.
            probs: Of the mixture.
        """
        net = self.space.build(self.fixed if arch is None else arch, form="search")
        try:
            net.load_state_dict({k: self.weights[k] for k in net.state_dict()})
        except (KeyError, RuntimeError) as e:
            raise HwnasError(f"the supernet's weights do not fit the recipe any more ({e}); search again") from e
        net = self.context.module(net)
        mixture = None if probs is None else self.context.mixture(probs)

        def forward(images: Tensor) -> Tensor:
            out: Tensor = net(images, mixture)
            return out

        recalibrate(net, forward, self.recalibration, self.context)
        return judge(forward, self.batches, self.task, context=self.context)


def judge_trained(
    space: Space,
    arch: Architecture,
    config: TrainConfig,
    data: tuple[SegmentationData, SegmentationData],
    folder: Path,
    settings: object,
    update: Update = ignore,
    device: torch.device = CPU,
    workers: int | None = 0,
) -> Judgement:
    """Train a network for a few steps and judge it on val; resumes from the checkpoint in `folder`.

    Args:
        space: At the deployment scale.
        arch: Complete.
        config: Of the training; it is judged once, at its end.
        data: The training set and val.
        folder: Gets checkpoint, log and weights.
        settings: What a checkpoint must have been made with, beside the training's own configuration.
        update: Told after each step.
        device: Where the network computes.
        workers: Processes that make batches ahead; None for as many as help.
    """
    fitted, val = data
    training = Training(space, arch, replace(config, evaluate_every=config.steps), fitted, device, workers)
    train(training, val, folder, settings, StepLog(folder / "train.jsonl"), update)
    network = training.judged.eval()
    network.load_state_dict(training.best)  # with BatchNorm as it was evaluated, where that is recalibrated
    one_by_one = (_sample(val, i) for i in range(len(val)))
    return judge(network, one_by_one, training.task, context=training.context)


@dataclass(frozen=True)
class Comparison:
    """How much better one network is than another on the same images; above 0 is better.

    Attributes:
        difference: In units of what is compared; the mean over repetitions.
        low: Lower end of its interval; the least of the repetitions.
        high: Upper end; the greatest of the repetitions.
    """

    difference: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether it is better beyond doubt: in each repetition."""
        return self.low > 0


def compare(a: Sequence[Judgement], b: Sequence[Judgement], by: Merit = "score", level: float = LEVEL) -> Comparison:
    """Compare two networks by a paired bootstrap over images (Efron), in each repetition by itself.

    Args:
        a: One judgement for each repetition, e.g. for each seed of a training.
        b: Of the other network, on the same images.
        by: What is compared.
        level: One less the confidence of the intervals.
    """
    intervals = []
    for one, other in zip(a, b, strict=True):
        n = len(one.losses)
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)  # (draws, images): how often
        on_all, resampled = _lead(one, other, by, np.ones((1, n), np.int64))[0], _lead(one, other, by, drawn)
        intervals.append((on_all, *np.quantile(resampled, [level / 2, 1 - level / 2])))
    difference, low, high = zip(*intervals, strict=True)
    return Comparison(float(np.mean(difference)), float(min(low)), float(max(high)))


def _lead(a: Judgement, b: Judgement, by: Merit, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return by how much `a` is better on each resample of the images, (draws, images) -> (draws,)."""
    if by == "loss":
        less: NDArray[np.float64] = drawn @ (b.losses - a.losses) / drawn.sum(1)
        return less
    n, classes, _ = a.confusions.shape
    summed = [(drawn @ x.confusions.reshape(n, -1)).reshape(-1, classes, classes) for x in (a, b)]
    return scores(a.task, summed[0]) - scores(b.task, summed[1])


@dataclass(frozen=True)
class Verdict:
    """Which of several networks to take.

    Attributes:
        index: Of the one to take.
        comparisons: Of each with the one that would be taken otherwise, in their order.
        reason: For people.
    """

    index: int
    comparisons: tuple[Comparison, ...]
    reason: str


def decide(judged: Sequence[Sequence[Judgement]], favourite: int, by: Merit = "score") -> Verdict:
    """Return the best network if it is better than the favourite beyond doubt, else the favourite.

    The doubt that is allowed, `LEVEL`, is shared by all comparisons (Bonferroni): the best of many that differ by
    chance alone always looks better.

    Args:
        judged: For each network one judgement for each repetition, all on the same images.
        favourite: Index of the one to keep in doubt.
        by: What is compared.
    """
    level = LEVEL / max(1, len(judged) - 1)
    comparisons = tuple(compare(j, judged[favourite], by, level) for j in judged)
    best = max(range(len(judged)), key=lambda i: (comparisons[i].difference, i == favourite))
    c = comparisons[best]
    what = "a lower loss" if by == "loss" else f"a higher {judged[favourite][0].task.title}"
    by_how_much = f"by {c.difference:.4f}, interval {c.low:+.4f} to {c.high:+.4f}"
    if best == favourite:
        return Verdict(favourite, comparisons, f"no other has {what} than the choice of utility, which is kept")
    if c.better:
        return Verdict(best, comparisons, f"another has {what} than the choice of utility, beyond doubt: {by_how_much}")
    reason = f"the choice of utility is kept: another has {what} {by_how_much}, which may be chance"
    return Verdict(favourite, comparisons, reason)


def _sample(data: SegmentationData, index: int) -> Batch:
    image, label, _ = data[index]
    return torch.from_numpy(normalise(image, data.mean, data.std))[None], torch.from_numpy(label.astype(np.int64))[None]
