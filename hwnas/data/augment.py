"""From samples to training batches: every batch is a pure function of (seed, step), so a resumed run sees the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.data.base import CLASSIFICATION, IGNORE_LABEL, Sample, SegmentationData, check_seed, check_size, task_of
from hwnas.errors import DataError, check_ranges
from hwnas.images import normalise
from hwnas.optional import require

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = require("PIL.Image", "search")

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
# From a sample and a generator to a normalised image float32 (3, height, width) and its label.
Prepare = Callable[[Sample, np.random.Generator], tuple[NDArray[np.float32], NDArray[np.uint8]]]

PAD = 4  # pixels on each side of an image that is classified, before it is cropped (DARTS, appendix A.2)

# separate streams of one seed
_ORDER, _AUGMENT = 0, 1


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images at random.

    Attributes:
        scale_range: Least and greatest scale; segmentation only.
        flip: Whether they are mirrored, half the time.
        jitter: Brightness, contrast and saturation each change by a factor within 1 - jitter to 1 + jitter;
            segmentation only.
        cutout: Side of the square that is cut out, in pixels, 0 for none; classification only.

    Raises:
        HwnasError: If a value is out of range.
    """

    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    jitter: float = 0.2
    cutout: int = 0

    def __post_init__(self) -> None:
        low, high = self.scale_range
        check_ranges(
            "an augmentation",
            ("a scale_range from more than 0 to as much or more", self.scale_range, 0 < low <= high < math.inf),
            ("a jitter from 0 to less than 1", self.jitter, 0 <= self.jitter < 1),
            ("a cutout of 0 or more", self.cutout, self.cutout >= 0),
        )


STANDARD = Augmentation()


