"""Multiply-adds and parameters as prices: exact on built networks, differentiable, and solved for like latency."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.latency import LatencyModel
from hwnas.latency.resources import RESOURCES, Counts
from hwnas.ops.layers import ConvBN
from hwnas.ops.trace import trace
from hwnas.search.derive import Solver
from hwnas.search.widths import count
from hwnas.spaces import Scale, darts_space, sample, trace_space
from tests.contracts import constrained_ms, random_probs
from tests.test_derive import cells

SPACES = {
    "segmentation": darts_space(Scale(6, 5, (33, 47)), 5, head_channels=8),
    "classification": darts_space(Scale(4, 6, (32, 32)), 10, stem="cifar", head="classification"),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("merge", [True, False])
def test_the_price_of_a_network_is_the_count_of_the_one_that_is_built(name: str, merge: bool) -> None:
    space = SPACES[name]
    mixed = trace_space(space, merge=merge)
    models = {r: LatencyModel(mixed.terms(), Counts.of(mixed, r), space.problem) for r in RESOURCES}
    rng = np.random.default_rng(0)
    for _ in range(6):
        arch = sample(space, rng)
        built = {
            "macs": trace_space(space, arch, merge=merge).cost().macs,
            "params": sum(p.numel() for p in space.build(arch, form="deploy").parameters()),
        }
        one_hot = space.problem.one_hot(arch).double()
        for resource, model in models.items():
            assert model.predict_ms(arch) == built[resource] > 0
            assert float(model(one_hot)) == built[resource]


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_expectation_is_the_mean_of_what_is_drawn_and_has_a_gradient(resource: str) -> None:
    space = cells(2, 4)
    (model,) = count(space, [space.scale], resource)
    logits = {g.name: torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in space.groups}
    expected = model({k: torch.softmax(v, dim=1) for k, v in logits.items()})
    rng = np.random.default_rng(0)
    drawn = [model.predict_ms(sample(space, rng)) for _ in range(1500)]
    assert float(expected.detach()) == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn) / len(drawn) ** 0.5)
    for g in torch.autograd.grad(expected, list(logits.values())):
        assert torch.isfinite(g).all()
        assert g.abs().sum() > 0


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_solver_sees_the_same_count(resource: str) -> None:
    space = cells(2, 4)
    (model,) = count(space, [space.scale], resource)
    solver = Solver(space.problem, model)
    rng = np.random.default_rng(1)
    for _ in range(3):
        arch = sample(space, rng)
        assert constrained_ms(solver, arch) == pytest.approx(model.predict_ms(arch), rel=1e-6)
    least, free = solver.fastest().latency_ms, solver.solve(random_probs(space, 0)).latency_ms
    assert least is not None
    assert free is not None
    most = (least + free) // 2
    assert solver.solve(random_probs(space, 0), most).latency_ms <= most  # type: ignore[operator]
    assert not model.relative_error  # nothing is kept back


def test_what_cannot_be_counted_is_refused() -> None:
    shared = ConvBN(3, 3)
    twice = trace(torch.nn.Sequential(shared, shared), (1, 3, 8, 8))
    assert sum(Counts.of(twice, "macs").amounts.values()) == 9 * 64
    with pytest.raises(HwnasError, match="two calls of this network share theirs"):
        Counts.of(twice, "params")
    with pytest.raises(HwnasError, match="unknown resource 'flops'; .*known: macs, params"):
        Counts.of(twice, "flops")
