"""The trellis of Auto-DeepLab: golden values of the paper and the public codes, paths, and the laws of all spaces."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from hwnas import recipes
from hwnas.errors import BudgetError, HwnasError
from hwnas.jobs.pricing import Network, find_network, price_network
from hwnas.latency import LatencyModel
from hwnas.ops.onnx_graph import export_network
from hwnas.ops.trace import _SHAPES, trace
from hwnas.problem import Architecture, AtMost, OnePath, Probabilities, TopK
from hwnas.problem.rules.one_path import STEPS, Boundary, arrow, existing, path_group, path_of, sources
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.search.derive import Solver, strongest
from hwnas.search.relax import on
from hwnas.spaces import (
    Scale,
    Space,
    SpaceNet,
    autodeeplab_space,
    check,
    decisions,
    published,
    sample,
    trace_space,
    trellis_architecture,
)
from hwnas.spaces.encoders.trellis import Trellis, Weighting
from hwnas.spaces.encoders.trellis_nets import TrellisNet
from hwnas.spaces.published import PUBLISHED_CELL, PUBLISHED_PATH

from .contracts import SpaceContract, random_probs, roofline_table, take_weights

SMALL = autodeeplab_space(
    Scale(2, 4, (33, 49)),
    5,
    ops=("none", "skip_connect", "sep_conv_3x3", "atrous_conv_3x3", "max_pool_3x3"),
    nodes=2,
)
CELL = ((("sep_conv_3x3", 0), ("atrous_conv_3x3", 1)), (("skip_connect", 1), ("max_pool_3x3", 2)))
TINY = autodeeplab_space(Scale(2, 4, (33, 49)), 5, ops=("none", "skip_connect", "sep_conv_3x3"), nodes=1)
PAPER = autodeeplab_space(Scale(20, 12, (1025, 2049)), 19)


def levels_of(layers: int) -> list[tuple[int, ...]]:
    """Return all paths by brute force."""
    found = [(0,)]
    for _ in range(layers):
        found = [(*p, p[-1] + by) for p in found for by in (-1, 0, 1) if 0 <= p[-1] + by < 4]
    return [p[1:] for p in found]


class TestContract(SpaceContract):
    """What holds for every space."""

    @pytest.fixture
    def space(self) -> Space:
        return SMALL

    def frequencies(self, space: Space) -> dict[str, dict[str, float]]:
        """Every path is drawn equally often, and every set of edges, and every op on them."""
        assert isinstance(space.encoder, Trellis)
        paths = [answers_of(p) for p in levels_of(space.scale.cells)]
        out = {
            d.name: {o: sum(p.get(d.name, "none") == o for p in paths) / len(paths) for o in d.options}
            for d in space.groups[1].decisions
        }
        for rule in space.rules():
            if isinstance(rule, TopK):
                kept = rule.k / len(rule.decisions)
                each = kept / (len(rule.options) - 1)
                out |= {d: {o: each if o != "none" else 1 - kept for o in rule.options} for d in rule.decisions}
        return out


def answers_of(path: Sequence[int]) -> dict[str, str]:
    """Return the steps of a path."""
    names = {by: name for name, by in STEPS.items()}
    return {arrow(k, b): names[v - b] for k, (b, v) in enumerate(itertools.pairwise((0, *path)))}


class TestGolden:
    """Figures of the paper and of the public codes."""

    # Parameters of all three sizes: Table 4 of the paper to its digits, and tensorflow/models, research/deeplab, run
    # with dense ASPP and decoder, to the last one. Plain multiply-adds: the same code, less the padding that
    # TensorFlow's SpaceToBatch adds.
    @pytest.mark.parametrize(
        ("filters", "size", "classes", "parameters", "macs"),
        [
            (20, (1025, 2049), 19, 10_147_427, 320.450e9),
            (32, (1025, 2049), 19, 21_622_451, 439.922e9),
            (48, (1025, 2049), 19, 44_424_691, None),
            (20, (513, 513), 21, 10_147_941, 40.678e9),
        ],
    )
    def test_parameters_and_multiply_adds(
        self, filters: int, size: tuple[int, int], classes: int, parameters: int, macs: float | None
    ) -> None:
        space = autodeeplab_space(Scale(filters, 12, size), classes)
        with torch.device("meta"):
            net = space.build(published("AUTO_DEEPLAB", space), form="deploy").eval()
        assert sum(p.numel() for p in net.parameters()) == parameters
        if macs is not None:
            assert trace(net, (1, 3, *size)).cost().macs == pytest.approx(macs, abs=5e5)

    def test_the_backbone_alone(self) -> None:
        with torch.device("meta"):
            net = PAPER.build(published("AUTO_DEEPLAB", PAPER), form="deploy")
        assert isinstance(net, SpaceNet)
        assert sum(p.numel() for part in (net.stem, net.cells) for p in part.parameters()) == 7_030_832

    def test_the_shapes_of_all_cells(self) -> None:
        """tensorflow/models, run at 321x321; issue 6393 there has the same pattern for F = 10."""
        with torch.device("meta"):
            net = PAPER.build(published("AUTO_DEEPLAB", PAPER), form="deploy").eval()
            image = torch.empty(1, 3, 321, 321)
        assert isinstance(net, SpaceNet)
        assert isinstance(net.encoder, TrellisNet)
        states, low = net.encoder.states(image)
        sides = [81, 81, 81, 41, 21, 41, 21, 21, 11, 11, 21, 41]
        channels = [100, 100, 100, 200, 400, 200, 400, 400, 800, 800, 400, 200]
        assert [tuple(s.shape[1:]) for s in states] == [(c, n, n) for c, n in zip(channels, sides, strict=True)]
        assert low is states[2]
        assert tuple(net.stem(image)[1].shape) == (1, 128, 81, 81)

    def test_how_many_paths_and_cells_there_are(self) -> None:
        """Walks of 12 steps from stride 4: F25 of Fibonacci. The paper's 2.9e4 is F23, a layer less."""
        assert OnePath(12).n_paths == 75_025
        assert OnePath(11).n_paths == len(levels_of(11)) == 28_657
        # The paper counts both inputs of a block on their own, any state and any of the 8 ops each.
        blocks = [r for r in PAPER.rules() if isinstance(r, TopK)]
        assert math.prod((len(r.decisions) * len(r.options)) ** 2 for r in blocks) == 556_627_761_561_600

    @pytest.mark.parametrize(
        ("boundary", "seed", "path"),
        [
            ("two-thirds", 0, [1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]),
            ("existing", 0, [1, 1, 1, 0, 0, 0, 1, 2, 2, 3, 2, 1]),
            ("two-thirds", None, [1, 2, 3, 3, 3, 3, 3, 3, 3, 2, 1, 0]),
            ("existing", None, [0] * 12),
        ],
    )
    def test_decoded_paths(self, boundary: Boundary, seed: int | None, path: list[int]) -> None:
        """NoamRosenberg/autodeeplab, decoding of seeded betas (12, 4, 3), and of betas that are all 0."""
        draw = np.random.RandomState(seed or 0)
        betas = draw.randn(12, 4, 3).astype(np.float32) if seed is not None else np.zeros((12, 4, 3))
        found = OnePath(12, boundary).strongest(probs_of(betas))
        assert list(path_of(Architecture.of("trellis", found), 12) or ()) == path


