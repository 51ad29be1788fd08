"""Running a network that lies on a GPU: alone, with its copies, or as a whole application."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from hwnas.errors import HwnasError
from hwnas.runtime.cuda.driver import Memory
from hwnas.runtime.cuda.kernels import KERNELS, preprocess_grid, upsample_argmax_grid
from hwnas.runtime.cuda.timing import Capture, Prepared
from hwnas.runtime.engines.base import Array, Once, OnceRunner, Runner, random_inputs
from hwnas.runtime.engines.gpu import Gpu
from hwnas.runtime.measuring.measure import Samples
from hwnas.runtime.measuring.plan import Shape

NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # how long preprocessing takes does not depend on them
Colour = tuple[float, float, float]


class GpuNetwork(Protocol):
    """A network with its inputs and outputs in memory of the device.

    Attributes:
        name: As messages call it.
        inputs: Shape and type of each input.
        outputs: The same of each output.
        memory: Where each of them is.
        capturable: Whether its runs can be captured into a graph.
    """

    name: str
    inputs: dict[str, tuple[Shape, Any]]
    outputs: dict[str, tuple[Shape, Any]]
    memory: dict[str, Memory]
    capturable: bool

    def enqueue(self) -> None:
        """Put one run on the stream."""


Opener = Callable[[ExitStack], GpuNetwork]  # opens a network, and puts on the stack what gives it back


def gpu_runner(
    gpu: Gpu,
    openers: Sequence[Opener],
    name: str,
    role: str = "net",
    wanted: Mapping[str, Shape] | None = None,
    capture: Capture | None = None,
) -> Runner:
    """Return a runner over one or several builds of the same network, which take turns visit by visit.

    Args:
        gpu: Where it runs.
        openers: Of each build; all but the first are opened when it is their turn for the first time.
        name: As messages call it.
        role: Of its entry in the plan: what `time` times.
        wanted: Shape of each input; None if any will do.
        capture: How its runs become a graph; None for the stream's own way.
    """
    return OnceRunner(name, lambda stack: Builds(gpu, openers, name, role, wanted, capture, in_context(gpu, stack)))


def in_context(gpu: Gpu, stack: ExitStack) -> ExitStack:
    """Return a stack that is unwound in the GPU's context when `stack` is unwound."""
    inner = ExitStack()

    def unwind() -> None:
        with gpu.cuda:
            inner.close()

    stack.callback(unwind)
    return inner


