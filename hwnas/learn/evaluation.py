"""Evaluation of a network over a whole split, at the resolution of its labels; see docs/evaluation.md."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data.base import CLASSIFICATION, SEGMENTATION, SegmentationData, Task, task_of
from hwnas.errors import HwnasError, check_ranges
from hwnas.images import normalise, resize_labels
from hwnas.learn.device import CPU, Context, read
from hwnas.learn.distributed import ALONE, World
from hwnas.metrics import ConfusionMatrix, Measure
from hwnas.ops.layers import resized
from hwnas.progress import Update, ignore

EVALUATED = 64  # images at once, where they are classified: all of one size, and small
OVERLAP = 2 / 3  # of a window, the default stride

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inference:
    """How a network computes the scores of an image; the default is one pass over the image as it is.

    Attributes:
        scales: The image is computed at its size times each of these; softmax scores are averaged.
        flip: Whether the mirrored image is computed too, at each scale, and averaged with it.
        window: (height, width) of windows that slide over the image at each scale; None for the image as a whole.
            Where windows overlap, their scores are averaged.
        stride: (height, width) from one window to the next, but for the last, which ends with the image; None for two
            thirds of the window.

    Raises:
        HwnasError: If a setting is out of range, or windows would leave gaps.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raise HwnasError unless all of this can be."""
        scales, window = self.scales, self.window
        steps = self.strides
        check_ranges(
            "an evaluation",
            (
                "one or more scales, finite and more than 0",
                scales,
                bool(scales) and all(0 < s < math.inf for s in scales),
            ),
            ("scales that differ", scales, len(set(scales)) == len(scales)),
            ("a window (height, width) of 1 or more", window, window is None or _positive(window)),
            ("a stride only with a window", self.stride, self.stride is None or window is not None),
            ("a stride (height, width) of 1 or more", self.stride, self.stride is None or _positive(self.stride)),
            (
                f"a stride of at most the window {window}",
                self.stride,
                window is None or steps is None or all(s <= w for s, w in zip(steps, window, strict=True)),
            ),
        )

    @classmethod
    def of(cls, scales: str = "1", flip: bool = False, window: str | None = None) -> Inference:
        """Read what a command line says: scales ``"0.75,1,1.25"``, a window ``"512x1024"`` (height, width).

        Raises:
            HwnasError: If a text is no such thing, or a setting is out of range.
        """
        try:
            factors = tuple(float(s) for s in scales.split(","))
        except ValueError as e:
            raise HwnasError(f"expected scales such as 0.75,1,1.25, got {scales!r}") from e
        if window is None:
            return cls(factors, flip)
        size = re.fullmatch(r"(\d+)x(\d+)", window)
        if size is None:
            raise HwnasError(f"expected a window HEIGHTxWIDTH such as 512x1024, got {window!r}")
        return cls(factors, flip, (int(size[1]), int(size[2])))

    @property
    def strides(self) -> tuple[int, int] | None:
        """The stride of the windows, None without any."""
        if self.window is None or self.stride is not None:
            return self.stride
        height, width = self.window
        return max(1, int(OVERLAP * height)), max(1, int(OVERLAP * width))

    @property
    def plain(self) -> bool:
        """Whether it is one pass over the image as it is: what a deployed network does."""
        return self == PLAIN

    def __str__(self) -> str:
        """Return it for people."""
        parts = ["scales " + ", ".join(f"{s:g}" for s in self.scales) if self.scales != (1.0,) else "single scale"]
        parts += ["with flips"] if self.flip else []
        if self.window is not None and self.strides is not None:
            parts.append(f"windows of {_by(self.window)} every {_by(self.strides)}")
        return ", ".join(parts)

    def check(self, task: Task) -> None:
        """Refuse what a task knows nothing of.

        Raises:
            HwnasError: If whole images are to be classified at several scales, flipped or in windows.
        """
        if task is CLASSIFICATION and not self.plain:
            raise HwnasError("scales, flips and windows are for segmentation; classify images as they are")

    def scores(self, network: Network, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute the scores of images at a size.

        Args:
            network: From (N, 3, h, w) to scores (N, K, h', w'), of any size.
            images: (N, 3, H, W).
            size: (height, width) of what is returned; scores are resized bilinearly, with half-pixel centres.

        Returns:
            (N, K, height, width): scores of the network where there is one pass, else mean probabilities.

        Raises:
            HwnasError: If the network gives no scores.
        """
        passes, total = len(self.scales) * (1 + self.flip), None
        for scale in self.scales:
            height, width = (max(1, round(scale * n)) for n in images.shape[2:])
            scaled = resized(images, (height, width))
            for flipped in (False, True)[: 1 + self.flip]:
                out = self._windows(network, scaled.flip(3) if flipped else scaled)
                out = resized(out.flip(3) if flipped else out, size)
                if passes == 1:
                    return out
                out = out.float().softmax(1)
                total = out if total is None else total + out
        assert total is not None, "there is a scale"
        return total / passes

    def _windows(self, network: Network, images: Tensor) -> Tensor:
        """Return the scores (N, K, H, W) of images of that size; those of the network as they are without windows."""
        length, breadth = images.shape[2:]
        if self.window is None or self.strides is None:
            return _scored(network, images)
        height, width = min(self.window[0], length), min(self.window[1], breadth)
        if (height, width) == (length, breadth):
            return _scored(network, images)
        total, counts = None, np.zeros((length, breadth), np.float32)
        for top in starts(length, height, self.strides[0]):
            for left in starts(breadth, width, self.strides[1]):
                rows, columns = slice(top, top + height), slice(left, left + width)
                out = resized(_scored(network, images[:, :, rows, columns]), (height, width))
                if total is None:
                    total = out.new_zeros(*out.shape[:2], length, breadth)
                total[:, :, rows, columns] += out
                counts[rows, columns] += 1
        assert total is not None, "there is a window"
        return total / Context(images.device).tensor(torch.from_numpy(counts)).to(total.dtype)


