"""Short trainings end to end: what an architecture is worth when all of it has learned for a while."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hwnas.data.base import task_of
from hwnas.errors import Diverged, HwnasError, check_ranges
from hwnas.learn.evaluation import evaluate
from hwnas.learn.settings import TrainConfig
from hwnas.learn.training import Training, train
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.records import stored
from hwnas.search.strategy import Inputs
from hwnas.search.study.choices import Tried
from hwnas.search.study.evaluators.base import LEAST, Evaluation, Evaluator, Outcome, Part, Reward, parts, reward
from hwnas.steplog import StepLog


@stored("short-training")
@dataclass(frozen=True)
class ShortTraining(Evaluator):
    """Trains each network on a part of the training set and scores it on the rest.

    Attributes:
        train: The training; the network is scored once, at its end. An average of the weights is one of its settings.
        held_out: Share of the images that networks are scored on.
        reward: ``"score"`` of the task, or ``"geometric"``: see `hwnas.search.study.evaluators.base.reward`.

    Raises:
        HwnasError: If a setting is out of range, or the training would need a teacher.
    """

    train: TrainConfig
    held_out: float = 0.1
    reward: Reward = "score"

    def __post_init__(self) -> None:
        check_part("a short training", self.held_out, self.reward, self.train)

    def evaluation(self, inputs: Inputs, folder: Path, seed: int) -> ShortTrainings:
        """Begin to evaluate."""
        refuse_weights(inputs)
        return ShortTrainings(self, inputs, parts(inputs.data, self.held_out, seed), seed)


class ShortTrainings(Evaluation):
    """Trains networks from random weights, or from those it is handed."""

    def __init__(self, config: ShortTraining, inputs: Inputs, data: tuple[Part, Part], seed: int) -> None:
        """Take what to learn from, and what to score on."""
        self.config, self.inputs, self.data = config, inputs, data
        steps = config.train.steps
        self.settings = replace(config.train, seed=config.train.seed + seed, evaluate_every=steps)

    def evaluate(
        self, arch: Architecture, number: int, folder: Path, history: Sequence[Tried], update: Update = ignore
    ) -> Outcome:
        """Train an architecture and score it."""
        return self.trained(arch, folder, None, update)

    def trained(self, arch: Architecture, folder: Path, start: Mapping[str, Tensor] | None, update: Update) -> Outcome:
        """Train an architecture, perhaps from weights by name, and score it; a training that diverges scores least."""
        learned, held_out = self.data
        own, inputs = self.settings, self.inputs
        training = Training(inputs.space, arch, own, learned, inputs.device, inputs.workers)
        if start is not None:
            training.start_from(start)
        made_with = {"architecture": arch.to_json(), "images": len(learned)}
        try:
            train(training, held_out, folder, made_with, StepLog(folder / "train.jsonl"), update)
        except Diverged:
            return Outcome(LEAST, {"diverged": True})
        network = training.judged.eval()
        network.load_state_dict(training.best)
        counts = evaluate(network, held_out, device=inputs.device)
        return Outcome(reward(counts, task_of(held_out), self.config.reward), {"steps": own.steps})


def check_part(what: str, held_out: float, by: Reward, config: TrainConfig) -> None:
    """Check settings that all evaluations have.

    Raises:
        HwnasError: If one is out of range, or the training has a teacher, which a search does not open.
    """
    check_ranges(
        what,
        ("a held_out between 0 and 1", held_out, 0 < held_out < 1),
        ("a reward of score or geometric", by, by in ("score", "geometric")),
        ("no distill: a search opens no teacher", config.distill, config.distill is None),
    )


def refuse_weights(inputs: Inputs) -> None:
    """Refuse weights of a supernet, which are of another form than networks that are trained.

    Raises:
        HwnasError: If there are such.
    """
    if inputs.weights is not None:
        raise HwnasError(
            "a search by trials trains what ships, and takes no weights of a supernet or of a pre-training; name a "
            "file with encoder_weights of its training"
        )