class Builds:
    """The builds of a network, on the device: see `gpu_runner`, and `hwnas.runtime.engines.base.Loaded`."""

    def __init__(
        self,
        gpu: Gpu,
        openers: Sequence[Opener],
        name: str,
        role: str,
        wanted: Mapping[str, Shape] | None,
        capture: Capture | None,
        stack: ExitStack,
    ) -> None:
        """Open the first build; what all of them hold is put on `stack`."""
        self._gpu, self._openers, self._name, self._role, self._wanted = gpu, openers, name, role, wanted
        self._capture, self._stack = capture, stack
        self._open: dict[int, tuple[GpuNetwork, Prepared]] = {}
        first, _ = self.build(0)
        self.inputs = _shapes(first.inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute once with the first build, host to host."""
        network, _ = self.build(0)
        with self._gpu.cuda:
            stream = self._gpu.stream()
            for name, array in inputs.items():
                stream.copy_in(network.memory[name], np.ascontiguousarray(array))
            network.enqueue()
            out = {name: np.empty(shape, dtype) for name, (shape, dtype) in network.outputs.items()}
            for name, array in out.items():
                stream.copy_out(array, network.memory[name])
            stream.synchronize()
        return out

    def time(self, repeats: int, visit: int) -> Samples:
        """Return samples of the build whose turn it is."""
        number = visit % len(self._openers)
        _, prepared = self.build(number)
        samples = prepared.time(repeats)
        return samples._replace(about={**samples.about, "build": number})

    def build(self, number: int) -> tuple[GpuNetwork, Prepared]:
        """Return a build, opened now unless it is."""
        if number not in self._open:
            with self._gpu.cuda:
                network = self._openers[number](self._stack)
                self._check(network)
                self._fill(network)
                prepared = self._gpu.timer().prepare(self._work(network), network.capturable, self._capture)
                self._stack.callback(prepared.close)
            self._open[number] = network, prepared
        return self._open[number]

    def _check(self, network: GpuNetwork) -> None:
        """Raise HwnasError unless the inputs are float32 in the shapes of the plan."""
        wrong = [name for name, (_, dtype) in network.inputs.items() if dtype is not np.float32]
        shapes = _shapes(network.inputs)
        if wrong or (self._wanted is not None and shapes != self._wanted):
            raise HwnasError(
                f"{self._name} has the inputs {dict(network.inputs)}, the plan says float32 {self._wanted}"
            )

    def _fill(self, network: GpuNetwork) -> None:
        stream = self._gpu.stream()
        inputs = random_inputs(_shapes(network.inputs))
        for name, array in inputs.items():
            stream.copy_in(network.memory[name], array)
        stream.synchronize()

    def _work(self, network: GpuNetwork) -> Callable[[], None]:
        """Return what one run is, in the scope of the role."""
        if self._role == "copies":
            return _copies(self._gpu, network, self._stack)
        if self._role == "application":
            return Pipeline(self._gpu, network, self._stack).enqueue
        return network.enqueue


class Pipeline:
    """From a camera image in the host's memory to labels there: copy, preprocess, network, labels, copy.

    Attributes:
        image: uint8 (1, H, W, 3), to be filled.
        labels: uint8 (1, height, width), of use when the stream has been waited for.
    """

    def __init__(
        self,
        gpu: Gpu,
        network: GpuNetwork,
        stack: ExitStack,
        mean: Colour = NO_MEAN,
        std: Colour = NO_STD,
    ) -> None:
        """Make what it needs, in the GPU's context.

        Args:
            gpu: The GPU.
            network: From one image (1, 3, H, W) to labels (1, H, W) uint8, or to scores (1, C, h, w); or to those of
                the whole image, (1,) or (1, C).
            stack: Gets what must be given back.
            mean: Of the colours, where white is 1.
            std: The same.

        Raises:
            HwnasError: If the network is not of that kind.
        """
        (name, (shape, _)), *more = network.inputs.items()
        (out, (out_shape, out_dtype)), *others = network.outputs.items()
        ends_in_scores = len(out_shape) in (2, 4)
        fits = len(shape) == 4 and shape[1] == 3 and (ends_in_scores or out_dtype is np.uint8)
        if more or others or not fits:
            raise HwnasError(
                f"{network.name}: an application needs one image (1, 3, H, W), and one result: uint8 labels or scores"
            )
        cuda = gpu.cuda

        def own(it: Any) -> Any:
            stack.callback(it.close)
            return it

        self._network, self._stream = network, gpu.stream()
        n, _, height, width = shape
        self._shape, self._size = (n, height, width, 3), (height, width)
        classifies = len(out_shape) < 3
        if classifies:
            self._size = (1, 1)  # one label is a map of one pixel
        self._parameters = (*mean, *(1 / s for s in std))
        self._image_host, self._labels_host = (
            own(cuda.host(self._shape, np.uint8)),
            own(cuda.host((n,) if classifies else (n, height, width), np.uint8)),
        )
        self.image, self.labels = self._image_host.array, self._labels_host.array
        self._image = own(cuda.memory(self.image.nbytes))
        self._into, self._labels = network.memory[name], network.memory[out]
        self._preprocess = cuda.function(KERNELS["preprocess_f32"])
        self._scores: tuple[int, ...] = ()
        if ends_in_scores:
            kind = "f16" if out_dtype is np.float16 else "f32"
            self._upsample = cuda.function(KERNELS[f"upsample_argmax_{kind}"])
            self._from, self._scores = self._labels, (*out_shape[1:], 1, 1)[:3]
            self._labels = own(cuda.memory(self.labels.nbytes))

    def enqueue(self) -> None:
        """Put one run on the stream."""
        stream, (n, height, width, _) = self._stream, self._shape
        stream.copy_in(self._image, self.image)
        grid = preprocess_grid(self._shape)
        stream.launch(self._preprocess, grid, self._image, self._into, height * width, *self._parameters)
        self._network.enqueue()
        if self._scores:
            grid = upsample_argmax_grid(n, self._size)
            stream.launch(self._upsample, grid, self._from, self._labels, *self._scores, *self._size)
        stream.copy_out(self.labels, self._labels)

    def network_output(self) -> Array:
        """Wait for the stream, and return what the network gave last."""
        ((name, (shape, dtype)),) = self._network.outputs.items()
        out = np.empty(shape, dtype)
        self._stream.copy_out(out, self._network.memory[name])
        self._stream.synchronize()
        return out


class GpuApplication:
    """A network as a whole application, from image to labels. A context manager, used once."""

    def __init__(
        self, gpu: Gpu, opener: Opener, name: str, mean: Colour, std: Colour, close: Callable[[], None]
    ) -> None:
        """Say what to open.

        Args:
            gpu: Where it runs.
            opener: Of the network.
            name: As messages call it.
            mean: Of the colours, where white is 1.
            std: The same.
            close: Called when everything else was given back.
        """

        def pipeline(stack: ExitStack) -> Pipeline:
            stack.callback(close)
            inner = in_context(gpu, stack)
            with gpu.cuda:
                return Pipeline(gpu, opener(inner), inner, mean, std)

        self._gpu, self._name, self._once = gpu, name, Once(name, pipeline)

    def __enter__(self) -> GpuApplication:
        """Open it."""
        self._once.open()
        return self

    def __exit__(self, *exc: object) -> None:
        """Give everything back."""
        self._once.close()

    def labels(self, image: Array) -> Array:
        """Return labels uint8 (H, W), or (), of an image uint8 (H, W, 3) of exactly the network's size.

        Raises:
            HwnasError: If it is another size or type.
        """
        pipeline = self._run(image)
        return np.array(pipeline.labels[0])

    def output(self, image: Array) -> Array:
        """Return what the network itself gives for an image: labels or scores."""
        pipeline = self._run(image)
        with self._gpu.cuda:
            return pipeline.network_output()

    def _run(self, image: Array) -> Pipeline:
        """Compute an image; only the labels are copied to the host."""
        pipeline = self._once.get()
        wanted = pipeline.image.shape[1:]
        if image.shape != wanted or image.dtype != np.uint8:
            raise HwnasError(f"{self._name} takes an image uint8 {wanted}, got {image.dtype} {image.shape}; resize it")
        with self._gpu.cuda:
            pipeline.image[0] = image
            pipeline.enqueue()
            self._gpu.stream().synchronize()
        return pipeline


def _copies(gpu: Gpu, network: GpuNetwork, stack: ExitStack) -> Callable[[], None]:
    """Return a run with its inputs copied to the device and its outputs back, from and to page-locked memory."""
    stream, hosts = gpu.stream(), {}
    for name, (shape, dtype) in {**network.inputs, **network.outputs}.items():
        hosts[name] = gpu.cuda.host(shape, dtype)
        stack.callback(hosts[name].close)
    for name, array in random_inputs(_shapes(network.inputs)).items():
        hosts[name].array[...] = array

    def run() -> None:
        for name in network.inputs:
            stream.copy_in(network.memory[name], hosts[name].array)
        network.enqueue()
        for name in network.outputs:
            stream.copy_out(hosts[name].array, network.memory[name])

    return run


def _shapes(tensors: Mapping[str, tuple[Shape, Any]]) -> dict[str, Shape]:
    return {name: shape for name, (shape, _) in tensors.items()}
