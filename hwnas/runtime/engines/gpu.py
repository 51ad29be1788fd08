"""The GPU that engines measure on: its context, one stream, a timer on it, its clock, and what it is called."""

from __future__ import annotations

from typing import Any

from hwnas.runtime.cuda.driver import Stream, open_cuda
from hwnas.runtime.cuda.nvml import open_watch
from hwnas.runtime.cuda.timing import GpuTimer


class Gpu:
    """The first GPU.

    All runners of an engine share one stream, since they run one after the other.

    Attributes:
        cuda: Its context.
        watch: Of its clock; None if nobody can tell.
    """

    def __init__(self) -> None:
        """Find it.

        Raises:
            MissingExtra: If no binding of CUDA is installed.
            HwnasError: If there is no GPU.
        """
        self.cuda = open_cuda()
        self.watch, self._no_watch = open_watch(self.cuda.facts.pci_bus_id)
        self._stream: Stream | None = None
        self._timer: GpuTimer | None = None

    def device(self) -> dict[str, object]:
        """Return what tells this model of GPU from others."""
        facts = self.cuda.facts
        return {
            "kind": "gpu",
            "name": facts.name,
            "compute_capability": ".".join(map(str, facts.compute_capability)),
            "multiprocessors": facts.multiprocessors,
            "memory_mib": facts.memory_bytes >> 20,
            "l2_kib": facts.l2_bytes >> 10,
            "max_sm_mhz": self._card().get("max_sm_mhz"),
        }

    def options(self) -> dict[str, object]:
        """Return what else decides about times: the driver, this very card, its limit of power, how clocks are read."""
        card = self._card()
        return {
            "binding": self.cuda.binding,
            "graphs": self.cuda.captures,
            "cuda": ".".join(map(str, self.cuda.facts.driver_cuda)),
            "driver": card.get("driver"),
            "card": card.get("uuid"),
            "power_limit_w": card.get("power_limit_w"),
            "clock_read_by": self._no_watch or "nvml",
        }

    def stream(self) -> Stream:
        """Return the stream; inside the context."""
        if self._stream is None:
            self._stream = self.cuda.stream()
        return self._stream

    def timer(self) -> GpuTimer:
        """Return the timer of that stream."""
        if self._timer is None:
            self._timer = GpuTimer(self.cuda, self.stream(), self.watch)
        return self._timer

    def free_bytes(self) -> float:
        """Return how much memory of the device can still be had."""
        with self.cuda:
            return float(self.cuda.free_bytes())

    def close(self) -> None:
        """Give everything back."""
        with self.cuda:
            if self._timer is not None:
                self._timer.close()
            if self._stream is not None:
                self._stream.close()
            self._timer = self._stream = None
        if self.watch is not None:
            self.watch.close()
        self.cuda.close()

    def _card(self) -> dict[str, Any]:
        return {} if self.watch is None else self.watch.facts()