def probs_of(betas: np.ndarray) -> Probabilities:
    """Return the probabilities of steps, softmax over all three, of logits (layers, 4, 3)."""
    p = np.exp(betas.astype(np.float64))
    p /= p.sum(axis=2, keepdims=True)
    rows = [[0.0, *p[k, v]] for k in range(len(betas)) for v in sources(k)]
    return Probabilities.of([path_group(len(betas))], {"path": np.array(rows)})


class TestPaths:
    """Decoding, and what a path is."""

    @pytest.mark.parametrize("boundary", get_args(Boundary))
    @pytest.mark.parametrize("layers", [1, 2, 5, 8])
    def test_viterbi_is_brute_force(self, boundary: Boundary, layers: int) -> None:
        rule, every = OnePath(layers, boundary), levels_of(layers)
        for seed in range(20):
            worth = rule.score(probs_of(np.random.RandomState(seed).randn(layers, 4, 3)))
            best = max(every, key=lambda p: sum(worth[step] for step in answers_of(p).items()))
            found = rule.strongest(probs_of(np.random.RandomState(seed).randn(layers, 4, 3)))
            assert {d: o for d, o in found.items() if o != "none"} == answers_of(best)

    def test_viterbi_is_brute_force_over_all_paths_of_the_paper(self) -> None:
        every = np.array(levels_of(12))
        before = np.pad(every, ((0, 0), (1, 0)))[:, :-1]
        for boundary in get_args(Boundary):
            for seed in range(5):
                probs = probs_of(np.random.RandomState(seed).randn(12, 4, 3))
                worth = OnePath(12, boundary).score(probs)
                table = np.full((12, 4, 4), -np.inf)
                for (place, step), value in worth.items():
                    k, v = next((k, v) for k in range(12) for v in sources(k) if arrow(k, v) == place)
                    if step in existing(v):
                        table[k, v, v + STEPS[step]] = value
                best = every[table[np.arange(12), before, every].sum(1).argmax()]
                found = OnePath(12, boundary).strongest(probs)
                assert {d: o for d, o in found.items() if o != "none"} == answers_of(best.tolist())

    def test_worth_is_the_logarithm_of_the_normalised_betas(self) -> None:
        for boundary, share in (("existing", 1.0), ("two-thirds", 2 / 3)):
            betas = np.random.RandomState(0).randn(3, 4, 3)
            worth = OnePath(3, boundary).score(probs_of(betas))  # type: ignore[arg-type]
            a, b, c = np.exp(betas[2, 1])
            assert 3 ** (worth["path/2/8", "up"] - 1) == pytest.approx(a / (a + b + c))
            _, b, c = np.exp(betas[2, 0])
            assert 3 ** (worth["path/2/4", "down"] - 1) == pytest.approx(share * c / (b + c))

    def test_an_architecture_is_its_path_and_its_cell(self) -> None:
        arch = published("AUTO_DEEPLAB", PAPER)
        assert path_of(arch, 12) == PUBLISHED_PATH
        assert [d.name for d in decisions(PAPER) if arch.get(d.name) not in ("none", None)] == [
            *(f"cell/{j}-{i}" for i, block in enumerate(PUBLISHED_CELL, start=2) for j in sorted(j for _, j in block)),
            *answers_of(PUBLISHED_PATH),
        ]

    @pytest.mark.parametrize("path", [(0, 2, 1, 1), (0, -1, 0, 0), (1, 2, 3, 4), (0, 0, 0)])
    def test_what_is_no_path_is_refused(self, path: tuple[int, ...]) -> None:
        with pytest.raises(HwnasError):
            trellis_architecture(SMALL, path, CELL)

    def test_two_paths_are_refused(self) -> None:
        answers = dict(trellis_architecture(SMALL, (0, 0, 0, 0), CELL).answers)
        with pytest.raises(HwnasError, match="rule"):
            check(SMALL, Architecture.of(SMALL.name, answers | {arrow(1, 1): "same"}))


