"""Derivation at every width: width has no alpha, so the solver runs at each, and the candidates compete."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.arch import Architecture
from hwnas.errors import BudgetError
from hwnas.gates import TopK
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.search.derive import Solution, Solver, reachable_fps, strongest
from hwnas.spaces.base import Scale, SearchSpace, sample, trace_space

# How far below the budget the prediction of a derived network stays: two standard errors of the table's predictions,
# but never more than a tenth: a table worse than that should be measured again, not paid for in width.
SAFETY = 2.0
MOST = 0.1


def price(space: SearchSpace, scales: Sequence[Scale], table: LatencyTable) -> list[LatencyModel]:
    """Return the latency model of the deploy form at each scale.

    Raises:
        MissingOp: If the table lacks an op.
    """
    merge = bool(table.where["merges"])
    traces = [trace_space(space.at(s), merge=merge) for s in scales]
    return [LatencyModel(t.terms(), table, space.groups, space.rules()) for t in traces]


def random_latencies_ms(space: SearchSpace, models: Sequence[LatencyModel], n: int, seed: int) -> np.ndarray:
    """Return the predicted latencies of random architectures, (len(models), n)."""
    rng = np.random.default_rng(seed)
    return np.array([[m.predict_ms(sample(space, rng)) for _ in range(n)] for m in models])


@dataclass(frozen=True)
class Candidate:
    """The best architecture of one width.

    Attributes:
        scale: The width it was derived at.
        arch: None if nothing of this width meets the budget.
        latency_ms: Predicted; of the fastest network of this width if none meets the budget.
        score: Share of the score of the paper's rule without a budget that is left under it.
        utility: What the candidates compete by: score + `width_utility` per doubling of channels.
    """

    scale: Scale
    arch: Architecture | None
    latency_ms: float
    score: float = 0.0
    utility: float = -math.inf


def derive(
    space: SearchSpace,
    scales: Sequence[Scale],
    models: Sequence[LatencyModel],
    probs: Mapping[str, np.ndarray],
    budget_ms: float,
    width_utility: float,
) -> tuple[Candidate, list[Candidate]]:
    """Derive at each scale under a budget and choose.

    Args:
        space: The space.
        scales: Deployment scales, narrowest first.
        models: Their prices.
        probs: ``{group: (decisions, options)}`` after the softmax.
        budget_ms: What the network may take.
        width_utility: What doubling the channels is worth, as a share of the paper's score.

    Returns:
        The chosen candidate and all of them.

    Raises:
        BudgetError: If no scale meets the budget; names the fastest reachable fps.
    """
    rule = strongest(space.groups, space.rules(), space.name, probs)
    best_score = _score(space, probs, rule)
    out: list[Candidate] = []
    for scale, model in zip(scales, models, strict=True):
        solver = Solver(space.groups, space.rules(), space.name, model)
        margin = 1 + min(SAFETY * (model.relative_error or 0.0), MOST)
        try:
            s: Solution = solver.solve(probs, budget_ms / margin)
        except BudgetError:
            fastest = solver.fastest().latency_ms
            assert fastest is not None
            out.append(Candidate(scale, None, fastest * margin))
            continue
        assert s.latency_ms is not None
        score = s.score / best_score
        out.append(
            Candidate(
                scale,
                s.arch,
                s.latency_ms,
                score,
                score + width_utility * math.log2(scale.channels / scales[0].channels),
            )
        )
    chosen = max(out, key=lambda c: c.utility)
    if chosen.arch is None:
        fastest_ms = min(c.latency_ms for c in out)
        raise BudgetError(
            f"no architecture of the space meets {1000 / budget_ms:.1f} fps ({budget_ms:.4g} ms); the fastest "
            f"reachable is {1000 / fastest_ms:.1f} fps ({fastest_ms:.4g} ms, with the table's error allowed for); "
            f"ask for at most --fps {reachable_fps(fastest_ms)}"
        )
    return chosen, out


def margins(space: SearchSpace, probs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return for each decision the best probability less the second best: how sure the search is of it."""
    out: dict[str, float] = {}
    for g in space.groups:
        top = np.sort(probs[g.name], axis=1)[:, ::-1]
        out |= {d.name: float(m) for d, m in zip(g.decisions, top[:, 0] - top[:, 1], strict=True)}
    return out


def _score(space: SearchSpace, probs: Mapping[str, np.ndarray], arch: Architecture) -> float:
    dropped = {d: r.none for r in space.rules() if isinstance(r, TopK) for d in r.decisions}
    return sum(
        float(probs[g.name][i][d.options.index(answer)])
        for g in space.groups
        for i, d in enumerate(g.decisions)
        if (answer := arch.get(d.name)) is not None and answer != dropped.get(d.name)
    )