PLAIN = Inference()


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin on a length of at least one: every `stride`, and one that ends with it."""
    return [*range(0, length - window, stride), length - window]


def evaluate(
    network: Network,
    data: SegmentationData,
    update: Update = ignore,
    device: torch.device = CPU,
    inference: Inference = PLAIN,
    measures: Sequence[Measure] = (),
    world: World = ALONE,
) -> ConfusionMatrix:
    """Run a network over a whole split: one image at a time at its own size, or `EVALUATED` where they are classified.

    Where a label has another size than its image, scores are brought to it before the argmax. A network that gives
    labels leaves no choice: these are resized by nearest.

    Args:
        network: From (N, 3, H, W) to labels (N, H, W) or (N,), or to scores (N, K, H, W) or (N, K).
        data: The split.
        update: Told after each batch.
        device: Where the network computes; labels are read once for each batch.
        inference: How scores of label maps are computed.
        measures: Told all predictions of this process with their labels, beside the confusion that is returned.
        world: The processes that share the split; the confusion is that of all of it.

    Raises:
        HwnasError: If `inference` asks for scores that the network or the task does not have.
    """
    confusion, context, task = ConfusionMatrix(len(data.classes.names)), Context(device), task_of(data)
    inference.check(task)
    n = EVALUATED if task is CLASSIFICATION else 1
    with torch.no_grad():
        for first in range(n * world.rank, len(data), n * world.size):
            samples = [data[i] for i in range(first, min(first + n, len(data)))]
            images = context.tensor(
                torch.from_numpy(np.stack([normalise(s.image, data.mean, data.std) for s in samples]))
            )
            label = np.stack([s.label for s in samples])
            if task is SEGMENTATION:
                pred = _label_maps(network, images, inference, (label.shape[1], label.shape[2]))
            else:
                pred = _labels(network(images))
            for measure in (confusion, *measures):
                measure.update(pred, label)
            update(first + len(samples))
    confusion.counts[:] = world.total(torch.from_numpy(confusion.counts)).cpu().numpy()
    return confusion


def _label_maps(network: Network, images: Tensor, inference: Inference, size: tuple[int, int]) -> NDArray[Any]:
    """Return predicted labels (N, *size) of images; by nearest where the network gives labels."""
    if not inference.plain:
        return _labels(inference.scores(network, images, size))
    out = network(images)
    return _labels(resized(out, size)) if out.is_floating_point() else resize_labels(_labels(out), size)


def _labels(out: Tensor) -> NDArray[Any]:
    return read(out.argmax(1) if out.is_floating_point() else out)


def as_labels(network: Network) -> Network:
    """Return a network that gives the labels (N, H, W) of another one's scores (N, K, H, W)."""
    return lambda images: network(images).argmax(1)


def _scored(network: Network, images: Tensor) -> Tensor:
    out = network(images)
    if not out.is_floating_point():
        raise HwnasError("scales, flips and windows average scores, and the network gives labels; build it without")
    return out


def _positive(size: tuple[int, int]) -> bool:
    return len(size) == 2 and min(size) >= 1


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
