"""What a training learns from beside the labels: the network of another run, or an ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hwnas.data import SegmentationData
from hwnas.errors import HwnasError
from hwnas.export import load_trained
from hwnas.files import sha256
from hwnas.learn.distill import Distillation, Network, OnnxTeacher, Renormalised
from hwnas.learn.settings import TrainConfig
from hwnas.run import Run
from hwnas.runtime.engines.onnxruntime import OnnxRuntime

ONNX = ".onnx"


@contextmanager
def open_teacher(
    run: Run, config: TrainConfig, data: SegmentationData, device: torch.device
) -> Iterator[tuple[Distillation | None, str | None]]:
    """Open the teacher of a training, as long as the context is.

    Args:
        run: What is trained.
        config: Names the teacher.
        data: The training set.
        device: Where the network of a run computes; an ONNX file does on the CPU.

    Yields:
        The loss, and the SHA-256 of the teacher's file; None and None where there is no teacher.

    Raises:
        HwnasError: If it is not there, or has other classes.
    """
    name = config.distill
    if name is None:
        yield None, None
    elif name.endswith(ONNX):
        path = Path(name)
        if not path.is_file():
            raise HwnasError(f"cannot read the teacher at {path}: there is no such file; correct train.distill")
        with OnnxRuntime(torch.get_num_threads()).open_model(path) as runner:
            own = OnnxTeacher(runner.loaded, path, config.batch, config.crop, len(data.classes))
            yield Distillation(own, config.distill_weight, config.temperature), sha256(path.read_bytes())
    else:
        if name == run.name:
            raise HwnasError(f"the run {name!r} cannot be its own teacher; name another with train.distill")
        teacher = Run(name)
        weights = teacher.require("train/model.safetensors", "train")
        network = _network_of(teacher, weights, data, device)
        yield Distillation(network, config.distill_weight, config.temperature), sha256(weights.read_bytes())


def _network_of(teacher: Run, weights: Path, data: SegmentationData, device: torch.device) -> Network:
    """Return the trained network of a run, for images as the training has them.

    Raises:
        HwnasError: If its classes are not those of the training.
    """
    theirs, derived = teacher.data("train"), teacher.derived()
    if theirs.classes.names != data.classes.names:
        own, other = (f"{len(d.classes)} ({', '.join(d.classes.names[:3])}, ...)" for d in (data, theirs))
        raise HwnasError(
            f"the teacher {teacher.name!r} has other classes: {other}, those of {data.name} are {own}; take a run that "
            "was trained on the same"
        )
    network = load_trained(teacher.space(derived), derived.architecture, weights, device)
    if (theirs.mean, theirs.std) == (data.mean, data.std):
        return network
    return Renormalised(network, data, theirs, device)
