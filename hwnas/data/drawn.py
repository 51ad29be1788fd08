"""Datasets that are drawn, not read: every sample is a function of (seed, split, index)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import (
    CACHE_BYTES,
    SPLITS,
    ClassList,
    Sample,
    SampleCache,
    check_index,
    check_seed,
    check_size,
    check_split,
)
from hwnas.errors import DataError


class Drawn(ABC):
    """One split of drawn samples. A subclass says what they are called, how many there are, and draws one.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: (height, width), each side at least `least_side`.
        seed: Of the whole dataset.
        length: Number of samples; that of the split if None.
        cache_bytes: Limit of samples kept in memory.

    Raises:
        DataError: If split, size, seed or length is out of range.
    """

    classes: ClassList
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    kind: ClassVar[str]
    lengths: ClassVar[Mapping[str, int]]
    least_side: ClassVar[int]

    def __init__(
        self,
        split: str,
        size: tuple[int, int],
        seed: int = 0,
        length: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.split = check_split(split)
        self.size = check_size(size, least=self.least_side)
        self.seed = check_seed(seed)
        self.length = self.lengths[split] if length is None else length
        if self.length < 1:
            raise DataError(f"expected a length of at least 1, got {self.length}; ask for more")
        self.name = f"{self.kind}/{split}"
        self._cache = SampleCache(cache_bytes)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`.

        Raises:
            IndexError: If there is no such sample.
        """
        return self._cache.get(check_index(index, self.length), self._make)

    def _make(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        return Sample(*self.draw(index, rng), f"{self.split}-{index:05d}")

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image and label of a sample; all chance comes from `rng`."""
