"""CUDA kernels: what each computes, in numpy, and how it is compiled and launched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.images import normalise
from hwnas.resources import kernels_dir

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Kernel:
    """One entry point of a `.cu` file.

    Attributes:
        name: Of the function.
        file: Name of the file in `kernels/`.
        parameters: C type of each argument; pointers end in ``*``.
        threads: In a block.
    """

    name: str
    file: str
    parameters: tuple[str, ...]
    threads: int = 128

    def source(self) -> str:
        """Return the text to compile, with what all kernels share before it."""
        folder = kernels_dir()
        return "".join((folder / name).read_text(encoding="utf-8") + "\n" for name in ("common.cuh", self.file))


_MEAN_AND_GAIN = ("float",) * 6
KERNELS = {
    k.name: k
    for k in (
        Kernel("preprocess_f32", "preprocess.cu", ("const uint8_t *", "float *", "int64_t", *_MEAN_AND_GAIN)),
        Kernel("preprocess_f16", "preprocess.cu", ("const uint8_t *", "half_t *", "int64_t", *_MEAN_AND_GAIN)),
        Kernel("upsample_argmax_f32", "upsample_argmax.cu", ("const float *", "uint8_t *", *("int",) * 5)),
        Kernel("upsample_argmax_f16", "upsample_argmax.cu", ("const half_t *", "uint8_t *", *("int",) * 5)),
        Kernel("l2_flush", "l2_flush.cu", ("uint32_t *", "int64_t", "uint32_t"), threads=256),
        Kernel("copy", "copy.cu", ("const uint32_t *", "uint32_t *", "int64_t"), threads=256),
    )
}


def preprocess_grid(shape: Sequence[int]) -> Grid:
    """Return the blocks that `preprocess` takes for an image (N, H, W, 3)."""
    n, height, width, _ = shape
    return math.ceil(height * width / (4 * KERNELS["preprocess_f32"].threads)), n, 1


def upsample_argmax_grid(n: int, size: tuple[int, int]) -> Grid:
    """Return the blocks that `upsample_argmax` takes for n label maps of `size` (height, width)."""
    height, width = size
    return math.ceil(width / (8 * KERNELS["upsample_argmax_f32"].threads)), height, n


def copy_grid(n: int) -> Grid:
    """Return the blocks with which `copy` is fastest for n words of 4 bytes."""
    return math.ceil(n / (4 * KERNELS["copy"].threads)), 1, 1


def preprocess(
    image: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], dtype: type[np.floating] = np.float32
) -> NDArray[np.floating]:
    """Return what a network reads, the reference of ``preprocess_f32`` and ``preprocess_f16``.

    Args:
        image: (N, H, W, 3).
        mean: Of the three colours, where white is 1.
        std: The same.
        dtype: float32 or float16.

    Returns:
        (N, 3, H, W).
    """
    return normalise(image, mean, std).astype(dtype, copy=False)


def upsample_argmax(scores: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return labels at full size, the reference of ``upsample_argmax_f32`` and ``upsample_argmax_f16``.

    Args:
        scores: (N, C, h, w), finite, C at most 256.
        size: (height, width) of the labels.

    Returns:
        (N, height, width): the class of the highest score, bilinear with half-pixel centres, the first of equal ones.
    """
    labels: NDArray[np.uint8] = upsample(scores, size).argmax(axis=1).astype(np.uint8)
    return labels


def upsample(scores: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return scores (N, C, h, w) at `size` (height, width), bilinear with half-pixel centres."""
    out = scores.astype(np.float32)
    for axis, n_out in ((2, size[0]), (3, size[1])):
        n = out.shape[axis]
        at = np.maximum(
            0, (np.arange(n_out, dtype=np.float32) + np.float32(0.5)) * np.float32(n / n_out) - np.float32(0.5)
        )
        low = np.minimum(at.astype(int), n - 1)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(4)]).astype(np.float32)
        first, second = (np.take(out, i, axis=axis) for i in (low, np.minimum(low + 1, n - 1)))
        out = first + weight * (second - first)
    return out
