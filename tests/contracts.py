"""Laws, each written once: a space, an engine, an op or a table is tested by giving its class one fixture."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from matplotlib.figure import Figure
from torch import nn

from hwnas.data.base import SegmentationData
from hwnas.data.shapes import Shapes
from hwnas.data.synthetic import Synthetic
from hwnas.errors import BudgetError, HwnasError, MissingOp, ProvenanceError
from hwnas.latency import Correction, LatencyModel, LatencyTable, NetRow, OpRow
from hwnas.learn.training import TrainConfig, Training
from hwnas.ops import OpSpec, trace
from hwnas.ops.mixed import NONE
from hwnas.ops.onnx_graph import export_network
from hwnas.problem import Architecture, FreeEdges, Marginals, NoTwins, Probabilities, TopK
from hwnas.runtime.deploy.bundle import BuildsBundles, OpensBundles, OpensModels
from hwnas.runtime.engines.base import Engine, OnDevice
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.measuring.device import provenance
from hwnas.runtime.measuring.plan import PRECISIONS, Call, Entry
from hwnas.search.bilevel import Order
from hwnas.search.config import SearchConfig
from hwnas.search.costs import Bound
from hwnas.search.derive import Solver, strongest
from hwnas.search.gradient import BilevelSearch
from hwnas.search.relax import open_logits, softmax
from hwnas.spaces import Form, Space, SpaceNet, check, decisions, sample, trace_space
from hwnas.spaces.cell import Evaluation, set_evaluation
from hwnas.spaces.parts import size_at

PAPER = {
    "device": {"name": "paper"},
    "engine": {"name": "paper", "precision": "fp32", "version": "1", "threads": 1},
    "clock": "thread_cpu",
    "batch": 1,
    "merges": True,
}


def paper_table(
    rows: Iterable[OpRow], nets: Sequence[NetRow] = (), correction: Correction | None = None
) -> LatencyTable:
    """Return a table of a device that exists on paper."""
    return LatencyTable(PAPER, {r.key: r for r in rows}, nets, correction or Correction())


def roofline_table(space: Space, correction: Correction | None = None) -> LatencyTable:
    """Return a table that prices every op of a space by its arithmetic."""
    calls = trace_space(space).calls
    rows = [OpRow(c.spec.key, c.cost.macs / 5e7 + c.cost.bytes / 1e7 + 0.005) for c in calls]
    return paper_table(rows, correction=correction)


def random_probs(space: Space, seed: int, scale: float = 1.0) -> Probabilities:
    """Return softmax probabilities of random logits."""
    rng = np.random.RandomState(seed)
    logits = {g.name: torch.from_numpy(scale * rng.randn(*g.shape)) for g in space.groups}
    return space.problem.probabilities(softmax(open_logits(logits, space.groups)))


CORRECTION = Correction(0.05, 0.9, {"relu": 0.5, "sep_conv": 1.1}, 0.01, networks=4, call_ms=0.003)


def constrained_ms(solver: Solver, arch: Architecture, model: int = 0) -> float:
    """Return the latency that the constraints of a program give an architecture, to the solver's tolerance."""
    pinned = [({i: 1.0}, on, on) for i, on in enumerate(solver.literals.vector(arch))]
    row, constant = solver.program.prices[model]
    cost = np.zeros(solver.program.size)
    cost[list(row)] = list(row.values())
    values = solver.program.values(cost, pinned)
    assert values is not None, "a valid architecture meets the constraints of its space"
    return float(cost @ values) + constant


def _with_twins(space: Space, arch: Architecture, rng: np.random.Generator) -> Architecture:
    """Return an architecture with two nodes that compute the same."""
    every = space.twins()
    answers = every[int(rng.integers(len(every)))]
    twins = {d for d, _ in answers}
    own = twins.union(*(r.decisions for r in space.rules() if twins & set(r.decisions)))
    others = tuple((d, o) for d, o in arch.answers if d not in own)
    return space.problem.fix(Architecture(space.name, others + answers)).draw(rng)


