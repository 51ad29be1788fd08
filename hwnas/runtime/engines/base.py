"""What an engine is: something that loads an entry of a plan and runs it on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from hwnas.errors import HwnasError
from hwnas.runtime.measuring.measure import Samples
from hwnas.runtime.measuring.plan import Entry, Shape

Array = npt.NDArray[Any]
T = TypeVar("T")
EXPORTED = "the exported model"  # as messages call one that is in no file
HOST_CLOCKS = {"thread_cpu": time.thread_time_ns, "wall": time.perf_counter_ns}


class Runner(Protocol):
    """A loaded network, ready to run and to time.

    A context manager, used once: entering a second time raises, using it outside raises, and everything it holds is
    released on exit.
    """

    def __enter__(self) -> Runner:
        """Load the network.

        Raises:
            HwnasError: If it cannot be loaded, or the runner was entered before.
        """

    def __exit__(self, *exc: object) -> None:
        """Release everything."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute once, host to host. For checking results, never for timing.

        Args:
            inputs: Float32 arrays by name, of exactly the network's shapes.

        Returns:
            The outputs by name.

        Raises:
            HwnasError: If the inputs are not the network's, or the engine fails.
        """

    def time(self, repeats: int, visit: int = 0) -> Samples:
        """Return `repeats` samples of runs on inputs that are already on the device.

        Args:
            repeats: Number of samples.
            visit: Which visit to the entry this is; only an engine that replays needs to know.

        Raises:
            HwnasError: If the engine fails.
        """


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do. Declared by its class, so that it is known without a device.

    Attributes:
        merges: Whether it computes identical parameter-free ops of one input only once.
        precisions: What it computes in, some of `hwnas.runtime.measuring.plan.PRECISIONS`. Its constructor takes
            ``precision`` if there is one beside float32.
        on_host: Whether it computes on this machine's CPUs: then its process is kept to some of them. If not, it is an
            `OnDevice`.
        load_s: Roughly how long it takes to load an entry, and to build it where that has to be done. For forecasts.
        slowest_load_s: How long that may take before it counts as hanging, beyond what an entry is given anyway.
        runs_files: Whether it runs any ONNX file: `hwnas.runtime.deploy.bundle.OpensModels`.
        runs_applications: Whether it has an application of its own: `hwnas.runtime.deploy.bundle.OpensBundles`.
        builds: Whether it builds something of a file that ships: `hwnas.runtime.deploy.bundle.BuildsBundles`.
    """

    merges: bool
    precisions: tuple[str, ...] = ("fp32",)
    on_host: bool = True
    load_s: float = 0.025  # seen, where ops take milliseconds
    slowest_load_s: float = 0.0
    runs_files: bool = False
    runs_applications: bool = False
    builds: bool = False


class Engine(Protocol):
    """Makes runners. Engines report everything that goes wrong with an entry as `HwnasError`.

    Attributes:
        capabilities: Of the class.
        name: As in the table of engines.
        clock: ``"thread_cpu"``, ``"wall"``, ``"device"`` or ``"model"``.
    """

    capabilities: Capabilities
    name: str
    clock: str

    def provenance(self) -> dict[str, object]:
        """Return JSON values: name, version, precision, threads, clock, options.

        Also ``device``, an object with a ``name``, if it does not run on this machine's CPU.
        """

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner for an entry of the plan in `folder`.

        Raises:
            HwnasError: If the entry's file is missing or was changed.
        """

    def close(self) -> None:
        """Give back what the engine itself holds: a GPU's context, a builder's process. Nothing is used after it."""


@runtime_checkable
class OnDevice(Engine, Protocol):
    """An engine that computes elsewhere than on this machine's CPUs."""

    def free_memory_bytes(self) -> float:
        """Return how much memory of the device runners can still have."""


class Loaded(Protocol):
    """A network in memory: what a runner has while it is open."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """Shape of each input."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute once; see `Runner.run`. The inputs were checked."""

    def time(self, repeats: int, visit: int) -> Samples:
        """Return samples; see `Runner.time`."""


class Once(Generic[T]):
    """Something that is opened once, used, and given back: the life cycle of runners and applications."""

    def __init__(self, name: str, opener: Callable[[ExitStack], T]) -> None:
        """Open nothing yet.

        Args:
            name: As messages call the runner.
            opener: Opens it, and puts on the stack what gives back what garbage collection does not.
        """
        self._name, self._stack = name, ExitStack()
        self._opener: Callable[[ExitStack], T] | None = opener
        self._opened: list[T] = []

    def open(self) -> None:
        """Open it; what an opener that fails has put on the stack is given back.

        Raises:
            HwnasError: If it is or was open, or cannot be opened.
        """
        opener, self._opener = self._opener, None  # it may hold the content of a file, which is not needed any more
        if opener is None:
            raise HwnasError(f"the runner of {self._name} was entered before; load it again")
        try:
            self._opened = [opener(self._stack)]
        except BaseException:
            self.close()
            raise

    def get(self) -> T:
        """Return what was opened.

        Raises:
            HwnasError: Unless it is open.
        """
        if not self._opened:
            state = "closed" if self._opener is None else "new"
            raise HwnasError(f"the runner of {self._name} is {state}; use it inside a with block")
        return self._opened[0]

    def close(self) -> None:
        """Give it back."""
        self._opened = []
        self._stack.close()


class OnceRunner:
    """A runner that opens a network when it is entered."""

    def __init__(self, name: str, opener: Callable[[ExitStack], Loaded]) -> None:
        """Open nothing yet; see `Once`."""
        self._name, self._once = name, Once(name, opener)

    def __enter__(self) -> OnceRunner:
        """Load the network; see `Runner`."""
        self._once.open()
        return self

    def __exit__(self, *exc: object) -> None:
        """Release everything."""
        self._once.close()

    @property
    def loaded(self) -> Loaded:
        """The network, while it is open."""
        return self._once.get()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute once; see `Runner.run`."""
        loaded = self.loaded
        check_inputs(inputs, loaded.inputs, self._name)
        return loaded.run(inputs)

    def time(self, repeats: int, visit: int = 0) -> Samples:
        """Return samples; see `Runner.time`."""
        return self.loaded.time(repeats, visit)


def host_clock(threads: int) -> str:
    """Return the clock of an engine that computes on the host: the CPU time of its one thread, else the wall."""
    return "thread_cpu" if threads == 1 else "wall"


def random_inputs(shapes: Mapping[str, Shape], seed: int = 0) -> dict[str, Array]:
    """Return standard normal float32 arrays by name."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def check_inputs(inputs: Mapping[str, Array], shapes: Mapping[str, Shape], name: str) -> None:
    """Raise HwnasError unless `inputs` are float32 arrays of exactly these names and shapes."""
    got = {key: (tuple(value.shape), str(value.dtype)) for key, value in inputs.items()}
    want = {key: (tuple(shape), "float32") for key, shape in shapes.items()}
    if got != want:
        raise HwnasError(f"{name} takes the inputs {want}, got {got}")


def model_bytes(path: Path) -> bytes:
    """Return the content of an ONNX file.

    Raises:
        HwnasError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as e:
        raise HwnasError(f"cannot read an ONNX file at {path}: {e.strerror}") from e
