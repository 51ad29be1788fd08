"""Which whole networks are measured beside the ops: some to fit the correction on, others to test it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.latency.calibrate import select
from hwnas.ops.trace import Trace
from hwnas.problem import Architecture, Gate
from hwnas.runtime.measuring.forecast import estimate_ms
from hwnas.spaces import Space

CANDIDATES = 600  # random networks to choose from
CONCENTRATION = 0.5  # of a Dirichlet: some networks then consist of one or two ops, as those of searches do


@dataclass(frozen=True)
class Calibration:
    """How many whole networks are measured beside the ops.

    Attributes:
        fit: Networks the correction is fitted on, a D-optimal design for its factors.
        test: Others that its error is measured on, spread evenly in the logarithm of their estimated latency.
        refit: Networks derived with a first table, on which the correction is fitted as well.
        derived: Networks derived with the finished table, on which its error is measured apart.
        isolated: Whether ops are also measured alone, to compare with the usual table.
        seed: Of the draw.
    """

    fit: int = 12
    test: int = 20
    refit: int = 10
    derived: int = 12
    isolated: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges("a calibration", *not_below(self, ("fit", "test", "refit", "derived", "seed"), 0))


def choose_networks(
    space: Space, mixed: Sequence[Trace], calibration: Calibration
) -> list[tuple[str, int, Architecture]]:
    """Return (use, index of the scale, architecture) of the networks to measure whole.

    Those to fit on are D-optimal among random networks; those to test on are spread evenly over the rest in log
    latency, estimated from arithmetic.

    Raises:
        HwnasError: If the space has not so many networks.
    """
    rng = np.random.default_rng(calibration.seed)
    kinds = sorted({c.spec.kind for t in mixed for c in t.calls})
    per_gate = [_estimates(t, kinds) for t in mixed]
    drawn: dict[tuple[int, str], tuple[int, Architecture]] = {}
    features = []
    problem = space.problem
    for _ in range(CANDIDATES):
        index, arch = int(rng.integers(len(mixed))), problem.draw(rng, CONCENTRATION)
        if (index, arch.id) in drawn:
            continue
        drawn[index, arch.id] = (index, arch)
        features.append(sum((gate.count(arch) * ms for gate, ms in per_gate[index].items()), np.zeros(len(kinds))))
    candidates = list(drawn.values())
    if len(candidates) < calibration.fit + calibration.test:
        raise HwnasError("the space is too small to calibrate on that many networks; ask for fewer")
    to_fit = select(np.array(features), calibration.fit)
    rest = [i for i in range(len(candidates)) if i not in set(to_fit)]
    to_test = [rest[i] for i in spread(np.log(np.array(features).sum(1)[rest]), calibration.test)] if rest else []
    return [("fit", *candidates[i]) for i in to_fit] + [("test", *candidates[i]) for i in to_test]


def spread(values: np.ndarray, n: int) -> list[int]:
    """Return indices of n different values that lie as evenly as can be between the least and the greatest."""
    free = np.ones(len(values), bool)
    out = []
    for target in np.linspace(values.min(), values.max(), n):
        i = int(np.where(free, np.abs(values - target), np.inf).argmin())
        free[i] = False
        out.append(i)
    return out


def _estimates(trace: Trace, kinds: Sequence[str]) -> dict[Gate, np.ndarray]:
    """Return rough milliseconds by kind, (kinds,), of all calls under each gate: only proportions matter."""
    out: dict[Gate, np.ndarray] = {}
    for c in trace.calls:
        ms = out.setdefault(c.gate, np.zeros(len(kinds)))
        ms[kinds.index(c.spec.kind)] += estimate_ms(c.cost.macs, c.cost.bytes)
    return out
