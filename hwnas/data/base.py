"""What every dataset is: samples with one void label, class names, its task, and the split for the bilevel search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.decode import MAX_PIXELS
from hwnas.errors import DataError

IGNORE_LABEL = 255
"""The label of void pixels inside hwnas, whatever a dataset's files use. Classified images have no void."""

CACHE_BYTES = 1 << 30
"""How much a dataset keeps in memory, in bytes."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Task:
    """What a dataset asks of a network. The loss is cross-entropy in either case, over pixels or over images.

    Attributes:
        name: ``"segmentation"`` (one label a pixel) or ``"classification"`` (one label an image).
        metric: What a score is called in logs and reports.
        title: What it is called for people.
    """

    name: str
    metric: str
    title: str


SEGMENTATION = Task("segmentation", "miou", "mIoU")
CLASSIFICATION = Task("classification", "accuracy", "top-1 accuracy")


@dataclass(frozen=True)
class ClassList:
    """The classes of a dataset, in label order.

    Attributes:
        names: One name a class; label i is ``names[i]``.
        palette: One RGB colour a class, for drawings.

    Raises:
        DataError: If there are no classes, or not one colour a class.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.palette) != len(self.names):
            raise DataError(
                "expected classes with one colour each, "
                f"got {len(self.names)} names and {len(self.palette)} colours; give both the same length"
            )

    def __len__(self) -> int:
        """Return the number of classes, void not counted."""
        return len(self.names)


class Sample(NamedTuple):
    """One labelled image. The arrays are read-only: they may be shared through a cache.

    Attributes:
        image: uint8 RGB (H, W, 3).
        label: uint8 (H, W), IGNORE_LABEL for void; of classification one label (), a whole number of any type, which is
            always a class.
        name: What the dataset calls it.
    """

    image: NDArray[np.uint8]
    label: NDArray[Any]
    name: str


class SegmentationData(Protocol):
    """One split of a dataset at one size.

    Attributes:
        name: Dataset and split, e.g. ``"camvid/train"``.
        classes: Names and colours.
        mean: Mean of R, G, B, in units where white is 1.
        std: Standard deviation of R, G, B, in the same units.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> ClassList: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, float, float]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def task_of(data: SegmentationData) -> Task:
    """Return the task of a dataset: its labels tell, so nothing can contradict them."""
    return SEGMENTATION if data[0].label.ndim else CLASSIFICATION


class SampleCache:
    """Keeps samples until it is full. It never evicts: epochs visit every sample, and LRU would then never hit.

    Args:
        limit_bytes: How much it may hold.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._samples: dict[int, Sample] = {}

    def get(self, index: int, make: Callable[[int], Sample]) -> Sample:
        """Return sample `index`, made by ``make(index)`` unless it is held; its arrays are made read-only."""
        held = self._samples.get(index)
        if held is not None:
            return held
        sample = make(index)
        sample.image.setflags(write=False)
        sample.label.setflags(write=False)
        cost = sample.image.nbytes + sample.label.nbytes
        if self.held_bytes + cost <= self.limit_bytes:
            self._samples[index] = sample
            self.held_bytes += cost
        return sample


def split_halves(n: int, seed: int) -> tuple[list[int], list[int]]:
    """Split ``range(n)`` in two for the bilevel search: weights learn on the first half, alphas on the second.

    Both halves come from one permutation, so that they are disjoint and together everything whatever shuffling a
    loader does later. For odd `n` the second half has one more.

    Args:
        n: How many samples there are.
        seed: Of the permutation.

    Raises:
        DataError: If there is nothing to split, or the seed is negative.
    """
    if n < 2:
        raise DataError(f"a bilevel search needs at least 2 training samples to split in halves, got {n}; add images")
    order = np.random.default_rng(check_seed(seed)).permutation(n).tolist()
    return sorted(order[: n // 2]), sorted(order[n // 2 :])


def check_seed(seed: int) -> int:
    """Return `seed` if random generators take it.

    Raises:
        DataError: If it is negative.
    """
    if seed < 0:
        raise DataError(f"expected a seed of 0 or more, got {seed}; choose a non-negative whole number")
    return seed


def check_split(split: str) -> str:
    """Return `split` if it is the name of one.

    Raises:
        DataError: If it is not.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    return split


def check_size(size: tuple[int, int], least: int = 1) -> tuple[int, int]:
    """Return `size` if it is a usable (height, width).

    Raises:
        DataError: If a side is below `least`, or the image would have more than MAX_PIXELS.
    """
    height, width = size
    if min(size) < least or height * width > MAX_PIXELS:
        raise DataError(
            f"expected a size (height, width) with sides of at least {least} and at most {MAX_PIXELS // 10**6} "
            f"megapixels, got {height}x{width}; choose another size"
        )
    return size


def check_index(index: int, length: int) -> int:
    """Return `index` counted from the start, as sequences do.

    Raises:
        IndexError: If it is out of range: iteration over a sequence ends by it.
    """
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for {length} samples")
    return index % length