class TestGates:
    """What is computed on which walk: the trace of all networks, against those of single ones."""

    @pytest.mark.parametrize("merge", [True, False])
    def test_the_mixed_trace_counts_every_op_of_every_path(self, merge: bool) -> None:
        """ReLUs and resizes that two layers share are counted once, as an engine computes them."""
        mixed = trace_space(SMALL, merge=merge)
        for path in levels_of(SMALL.scale.cells):
            arch = trellis_architecture(SMALL, path, CELL)
            counted: Counter[str] = Counter()
            for c in mixed.calls:
                counted[c.spec.key] += c.gate.count(arch)
            alone = Counter(c.spec.key for c in trace_space(SMALL, arch, merge=merge).calls)
            assert +counted == alone
            assert min(counted.values()) >= 0

    def test_the_expected_latency_is_the_mean_over_paths_and_cells(self) -> None:
        model = LatencyModel(trace_space(SMALL).terms(), roofline_table(SMALL), SMALL.problem)
        probs = random_probs(SMALL, 0)
        arch = sample(SMALL, np.random.default_rng(0))
        mixed = {"cell": SMALL.problem.one_hot(arch).double()["cell"], "path": probs["path"]}
        worth = OnePath(SMALL.scale.cells).score(probs)
        cell = {d: o for d, o in arch.answers if d.startswith("cell/")}
        total = expected = 0.0
        for path in levels_of(SMALL.scale.cells):
            steps = answers_of(path)
            p = 3.0 ** sum(worth[s] - 1 for s in steps.items())
            whole = {d.name: "none" for d in SMALL.groups[1].decisions} | steps | cell
            total += p
            expected += p * model.predict_ms(Architecture.of(SMALL.name, whole))
        assert total == pytest.approx(1)
        assert float(model(mixed)) == pytest.approx(expected, rel=1e-9)

    def test_path_and_cell_under_a_budget_are_those_of_brute_force(self) -> None:
        model = LatencyModel(trace_space(TINY).terms(), roofline_table(TINY), TINY.problem)
        solver = Solver(TINY.problem, model)
        every = [
            trellis_architecture(TINY, path, (((a, 0), (b, 1)),))
            for path in levels_of(TINY.scale.cells)
            for a in TINY.cells[0].ops[1:]
            for b in TINY.cells[0].ops[1:]
        ]
        took = np.array([model.predict_ms(a) for a in every])
        assert solver.fastest().latency_ms == pytest.approx(took.min())
        for seed in range(6):
            probs = random_probs(TINY, seed)
            of = TINY.problem.scores(probs)
            scores = np.array([of @ TINY.problem.literals.vector(a) for a in every])
            for budget_ms in np.quantile(took, [0.1, 0.5, 0.9]):
                best = np.where(took <= budget_ms, scores, -np.inf).argmax()
                assert solver.solve(probs, float(budget_ms)).arch == every[best]
            assert solver.solve(probs).arch == every[scores.argmax()]
            assert strongest(TINY.problem, probs) == every[scores.argmax()]


