"""A device that exists only as a formula: same answer on every machine, for tests, examples and dry runs.

An op takes ``max(macs / peak, bytes / bandwidth) + launch``, the roofline of Williams et al., 2009. A run of several
ops saves a little wherever one feeds the next, and every run pays an overhead: so, as on real devices, the sum of
isolated ops is not the latency of a network. Copies, preprocessing and upsampling take their bytes over the bandwidth.

Where the environment variable ``HWNAS_FAKE_REPLAY`` names a results file of another engine, times are not modelled but
replayed from it, visit by visit.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hwnas.errors import HwnasError
from hwnas.files import sha256
from hwnas.runtime.engines.base import Array, Capabilities, OnceRunner, Runner
from hwnas.runtime.engines.scopes import SCOPES, image_of
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.measure import Samples, samples_from
from hwnas.runtime.measuring.plan import PRECISIONS, Call, Entry

DEVICE_NAME = "fake-roofline-1"  # another formula or constant below needs another name
PEAK_MACS_PER_MS = 50e6
BYTES_PER_MS = 10e6
LAUNCH_MS = 0.005
SAVING_MS = 0.002  # per op that reads what another op has just made; less than LAUNCH_MS, so no sum is negative
RUN_MS = 0.010
NOISE = 0.002
REPLAY = "HWNAS_FAKE_REPLAY"

Recording = Mapping[str, list[Samples]]  # of each entry, by visit


class Fake:
    """The device ``fake-roofline-1``. Needs no ONNX file; `threads` and `precision` are recorded and change nothing."""

    capabilities = Capabilities(merges=True, precisions=PRECISIONS)

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        """Make the engine; read the recording if there is one."""
        self._recording, self._digest = _recording(os.environ.get(REPLAY))
        self.name = "fake"
        self.clock = "model"
        self._threads, self._precision = threads, precision

    def provenance(self) -> dict[str, object]:
        """Return name, version, precision, threads, clock, constants, and the named device."""
        return {
            "name": self.name,
            "version": "1",
            "precision": self._precision,
            "threads": self._threads,
            "clock": self.clock,
            "options": {
                "peak_macs_per_ms": PEAK_MACS_PER_MS,
                "bytes_per_ms": BYTES_PER_MS,
                "launch_ms": LAUNCH_MS,
                "saving_ms": SAVING_MS,
                "run_ms": RUN_MS,
                "noise": NOISE,
                "replay_sha256": self._digest,
            },
            "device": {"kind": "model", "name": DEVICE_NAME},
        }

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner for an entry; `folder` is not read."""
        if entry.role == "application":
            image_of(entry)  # refuses what is none
        if self._recording is not None and entry.key not in self._recording:
            raise HwnasError(f"{entry.key} has no times in {os.environ[REPLAY]}")
        recorded = None if self._recording is None else self._recording[entry.key]
        return OnceRunner(entry.key, lambda _: _Network(entry, recorded))

    def close(self) -> None:
        """Nothing is held beyond the runners."""


def _recording(path: str | None) -> tuple[Recording | None, str | None]:
    """Return what a results file recorded, and its digest."""
    if path is None:
        return None, None
    out: dict[str, list[Samples]] = {}
    for record in read_journal(Path(path))[1]:
        if record.get("type") == "sample" and record.get("status") == "ok":
            out.setdefault(str(record["key"]), []).append(samples_from(record))
    return out, sha256(Path(path).read_bytes())


def modelled_ms(entry: Entry) -> float:
    """Return the latency of an entry without noise, in milliseconds."""
    made = {call.output for call in entry.calls}
    pairs = sum(any(name in made for name in call.inputs) for call in entry.calls)
    beside_ms = scope_bytes(entry) / BYTES_PER_MS if entry.role in SCOPES else 0.0
    return sum(_call_ms(call) for call in entry.calls) - SAVING_MS * pairs + RUN_MS + beside_ms


def scope_bytes(entry: Entry) -> int:
    """Return the bytes that are read and written beside the network, in the scope of the entry's role."""
    read = sum(4 * math.prod(shape) for shape in entry.inputs.values())
    made = sum((1 if len(shape) in (1, 3) else 4) * math.prod(shape) for shape in entry.output_shapes().values())
    if entry.role == "copies":
        return read + made
    shape = next(iter(entry.output_shapes().values()))
    image = read // 4  # one byte a colour of a pixel
    labels = read // 12 if len(shape) > 2 else 1  # one byte a pixel, or one
    ends_in_scores = len(shape) in (2, 4)
    return image + (image + read) + (made + labels if ends_in_scores else 0) + labels


def _call_ms(call: Call) -> float:
    return max(call.macs / PEAK_MACS_PER_MS, call.bytes / BYTES_PER_MS) + LAUNCH_MS


class _Network:
    def __init__(self, entry: Entry, recorded: list[Samples] | None) -> None:
        self._entry, self._recorded = entry, recorded
        self.inputs = entry.inputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return float32 zeros of the output shapes: a formula computes no network."""
        return {name: np.zeros(shape, np.float32) for name, shape in self._entry.output_shapes().items()}

    def time(self, repeats: int, visit: int) -> Samples:
        """Return the model's time with noise that depends on the key, the visit and the index alone, or a replay."""
        if self._recorded is not None:
            was = self._recorded[visit % len(self._recorded)]
            return Samples(np.resize(was.latency_ms, repeats), np.resize(was.wall_ms, repeats))
        noise = np.array([_noise(self._entry.key, visit, i) for i in range(repeats)])
        latency_ms = modelled_ms(self._entry) * (1 + NOISE * noise)
        return Samples(latency_ms, latency_ms.copy())


def _noise(key: str, visit: int, index: int) -> float:
    """Return a number in [-1, 1)."""
    digest = hashlib.sha256(f"{key}/{visit}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31 - 1