class SpaceContract:
    """What holds for every search space. Give it a small ``space`` fixture, of odd input size."""

    N_ARCHS = 5

    @pytest.fixture
    def archs(self, space: Space) -> list[Architecture]:
        rng = np.random.default_rng(0)
        return [sample(space, rng) for _ in range(self.N_ARCHS)]

    def frequencies(self, space: Space) -> dict[str, dict[str, float]]:
        """Return how often each option is to be drawn."""
        rule_of = {d: r for r in space.rules() for d in r.decisions}
        out = {}
        for d in decisions(space):
            rule = rule_of.get(d.name)
            assert rule is None or isinstance(rule, TopK)
            kept = 1.0 if rule is None else rule.k / len(rule.decisions)
            live = [o for o in d.options if rule is None or o != rule.none]
            out[d.name] = {o: kept / len(live) if o in live else 1 - kept for o in d.options}
        return out

    @pytest.fixture
    def model(self, space: Space) -> LatencyModel:
        table = roofline_table(space, CORRECTION)
        return LatencyModel(trace_space(space).terms(), table, space.problem)

    def test_decision_names_are_unique(self, space: Space) -> None:
        names = [d.name for d in decisions(space)]
        assert len(names) == len(set(names)) > 0

    def test_hashable_and_equal_by_value(self, space: Space) -> None:
        assert hash(space) == hash(space.at(space.scale))
        assert space == space.at(space.scale)

    def test_samples_are_valid_and_survive_json(self, space: Space, archs: list[Architecture]) -> None:
        for arch in archs:
            check(space, arch)
            assert Architecture.from_json(json.loads(json.dumps(arch.to_json()))) == arch
        assert len(set(archs)) > 1

    def test_a_drawing_shows_every_op_that_is_kept(self, space: Space, archs: list[Architecture]) -> None:
        edges = {spec.edge_name(edge) for spec in space.cells for edge in spec.edges}
        for arch in archs[:2]:
            figure = Figure()
            space.draw(figure, arch, random_probs(space, 0).matrices(), {"stem": 1.0, "cells.0": 3.0})
            legends = [axes.get_legend() for axes in figure.axes]
            shown = {t.get_text() for legend in legends if legend is not None for t in legend.get_texts()}
            assert shown == {o for d, o in arch.answers if d in edges} - {NONE}

    @pytest.mark.parametrize("concentration", [0.01, 0.5, 10.0])
    def test_concentrated_samples_are_valid_and_follow_the_seed(self, space: Space, concentration: float) -> None:
        drawn = [sample(space, np.random.default_rng(seed), concentration) for seed in range(20)]
        for arch in drawn:
            check(space, arch)
        assert len(set(drawn)) > 10
        assert drawn == [sample(space, np.random.default_rng(seed), concentration) for seed in range(20)]

    def test_samples_take_every_option_that_is_allowed_equally_often(self, space: Space) -> None:
        """An edge survives with k of n, and what sits on a survivor is uniform over the options but ``none``."""
        rng, n = np.random.default_rng(0), 600
        drawn = [sample(space, rng) for _ in range(n)]
        expected = self.frequencies(space)
        for d in decisions(space):
            counts = {o: sum(a.get(d.name) == o for a in drawn) for o in d.options}
            for option, p in expected[d.name].items():
                assert abs(counts[option] - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1e-9, (d.name, option)

    def test_concentrated_samples_are_of_few_ops(self, space: Space) -> None:
        """The most frequent option of a group takes most of its survivors, where uniform draws spread them."""
        rng = np.random.default_rng(0)
        # As paths are.
        drawn_whole = {d for r in space.rules() if not isinstance(r, TopK | FreeEdges) for d in r.decisions}
        groups = [g for g in space.groups if len(g.decisions) > 1 and g.decisions[0].name not in drawn_whole]

        def largest_share(concentration: float | None) -> float:
            shares = []
            for _ in range(60):
                arch = sample(space, rng, concentration)
                for g in groups:
                    taken = Counter(arch.get(d.name) for d in g.decisions if arch.get(d.name) != "none")
                    shares.append(max(taken.values()) / taken.total())
            return float(np.mean(shares))

        assert largest_share(0.05) > 0.8 > largest_share(None) + 0.1

    def test_id_is_the_same_in_another_process(self, archs: list[Architecture]) -> None:
        code = (
            "import sys, json; from hwnas.problem import Architecture;"
            "print(Architecture.from_json(json.load(sys.stdin)).id)"
        )
        text = json.dumps(archs[0].to_json())
        done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == archs[0].id

    def test_breaking_a_rule_is_refused(self, space: Space, archs: list[Architecture]) -> None:
        answers = dict(archs[0].answers)
        decision = decisions(space)[0]
        for option in (*decision.options, "no such option"):
            changed = Architecture.of(space.name, answers | {decision.name: option})
            if all(r.holds(changed) for r in space.rules()) and option in decision.options:
                check(space, changed)
            else:
                with pytest.raises(HwnasError):
                    check(space, changed)
        del answers[decision.name]
        with pytest.raises(HwnasError, match="open"):
            check(space, Architecture.of(space.name, answers))
        check(space, Architecture.of(space.name, answers), partial=True)

    def test_output_shape_at_sizes_that_are_no_multiple_of_the_stride(
        self, space: Space, archs: list[Architecture]
    ) -> None:
        net = space.build(archs[0], form="deploy").eval()
        for size in (space.scale.size, (33, 47), (40, 64)):
            with torch.no_grad():
                out = net(torch.randn(2, 3, *size))
            assert out.shape[0] == 2
            if out.dim() == 4:
                assert out.shape[2:] == size

    def test_one_hot_supernet_equals_the_built_network(self, space: Space, archs: list[Architecture]) -> None:
        net = space.build(form="search").double().eval()
        _stir(net)
        image = torch.randn(2, 3, *space.scale.size, dtype=torch.float64)
        for arch in archs:
            alone = space.build(arch, form="search").double().eval()
            take_weights(alone, net)
            probs = space.problem.one_hot(arch).double()
            with torch.no_grad():
                torch.testing.assert_close(net(image, probs), alone(image), rtol=1e-9, atol=1e-9)

    def test_a_partial_architecture_builds_and_mixes_the_rest(self, space: Space, archs: list[Architecture]) -> None:
        first = space.groups[0]
        partial = Architecture.of(space.name, {d.name: str(archs[0].get(d.name)) for d in first.decisions})
        net = space.build(partial, form="search").eval()
        whole = space.build(form="search").eval()
        take_weights(net, whole)
        image = torch.randn(1, 3, *space.scale.size)
        one_hot = space.problem.one_hot(partial)
        with torch.no_grad():
            torch.testing.assert_close(net(image, one_hot), whole(image, one_hot), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("evaluation", ["fast", "lean"])
    def test_how_a_supernet_is_computed_changes_nothing(self, space: Space, evaluation: Evaluation) -> None:
        image = torch.randn(2, 3, *space.scale.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = []
        for how in ("plain", evaluation):
            torch.manual_seed(0)
            net = space.build(form="search").double()
            set_evaluation(net, how)  # type: ignore[arg-type]
            probs = {k: p.clone().requires_grad_() for k, p in random_probs(space, 0).items()}
            out = net(image, probs)
            wanted = [*probs.values(), *net.parameters()]
            grads = torch.autograd.grad(out.square().mean(), wanted, allow_unused=True)
            found.append([out.detach(), *(g for g in grads if g is not None), *net.buffers()])
        for plain, other in zip(*found, strict=True):
            torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-8 * max(1.0, float(plain.abs().max())))

    def test_every_decision_that_can_reach_an_op_gets_a_gradient(self, space: Space, model: LatencyModel) -> None:
        net = space.build(form="search")
        logits = {g.name: torch.randn(g.shape, requires_grad=True) for g in space.groups}
        probs = {k: torch.softmax(v, dim=-1) for k, v in logits.items()}
        out = net(torch.randn(2, 3, *space.scale.size), probs)
        for value in ((out * torch.randn_like(out)).sum(), model(probs)):
            grads = torch.autograd.grad(value, list(logits.values()), retain_graph=True)
            for g, grad in zip(space.groups, grads, strict=True):
                assert torch.isfinite(grad).all()
                moved = grad.abs().sum(dim=1) > 0
                expected = moved.new_ones(len(moved))
                if value.dim() == 0 and value.grad_fn is not None and torch.equal(value, model(probs)):
                    # Where a node keeps all its edges, only what sits on them can change the latency: still a gradient.
                    expected = torch.tensor([len(d.options) > 1 for d in g.decisions])
                assert torch.equal(moved, expected)

    def test_one_hot_latency_is_the_latency_of_the_built_network(
        self, space: Space, archs: list[Architecture], model: LatencyModel
    ) -> None:
        table = roofline_table(space, CORRECTION)
        for arch in archs:
            built = LatencyModel(trace_space(space, arch).terms(), table, space.problem)
            probs = space.problem.one_hot(arch).double()
            assert built.predict_ms(arch) == pytest.approx(model.predict_ms(arch), rel=1e-12)
            assert float(model(probs)) == pytest.approx(model.predict_ms(arch), rel=1e-12)
            assert sum(model.by_kind(arch).values()) == pytest.approx(model.predict_ms(arch), rel=1e-12)

    def test_what_keeps_no_twins_is_priced_as_built_and_what_has_them_is_priced_higher(
        self, space: Space, model: LatencyModel
    ) -> None:
        table = roofline_table(space, CORRECTION)
        rng, limit, less = np.random.default_rng(0), NoTwins(space.twins()), {True: [0.0], False: [0.0]}
        archs = [sample(space, rng, 0.2) for _ in range(12)]  # of few ops, so that twins are frequent
        for arch in [*archs, *(_with_twins(space, arch, rng) for arch in archs[:6])]:
            check(space, arch)
            built = LatencyModel(trace_space(space, arch).terms(), table, space.problem)
            less[limit.holds(arch)].append(1 - built.predict_ms(arch) / model.predict_ms(arch))
        assert less[True] == pytest.approx([0.0] * len(less[True]), abs=1e-12)
        assert len(less[True]) > 1
        assert min(less[False]) > -1e-12
        assert max(less[False]) > 1e-4

    def test_no_twins_is_the_same_for_solver_and_architecture(self, space: Space, model: LatencyModel) -> None:
        limit = NoTwins(space.twins())
        free, bound = (Solver(space.problem.with_rules(*limits), model) for limits in ((), (limit,)))
        for seed in range(3):
            probs = random_probs(space, seed, 0.1)
            budget_ms = 1.05 * max(s.fastest().latency_ms or 0.0 for s in (free, bound))
            best, found = free.best(probs, budget_ms, k=6), bound.solve(probs, budget_ms)
            kept = [s for s in best if limit.holds(s.arch)]
            assert limit.holds(found.arch)
            assert found.score <= best[0].score + 1e-9
            if kept:
                assert found.score == pytest.approx(kept[0].score, abs=1e-6)

    def test_trace_of_a_built_network_is_within_the_trace_of_the_mixed_one(
        self, space: Space, archs: list[Architecture]
    ) -> None:
        for merge in (True, False):
            everything = {c.spec for c in trace_space(space, merge=merge).calls}
            for arch in archs:
                assert {c.spec for c in trace_space(space, arch, merge=merge).calls} <= everything

    def test_a_sum_is_after_a_convolution_where_an_engine_can_merge_it_into_one(
        self, space: Space, archs: list[Architecture]
    ) -> None:
        for arch in archs:
            calls = trace_space(space, arch).calls
            made, readers = {c.output: c for c in calls}, Counter(name for c in calls for name in c.inputs)
            for call in calls:
                if call.spec.kind == "add":
                    convs = [made[name] for name in call.inputs if made[name].module.ends_in_conv]
                    if dict(call.spec.attrs)["after_conv"]:
                        assert any(readers[c.output] == 1 for c in convs)
                    else:  # the inputs of a cell are made by convolutions too, but most often others read them
                        assert all("preprocess" in c.name for c in convs)

    def test_gates_are_the_same_in_loss_and_solver_on_every_one_hot(
        self, space: Space, archs: list[Architecture], model: LatencyModel
    ) -> None:
        marginals = Marginals(space.problem, model.gates)
        for arch in archs:
            q = marginals.literal_probs(space.problem.one_hot(arch).double())
            np.testing.assert_allclose(q.numpy(), marginals.literals.vector(arch), atol=1e-12)
            opened = [float(g.count(arch)) for g in model.gates]
            np.testing.assert_allclose(marginals.gate_probs(q).numpy(), opened, atol=1e-12)
            solver = Solver(space.problem, model)
            assert constrained_ms(solver, arch) == pytest.approx(model.predict_ms(arch), rel=1e-6)

    def test_few_flops_lie_outside_of_ops(self, space: Space, archs: list[Architecture]) -> None:
        net = space.build(archs[0], form="deploy").eval()
        image = torch.randn(1, 3, *space.scale.size)
        analysis = FlopCountAnalysis(net, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
        oracle = by_operator["conv"] + by_operator["linear"]
        assert trace_space(space, archs[0], labels=False).cost().macs == oracle

    def test_onnx_equals_torch(self, space: Space, archs: list[Architecture]) -> None:
        for arch in archs[:2]:
            net = space.build(arch, form="deploy").eval()
            _stir(net)
            traced = trace(net, (1, 3, *space.scale.size))
            model = export_network(traced, "scores", {"who": "contract"})
            onnx.checker.check_model(model, full_check=True)
            assert {o.version for o in model.opset_import} == {17}
            image = torch.randn(1, 3, *space.scale.size)
            with open_onnx(model.SerializeToString()) as runner, torch.no_grad():
                got = runner.run({"image": image.numpy()})["scores"]
                np.testing.assert_allclose(got, net(image).numpy(), rtol=1e-4, atol=1e-5)

    def test_solver_without_a_budget_is_the_papers_rule(self, space: Space) -> None:
        solver = Solver(space.problem)
        for seed in range(10):
            for scale in (1e-3, 1.0, 100.0):
                probs = random_probs(space, seed, scale)
                assert solver.solve(probs).arch == strongest(space.problem, probs)

    def test_solver_keeps_the_budget_and_is_deterministic(self, space: Space, model: LatencyModel) -> None:
        solver = Solver(space.problem, model)
        fastest = solver.fastest().latency_ms
        assert fastest is not None
        for seed in range(4):
            probs = random_probs(space, seed)
            free = solver.solve(probs)
            assert free.latency_ms is not None
            for share in (0.2, 0.6):
                budget_ms = fastest + share * (free.latency_ms - fastest)
                solution = solver.solve(probs, budget_ms)
                assert solution.latency_ms is not None
                assert solution.latency_ms <= budget_ms * (1 + 1e-9)
                assert solution.latency_ms == model.predict_ms(solution.arch)
                check(space, solution.arch)
                again = Solver(space.problem, model).solve(probs, budget_ms)
                assert again == solution
                # It accepts its own one-hot.
                assert solver.solve(space.problem.one_hot(solution.arch), solution.latency_ms).arch == solution.arch

    def test_an_unsatisfiable_budget_names_the_fastest(self, space: Space, model: LatencyModel) -> None:
        solver = Solver(space.problem, model)
        fastest = solver.fastest().latency_ms
        assert fastest is not None
        with pytest.raises(BudgetError, match=f"{1000 / fastest:.1f} fps"):
            solver.solve(random_probs(space, 0), 0.9 * fastest)
        assert solver.solve(random_probs(space, 0), fastest).latency_ms == pytest.approx(fastest, rel=1e-6)


@cache
def _priced(space: Space) -> tuple[LatencyTable, LatencyModel]:
    """Return a table of a space and the latency of all its networks; kept for the other laws."""
    table = roofline_table(space, CORRECTION)
    return table, LatencyModel(trace_space(space).terms(), table, space.problem)


class PairContract:
    """What holds for every encoder with every head, decisions or not. Give it a small ``space`` fixture of odd size."""

    @pytest.fixture
    def archs(self, space: Space) -> list[Architecture]:
        rng = np.random.default_rng(0)
        return [space.problem.draw(rng) for _ in range(2)]

    @pytest.fixture
    def data(self, space: Space) -> SegmentationData:
        """Return images of the space's size and number of classes."""
        if space.task == "classification":
            return Shapes("train", space.scale.size, length=8)
        return Synthetic("train", space.scale.size, length=8)

    def shape(self, space: Space, labels: bool) -> tuple[int, ...]:
        """Return the shape of scores or labels of two images."""
        size = space.scale.size if space.task == "segmentation" else ()
        return (2, *(() if labels else (space.classes,)), *size)

    @staticmethod
    def partial(space: Space, arch: Architecture) -> dict[str, Architecture]:
        """Return architectures that answer one group, all but one, every second decision, and none."""
        out = {"none": {}, "every second": {d.name for d in decisions(space)[::2]}}
        for group in space.groups:
            own = {d.name for d in group.decisions}
            out |= {group.name: own, f"all but {group.name}": {d.name for d in decisions(space)} - own}
        return {
            name: Architecture.of(space.name, {d: o for d, o in arch.answers if d in answered})
            for name, answered in out.items()
        }

    def test_it_has_the_decisions_of_both(self, space: Space, archs: list[Architecture]) -> None:
        assert space.groups == space.encoder.groups + space.head.groups
        assert space == space.at(space.scale)
        assert hash(space) == hash(space.at(space.scale))
        assert space.name.startswith(space.encoder.name)
        assert (space.head.name in space.name) == bool(space.head.groups)
        for arch in archs:
            check(space, arch)
            assert str(space.genotype(arch))
            kept = sum(len(spec.kept(arch)) for spec in space.cells)
            assert space.dot(arch).count("->") >= kept
            space.draw(Figure(), arch, random_probs(space, 0).matrices(), {"stem": 1.0, "cells.0": 2.0})

    @pytest.mark.parametrize("labels", [False, True])
    def test_both_forms_compute(self, space: Space, archs: list[Architecture], labels: bool) -> None:
        image = torch.rand(2, 3, *space.scale.size)
        with torch.no_grad():
            for form in get_args(Form):
                out = space.build(archs[0], form, labels).eval()(image)
                assert out.shape == self.shape(space, labels)
                assert out.dtype == (torch.uint8 if labels else torch.float32)
            assert space.build(None, "search", labels).eval()(image, space.problem.uniform()).shape == out.shape

    def test_features_are_as_promised(self, space: Space, archs: list[Architecture]) -> None:
        image = torch.rand(1, 3, *space.scale.size)
        for arch, form in ((archs[0], "deploy"), (archs[0], "search"), (Architecture.of(space.name, {}), "search")):
            promised = space.encoder.features(arch, form)  # type: ignore[arg-type]
            net = space.build(arch, form).eval()  # type: ignore[arg-type]
            assert isinstance(net, SpaceNet)
            with torch.no_grad():
                maps = net.encoder(image, space.problem.one_hot(arch))
            found = [*zip(promised, maps.features, strict=True)]
            pairs = [pair for features, values in found for pair in zip(features, values, strict=True)]
            auxiliary = space.encoder.auxiliary(arch, form)  # type: ignore[arg-type]
            for feature, value in [*((f, m.value) for f, m in pairs if m is not None), (auxiliary, maps.auxiliary)]:
                assert value.shape[1:] == (feature.channels, *size_at(space.scale.size, feature.stride))
                assert not feature.activated or value.min() >= 0
            assert [max(f.stride for f in features) for features in promised] == sorted(
                max(f.stride for f in features) for features in promised
            )

    def test_what_is_open_is_priced_as_what_is_built(self, space: Space, archs: list[Architecture]) -> None:
        table, model = _priced(space)
        for arch in archs:
            built = LatencyModel(trace_space(space, arch).terms(), table, space.problem)
            if NoTwins(space.twins()).holds(arch):
                assert model.predict_ms(arch) == pytest.approx(built.predict_ms(arch), rel=1e-12)
            assert float(model(space.problem.one_hot(arch).double())) == pytest.approx(
                model.predict_ms(arch), rel=1e-12
            )

    def test_partial_architectures(self, space: Space, archs: list[Architecture]) -> None:
        """They are traced, priced and trained, and are what the whole supernet is with these answers."""
        table, model = _priced(space)
        whole = space.build().eval()
        image = torch.rand(2, 3, *space.scale.size)
        for name, arch in self.partial(space, archs[0]).items():
            traced = LatencyModel(trace_space(space, arch).terms(), table, space.problem)
            if NoTwins(space.twins()).holds(archs[0]):
                assert traced.predict_ms(archs[0]) == pytest.approx(model.predict_ms(archs[0]), rel=1e-12), name
            net, probs = space.build(arch).eval(), space.problem.one_hot(arch)
            take_weights(net, whole)
            with torch.no_grad():
                torch.testing.assert_close(net(image, probs), whole(image, probs), rtol=1e-4, atol=1e-5)
            net.train()(image, probs).square().mean().backward()
            assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)

    @pytest.mark.parametrize("order", get_args(Order))
    def test_a_step_of_a_search(self, space: Space, data: SegmentationData, order: Order) -> None:
        if not space.groups:
            pytest.skip("nothing is to be searched")
        config = SearchConfig(
            space.scale,
            steps=1,
            warmup=0,
            batch=2,
            crop=space.scale.size,
            order=order,
            evaluation="plain" if order == "second-exact" else "fast",
            alpha_lr=0.1,
        )
        search = BilevelSearch(space, config, data)
        before = {name: a.detach().clone() for name, a in search.logits().items()}
        assert np.isfinite(float(search.advance()["train_loss"]))
        assert all(not torch.equal(search.logits()[name], a) for name, a in before.items())

    def test_a_stage_searches_what_an_earlier_one_left_open(
        self, space: Space, archs: list[Architecture], data: SegmentationData
    ) -> None:
        if len(space.groups) < 2:
            pytest.skip("there is one stage at most")
        table = roofline_table(space, CORRECTION)
        model = LatencyModel(trace_space(space).terms(), table, space.problem)
        config = SearchConfig(space.scale, steps=1, warmup=0, batch=2, crop=space.scale.size, alpha_lr=0.1)
        bounds = [Bound("ms", model, model.predict_ms(archs[0]))]
        for groups in (space.encoder.groups, space.groups[:1], space.groups[1:]):
            own = {d.name for g in groups for d in g.decisions}
            fixed = Architecture.of(space.name, {d: o for d, o in archs[0].answers if d in own})
            if groups == space.groups:
                with pytest.raises(HwnasError, match="no open decision"):
                    BilevelSearch(space, config, data, bounds, fixed)
                continue
            search = BilevelSearch(space, config, data, bounds, fixed)
            assert np.isfinite(float(search.advance()["train_loss"]))
            derived = strongest(search.problem, search.problem.uniform())
            assert all(derived.get(d) == o for d, o in fixed.answers)
            check(space, derived)

    def test_a_budget_is_kept(self, space: Space) -> None:
        table, model = _priced(space)
        solver, probs = Solver(space.problem.with_rules(NoTwins(space.twins())), model), random_probs(space, 0)
        fastest, free = solver.fastest().latency_ms, solver.solve(probs).latency_ms
        assert fastest is not None
        assert free is not None
        found = solver.solve(probs, fastest + 0.4 * (free - fastest))
        assert found.latency_ms is not None
        assert found.latency_ms <= fastest + 0.4 * (free - fastest) + 1e-9
        check(space, found.arch)
        built = LatencyModel(trace_space(space, found.arch).terms(), table, space.problem)
        assert built.predict_ms(found.arch) == pytest.approx(found.latency_ms, rel=1e-9)

    def test_onnx_equals_torch(self, space: Space, archs: list[Architecture]) -> None:
        net = space.build(archs[1], form="deploy").eval()
        _stir(net)
        image = torch.randn(1, 3, *space.scale.size)
        model = export_network(trace(net, tuple(image.shape)), "scores", {"who": "contract"})
        with open_onnx(model.SerializeToString()) as runner, torch.no_grad():
            got = runner.run({"image": image.numpy()})["scores"]
            np.testing.assert_allclose(got, net(image).numpy(), rtol=1e-4, atol=1e-5)

    def test_an_auxiliary_head_trains_with_it(
        self, space: Space, archs: list[Architecture], data: SegmentationData
    ) -> None:
        config = TrainConfig(steps=1, batch=2, crop=space.scale.size, aux_weight=0.4)
        training = Training(space, archs[0], config, data)
        assert training.auxiliary is not None
        before = [p.detach().clone() for p in training.auxiliary.parameters()]
        assert np.isfinite(float(training.advance()["loss"]))
        assert any(not torch.equal(p, b) for p, b in zip(training.auxiliary.parameters(), before, strict=True))


class NetworkContract:
    """Laws of a space of one network, which segments: give it a fixture or parameters `space`."""

    def test_multiply_adds_are_those_of_all_convolutions(self, space: Space) -> None:
        net, image = space.build(form="deploy").eval(), torch.randn(1, 3, *space.scale.size)
        analysis = FlopCountAnalysis(net, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert trace_space(space, labels=False).cost().macs == analysis.by_operator()["conv"]

    def test_onnx_equals_torch(self, space: Space) -> None:
        torch.manual_seed(0)
        net = space.build(form="deploy").eval()
        _stir(net)
        image = torch.randn(1, 3, *space.scale.size)
        model = export_network(trace(net, tuple(image.shape)), "scores", {"who": "test"})
        onnx.checker.check_model(model, full_check=True)
        with open_onnx(model.SerializeToString()) as runner, torch.no_grad():
            got = runner.run({"image": image.numpy()})["scores"]
            np.testing.assert_allclose(got, net(image).numpy(), rtol=1e-4, atol=1e-5)


# From an image to labels, to scores at full size, to scores that are to be upsampled, and to those of the whole image.
ENDINGS = {
    "labels": OpSpec("argmax", (), ((1, 3, 32, 48),)),
    "logits": OpSpec("conv_bn", (("c_in", 3), ("c_out", 5)), ((1, 3, 32, 48),)),
    "scores": OpSpec("conv_bn", (("c_in", 3), ("c_out", 5), ("stride", 2)), ((1, 3, 32, 48),)),
    "scores of the image": OpSpec("global_pool", (), ((1, 3, 32, 48),)),
}


class EngineContract:
    """What holds for every engine. Give it an ``engine`` fixture and say whether it computes, and times scopes."""

    COMPUTES = True
    SCOPES: tuple[str, ...] = ("copies", "application")
    SHAPE = (1, 8, 13, 18)

    def entry(self, engine: Engine, spec: OpSpec, folder: Path) -> tuple[Entry, nn.Module]:
        """Return a plan entry for one op, with its file in `folder`, and the op itself."""
        from hwnas.files import sha256
        from hwnas.ops.onnx_graph import export_op, stand_in

        op = stand_in(spec)
        content = export_op(op, spec.in_shapes).SerializeToString()
        (folder / "op.onnx").write_bytes(content)
        with torch.no_grad():
            out = op(*(torch.zeros(s) for s in spec.in_shapes))
        inputs = {f"x{i}": s for i, s in enumerate(spec.in_shapes)}
        call = Call(spec.kind, dict(spec.attrs), spec.in_shapes, tuple(inputs), "y", tuple(out.shape), 1000, 1000)
        return Entry(spec.key, "op", "op.onnx", sha256(content), (call,), inputs, ("y",)), op

    def test_it_has_the_methods_that_it_declares(self, engine: Engine) -> None:
        can = type(engine).capabilities
        assert engine.capabilities is can
        assert set(can.precisions) <= set(PRECISIONS)
        assert isinstance(engine, OpensModels) == can.runs_files
        assert isinstance(engine, OpensBundles) == can.runs_applications
        assert isinstance(engine, BuildsBundles) == can.builds
        assert isinstance(engine, OnDevice) != can.on_host

    def test_parity_with_torch(self, engine: Engine, op_case: OpSpec, tmp_path: Path) -> None:
        entry, op = self.entry(engine, op_case, tmp_path)
        rng = np.random.default_rng(0)
        inputs = {k: rng.standard_normal(s).astype(np.float32) for k, s in entry.inputs.items()}
        with engine.load(entry, tmp_path) as runner, torch.no_grad():
            got = runner.run(inputs)
            expected = op(*(torch.from_numpy(v) for v in inputs.values())).numpy()
        assert got["y"].shape == expected.shape
        if self.COMPUTES:
            np.testing.assert_allclose(got["y"], expected, rtol=1e-4, atol=1e-5)

    def test_times_are_positive_and_as_many_as_asked(self, engine: Engine, tmp_path: Path) -> None:
        entry, _ = self.entry(engine, OpSpec("relu", (), (self.SHAPE,)), tmp_path)
        with engine.load(entry, tmp_path) as runner:
            for n in (1, 7):
                samples = runner.time(n, visit=n)
                assert samples.latency_ms.shape == samples.wall_ms.shape == (n,)
                assert (samples.latency_ms > 0).all()
                assert (samples.wall_ms > 0).all()

    def test_a_runner_is_entered_once(self, engine: Engine, tmp_path: Path) -> None:
        entry, _ = self.entry(engine, OpSpec("relu", (), (self.SHAPE,)), tmp_path)
        runner = engine.load(entry, tmp_path)
        with pytest.raises(HwnasError):
            runner.time(1)
        with runner, pytest.raises(HwnasError):
            runner.__enter__()
        for use in (lambda: runner.time(1), runner.__enter__):
            with pytest.raises(HwnasError):
                use()

    def test_wrong_inputs_are_refused(self, engine: Engine, tmp_path: Path) -> None:
        entry, _ = self.entry(engine, OpSpec("relu", (), (self.SHAPE,)), tmp_path)
        with engine.load(entry, tmp_path) as runner:
            for bad in ({}, {"x0": np.zeros((1, 8, 13, 17), np.float32)}, {"x0": np.zeros(self.SHAPE)}):
                with pytest.raises(HwnasError, match="takes the inputs"):
                    runner.run(bad)

    def test_inference_mode_whatever_the_mode_of_the_network(self, engine: Engine, tmp_path: Path) -> None:
        if not self.COMPUTES:
            pytest.skip("computes nothing")
        spec = OpSpec("conv_bn", (("affine", True), ("c_in", 8), ("c_out", 8)), (self.SHAPE,))
        entry, _ = self.entry(engine, spec, tmp_path)
        x = 100 + np.random.default_rng(0).standard_normal(self.SHAPE).astype(np.float32)
        with engine.load(entry, tmp_path) as runner:
            got = runner.run({"x0": x})["y"]
        assert abs(got.mean()) > 1  # batch statistics would have centred it

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("scope", ["copies", "application"])
    def test_a_scope_is_timed_and_computes_what_the_network_does(
        self, engine: Engine, tmp_path: Path, scope: str, ending: str
    ) -> None:
        if scope not in self.SCOPES:
            pytest.skip("does not time this scope")
        net, op = self.entry(engine, ENDINGS[ending], tmp_path)
        entry = replace(net, key=scope, role=scope)
        x = np.random.default_rng(0).standard_normal((1, 3, 32, 48)).astype(np.float32)
        runner = engine.load(entry, tmp_path)
        with pytest.raises(HwnasError):
            runner.time(1)
        with engine.load(replace(net, role="net"), tmp_path) as alone, runner, torch.no_grad():
            got, expected = runner.run({"x0": x})["y"], op(torch.from_numpy(x)).numpy()
            least_ms = [min(r.time(50).latency_ms) for r in (alone, runner)]
            for n in (1, 7):
                samples = runner.time(n, visit=n)
                assert samples.latency_ms.shape == samples.wall_ms.shape == (n,)
                assert (samples.latency_ms > 0).all()
            with pytest.raises(HwnasError):
                runner.__enter__()
        assert got.shape == expected.shape
        if self.COMPUTES:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert scope == "copies" or least_ms[0] < least_ms[1]
        with pytest.raises(HwnasError):
            runner.time(1)

    def test_an_application_without_an_image_is_refused(self, engine: Engine, tmp_path: Path) -> None:
        if "application" not in self.SCOPES:
            pytest.skip("does not time this scope")
        for spec in (
            OpSpec("relu", (), (self.SHAPE,)),
            OpSpec("add", (("after_conv", False),), ((1, 3, 8, 8), (1, 3, 8, 8))),
            OpSpec("linear", (("c_in", 3), ("c_out", 5)), ((1, 3),)),
        ):
            entry, _ = self.entry(engine, spec, tmp_path)
            with pytest.raises(HwnasError, match="an application needs") as refusal:
                engine.load(replace(entry, role="application"), tmp_path).__enter__()
            assert "\n" not in str(refusal.value)

    def test_a_model_outside_a_plan_computes_the_same(self, engine: Engine, tmp_path: Path) -> None:
        if not engine.capabilities.runs_files:
            pytest.skip("runs no files")
        assert isinstance(engine, OpensModels)
        entry, op = self.entry(engine, ENDINGS["scores"], tmp_path)
        x = np.random.default_rng(0).standard_normal((1, 3, 32, 48)).astype(np.float32)
        with engine.open_model(tmp_path / str(entry.onnx)) as runner, torch.no_grad():
            got = runner.run({"x0": x})
            np.testing.assert_allclose(got["y"], op(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)
            with pytest.raises(HwnasError, match="takes the inputs"):
                runner.run({"x0": x[:, :, 1:]})
        assert got.keys() == {"y"}
        with pytest.raises(HwnasError, match="none.onnx"):
            engine.open_model(tmp_path / "none.onnx").__enter__()

    def test_provenance_is_json_and_says_what_matters(self, engine: Engine) -> None:
        where = provenance(engine)
        assert json.loads(json.dumps(where)) == where
        assert {"device", "engine", "clock", "batch", "merges"} <= where.keys()
        assert {"name", "version", "precision", "threads"} <= where["engine"].keys()


class TableContract:
    """What holds for every table. Give it a ``table`` fixture."""

    def test_round_trip(self, table: LatencyTable, tmp_path: Path) -> None:
        table.save(tmp_path / "t.json")
        again = LatencyTable.load(tmp_path / "t.json")
        again.save(tmp_path / "u.json")
        assert (tmp_path / "t.json").read_bytes() == (tmp_path / "u.json").read_bytes()
        assert again == replace(table, path=again.path)

    def test_one_row_per_line(self, table: LatencyTable, tmp_path: Path) -> None:
        table.save(tmp_path / "t.json")
        text = (tmp_path / "t.json").read_text()
        assert sum(line.startswith('{"key"') for line in text.splitlines()) == len(table.rows) + len(table.nets)

    def test_a_miss_names_table_and_command(self, table: LatencyTable, tmp_path: Path) -> None:
        table.save(tmp_path / "t.json")
        with pytest.raises(MissingOp, match=r"t\.json has no row for relu\(\)@1x1x1x1.*hwnas profile"):
            _ = table[OpSpec("relu", (), ((1, 1, 1, 1),))]

    def test_another_device_is_refused_unless_asked_for(self, table: LatencyTable) -> None:
        table.require_device(table.where)
        other = {**table.where, "device": {"name": "another"}}
        with pytest.raises(ProvenanceError, match="--foreign-table"):
            table.require_device(other)
        table.require_device(other, allow_foreign=True)

    def test_every_change_of_a_byte_is_detected(self, table: LatencyTable, tmp_path: Path) -> None:
        path = tmp_path / "t.json"
        table.save(path)
        content = path.read_bytes()
        for at, byte in enumerate(content):
            # One bit or two, and what JSON or a reader of text may take for the same: blanks, line ends, digits.
            for other in {byte ^ 1, byte ^ 0x20, *b" \r0", 0xFF} - {byte}:
                path.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
                with pytest.raises(HwnasError, match=r"t\.json"):
                    LatencyTable.load(path)

    def test_every_byte_that_is_lost_or_added_is_detected(self, table: LatencyTable, tmp_path: Path) -> None:
        path = tmp_path / "t.json"
        table.save(path)
        content = path.read_bytes()
        for at in range(len(content)):
            for changed in (content[:at] + content[at + 1 :], content[:at] + b" " + content[at:], content[:at]):
                path.write_bytes(changed)
                with pytest.raises(HwnasError, match=r"t\.json"):
                    LatencyTable.load(path)

    def test_unknown_schema_is_refused(self, table: LatencyTable, tmp_path: Path) -> None:
        path = tmp_path / "t.json"
        table.save(path)
        text = path.read_text()
        for schema in ("99", "3", "4.5", '"4"', "null"):
            path.write_text(text.replace('"schema": 4', f'"schema": {schema}'))
            got = re.escape(repr(json.loads(schema)))
            with pytest.raises(HwnasError, match=rf"t\.json: .* schema 4 was expected, got {got}; measure"):
                LatencyTable.load(path)


def take_weights(net: nn.Module, of: nn.Module) -> None:
    """Give a network the weights of another that has all of its own."""
    weights = of.state_dict()
    net.load_state_dict({k: weights[k] for k in net.state_dict()})


def _stir(net: nn.Module) -> None:
    """Give BatchNorm layers statistics that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.copy_(0.1 * torch.randn(m.running_mean.shape, generator=generator))
            m.running_var.copy_(0.5 + torch.rand(m.running_var.shape, generator=generator))