class TestWeighting:
    """What multiplies the cells of the supernet."""

    @staticmethod
    def first_over_last(weighting: Weighting) -> float:
        """Return the gradient of the first step as a share of that of the last, all open, over a few networks."""
        space, found = replace(TINY, encoder=replace(TINY.encoder, weighting=weighting)), np.zeros(2)
        for seed in range(3):
            torch.manual_seed(seed)
            closed = {g.name: torch.tensor(g.closed) for g in space.groups}
            logits = {k: torch.zeros(c.shape).masked_fill(c, -torch.inf).requires_grad_() for k, c in closed.items()}
            probs = {k: torch.softmax(a, -1) for k, a in logits.items()}
            scores = space.build().train()(torch.rand(2, 3, 33, 49), probs)
            torch.nn.functional.cross_entropy(scores, torch.randint(5, (2, 33, 49))).backward()
            path = logits["path"].grad
            assert path is not None
            found += [float(path[row].nan_to_num().abs().max()) for row in (0, -3)]
        return float(found[0] / found[1])

    def test_batch_norms_leave_the_first_step_no_gradient_unless_paths_are_weighted(self) -> None:
        assert self.first_over_last("step") < 0.05  # what the epsilon of the BatchNorms lets through
        assert self.first_over_last("path") > 0.5

    @pytest.mark.parametrize("path", [(0, 1, 0, 1), (1, 2, 2, 1)])
    def test_a_sampled_path_is_the_network_of_that_path(self, path: tuple[int, ...]) -> None:
        """Whatever is sampled at places that it does not pass, and nothing of that is computed."""
        torch.manual_seed(0)
        space = replace(TINY, encoder=replace(TINY.encoder, weighting="path"))
        arch = trellis_architecture(space, path, ((("skip_connect", 0), ("sep_conv_3x3", 1)),))
        net, fixed = space.build().train(), space.build(arch).train()
        take_weights(fixed, net)
        probs = space.problem.one_hot(arch)
        for row, decision in zip(probs["path"], space.groups[1].decisions, strict=True):
            if arch.get(decision.name) == "none":
                row.copy_(torch.tensor([float(o == "same") for o in decision.options]))
        used: list[str] = []
        for name, cell in net.cells.items():
            cell.register_forward_hook(lambda *_, name=name: used.append(name))
        x = torch.rand(2, 3, 33, 49)
        torch.testing.assert_close(net(x, probs, sampled=on(probs)), fixed(x))
        assert used == [f"{layer}-{level}" for layer, level in enumerate(path)]


