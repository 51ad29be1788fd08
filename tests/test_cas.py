"""Customizable Architecture Search: the multi-scale cell, resources in the loss, pre-training between stages."""

from __future__ import annotations

import contextlib
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwnas import recipes
from hwnas.complexity import complexity
from hwnas.data import Synthetic
from hwnas.errors import HwnasError
from hwnas.files import read_json
from hwnas.jobs.findings import read_stage
from hwnas.jobs.training import TrainSettings, start_pretrained
from hwnas.latency import LatencyModel, LatencyTable, OpRow
from hwnas.latency.resources import RESOURCES
from hwnas.learn.training import Training
from hwnas.problem import Architecture, NoTwins
from hwnas.progress import SILENT
from hwnas.records import decode, encode
from hwnas.run import Run
from hwnas.search import pretrain
from hwnas.search.config import SearchConfig
from hwnas.search.costs import Bound, Cost, CostConfig
from hwnas.search.derive import Solver
from hwnas.search.gradient import BilevelSearch
from hwnas.search.relax import softmax
from hwnas.search.widths import count, price, typical
from hwnas.spaces import MultiScaleHead, Scale, Space, cas_space, multiscale_ops, sample, trace_space
from hwnas.steplog import StepLog
from tests.conftest import ROOT
from tests.contracts import SpaceContract, paper_table, random_probs, roofline_table
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
        run = Run("cas-tiny")
        report = read_json(run.folder / "report.json", "a report")
        assert report["met"]
        assert report["measured_ms"] == pytest.approx(report["predicted_ms"], rel=0.1)
        drawing = (run.folder / "arch.svg").read_text()
        assert all(f"<!-- {name} -->" in drawing for name in ("normal", "reduce", "multiscale"))
        for stage, group in (("cells", "normal"), ("multiscale", "multiscale")):
            drawing = (run.folder / f"search-{stage}.svg").read_text()
            assert f"<!-- {group}: probability of each option over steps; bold: derived -->" in drawing
        assert {"expected_ms", "expected_macs"} <= StepLog(run.folder / "search-cells.jsonl").read()[0].keys()
        decided = read_stage(run, run.recipe.stages[0]).decided
        assert decided is not None
        assert {d.partition("/")[0] for d, _ in decided.answers} == {"normal", "reduce"}
        assert set(decided.answers) < set(run.derived().architecture.answers)
        # The supernet of the second stage started from one pre-training, the network from another one.
        derived, folders = run.derived(), ("pretrain-multiscale", "train/pretrained")
        weights = [load_file(run.folder / f / "model.safetensors") for f in folders]
        assert "cells.0.preprocess0.1.bn.weight" not in weights[0]  # not affine, as in supernets
        data = run.data("train")
        training = Training(run.space(derived), derived.architecture, run.recipe.train, data)
        start_pretrained(training, BEFORE, run, TrainSettings(), SILENT)
        own = training.net.state_dict()
        encoder = {n for n in own if not n.startswith("head.")}
        assert encoder == {n for n in weights[1] if not n.startswith("head.")}
        assert all(torch.equal(own[n], weights[1][n]) for n in encoder)


def test_the_size_of_the_paper() -> None:
    """Tracing, pricing and deriving at 768x1536 compute nothing."""
    space = recipes.get("cas").space
    assert space.scale.size == (768, 1536)
    assert [f[0].stride for f in space.encoder.features(Architecture.of(space.name, {}), "deploy")] == [4, 8, 16]
    traced = trace_space(space)
    model = LatencyModel(traced.terms(), roofline_table(space), space.problem)
    solver, probs = Solver(space.problem.with_rules(NoTwins(space.twins())), model), random_probs(space, 0)
    fastest, free = solver.fastest().latency_ms, solver.solve(probs).latency_ms
    assert fastest is not None
    assert free is not None
    found = solver.solve(probs, (fastest + free) / 2)
    assert found.latency_ms == pytest.approx(
        LatencyModel(trace_space(space, found.arch).terms(), roofline_table(space), space.problem).predict_ms(
            found.arch
        ),
        rel=1e-9,
    )
    assert complexity(space, found.arch).macs == trace_space(space, found.arch).cost().macs


