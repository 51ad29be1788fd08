"""Distillation: a further loss from the scores of a network that was trained before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data.base import SegmentationData
from hwnas.errors import HwnasError
from hwnas.learn.device import read

Network = Callable[[Tensor], Tensor]  # from images (N, 3, H, W) to scores (N, K, h, w), or (N, K)


class Distillation:
    """Kullback-Leibler divergence of the teacher's softened scores (Hinton et al. 2015, section 2).

    Mean over pixels, void ones too: of the teacher's answer there is always one. It is multiplied by the square of the
    temperature, so that its gradients keep their size.
    """

    def __init__(self, teacher: Network, weight: float, temperature: float) -> None:
        """Take the teacher; scores of another size than the network's are brought to that, bilinear."""
        self.teacher, self.weight, self.temperature = teacher, weight, temperature

    def __call__(self, images: Tensor, scores: Tensor) -> Tensor:
        """Return the loss, (), of scores in float32."""
        with torch.no_grad():
            target = self.teacher(images).float()
            if target.shape[2:] != scores.shape[2:]:
                target = F.interpolate(target, scores.shape[2:], mode="bilinear", align_corners=False)
        log_p, log_q = ((x / self.temperature).log_softmax(1) for x in (scores, target))
        each = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
        return each.mean() * (self.weight * self.temperature**2)


class Renormalised:
    """A teacher that was trained on images normalised otherwise than those of the training."""

    def __init__(self, teacher: Network, own: SegmentationData, theirs: SegmentationData, device: torch.device) -> None:
        """Take the teacher, the training set and the teacher's."""
        self.teacher = teacher
        mean, std, mean_t, std_t = (
            torch.tensor(x, device=device)[:, None, None] for x in (own.mean, own.std, theirs.mean, theirs.std)
        )
        self.scale, self.shift = std / std_t, (mean - mean_t) / std_t

    def __call__(self, images: Tensor) -> Tensor:
        """Return the teacher's scores."""
        return self.teacher(images * self.scale + self.shift)


class Session(Protocol):
    """A loaded ONNX file: `hwnas.runtime.engines.onnxruntime.open_onnx`."""

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102 - see there

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...  # noqa: D102 - see there


class OnnxTeacher:
    """The network of an ONNX file, computed by ONNX Runtime on the CPU, so many images at once as the file says.

    Images are normalised as those of the training. With a GPU each step waits for it: images are read back.
    """

    def __init__(self, session: Session, path: Path, batch: int, crop: tuple[int, int], classes: int) -> None:
        """Check that the file fits the training, by running it once.

        Args:
            session: The loaded file.
            path: Of the file, for messages.
            batch: Images a step.
            crop: (height, width) of training images.
            classes: How many the training has.

        Raises:
            HwnasError: If it has not one input of images of that size, or not one output of scores of the classes.
        """
        self.session, self.path = session, path
        shapes = list(session.inputs.values())
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1:] != (3, *crop) or batch % shapes[0][0]:
            raise HwnasError(
                f"the teacher {path} needs one input (N, 3, {crop[0]}, {crop[1]}), the crop of the training, with an N "
                f"that divides its batch of {batch}; it has {shapes}"
            )
        ((self.input, shape),) = session.inputs.items()
        self.at_once = shape[0]
        outputs = list(session.run({self.input: np.zeros(shape, np.float32)}).values())
        good = len(outputs) == 1 and outputs[0].dtype.kind == "f" and outputs[0].shape[:2] == (self.at_once, classes)
        if not good:
            raise HwnasError(
                f"the teacher {path} needs one output of scores of {classes} classes; it has "
                f"{[(o.dtype.name, o.shape) for o in outputs]}; export it with --logits or --scores"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores of the file."""
        pixels = np.ascontiguousarray(read(images))
        parts = np.split(pixels, len(pixels) // self.at_once)
        scores = [next(iter(self.session.run({self.input: part}).values())) for part in parts]
        return torch.from_numpy(np.concatenate(scores)).to(images.device)