class TestPaperScale:
    """Twelve layers at 1024x2048."""

    def test_it_is_traced_priced_and_derived_in_seconds(self) -> None:
        space = autodeeplab_space(Scale(20, 12, (1024, 2048)), 19)
        table = roofline_table(space)
        _SHAPES.clear()  # what the trace for the table has learned
        start_s = time.process_time()
        model = LatencyModel(trace_space(space).terms(), table, space.problem)
        assert time.process_time() - start_s <= 10
        arch = published("AUTO_DEEPLAB", space)
        built = LatencyModel(trace_space(space, arch).terms(), table, space.problem)
        assert model.predict_ms(arch) == pytest.approx(built.predict_ms(arch), rel=1e-12)
        solver = Solver(space.problem, model)
        probs = random_probs(space, 0)
        found = solver.solve(probs, 0.8 * model.predict_ms(arch))
        check(space, found.arch)


class TestPrice:
    """`hwnas price` of networks with a path."""

    def test_parts_and_ops_make_up_what_is_predicted(self) -> None:
        space = recipes.get("autodeeplab-tiny").space
        table = roofline_table(space)
        mixed = LatencyModel(trace_space(space).terms(), table, space.problem)
        rng = np.random.default_rng(0)
        for arch in (sample(space, rng) for _ in range(5)):
            priced = price_network(Network("drawn", space, space.scale, arch), table)
            assert priced.ms == pytest.approx(mixed.predict_ms(arch), rel=1e-9)
            parts = priced.by_part()
            assert {f"cells.{layer}" for layer in range(4)} <= parts.keys()
            assert sum(parts.values()) + priced.base_ms == pytest.approx(priced.ms, rel=1e-9)
            # Stem and head are there whatever was searched, but for the convolutions whose widths depend on the path.
            assert {i.kind for i in priced.items if not i.searched} >= {"conv_bn", "argmax", "classifier"}
            assert 0 < priced.searched_ms < priced.ms

    def test_the_published_network_goes_by_its_name(self) -> None:
        found = find_network("AUTO_DEEPLAB", "autodeeplab")
        assert found.space.genotype(found.arch) == PAPER.genotype(published("AUTO_DEEPLAB", PAPER))
        with pytest.raises(HwnasError, match="12 layers and 5 blocks in a cell, networks of this space 4 and 2"):
            find_network("AUTO_DEEPLAB", "autodeeplab-tiny")
        with pytest.raises(HwnasError, match="the space 'chain' have none; name another --recipe"):
            find_network("AUTO_DEEPLAB", "darts-tiny")


@pytest.mark.slow
@pytest.mark.parametrize("filters", [20, 32, 48])
def test_the_published_networks_are_exported(filters: int) -> None:
    """S, M and L at 513x513 compute in ONNX Runtime what they do here."""
    space = PAPER.at(Scale(filters, 12, (513, 513)))
    torch.manual_seed(0)
    net = space.build(published("AUTO_DEEPLAB", space), form="deploy").eval()
    image = torch.randn(1, 3, 513, 513)
    model = export_network(trace(net, tuple(image.shape)), "scores", {"who": "test"})
    with open_onnx(model.SerializeToString()) as runner, torch.no_grad():
        got, expected = runner.run({"image": image.numpy()})["scores"], net(image).numpy()
    assert got.shape == (1, 19, 513, 513)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_limits_that_nothing_keeps_say_so_where_latency_is_a_product_of_counts() -> None:
    model = LatencyModel(trace_space(SMALL).terms(), roofline_table(SMALL), SMALL.problem)
    cell = SMALL.groups[0]
    nothing = SMALL.problem.with_rules(*(AtMost.of(cell, o, 0) for o in cell.options if o != "none"))
    with pytest.raises(BudgetError, match="no architecture of the space has 0 skip_connect at most"):
        Solver(nothing, model)