TINY = recipes.get("cas-tiny")
BEFORE = TINY.stages[1].before
assert BEFORE is not None


class TestPretraining:
    @pytest.fixture
    def arch(self) -> Architecture:
        return sample(TINY.space, np.random.default_rng(0))

    def test_a_supernet_starts_from_its_weights(self, arch: Architecture, tmp_path: Path) -> None:
        weights = BEFORE.run(TINY.space, arch, tmp_path)
        strategy = TINY.stages[1].strategy
        assert isinstance(strategy, SearchConfig)
        answers = {d: o for d, o in arch.answers if not d.startswith("multiscale")}
        fixed = Architecture.of(TINY.space.name, answers)
        data = Synthetic("train", strategy.scale.size, length=4)
        net = BilevelSearch(TINY.space, strategy, data, fixed=fixed, weights=weights).net.state_dict()
        assert {n for n in net if not n.startswith("head.")} == weights.keys()
        assert all(torch.equal(net[n], w) for n, w in weights.items())
        assert int(weights["stem0.0.bn.num_batches_tracked"]) > 0

    def test_it_goes_on_where_it_was_interrupted_and_is_done_once(
        self, arch: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Killed(Exception):
            pass

        def update(step: int, note: str = "") -> None:
            if step == 3:
                raise Killed

        whole = BEFORE.run(TINY.space, arch, tmp_path / "whole")
        with pytest.raises(Killed):
            BEFORE.run(TINY.space, arch, tmp_path / "killed", update=update)
        again = BEFORE.run(TINY.space, arch, tmp_path / "killed")
        assert all(torch.equal(again[n], w) for n, w in whole.items())
        assert [line["step"] for line in StepLog(tmp_path / "killed" / "train.jsonl").read()] == [0, 1, 2, 3]
        monkeypatch.setattr(pretrain, "Training", lambda *_: pytest.fail("it is trained again"))
        assert BEFORE.run(TINY.space, arch, tmp_path / "killed").keys() == whole.keys()

    def test_the_encoder_is_decided_before(self, tmp_path: Path) -> None:
        cells, last = TINY.stages
        with pytest.raises(HwnasError, match="of which 'normal' is open then; decide it in an earlier stage"):
            replace(TINY, stages=(replace(last, groups=()),))
        with pytest.raises(HwnasError, match="open"):
            BEFORE.run(TINY.space, Architecture.of(TINY.space.name, {}), tmp_path)
        assert replace(TINY, stages=(replace(cells, name="search", groups=()),)).search is not None  # a joint search

    def test_its_images_are_classified(self) -> None:
        with pytest.raises(HwnasError, match="a pre-training classifies images"):
            replace(BEFORE, data="synthetic").open("train")

    def test_it_has_the_seed_of_its_stage(self) -> None:
        before = TINY.seeded(7).stages[1].before
        assert before is not None
        assert before.settings.seed == 7


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


def test_the_rank_correlation_of_the_benchmark() -> None:
    bench = runpy.run_path(str(ROOT / "scripts" / "bench" / "tradeoff.py"))
    points = bench["points"](("ms", "macs"), (0.1, 1.0))
    assert [p.name for p in points] == ["free-0", "ms-0.1", "ms-1", "macs-0.1", "macs-1"]
    amounts = [(5.0, 5.0), (4.0, 9.0), (3.0, 1.0), (7.0, 5.0), (1.0, 5.0)]
    found = [
        bench["Outcome"](p.resource, p.weight, "id", {"ms": ms, "macs": macs}, 0.5)
        for p, (ms, macs) in zip(points, amounts, strict=True)
    ]
    assert bench["correlations"](found) == {"ms": pytest.approx(-1.0), "macs": None}
