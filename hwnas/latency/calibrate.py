"""From a sum of ops to a network: a correction fitted on a few measured networks.

The neighbours of an op in a network differ from those it was measured with: engines fuse sums into convolutions and
convert layouts in some places only. The effect is nearly proportional to the latency of each kind of op. And in a long
network an op finds cold caches, which costs nearly the same for each call. So the correction is a constant for the run,
one for each call and a factor per kind, none of them negative. Ridge regression shrinks the factors towards a common
one and the constants towards 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import kendalltau

PENALTIES = (1e-4, 1e-3)  # of the ridge; weak ones suffice, as networks of few dominant ops tell kinds apart


@dataclass(frozen=True)
class Correction:
    """``latency_ms = base_ms + sum over calls of (call_ms + factor[kind] * latency_ms(op))``.

    Attributes:
        base_ms: What a run costs whatever the network.
        common: Factor of kinds that no calibration network has.
        factors: By kind of op.
        relative_error: Expected relative error of a prediction: root mean square on networks it was not fitted on, or
            leave-one-out where there are none.
        interval: Relative half-width that a network lies in with 95 % confidence, see `conformal`.
        networks: How many networks it was fitted on; 0 means the plain sum.
        call_ms: What a call costs beyond what it takes in a short chain.
    """

    base_ms: float = 0.0
    common: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    relative_error: float | None = None
    interval: float | None = None
    networks: int = 0
    call_ms: float = 0.0

    def priced(self, kind: str, ms: float) -> float:
        """Return what a call of an op costs in a network, in milliseconds, from its latency in the table."""
        return self.call_ms + self.factor(kind) * ms

    def total_ms(self, sums: Mapping[str, float], calls: int) -> float:
        """Return the latency of a network from its milliseconds by kind of op, uncorrected, and its number of calls."""
        return self.base_ms + calls * self.call_ms + sum(self.factor(kind) * ms for kind, ms in sums.items())

    def factor(self, kind: str) -> float:
        """Return the factor on the latencies of this kind of op."""
        return self.factors.get(kind, self.common)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "base_ms": self.base_ms,
            "common": self.common,
            "factors": dict(self.factors),
            "relative_error": self.relative_error,
            "interval": self.interval,
            "networks": self.networks,
            "call_ms": self.call_ms,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Correction:
        """Read what `to_json` wrote."""
        return cls(**data)


def fit(
    sums: Sequence[Mapping[str, float]], measured_ms: Sequence[float], calls: Sequence[int] | None = None
) -> Correction:
    """Fit the correction by ridge regression on relative errors, its strength chosen by leave-one-out.

    Args:
        sums: For each network, milliseconds by kind of op.
        measured_ms: What each took as a whole.
        calls: How many ops each calls; None for a correction without `call_ms`.
    """
    kinds = sorted({k for s in sums for k in s})
    y = np.array(measured_ms)
    n = np.zeros(len(y)) if calls is None else np.array(calls, dtype=float)
    # The constants come first: of a run, and of each call. (networks, 2 + kinds)
    x = np.array([[1.0, c, *(s.get(k, 0.0) for k in kinds)] for s, c in zip(sums, n, strict=True)])
    if len(y) < 2:
        return Correction()
    errors = {strength: _leave_one_out(x, y, strength) for strength in PENALTIES}
    strength = min(errors, key=lambda p: float(np.mean(errors[p] ** 2)))
    common, (base, call, *factors) = _solve(x, y, strength)
    error = float(np.sqrt(np.mean(errors[strength] ** 2)))
    named = dict(zip(kinds, map(float, factors), strict=True))
    return Correction(float(base), common, named, error, networks=len(y), call_ms=float(call))


def _solve(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
    """Return the common factor, and a coefficient for each column of `x`: two constants, and a factor per kind."""
    total = x[:, 2:].sum(1)
    common = float((total / y).sum() / ((total / y) ** 2).sum())
    # Factors differ from the common one by some 30 %, the constants are some 5 % of a network each.
    kinds = x.shape[1] - 2
    typical = np.median(y) / np.maximum(np.median(x[:, :2], axis=0), 1e-12)
    penalty = np.sqrt(strength) * np.diag([*(1 / (0.05 * typical)), *[1 / 0.3] * kinds])
    target = np.concatenate([np.ones(len(y)), penalty @ np.array([0.0, 0.0] + [common] * kinds)])
    solution, _ = nnls(np.vstack([x / y[:, None], penalty]), target)
    return common, solution


def _leave_one_out(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Return the relative error of each network when it was left out of the fit, (networks,)."""
    errors = []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        _, solution = _solve(x[rest], y[rest], strength)
        errors.append(x[i] @ solution / y[i] - 1)
    return np.array(errors)


def select(features: np.ndarray, n: int) -> list[int]:
    """Choose networks for the fit of the factors: greedily D-optimal.

    Args:
        features: (networks, kinds), estimated milliseconds by kind.
        n: How many to choose.

    Returns:
        Indices of n different networks (all, if there are no more), in the order of their choice.
    """
    shares = features / features.sum(axis=1, keepdims=True)
    rows = np.hstack([np.full((len(shares), 1), features.sum(1).mean() / features.sum(1)[:, None]), shares])
    information = 1e-3 * np.eye(rows.shape[1])
    chosen: list[int] = []
    while len(chosen) < min(n, len(rows)):
        gain = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(information), rows)
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        information += np.outer(rows[best], rows[best])
    return chosen


def conformal(relative_errors: Sequence[float], coverage: float = 0.95) -> float | None:
    """Return the half-width that covers one more error with this probability, without assuming how errors spread.

    Split conformal prediction: the ceil((n + 1) coverage)-th smallest of n absolute errors. Of less than 19 errors
    there is no such one at 95 %: the largest is taken then, which covers n / (n + 1).

    Args:
        relative_errors: Of networks the correction was not fitted on.
        coverage: Probability.

    Returns:
        None without errors.
    """
    ranked = np.sort(np.abs(relative_errors))
    if not len(ranked):
        return None
    return float(ranked[min(len(ranked), int(np.ceil((len(ranked) + 1) * coverage))) - 1])


def errors(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> dict[str, float]:
    """Return how well predictions meet measurements.

    Returns:
        ``mape`` and ``bias`` (mean absolute and mean relative error), ``within_5``, ``within_10`` (shares), ``tau``
        (Kendall's rank correlation; 0 for a single network), ``n``.
    """
    relative = np.array(predicted_ms) / np.array(measured_ms) - 1
    tau = float(kendalltau(predicted_ms, measured_ms).statistic) if len(relative) > 1 else 0.0
    return {
        "mape": float(np.abs(relative).mean()),
        "bias": float(relative.mean()),
        "within_5": float((np.abs(relative) <= 0.05).mean()),
        "within_10": float((np.abs(relative) <= 0.10).mean()),
        "tau": 0.0 if np.isnan(tau) else tau,
        "n": len(relative),
    }
