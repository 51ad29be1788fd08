"""Customizable Architecture Search: the multi-scale cell, resources in the loss, pre-training between stages."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.data import Synthetic
from hwnas.errors import HwnasError
from hwnas.files import read_json
from hwnas.latency import LatencyTable, OpRow
from hwnas.latency.resources import RESOURCES
from hwnas.problem import Architecture
from hwnas.records import decode, encode
from hwnas.search.config import SearchConfig
from hwnas.search.costs import Bound, Cost, CostConfig
from hwnas.search.gradient import BilevelSearch
from hwnas.search.relax import softmax
from hwnas.search.widths import count, price, typical
from hwnas.spaces import MultiScaleHead, Scale, Space, cas_space, multiscale_ops, sample, trace_space
from tests.contracts import SpaceContract, paper_table
from tests.verbs import STAGES, do_job

SMALL = cas_space(Scale(4, 3, (45, 61)), 11, nodes=2, head_channels=6, head_nodes=2)


class TestSpace(SpaceContract):
    N_ARCHS = 3

    @pytest.fixture
    def space(self) -> Space:
        return SMALL


class TestMultiScaleCell:
    def test_rates_see_as_far_at_every_stride(self) -> None:
        rates = {s: [int(o.rpartition("_r")[2]) for o in multiscale_ops(s) if "_r" in o] for s in (8, 16, 32)}
        assert rates == {8: [12, 24, 36], 16: [6, 12, 18], 32: [3, 6, 9]}
        for stride in rates:
            Space(SMALL.encoder, MultiScaleHead(4, multiscale_ops(stride), stride=stride), 11).build()

    def test_it_is_computed_at_its_stride(self) -> None:
        arch = Architecture.of(SMALL.name, {})
        (last,) = [c for c in trace_space(SMALL, arch).calls if c.name == "head.classifier"]
        assert last.spec.in_shapes == ((1, 12, 3, 4),)
        assert not [c for c in trace_space(SMALL).calls if c.spec.kind == "resize" and c.name.startswith("head.pre")]

    def test_it_reads_low_level_features_too(self) -> None:
        space = Space(SMALL.encoder, MultiScaleHead(4, nodes=2, inputs=(-1, 0), stride=8), 11)
        spec = space.head.cells[0]
        assert (spec.inputs, spec.edges[:2]) == (2, ((0, 2), (1, 2)))
        image = torch.rand(2, 3, *space.scale.size)
        assert space.build()(image, space.problem.uniform()).shape == (2, 11, 45, 61)
        with torch.no_grad():
            arch = sample(space, np.random.default_rng(0))
            assert space.build(arch, "deploy").eval()(image).shape == (2, 11, 45, 61)

    def test_inputs_are_features_that_there_are(self) -> None:
        for inputs in ((), (-1, -1)):
            with pytest.raises(HwnasError, match="different features, one or more"):
                MultiScaleHead(inputs=inputs)
        for inputs in ((-1, 2), (3,), (-4,)):
            with pytest.raises(HwnasError, match="of an encoder that has 3"):
                Space(SMALL.encoder, MultiScaleHead(inputs=inputs), 11).build()


def test_the_whole_job(tmp_path: Path) -> None:
    verbs = [("profile", "cas-tiny", "--engine", "fake"), *((verb, "cas-tiny") for verb in STAGES[1:])]
    do_job(tmp_path, verbs)
    with contextlib.chdir(tmp_path):
        report = read_json(Path("runs/cas-tiny/report.json"), "a report")
        assert report["met"]
        assert report["measured_ms"] == pytest.approx(report["predicted_ms"], rel=0.1)
        drawing = Path("runs/cas-tiny/arch.svg").read_text()
        assert all(f"<!-- {name} -->" in drawing for name in ("normal", "reduce", "multiscale"))


def cost_of(weights: dict[str, float] | None) -> Cost:
    bounds = [Bound(name, lambda p, n=name: p[n].sum(), budget) for name, budget in (("ms", 4.0), ("macs", 10.0))]
    return Cost(CostConfig("linear", 0.5, resources=weights), bounds)


class TestResources:
    def test_the_share_is_the_weighted_mean_of_those_named(self) -> None:
        taken = {"ms": torch.tensor([6.0]), "macs": torch.tensor([5.0])}
        for weights, share in (
            (None, 1.5),
            ({"ms": 1.0}, 1.5),
            ({"ms": 7.0}, 1.5),
            ({"macs": 1.0}, 0.5),
            ({"ms": 1.0, "macs": 3.0}, 0.75),
        ):
            cost = cost_of(weights)
            assert float(cost.used(taken)) == pytest.approx(share)
            assert float(cost.total(torch.tensor(2.0), taken, 0.5)) == pytest.approx(2 + 0.5 * share)
            assert cost.violation({"ms": 6.0, "macs": 5.0}) == pytest.approx(share - 1)

    def test_what_is_not_priced_and_what_counts_nothing_is_refused(self) -> None:
        with pytest.raises(HwnasError, match="weighs 'ms_2', which is not priced here; there are ms, macs"):
            cost_of({"ms_2": 1.0})
        for weights in ({}, {"ms": 0.0}, {"ms": 1.0, "macs": -1.0}):
            with pytest.raises(HwnasError, match="weights above 0"):
                CostConfig(resources=weights)

    def test_they_are_stored(self) -> None:
        config = CostConfig(resources={"ms": 1.0, "params": 2.0})
        assert decode(encode(config, CostConfig), CostConfig) == config
        assert "resources" not in encode(CostConfig(), CostConfig)

    def test_each_lowers_its_own(self) -> None:
        """From equal logits, the gradient of the cost of each resource lowers that one more than the others do."""
        problem = SMALL.problem
        models = {r: count(SMALL, [SMALL.scale], r)[0] for r in RESOURCES}
        models["ms"] = price(SMALL, [SMALL.scale], pools_are_slow(SMALL))[0]
        bounds = [typical(problem, model, name) for name, model in models.items()]
        even = {g.name: torch.zeros(g.shape, dtype=torch.float64) for g in SMALL.groups}
        after = {}
        for name in models:
            cost = Cost(CostConfig("linear", 1.0, "mixture", {name: 1.0}), bounds)
            logits = {k: v.clone().requires_grad_() for k, v in even.items()}
            grads = torch.autograd.grad(cost.used(problem.probabilities(softmax(logits))), list(logits.values()))
            norm = torch.cat([g.flatten() for g in grads]).norm()
            moved = {k: v.detach() - g / norm for (k, v), g in zip(logits.items(), grads, strict=True)}
            expected = cost.expected(problem.probabilities(softmax(moved)))
            after[name] = {b.name: float(e / b.budget) for b, e in zip(bounds, expected, strict=True)}
        for name in models:
            assert after[name][name] == min(taken[name] for taken in after.values())
        assert len({min(after, key=lambda n: after[n][name]) for name in models}) == 3

    def test_a_search_lowers_what_it_weighs(self) -> None:
        data = Synthetic("train", SMALL.scale.size, length=4)
        bound = typical(SMALL.problem, count(SMALL, [SMALL.scale], "params")[0], "params")
        cost = CostConfig("linear", 100.0, "mixture", {"params": 1.0})
        config = SearchConfig(SMALL.scale, steps=4, warmup=0, batch=1, crop=(32, 48), alpha_lr=0.3, cost=cost)
        assert config.resources == ("params",)
        search = BilevelSearch(SMALL, config, data, [bound])
        logged = [search.advance()["expected_params"] for _ in range(4)]
        assert logged == sorted(logged, reverse=True)
        assert logged[-1] < 0.9 * logged[0]


def pools_are_slow(space: Space) -> LatencyTable:
    """Return a table in which convolutions cost nothing and poolings do."""
    return paper_table(OpRow(c.spec.key, 1.0 if "pool" in c.spec.kind else 0.001) for c in trace_space(space).calls)
