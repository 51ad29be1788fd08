"""CAS and GAS at the sizes of their papers: traced, priced, derived and built without computing anything."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from hwnas import recipes
from hwnas.complexity import complexity
from hwnas.latency import LatencyModel
from hwnas.problem import NoTwins
from hwnas.search.derive import Solver
from hwnas.spaces import trace_space
from tests.contracts import random_probs, roofline_table

SIZES = [(768, 1536), (769, 1537), (720, 960)]
MOST_S = 30.0  # of CPU, for all of it: the two recipes take 2 to 5


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", ["cas", "gas"])
def test_it_takes_seconds(name: str, size: tuple[int, int]) -> None:
    start_s = time.process_time()
    space = recipes.get(name).space
    space = space.at(replace(space.scale, size=size))
    table, traced = roofline_table(space), trace_space(space)
    model = LatencyModel(traced.terms(), table, space.problem)
    solver, probs = Solver(space.problem.with_rules(NoTwins(space.twins())), model), random_probs(space, 0)
    fastest, free = solver.fastest().latency_ms, solver.solve(probs).latency_ms
    assert fastest is not None
    assert free is not None
    found = solver.solve(probs, budget_ms := float(np.sqrt(fastest * free)))
    assert found.latency_ms is not None
    assert found.latency_ms <= budget_ms * (1 + 1e-6)
    own = trace_space(space, found.arch)
    assert LatencyModel(own.terms(), table, space.problem).predict_ms(found.arch) == pytest.approx(found.latency_ms)
    with torch.device("meta"):
        net = space.build(found.arch, "deploy").eval()
        assert net(torch.empty(1, 3, *size)).shape == (1, space.classes, *size)
    assert complexity(space, found.arch).macs == own.cost().macs
    assert time.process_time() - start_s < MOST_S
