"""From a derived network to its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hwnas.data import SegmentationData
from hwnas.derived import Derived
from hwnas.errors import HwnasError
from hwnas.files import canonical_json
from hwnas.jobs.inputs import read_all, settle_data
from hwnas.jobs.looking import look_at
from hwnas.jobs.teaching import open_teacher
from hwnas.learn.board import BoardLog
from hwnas.learn.device import AUTO, title
from hwnas.learn.distributed import World, current
from hwnas.learn.training import Training, follow
from hwnas.learn.training import train as train_network
from hwnas.learn.weights import check_weights, digest, read_weights
from hwnas.progress import SILENT, Reporter
from hwnas.recipes.base import changed_settings
from hwnas.run import Run
from hwnas.search.pretrain import Pretraining
from hwnas.steplog import StepLog


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained, beside what its recipe says.

    Attributes:
        device: Where the network computes: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        workers: Processes that make batches ahead; None for as many as help.
        steps: How many there are to be in the end, also of a training that is finished; None for as many as the recipe
            says, or an interrupted training was to have.
        weights: A file to start from, instead of at random.
        tensorboard: Write the log for TensorBoard too, into ``tb`` of the run.
        overrides: Settings of the training by name, ``train.lr``, before it begins.
    """

    device: str = AUTO
    workers: int | None = None
    steps: int | None = None
    weights: Path | None = None
    tensorboard: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise HwnasError(f"a training needs steps of 1 or more, got {self.steps}")


@dataclass(frozen=True)
class TrainResult:
    """The weights of a run.

    Attributes:
        weights: Their file.
        metric: What the best ones were chosen by on val, for people.
        best: What they score; None where they were there already.
        device: Where they were trained, the last time the training went on.
        best_step: After how many steps they were evaluated.
        steps: How many the training has.
    """

    weights: Path
    metric: str = ""
    best: float | None = None
    device: str = ""
    best_step: int = 0
    steps: int = 0

    @property
    def complete(self) -> bool:
        """Whether the weights were there already."""
        return self.best is None


def train(run: Run, settings: TrainSettings = TrainSettings(), report: Reporter = SILENT) -> TrainResult:
    """Train the derived network of a run, or train it further where `steps` asks for more.

    Where processes were `joined`, all of them call this, and train it together.
    """
    world = current()
    if world.rank:
        return _take_part(run, settings, world)
    with world.leading():
        return _train(run, settings, report, world)


def _train(run: Run, settings: TrainSettings, report: Reporter, world: World) -> TrainResult:
    run.require("arch.json", "search")
    with run.locked():
        folder, derived = run.folder / "train", run.derived()
        weights = folder / "model.safetensors"
        settle_data(run, report, read=False)
        set_training(run, settings.overrides)
        if weights.exists() and settings.steps is None:
            return TrainResult(weights)
        if weights.exists() and not (folder / "checkpoint.pt").exists():
            raise HwnasError(
                f"{folder} has no checkpoint.pt to go on from; leave out --steps, or remove it to train anew"
            )
        data, val = (read_all(run.data(split), report) for split in ("train", "val"))
        look_at(run, {"train": data, "val": val}, report, also=("test",))
        run.identify()
        device = world.device(settings.device)
        made_with = {"arch": derived.architecture.id, "scale": derived.scale.to_json(), "data": run.name_of(data)}
        with _open_training(run, settings, derived, data, device, world) as (training, taught_by):
            made_with |= {} if taught_by is None else {"teacher": taught_by}
            made_with |= _begin_with(training, run, settings, report)
            with _open_log(run, settings) as log:
                settle_data(run, report)  # and what was set, now that it has proved good
                world.order("train")
                with report.bar("train", training.steps) as update:
                    best = train_network(training, val, folder, made_with, log, update)
        return TrainResult(weights, training.task.title, best, title(device), training.best_step, training.steps)


def _take_part(run: Run, settings: TrainSettings, world: World) -> TrainResult:
    """Train what the process of rank 0 trains; of the run folder files are read only."""
    for _ in world.orders():
        set_training(run, settings.overrides)
        derived = run.derived()
        data, val, device = run.data("train"), run.data("val"), world.device(settings.device)
        with _open_training(run, settings, derived, data, device, world) as (training, _):
            follow(training, val)
    return TrainResult(run.folder / "train" / "model.safetensors")


@contextmanager
def _open_training(
    run: Run, settings: TrainSettings, derived: Derived, data: SegmentationData, device: torch.device, world: World
) -> Iterator[tuple[Training, str | None]]:
    """Open the training of a run's network with its teacher; yield it and the SHA-256 of the teacher's file."""
    config = run.seeded_recipe.train
    own = replace(config, batch=world.share(config.batch, "a training"))
    with open_teacher(run, own, data, device) as (teacher, taught_by):
        training = Training(
            run.space(derived),
            derived.architecture,
            config,
            data,
            device,
            settings.workers,
            teacher,
            steps=settings.steps,
            world=world,
        )
        yield training, taught_by


def _begin_with(training: Training, run: Run, settings: TrainSettings, report: Reporter) -> dict[str, Any]:
    """Give a training the weights it starts from, and return what its checkpoint must say of them.

    Raises:
        HwnasError: If the file does not hold weights of this network.
    """
    if settings.weights is not None:
        weights = read_weights(settings.weights)
        check_weights(settings.weights, weights, training.net)
        training.start_from(weights)
        return {"weights": digest(weights)}
    before = next((s.before for s in run.seeded_recipe.stages if s.before is not None and s.before.final), None)
    if before is not None:
        start_pretrained(training, before, run, settings, report)
    return {}


def set_training(run: Run, overrides: Mapping[str, str]) -> None:
    """Set settings of the training of a run that is searched already; they are written when they prove good.

    Raises:
        HwnasError: If one is not of the training, or the training has begun with others.
    """
    if not overrides:
        return
    other = next((name for name in overrides if not name.startswith("train.")), None)
    if other is not None:
        raise HwnasError(f"a training takes settings of its own, train.NAME, got {other}; set it before the search")
    before = run.recipe
    run.ask(overrides=overrides, late=("train",))
    changes = changed_settings(before, run.recipe)
    folder = run.folder / "train"
    if changes and any((folder / name).exists() for name in ("checkpoint.pt", "model.safetensors")):
        said = "; ".join(f"{d.name} {canonical_json(d.old)}, not {canonical_json(d.new)}" for d in changes)
        raise HwnasError(f"{folder} has a training with {said}; leave that out, or remove the folder to train anew")


@contextmanager
def _open_log(run: Run, settings: TrainSettings) -> Iterator[StepLog]:
    """Open the step log of a training, with TensorBoard where it is asked for."""
    path = run.folder / "train.jsonl"
    if not settings.tensorboard:
        yield StepLog(path)
        return
    log = BoardLog(path, run.folder / "tb")
    try:
        yield log
    finally:
        log.close()


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
