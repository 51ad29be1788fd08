"""What an application waits for, timed on the host: a network with its copies, and all from a camera image to labels.

For engines that run a network from the host's memory to the host's memory; a GPU times these scopes in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.images import normalise
from hwnas.runtime.cuda.kernels import upsample_argmax
from hwnas.runtime.engines.base import HOST_CLOCKS, Array, Loaded, random_inputs
from hwnas.runtime.measuring.measure import Samples, timed
from hwnas.runtime.measuring.plan import Entry

SCOPES = ("copies", "application")  # roles of entries that are more than the network
MEAN, STD = (0.5,) * 3, (0.25,) * 3  # how long preprocessing takes does not depend on them


def scoped(opener: Callable[[ExitStack], Loaded], entry: Entry, clock: str) -> Callable[[ExitStack], Loaded]:
    """Return what opens a network so that it times what the role of `entry` says.

    Args:
        opener: Of the network, which it returns where that alone is to be timed.
        entry: What it is loaded from.
        clock: The engine's, one of `HOST_CLOCKS`.

    Raises:
        HwnasError: If an application is asked for and the network does not go from one image to labels or scores.
    """
    if entry.role not in SCOPES:
        return opener
    if entry.role == "application":
        image_of(entry)
    return lambda stack: _Scoped(opener(stack), entry, clock)


def image_of(entry: Entry) -> tuple[str, tuple[int, int]]:
    """Return name and (height, width) of the image that an application feeds to its network.

    Raises:
        HwnasError: If the network does not go from one image (N, 3, H, W) to labels or scores, of pixels or of images.
    """
    shapes, results = list(entry.inputs.items()), list(entry.output_shapes().values())
    fits = len(shapes) == len(results) == 1 and len(shapes[0][1]) == 4 and shapes[0][1][1] == 3
    if not fits or not 1 <= len(results[0]) <= 4:
        raise HwnasError(
            f"{entry.key}: an application needs a network from one image (N, 3, H, W) to labels (N, H, W) or scores "
            f"(N, classes, h, w), or to those of whole images, (N,) or (N, classes), got {dict(entry.inputs)} to "
            f"{entry.output_shapes()}"
        )
    name, (_, _, height, width) = shapes[0]
    return name, (height, width)


def to_labels(output: Array, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return labels (N, height, width) of what a network gives; (N,) of one that classifies images.

    Args:
        output: Labels (N, height, width) or (N,), which are returned as they are, or scores (N, classes, h, w) or
            (N, classes).
        size: (height, width).
    """
    if output.ndim == 4 and output.shape[2:] != size:
        return upsample_argmax(output, size)
    labels: NDArray[np.uint8] = output if output.ndim in (1, 3) else output.argmax(axis=1).astype(np.uint8)
    return labels


class _Scoped:
    """A network whose `run` is its own, and whose `time` is that of more."""

    def __init__(self, network: Loaded, entry: Entry, clock: str) -> None:
        self._network, self._entry, self._clock_ns = network, entry, HOST_CLOCKS[clock]
        self.inputs = network.inputs
        self._call = self._application() if entry.role == "application" else self._copies()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._network.run(inputs)

    def time(self, repeats: int, visit: int) -> Samples:
        return timed(self._call, repeats, self._clock_ns)

    def _copies(self) -> Callable[[], object]:
        inputs = random_inputs(self._entry.inputs)
        return lambda: self._network.run(inputs)

    def _application(self) -> Callable[[], object]:
        name, size = image_of(self._entry)
        n = self._entry.inputs[name][0]
        image = np.random.default_rng(0).integers(0, 256, (n, *size, 3), np.uint8)

        def call() -> object:
            (output,) = self._network.run({name: normalise(image, MEAN, STD)}).values()
            return to_labels(output, size)

        return call
