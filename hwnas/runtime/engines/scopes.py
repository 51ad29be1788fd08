"""What an application waits for, timed on the host: a network with its copies, and all from a camera image to labels.

For engines that run a network from the host's memory to the host's memory; a GPU times these scopes in its own way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import HwnasError
from hwnas.runtime.cuda.kernels import preprocess, upsample_argmax
from hwnas.runtime.engines.base import Array, Runner, random_inputs
from hwnas.runtime.measuring.measure import Samples, timed
from hwnas.runtime.measuring.plan import Entry

SCOPES = ("copies", "application")  # roles of entries that are more than the network
HOST_CLOCKS = {"thread_cpu": time.thread_time_ns, "wall": time.perf_counter_ns}
MEAN, STD = (0.5,) * 3, (0.25,) * 3  # how long preprocessing takes does not depend on them


def scoped(runner: Runner, entry: Entry, clock: str) -> Runner:
    """Return a runner that times what the role of `entry` says; `runner` itself where that is the network alone.

    Args:
        runner: Of the network, not entered; its `run` goes from host to host.
        entry: What it was loaded from.
        clock: The engine's, one of `HOST_CLOCKS`.

    Raises:
        HwnasError: If an application is asked for and the network does not go from one image to labels or scores.
    """
    if entry.role not in SCOPES:
        return runner
    if entry.role == "application":
        image_of(entry)
    return _Scoped(runner, entry, clock)


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
    """A runner whose `run` is that of the network, and whose `time` is that of more."""

    def __init__(self, runner: Runner, entry: Entry, clock: str) -> None:
        self._runner, self._entry, self._clock_ns = runner, entry, HOST_CLOCKS[clock]
        self._call: Callable[[], object] = lambda: runner.run({})  # which says that it was not entered

    def __enter__(self) -> _Scoped:
        self._runner.__enter__()
        self._call = self._application() if self._entry.role == "application" else self._copies()
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.__exit__(*exc)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._runner.run(inputs)

    def time(self, repeats: int, visit: int = 0) -> Samples:
        return timed(self._call, repeats, self._clock_ns)

    def _copies(self) -> Callable[[], object]:
        inputs = random_inputs(self._entry.inputs)
        return lambda: self._runner.run(inputs)

    def _application(self) -> Callable[[], object]:
        name, size = image_of(self._entry)
        n = self._entry.inputs[name][0]
        image = np.random.default_rng(0).integers(0, 256, (n, *size, 3), np.uint8)

        def call() -> object:
            (output,) = self._runner.run({name: preprocess(image, MEAN, STD)}).values()
            return to_labels(output, size)

        return call
