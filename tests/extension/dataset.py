"""A dataset: stripes of three colours, drawn; nothing is needed on disk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.data import ClassList, dataset
from hwnas.data.drawn import Drawn

PALETTE = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


@dataset("stripes")
class Stripes(Drawn):
    """One split of stripes; the label of a pixel is its colour."""

    classes = ClassList(("red", "green", "blue"), PALETTE)
    mean, std = (0.4, 0.4, 0.4), (0.3, 0.3, 0.3)
    kind, lengths, least_side = "stripes", {"train": 12, "val": 4, "test": 4}, 16

    def draw(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return stripes of random widths, with noise."""
        height, width = self.size
        columns = np.repeat(rng.integers(3, size=width), rng.integers(1, 8, size=width))[:width]
        label = np.tile(columns.astype(np.uint8), (height, 1))
        noise = rng.integers(-30, 31, (height, width, 3))
        return np.clip(np.array(PALETTE)[label] + noise, 0, 255).astype(np.uint8), label
