"""How much memory a search will take: measured in small steps, and extrapolated to its batch and crops."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from dataclasses import dataclass, replace
from pathlib import Path

from hwnas.learn.distributed import ALONE
from hwnas.progress import Reporter, Update, ignore
from hwnas.runtime.measuring.work import free_memory_bytes
from hwnas.search.config import SearchConfig
from hwnas.search.strategy import Inputs

SHORT_SIDE = 128  # of the crops of the small steps: 4 pixels where a network has divided by 32
STILL = 1e-30  # a learning rate at which no weight moves: what is not moved does not diverge
BATCHES = (1, 2)

_PROC = Path("/proc/self")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


@dataclass(frozen=True)
class Forecast:
    """What a search will take.

    Attributes:
        peak_bytes: Of the process, all it holds included; of all on this machine, where several search together.
        free_bytes: What the process can have on this machine now, all it holds included.
    """

    peak_bytes: int
    free_bytes: int

    @property
    def enough(self) -> bool:
        """Whether there is as much as it takes."""
        return self.peak_bytes <= self.free_bytes


def forecast(config: SearchConfig, inputs: Inputs, update: Update = ignore) -> Forecast | None:
    """Forecast the memory of a search from two small steps of the same supernet.

    What a step holds is what the weights take plus a part proportional to the pixels in a batch. So steps on one and on
    two small crops determine what a step on the crops of the search takes. They run on a supernet of their own.

    Args:
        config: Of the search.
        inputs: Of the search.
        update: Told after each of the two.

    Returns:
        None where the system does not report the peak of memory (Linux does).
    """
    if not reset_peak():
        return None
    crop, world, inputs = _small(config.crop), inputs.world, replace(inputs, world=ALONE)
    peaks = []
    for batch in BATCHES:
        peaks.append(_highest_bytes(replace(config, batch=batch, crop=crop), inputs))
        update(len(peaks))
    low, high = peaks
    pixels = [b * crop[0] * crop[1] for b in BATCHES]
    own = config.batch // world.size * config.crop[0] * config.crop[1]
    peak = low + (high - low) * (own - pixels[0]) / (pixels[1] - pixels[0])
    return Forecast(round(max(peak, low)) * world.ranks.local_size, _free_bytes())


def report_memory(config: SearchConfig, inputs: Inputs, report: Reporter) -> None:
    """Report how much memory a search will take, and what to do where there is not as much."""
    with report.bar("memory: two small steps", 2) as update:
        memory = forecast(config, inputs, update)
    if memory is None:
        report.note("how much memory the search will take cannot be forecast on this system")
        return
    report.note(f"memory: about {memory.peak_bytes / 2**30:.1f} GiB of {memory.free_bytes / 2**30:.1f} that are free")
    if not memory.enough:
        report.note(
            "that is more than there is, and the system may end the search: in the recipe's search, divide `batch` and "
            "multiply `accumulate`, make `crop` smaller, or set evaluation='lean'",
            warning=True,
        )


def _small(crop: tuple[int, int]) -> tuple[int, int]:
    share = min(1.0, SHORT_SIDE / min(crop))
    return round(crop[0] * share), round(crop[1] * share)


def _highest_bytes(config: SearchConfig, inputs: Inputs) -> int:
    """Return the highest level of this process in the second step of a search; the first makes what stays."""
    standing = replace(config, warmup=0, accumulate=1, w_lr=STILL, w_lr_end=STILL)
    steps = standing.begin(inputs)
    steps.advance()
    release()
    reset_peak()
    steps.advance()
    peak = peak_bytes()
    del steps
    release()
    return peak


def release() -> None:
    """Collect cyclic garbage, and return unused memory to the system, where glibc can."""
    gc.collect()  # frames of what a first step imports hold the supernet in cycles
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def reset_peak() -> bool:
    """Let the highest level of this process start anew at what it holds now; return whether the system can."""
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Return the highest level of this process since it was reset. Linux only."""
    return _status("VmHWM")


def held_bytes() -> int:
    """Return what this process holds now. Linux only."""
    return _status("VmRSS")


def _free_bytes() -> int:
    """Return what this process can have: what is free, what it holds, and never more than its container allows."""
    free = [round(free_memory_bytes()) + held_bytes()]
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is no such file, or no limit: "max"
            free.append(int(path.read_text(encoding="ascii")))
    return min(free)


def _status(name: str) -> int:
    text = (_PROC / "status").read_text(encoding="ascii")
    match = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None, name
    return 1024 * int(match[1])
