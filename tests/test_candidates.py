"""What holds for every candidate of an edge: shapes, its two forms, trace, arithmetic and the file that is exported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from hwnas.ops import trace
from hwnas.ops.layers import ConvBN
from hwnas.ops.mixed import MixedOp, build_candidate, candidates
from hwnas.ops.onnx_graph import export_network
from hwnas.problem import Architecture, Decision
from hwnas.runtime.engines.onnxruntime import open_onnx

C, SIZES = 6, ((13, 18), (3, 5), (16, 32))


def case(name: str, stride: int, search: bool = False) -> nn.Module:
    """Return a candidate behind a convolution, since a trace of nothing has no result."""
    torch.manual_seed(0)
    network = nn.Sequential(ConvBN(3, C), build_candidate(name, C, stride, search)).eval()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean, norm.running_var = torch.randn(C) / 4, torch.rand(C) + 0.5
    return network


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", candidates())
class TestCandidates:
    @pytest.mark.parametrize("search", [False, True])
    def test_its_result_has_the_size_of_its_stride(self, name: str, stride: int, search: bool) -> None:
        network = build_candidate(name, C, stride, search).train()
        for h, w in SIZES:
            out = network(torch.randn(2, C, h, w))
            assert out.shape == (2, C, -(-h // stride), -(-w // stride))

    def test_norms_have_weights_in_what_ships_alone(self, name: str, stride: int) -> None:
        for search in (False, True):
            norms = [m for m in build_candidate(name, C, stride, search).modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(n.affine is not search for n in norms)

    def test_the_trace_counts_what_is_computed_and_says_what_comes_last(self, name: str, stride: int) -> None:
        network, image = case(name, stride), torch.randn(1, 3, *SIZES[0])
        traced = trace(network, tuple(image.shape))
        analysis = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).tracer_warnings("none")
        assert traced.cost().macs == analysis.uncalled_modules_warnings(False).by_operator()["conv"]
        decision = Decision("edge", (name, "none"))
        edge = MixedOp(decision, Architecture.of("edges", {}), C, stride, search=False)
        last = traced.calls[-1]
        assert edge.ends_in_conv()[name] == (len(traced.calls) > 1 and last.module.ends_in_conv)

    def test_onnx_equals_torch(self, name: str, stride: int) -> None:
        network = case(name, stride)
        for size in SIZES[:2]:
            image = torch.randn(1, 3, *size)
            model = export_network(trace(network, tuple(image.shape)), "scores", {"who": "candidate"})
            with open_onnx(model.SerializeToString()) as runner, torch.no_grad():
                got = runner.run({"image": image.numpy()})["scores"]
                np.testing.assert_allclose(got, network(image).numpy(), rtol=1e-4, atol=1e-5)