class BatchSource:
    """Batches of a dataset by number; `batch_source` makes the one that fits the data.

    Epochs run through one stream without a gap: each epoch visits every index once, in its own order, and a batch
    may straddle two epochs. No sample is dropped, and `batch` may exceed the number of indices.

    Args:
        data: Where samples come from.
        indices: Which of them to use.
        batch: Samples a batch.
        size: (height, width) of the batches.
        seed: Of order and augmentation.
        augment: Rescale, crop, flip and jitter; True as `STANDARD`. Without it, samples of another size are resized.
        prepare: What is done to each sample instead, its generator shared by those of a batch.

    Raises:
        DataError: If there are no indices, one is outside the dataset or occurs twice, or a number is out of range.
    """

    def __init__(
        self,
        data: SegmentationData,
        indices: Sequence[int],
        batch: int,
        size: tuple[int, int],
        seed: int,
        augment: bool | Augmentation | None = True,
        prepare: Prepare | None = None,
    ) -> None:
        if batch < 1:
            raise DataError(f"expected a batch of at least 1, got {batch}; choose a larger one")
        if not indices or len(set(indices)) != len(indices) or not 0 <= min(indices) <= max(indices) < len(data):
            raise DataError(
                f"expected distinct indices in 0..{len(data) - 1} of {data.name}, got {len(indices)} "
                f"from {min(indices, default=None)} to {max(indices, default=None)}; take them from this dataset"
            )
        self.data = data
        self.indices = tuple(indices)
        self.batch = batch
        self.size = check_size(size)
        self.seed = check_seed(seed)
        how = STANDARD if augment is True else augment or None
        self.prepare: Prepare = prepare or partial(_prepare_map, data, self.size, how)
        # Draws what is drawn for a sample before those that `part` is asked for.
        self.skip: Callable[[Sample, np.random.Generator], object] = prepare or partial(_skip_map, self.size, how)

    def order(self, epoch: int) -> list[int]:
        """Return the indices in the order of epoch number `epoch`, from 0."""
        rng = np.random.default_rng([self.seed, _ORDER, epoch])
        return [self.indices[i] for i in rng.permutation(len(self.indices))]

    def chosen(self, step: int) -> list[int]:
        """Return the indices of batch number `step`, from 0."""
        first, n = step * self.batch, len(self.indices)
        orders = {e: self.order(e) for e in range(first // n, (first + self.batch - 1) // n + 1)}
        return [orders[p // n][p % n] for p in range(first, first + self.batch)]

    def __call__(self, step: int) -> Batch:
        """Return batch number `step`.

        Returns:
            Normalised images float32 (N, 3, height, width), and labels int64: (N, height, width), or (N,) where
            images are classified.

        Raises:
            DataError: If a sample cannot be read.
        """
        return self.part(step, 0, 1)

    def part(self, step: int, number: int, parts: int) -> Batch:
        """Return one of several parts of equal size of batch number `step`: those samples alone are prepared.

        Args:
            step: Of the batch.
            number: Of the part, from 0.
            parts: How many there are; they divide the batch.

        Raises:
            DataError: If a sample cannot be read.
        """
        assert self.batch % parts == 0, f"{parts} parts of a batch of {self.batch}"
        rng = np.random.default_rng([self.seed, _AUGMENT, step])
        n = self.batch // parts
        chosen = self.chosen(step)[: (number + 1) * n]
        for i in chosen[: number * n]:
            self.skip(self.data[i], rng)
        images, labels = zip(*(self.prepare(self.data[i], rng) for i in chosen[number * n :]), strict=True)
        return np.stack(images), np.stack(labels).astype(np.int64)


def batch_source(
    data: SegmentationData,
    indices: Sequence[int],
    batch: int,
    size: tuple[int, int],
    seed: int,
    augment: bool | Augmentation = True,
    cutout: int = 0,
) -> BatchSource:
    """Return the batches that fit a dataset's task.

    Args:
        data: Where samples come from.
        indices: Which of them to use.
        batch: Samples a batch.
        size: (height, width) of the batches.
        seed: Of order and augmentation.
        augment: Segmentation: rescale, crop, flip and jitter. Classification: pad by `PAD`, crop, flip, `cut_out`.
            True for `STANDARD`. Without it, samples of another size are resized to `size`.
        cutout: Side of the square that is cut out, where `augment` is True.

    Raises:
        DataError: If there are no indices, one is outside the dataset or occurs twice, a number is out of range, or
            `cutout` is asked for where every pixel has a label.
    """
    size = check_size(size)
    how = Augmentation(cutout=cutout) if augment is True else augment or None
    if task_of(data) is CLASSIFICATION:
        return BatchSource(data, indices, batch, size, seed, prepare=partial(_prepare_image, data, size, how))
    if how is not None and how.cutout:
        raise DataError(f"expected a cutout of 0 for {data.name}, where every pixel has a label, got {how.cutout}")
    return BatchSource(data, indices, batch, size, seed, how)


def _skip_map(size: tuple[int, int], how: Augmentation | None, sample: Sample, rng: np.random.Generator) -> None:
    """Draw what `_prepare_map` draws."""
    if how is not None:
        height, width = sample.label.shape
        _draw((height, width), size, rng, how.scale_range, how.jitter)


def _prepare_map(
    data: SegmentationData,
    size: tuple[int, int],
    how: Augmentation | None,
    sample: Sample,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return an image and its label map, both of `size`."""
    image, label, _ = sample
    if how is not None:
        fill = (round(255 * data.mean[0]), round(255 * data.mean[1]), round(255 * data.mean[2]))
        image, label = random_crop_flip(image, label, size, rng, how.scale_range, fill, how.jitter, how.flip)
    elif label.shape != size:
        image, label = _scaled(image, label, size, (0, 0, *label.shape))
    return normalise(image, data.mean, data.std), label


def _prepare_image(
    data: SegmentationData,
    size: tuple[int, int],
    how: Augmentation | None,
    sample: Sample,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return an image of `size` and its one label."""
    image, label, _ = sample
    if how is None:
        return normalise(scaled_image(image, size), data.mean, data.std), label
    planes = normalise(pad_crop_flip(image, size, rng, flip=how.flip), data.mean, data.std)
    return (cut_out(planes, how.cutout, rng) if how.cutout else planes), label


def random_crop_flip(
    image: NDArray[np.uint8],
    label: NDArray[np.uint8],
    size: tuple[int, int],
    rng: np.random.Generator,
    scale_range: tuple[float, float] = (0.5, 2.0),
    fill: tuple[int, int, int] = (124, 116, 104),
    jitter: float = 0.2,
    flip: bool = True,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Rescale, mirror, crop and recolour one sample at random, as real-time segmentation papers do.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W).
        size: (height, width) of the result.
        rng: Draws scale (log-uniform), mirror, place and colours, in this order.
        scale_range: Least and greatest scale.
        fill: RGB of what lies outside the image; its label is IGNORE_LABEL.
        jitter: Brightness, contrast and saturation each change by a factor within 1 - jitter to 1 + jitter.
        flip: Whether to mirror, half the time; it changes no other draw.

    Returns:
        A new image uint8 (height, width, 3) and label uint8 (height, width).

    Raises:
        DataError: If image and label differ in size, or the scale range is not positive and ordered.
    """
    low, high = scale_range
    if image.shape[:2] != label.shape or not 0 < low <= high or not 0 <= jitter < 1:
        raise DataError(
            f"expected image and label of one size, 0 < low <= high scale and 0 <= jitter < 1, got {image.shape}, "
            f"{label.shape}, scale {low}..{high} and jitter {jitter}; correct these"
        )
    drawn = _draw((label.shape[0], label.shape[1]), size, rng, scale_range, jitter)
    (rows, source_rows), (columns, source_columns) = drawn.rows, drawn.columns
    visible = (rows.stop - rows.start, columns.stop - columns.start)
    box = (source_rows[0], source_columns[0], source_rows[1], source_columns[1])
    part, part_label = _scaled(image, label, visible, box)
    if drawn.mirror and flip:
        part, part_label = part[:, ::-1], part_label[:, ::-1]
    out = np.empty((*size, 3), np.uint8)
    out[:] = fill
    out_label = np.full(size, IGNORE_LABEL, np.uint8)
    out[rows, columns] = part if jitter == 0 else _recoloured(part, drawn.factors)
    out_label[rows, columns] = part_label
    return out, out_label


class _Drawn(NamedTuple):
    """What is random about one sample.

    Attributes:
        mirror: Whether it is mirrored.
        rows: As `_window` gives them.
        columns: Likewise.
        factors: Of brightness, contrast and saturation, (3,).
    """

    mirror: bool
    rows: tuple[slice, tuple[float, float]]
    columns: tuple[slice, tuple[float, float]]
    factors: NDArray[np.float32]


def _draw(
    shape: tuple[int, int],
    size: tuple[int, int],
    rng: np.random.Generator,
    scale_range: tuple[float, float],
    jitter: float,
) -> _Drawn:
    """Draw for a sample of `shape` and a result of `size`; the order of the draws is that of all trainings so far."""
    low, high = scale_range
    scale = low * (high / low) ** rng.random()
    mirror = rng.random() < 0.5
    rows = _window(shape[0], size[0], scale, rng)
    columns = _window(shape[1], size[1], scale, rng)
    return _Drawn(mirror, rows, columns, rng.uniform(1 - jitter, 1 + jitter, 3).astype(np.float32))


def pad_crop_flip(
    image: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator, pad: int = PAD, flip: bool = True
) -> NDArray[np.uint8]:
    """Put black around an image, crop it at a random place, and mirror it half the time (DARTS, appendix A.2).

    Args:
        image: uint8 (H, W, 3).
        size: (height, width) of the result.
        rng: Draws top, left and mirror, in this order.
        pad: Pixels on each side.
        flip: Whether to mirror, half the time; it changes no other draw.

    Raises:
        DataError: If the padded image is smaller than `size`.
    """
    room = (image.shape[0] + 2 * pad - size[0], image.shape[1] + 2 * pad - size[1])
    if min(room) < 0:
        raise DataError(
            f"expected crops of at most {image.shape[0] + 2 * pad}x{image.shape[1] + 2 * pad} of images padded by "
            f"{pad}, got {size[0]}x{size[1]}; choose a smaller crop"
        )
    top, left = (int(rng.integers(n + 1)) for n in room)
    out = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + size[0], left : left + size[1]]
    return out[:, ::-1] if rng.random() < 0.5 and flip else out


def cut_out(planes: NDArray[np.float32], side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a normalised image (3, H, W) with a square set to 0, its centre anywhere (DeVries and Taylor 2017).

    Args:
        planes: The image; it is not changed.
        side: Of the square, in pixels; what lies outside the image is lost, so less may be cut out.
        rng: Draws row and column of the centre, in this order.

    Raises:
        DataError: If `side` is negative.
    """
    if side < 0:
        raise DataError(f"expected a cutout of 0 pixels or more, got {side}; choose another")
    spans = []
    for n in planes.shape[1:]:
        start = int(rng.integers(n)) - side // 2
        spans.append(slice(max(0, start), max(0, start + side)))
    out = planes.copy()
    out[:, spans[0], spans[1]] = 0
    return out


def scaled_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image uint8 (H, W, 3) at `size` (height, width), bilinear; itself if it has that size."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def _window(n_source: int, n_out: int, scale: float, rng: np.random.Generator) -> tuple[slice, tuple[float, float]]:
    """Return which part of an output side shows the source scaled by `scale`, and which part of the source."""
    n_scaled = max(1, round(n_source * scale))
    if n_scaled <= n_out:
        start = int(rng.integers(n_out - n_scaled + 1))
        return slice(start, start + n_scaled), (0.0, float(n_source))
    start = int(rng.integers(n_scaled - n_out + 1))
    ratio = n_source / n_scaled
    return slice(0, n_out), (start * ratio, min((start + n_out) * ratio, float(n_source)))


def _scaled(
    image: NDArray[np.uint8], label: NDArray[np.uint8], size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scale the part `box` (top, left, bottom, right) to `size`; only that part is computed."""
    top, left, bottom, right = box
    out_wh, box_xy = size[::-1], (left, top, right, bottom)  # Pillow's order
    part = Image.fromarray(image).resize(out_wh, Image.Resampling.BILINEAR, box=box_xy)
    part_label = Image.fromarray(label).resize(out_wh, Image.Resampling.NEAREST, box=box_xy)
    return np.asarray(part), np.asarray(part_label)


def _recoloured(image: NDArray[np.uint8], factors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image with other brightness, contrast and saturation, by these factors, (3,)."""
    brightness, contrast, saturation = factors
    pixels = image.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma
    # one affine map of (pixel, grey, mean) instead of three passes over the image
    gain = brightness * contrast
    pixels *= gain * saturation
    pixels += (gain * (1 - saturation) * grey + (1 - contrast) * brightness * grey.mean())[..., None]
    out: NDArray[np.uint8] = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return out
