"""The expected latency of a network whose decisions are random: one formula for loss, prediction and budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.latency.calibrate import Correction
from hwnas.ops.registry import OpSpec
from hwnas.ops.trace import Term
from hwnas.problem import Architecture, Clause, Gate, Marginals, Matrices, Problem


class Prices(Protocol):
    """What each op costs: a `LatencyTable`, or the `Counts` of a resource."""

    correction: Correction

    def __getitem__(self, spec: OpSpec) -> float:
        """Return the cost of one op, uncorrected."""


class LatencyModel(nn.Module):
    """Expected latency in milliseconds, differentiable in the probabilities.

    ``E[ms] = base + sum_t (call + factor(kind_t) * ms(spec_t)) * P(gate_t)``. Exact for independent decisions and
    additive ops; how far a device is from additive is what the table's correction records. Under one-hot probabilities
    it is the predicted latency of that architecture.
    """

    gate_weights: Tensor  # (gates,), `gate_ms` on the device of the model

    def __init__(self, terms: Sequence[Term], table: Prices, problem: Problem) -> None:
        """Price `terms`, a trace of the deploy form at the deployment scale.

        Args:
            terms: Of a mixed network, or of a built one.
            table: Has a row for every term.
            problem: Whose decisions the gates are about.

        Raises:
            MissingOp: If the table lacks a row.
        """
        super().__init__()
        self.terms = tuple(terms)
        prices = [table.correction.priced(t.spec.kind, table[t.spec]) for t in terms]
        per_gate: dict[Gate, float] = {}
        for gate, ms in _counted(terms, prices):
            per_gate[gate] = per_gate.get(gate, 0.0) + ms
        self.prices = prices
        self.base_ms = table.correction.base_ms
        self.gates = tuple(per_gate)
        self.gate_ms = np.array(list(per_gate.values()))
        self.marginals = Marginals(problem, self.gates)
        self.relative_error = table.correction.relative_error
        self.interval = table.correction.interval
        self.register_buffer("gate_weights", torch.from_numpy(self.gate_ms), persistent=False)

    def forward(self, probs: Matrices) -> Tensor:
        """Return expected milliseconds.

        Args:
            probs: Of the problem, as `Probabilities` or by group; those of each decision sum to 1.

        Returns:
            (), in the dtype of `probs`.
        """
        q = self.marginals.literal_probs(probs)
        return self.base_ms + self.marginals.gate_probs(q) @ self.gate_weights.to(q)

    def predict_ms(self, arch: Architecture) -> float:
        """Return the predicted latency of a complete architecture."""
        return self.base_ms + float(self.gate_ms @ np.array([g.count(arch) for g in self.gates]))

    def interval_ms(self, arch: Architecture) -> tuple[float, float] | None:
        """Return (low, high) that holds the measured latency with 95 % confidence; None for an untested table."""
        if self.interval is None:
            return None
        ms = self.predict_ms(arch)  # errors are relative to what was measured: measured = predicted / (1 + error)
        return ms / (1 + self.interval), ms / max(1e-3, 1 - self.interval)

    def by_kind(self, arch: Architecture) -> dict[str, float]:
        """Return the milliseconds of each kind of op in an architecture, the largest first, and the base."""
        counts = {g: g.count(arch) for g in {t.gate for t in self.terms}}
        out = {"(base)": self.base_ms}
        for term, ms in zip(self.terms, self.prices, strict=True):
            if counts[term.gate]:
                out[term.spec.kind] = out.get(term.spec.kind, 0.0) + counts[term.gate] * ms
        return dict(sorted(out.items(), key=lambda item: -item[1]))


def _counted(terms: Sequence[Term], prices: Sequence[float]) -> list[tuple[Gate, float]]:
    """Return gates with prices; terms of one op that differ in their walks alone become one gate that counts all."""
    out: list[tuple[Gate, float]] = []
    by_op: dict[tuple[OpSpec, frozenset[Clause]], tuple[list[Gate], float]] = {}
    for term, ms in zip(terms, prices, strict=True):
        if term.gate.walks:
            by_op.setdefault((term.spec, term.gate.clauses), ([], ms))[0].append(term.gate)
        else:
            out.append((term.gate, ms))
    return out + [(Gate.total(gates), ms) for gates, ms in by_op.values()]
