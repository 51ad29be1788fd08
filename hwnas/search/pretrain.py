"""Pre-training: an encoder whose decisions are made learns to classify images; other weights start from its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from hwnas.data import SegmentationData, open_dataset
from hwnas.data.base import CLASSIFICATION, task_of
from hwnas.errors import HwnasError
from hwnas.learn.device import CPU
from hwnas.learn.training import TrainConfig, Training, train
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.records import stored
from hwnas.spaces import Form, Head, Scale, Space
from hwnas.steplog import StepLog

Where = tuple[torch.device, int | None]


@stored("pretraining")
@dataclass(frozen=True)
class Pretraining:
    """What precedes a stage of a search: the encoder that earlier stages decided is trained to classify images.

    The stage's supernet starts from its weights. It is trained in the form and at the scale of that supernet, so that
    all of them carry over by name and compute there what they computed here. The network that ships has another width,
    and a BatchNorm of its own, so its training starts from a second pre-training, in its form and at its scale: what
    "pre-trained on ImageNet" means in the papers.

    Attributes:
        scale: Of the stage's supernet; its size does not count: images are as large as the crops of `settings`.
        head: What classifies.
        settings: Of the training.
        data: The name of a drawn dataset that is classified, or a path that a layout of one recognises.
        final: Whether the training of the derived network starts from a pre-training too.
    """

    scale: Scale
    head: Head
    settings: TrainConfig
    data: str = "synthetic-shapes"
    final: bool = True

    def with_seed(self, seed: int) -> Pretraining:
        """Return the same with another seed."""
        return replace(self, settings=replace(self.settings, seed=seed))

    def open(self, split: str) -> SegmentationData:
        """Open a split of the images.

        Raises:
            HwnasError: If they cannot be used, or are not classified.
        """
        data = open_dataset(self.data, split, self.settings.crop)
        if (task := task_of(data)) is not CLASSIFICATION:
            raise HwnasError(f"a pre-training classifies images, and {data.name} is for {task.name}; take another")
        return data

    def run(
        self,
        space: Space,
        arch: Architecture,
        folder: Path,
        where: Where = (CPU, 0),
        form: Form = "search",
        scale: Scale | None = None,
        update: Update = ignore,
    ) -> dict[str, Tensor]:
        """Train the encoder to the end, from the checkpoint if there is one, unless its weights are there.

        Args:
            space: Whose encoder it is.
            arch: Answers all decisions of the encoder.
            folder: Gets the checkpoint, ``train.jsonl`` and the weights.
            where: Device, and processes that make batches ahead.
            form: Of the network.
            scale: None for that of the settings.
            update: Told after each step.

        Returns:
            The weights of the encoder by name, as networks of the space have them.

        Raises:
            HwnasError: If a decision is open, or the images cannot be used.
        """
        weights = folder / "model.safetensors"
        if not weights.exists():
            at = replace(scale or self.scale, size=self.settings.crop)
            data, val = (self.open(split) for split in ("train", "val"))
            classifying = Space(space.encoder.at(at), self.head, len(data.classes))
            own = {d.name for g in classifying.groups for d in g.decisions}
            answers = Architecture.of(classifying.name, {d: o for d, o in arch.answers if d in own})
            classifying.problem.check(answers)
            training = Training(classifying, answers, self.settings, data, *where, form=form)
            folder.mkdir(parents=True, exist_ok=True)
            made_with = {"arch": answers.id, "scale": at.to_json(), "data": data.name, "form": form}
            train(training, val, folder, made_with, StepLog(folder / "train.jsonl"), update)
        return {name: w for name, w in load_file(weights).items() if not name.startswith("head.")}
