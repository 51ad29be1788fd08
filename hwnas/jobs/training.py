"""From a derived network to its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwnas.jobs.inputs import read_all, settle_data
from hwnas.jobs.looking import look_at
from hwnas.learn.device import AUTO, open_device, title
from hwnas.learn.training import Training
from hwnas.learn.training import train as train_network
from hwnas.progress import SILENT, Reporter
from hwnas.run import Run
from hwnas.search.pretrain import Pretraining
from hwnas.steplog import StepLog


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained, beside what its recipe says.

    Attributes:
        device: Where the network computes: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        workers: Processes that make batches ahead; None for as many as help.
    """

    device: str = AUTO
    workers: int | None = None


@dataclass(frozen=True)
class TrainResult:
    """The weights of a run.

    Attributes:
        weights: Their file.
        metric: What the best ones were chosen by on val, for people.
        best: What they score; None where they were there already.
        device: Where they were trained, the last time the training went on.
    """

    weights: Path
    metric: str = ""
    best: float | None = None
    device: str = ""

    @property
    def complete(self) -> bool:
        """Whether the weights were there already."""
        return self.best is None


def train(run: Run, settings: TrainSettings = TrainSettings(), report: Reporter = SILENT) -> TrainResult:
    """Train the derived network of a run."""
    run.require("arch.json", "search")
    with run.locked():
        weights, derived = run.folder / "train" / "model.safetensors", run.derived()
        settle_data(run, report, read=False)
        if weights.exists():
            return TrainResult(weights)
        recipe = run.seeded_recipe
        config = recipe.train
        data, val = (read_all(run.data(split), report) for split in ("train", "val"))
        look_at(run, {"train": data, "val": val}, report, also=("test",))
        settle_data(run, report)
        device = open_device(settings.device)
        training = Training(run.space(derived), derived.architecture, config, data, device, settings.workers)
        before = next((s.before for s in recipe.stages if s.before is not None and s.before.final), None)
        if before is not None:
            start_pretrained(training, before, run, settings, report)
        made_with = {"arch": derived.architecture.id, "scale": derived.scale.to_json(), "data": run.name_of(data)}
        log = StepLog(run.folder / "train.jsonl")
        with report.bar("train", config.steps) as update:
            best = train_network(training, val, weights.parent, made_with, log, update)
        return TrainResult(weights, training.task.title, best, title(device))


def start_pretrained(
    training: Training, before: Pretraining, run: Run, settings: TrainSettings, report: Reporter
) -> None:
    """Start from the encoder pre-trained in the form and at the scale of the network; the head starts at random."""
    derived, folder = run.derived(), run.folder / "train" / "pretrained"
    with report.bar("pre-train", before.settings.steps) as update:
        weights = before.run(
            run.recipe.space,
            derived.architecture,
            folder,
            "deploy",
            derived.scale,
            update,
            training.context.device,
            settings.workers,
        )
    training.start_from(weights)
