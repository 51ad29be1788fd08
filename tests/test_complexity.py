"""Multiply-adds and parameters: fvcore's own analysis, its rules on shapes, and the trace say the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis, parameter_count
from torch import nn

from hwnas import recipes
from hwnas.complexity import Complexity, complexity, count
from hwnas.latency import LatencyModel
from hwnas.latency.resources import RESOURCES, Counts
from hwnas.spaces import sample, trace_space

TINY = ("darts-tiny", "darts-cifar10-tiny", "autodeeplab-tiny", "cas-tiny", "gas-tiny")


@pytest.mark.parametrize("name", TINY)
def test_a_network_counts_what_fvcore_says(name: str) -> None:
    space = recipes.get(name).space
    for seed in range(2):
        arch = sample(space, np.random.default_rng(seed))
        network = space.build(arch, form="deploy").eval()
        analysis = FlopCountAnalysis(network, torch.zeros(1, 3, *space.scale.size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
        macs = sum(n for op, n in by_operator.items() if op in ("conv", "linear", "matmul"))
        found = complexity(space, arch)
        assert found == Complexity(int(macs), parameter_count(network)[""])
        counts = {r: Counts.of(trace_space(space, arch), r) for r in RESOURCES}
        models = {r: LatencyModel(trace_space(space, arch).terms(), c, space.problem) for r, c in counts.items()}
        assert {r: m.predict_ms(arch) for r, m in models.items()} == {"macs": found.macs, "params": found.params}


@pytest.mark.parametrize("name", ["darts-gpu", "autodeeplab"])
def test_a_large_network_is_counted_without_computing_it(name: str) -> None:
    space = recipes.get(name).space
    arch = sample(space, np.random.default_rng(0))
    found = complexity(space, arch)
    assert found.macs == trace_space(space, arch).cost().macs > 1e9
    narrow = space.at(replace(space.scale, channels=space.scale.channels // 2))
    assert complexity(narrow, arch).params < found.params


def test_convolutions_and_linear_layers_count_and_nothing_else() -> None:
    with torch.device("meta"):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ).eval()
    assert count(network, (16, 32)) == Complexity(8 * 16 * (27 * 8 + 9 * 8) + 40, 3 * 8 * 9 + 8 + 16 + 8 * 9 + 8 + 45)
    assert str(Complexity(1_500_000, 12_345)) == "1.5 M multiply-adds, 0.012 M parameters"
