"""A GPU that is not there, under the real bindings: `cuda.c` and `nvml.c` say what it does.

`fake_gpu.fixtures` makes the libraries. Child processes that get ``PYTHONPATH`` with their folder have them too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

NAMES = {"cuda": "libcuda.so.1", "nvml": "libnvidia-ml.so.1"}
CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class FakeGpu:
    """What tests see of it, and what other libraries put on its streams.

    Attributes:
        folder: Where its libraries are.
    """

    def __init__(self, folder: Path) -> None:
        """Load the libraries: from now on, this process has a driver."""
        self.folder = folder
        os.environ["HWNAS_FAKE_KERNELS"] = str(folder / "kernels.so")
        self._cuda, self._nvml = (ctypes.CDLL(str(folder / n)) for n in NAMES.values())
        self._cuda.fake_log.restype = ctypes.c_char_p
        self._cuda.fake_now_us.restype = ctypes.c_double
        self._calls: list[object] = []  # work that is on a stream may not be collected

    def log(self) -> list[tuple[str, int]]:
        """Return (name, number) of each call so far; the number is that of a stream, -1 for the default one."""
        words = (line.split(" ") for line in self._cuda.fake_log().decode().splitlines())
        return [(name, int(rest[0]) if rest else 0) for name, *rest in words]

    def names(self) -> list[str]:
        """Return the name of each call so far."""
        return [name for name, _ in self.log()]

    def reset(self) -> None:
        """Forget the calls, and what was to fail."""
        self._cuda.fake_reset()
        self._nvml.fake_nvml(0, 1500)

    def fail(self, name: str, code: int, after: int = 0) -> None:
        """Let a call fail, after so many that work; once, or for ever with an illegal address (700)."""
        self._cuda.fake_fail(name.encode(), code, after)

    def throttle(self, queries: int, mhz: int = 700) -> None:
        """Let as many questions for the clock hear that it is kept down by heat."""
        self._nvml.fake_nvml(queries, mhz)

    @property
    def live(self) -> int:
        """How much is not given back: streams, events, graphs, memory."""
        return int(self._cuda.fake_live())

    @property
    def contexts(self) -> tuple[int, int]:
        """How many contexts are on this thread's stack, and how often the primary one is held."""
        return int(self._cuda.fake_depth()), int(self._cuda.fake_retained())

    @property
    def now_us(self) -> float:
        """The device's clock."""
        return float(self._cuda.fake_now_us())

    def enqueue(self, stream: int, work: Callable[[], None], us: float, name: str) -> bool:
        """Put work of another library on a stream; return whether the stream took it."""
        call = CALL(lambda _: work())
        self._calls.append(call)
        return bool(
            self._cuda.fake_enqueue(ctypes.c_void_p(stream), call, None, ctypes.c_double(us), name.encode()) == 0
        )

    def capturing(self, stream: int) -> bool:
        """Whether a stream is being captured."""
        return bool(self._cuda.fake_capturing(ctypes.c_void_p(stream)))


@cache
def load(folder: Path) -> FakeGpu:
    """Load what `make` made, once in a process."""
    return FakeGpu(folder)


def there() -> FakeGpu:
    """Return the one that this process has."""
    return load(Path(os.environ["HWNAS_FAKE_KERNELS"]).parent)
