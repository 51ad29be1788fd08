"""An engine: the roofline model of `fake` at half its speed, under a name of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwnas.runtime.engines.base import Array, Capabilities, Runner
from hwnas.runtime.engines.fake import Fake
from hwnas.runtime.measuring.measure import Samples
from hwnas.runtime.measuring.plan import Entry


class Tortoise:
    """Takes twice as long as `fake`."""

    capabilities = Capabilities(merges=True)

    def __init__(self, threads: int = 1) -> None:
        """Open it."""
        self.name, self.clock = "tests.extension.engine:Tortoise", "model"
        self._fake = Fake(threads)

    def provenance(self) -> dict[str, object]:
        """Return that of `fake` under another name."""
        return {**self._fake.provenance(), "name": self.name, "device": {"kind": "model", "name": "tortoise"}}

    def load(self, entry: Entry, folder: Path) -> Runner:
        """Return a runner."""
        return Slow(self._fake.load(entry, folder))

    def close(self) -> None:
        """Give nothing back."""


class Slow:
    """A runner whose times are doubled."""

    def __init__(self, runner: Runner) -> None:
        """Wrap a runner."""
        self._runner = runner

    def __enter__(self) -> Slow:
        """Load the network."""
        self._runner.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        """Release everything."""
        self._runner.__exit__(*exc)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute as `fake` does."""
        return self._runner.run(inputs)

    def time(self, repeats: int, visit: int = 0) -> Samples:
        """Return twice the times."""
        samples = self._runner.time(repeats, visit)
        return samples._replace(latency_ms=2 * samples.latency_ms, wall_ms=2 * samples.wall_ms)
