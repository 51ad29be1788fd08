"""A machine in virtual time that is slow in spells, and a plan for it: runs of minutes are replayed in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from hwnas.runtime.engines.base import Capabilities
from hwnas.runtime.measuring import forecast, measure, work
from hwnas.runtime.measuring.measure import Samples
from hwnas.runtime.measuring.plan import Entry, write_plan
from tests.runtime_cases import conv_entry

OPS, NETWORKS = 300, 58
SLOWER = (1.15, 1.6)  # what a spell makes of a time
SPELL_S = (0.005, 90.0)  # how long one lasts: any order of magnitude between is as frequent
JITTER = {"op": 0.08, "net": 0.07}  # of a visit to an idle core
LOAD_S = {"op": 0.02, "net": 0.08}
SPEED = 1.4  # what a run takes over the estimate from its arithmetic


class VirtualTime:
    """Stands in for the module `time`, and is slow in spells."""

    def __init__(self, slow_share: float, seed: int) -> None:
        self.now_s = self._until_s = 1000.0
        self.factor, self.slow_s = 1.0, 0.0
        self._share, self.rng = slow_share, np.random.default_rng(seed)

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def work(self, seconds: float) -> float:
        """Let work that takes so long on a quiet machine be done; return how long it took."""
        while self.now_s >= self._until_s:
            self._until_s += float(np.exp(self.rng.uniform(*np.log(SPELL_S))))
            # A machine that has been slow for less than its share of the time is the more likely to become so.
            behind = self._share - self.slow_s / max(1.0, self.now_s - 1000)
            slow = self._share > 0 and self.rng.random() < self._share + behind
            self.factor = float(self.rng.uniform(*SLOWER)) if slow else 1.0
        took_s = seconds * self.factor
        self.now_s += took_s
        self.slow_s += took_s * (self.factor > 1)
        return took_s


class Simulated:
    """An engine of that machine; `make` gives it its time."""

    capabilities = Capabilities(merges=True)
    name, clock = "simulated", "thread_cpu"
    time: VirtualTime

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def provenance(self) -> dict[str, object]:
        device = {"kind": "model", "name": "simulated"}
        return {"name": self.name, "version": "1", "precision": "fp32", "threads": 1, "clock": self.clock} | {
            "options": {},
            "device": device,
        }

    def load(self, entry: Entry, folder: Path) -> SimulatedRunner:
        self.time.work(LOAD_S[entry.role])
        return SimulatedRunner(self.time, entry)

    def close(self) -> None:
        pass


class SimulatedRunner:
    """Each visit has a time of its own, and each entry is off what its arithmetic says."""

    def __init__(self, time: VirtualTime, entry: Entry) -> None:
        self._time, self._jitter = time, JITTER[entry.role]
        off = np.random.default_rng(entry.calls[0].macs).normal(0.0, 0.3)
        self._run_s = SPEED * forecast.run_s(entry) * float(np.exp(off))
        self._visit, self._now = -1, 1.0

    def __enter__(self) -> SimulatedRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, inputs: object) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def time(self, repeats: int, visit: int = 0) -> Samples:
        if visit != self._visit:
            self._visit, self._now = visit, 1 + self._jitter * abs(float(self._time.rng.standard_normal()))
        took_s = self._time.work(self._run_s * self._now * repeats)
        each_ms = np.full(repeats, 1e3 * took_s / repeats)
        return Samples(each_ms, each_ms)


def slow_plan(folder: Path, ops: int = OPS, networks: int = NETWORKS) -> Path:
    """Write a plan of ops whose visits take some 3 to 10 ms, and of networks that take four times as long."""
    rng = np.random.default_rng(0)
    entries = [conv_entry(f"op{i}", macs=int(75e6 * ms)) for i, ms in enumerate(np.exp(rng.uniform(-3, 1, ops)))]
    for i, ms in enumerate(np.exp(rng.uniform(1.5, 2.2, networks))):
        entries.append(replace(conv_entry(f"net{i}", macs=int(75e6 * ms)), role="net"))
    write_plan(folder, entries)
    return folder


def begin(monkeypatch: pytest.MonkeyPatch, slow_share: float, seed: int = 0) -> VirtualTime:
    """Let everything that measures in this process live in virtual time."""
    time = VirtualTime(slow_share, seed)
    for module in (work, measure):
        monkeypatch.setattr(module, "time", time)
    monkeypatch.setattr(Simulated, "time", time, raising=False)
    return time
