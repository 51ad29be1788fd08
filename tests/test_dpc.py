"""The dense prediction cell: its space, its prices, the published cell, and what the public code gives."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from hwnas import recipes
from hwnas.errors import HwnasError
from hwnas.jobs import find_network, price_network
from hwnas.latency import LatencyModel
from hwnas.ops.rectangular import AtrousSeparable, WindowPool, WindowPooling
from hwnas.problem import ALWAYS, Architecture, NoTwins
from hwnas.records import decode, encode
from hwnas.run import Run
from hwnas.search.derive import Solver
from hwnas.search.strategy import Trial
from hwnas.search.trials import TrialSolver
from hwnas.spaces import (
    DPC_CELL,
    Chain,
    DPCGenotype,
    DPCHead,
    Head,
    Lite,
    MobileNetV2,
    Scale,
    Space,
    Trellis,
    Xception,
    published,
    sample,
    trace_alternatives,
    trace_space,
)
from tests.contracts import CORRECTION, SpaceContract, random_probs, roofline_table
from tests.verbs import STAGES, do_job, done

SMALL = Space(
    MobileNetV2(Scale(8, 5, (45, 61)), stride=16), DPCHead(4, branches=3, rates=(1, 6), grids=(1, 2)), classes=11
)
CITYSCAPES = (1025, 2049)
PAPER = Space(MobileNetV2(Scale(32, 7, CITYSCAPES), stride=16), DPCHead(), classes=19)


class TestSpace(SpaceContract):
    N_ARCHS = 3

    @pytest.fixture
    def space(self) -> Space:
        return SMALL


class TestSize:
    # B! * 81^B, section 3 of the paper: 4.2e11 for 5 branches
    @pytest.mark.parametrize(
        ("branches", "size"), [(1, 81), (2, 13_122), (3, 3_188_646), (4, 1_033_121_304), (5, 418_414_128_120)]
    )
    def test_there_are_as_many_cells_as_in_the_paper(self, branches: int, size: int) -> None:
        space = replace(PAPER, head=DPCHead(branches=branches))
        assert math.prod(len(d.options) for d in space.problem.decisions) == size
        assert not space.rules()

    def test_no_two_of_the_ops_are_the_same_at_any_stride(self) -> None:
        ops = DPCHead().ops
        assert len(set(ops)) == 81
        for stride, rates in ((4, {4, 12}), (8, {2, 6, 42}), (16, {1, 3, 21}), (32, {1, 2, 11})):
            space = Space(Lite(Scale(8, 7, (64, 64)), stride=32), DPCHead(4, adapter=4, stride=stride), 2)
            with torch.device("meta"):
                net = space.build()
            found = {tuple(m.attrs.values())[2:4] for m in net.modules() if isinstance(m, AtrousSeparable)}
            assert len(found) == 64
            assert rates <= {height for height, _ in found}


class TestPublished:
    def test_it_has_the_size_of_the_public_code(self) -> None:
        """Parameters and multiply-adds of the TensorFlow graph of tensorflow/models, research/deeplab, at 1025x2049."""
        arch = published("DPC", PAPER)
        with torch.device("meta"):
            net = PAPER.build(arch, "deploy")
        sizes = {n: p.numel() for n, p in net.head.named_parameters() if not n.startswith("classifier")}  # type: ignore[union-attr]
        assert sum(sizes.values()) == 689_600
        assert sum(n for name, n in sizes.items() if ".bn" not in name) == 683_840
        calls = [c for c in trace_space(PAPER, arch).calls if c.name.startswith("head.") and "classif" not in c.name]
        assert {c.out_shape[2:] for c in calls if c.spec.kind != "resize" and c.name != "argmax"} >= {(65, 129)}
        macs = {c.name: c.cost.macs for c in calls}
        # 2.99 G without the projection: 3.00 B in Table 1 of the paper; 2.748 G with it alone
        assert sum(macs.values()) == 5_733_998_400
        assert macs["head.project"] == 327_680 * 65 * 129
        assert sum(n for name, n in sizes.items() if "project" not in name and ".bn" not in name) == 356_160

    def test_on_xception_it_has_the_weights_of_the_paper(self) -> None:
        """0.81 M of a feature of 2048 channels, Table 1, without projection and BatchNorm."""
        space = Space(Xception(Scale(32, 16, CITYSCAPES)), DPCHead(), 19)
        with torch.device("meta"):
            head = space.build(published("DPC", space), "deploy").head
        kept = [n for n, _ in head.named_parameters() if ".bn" not in n and n.startswith("branches")]  # type: ignore[union-attr]
        assert sum(head.get_parameter(n).numel() for n in kept) == 814_080  # type: ignore[union-attr]

    def test_it_is_priced_by_name(self) -> None:
        network = find_network("DPC", "dpc-camvid")
        table = roofline_table(network.space, CORRECTION)
        found = price_network(network, table)
        built = LatencyModel(trace_space(network.space, network.arch).terms(), table, network.space.problem)
        assert found.ms == pytest.approx(built.predict_ms(network.arch), rel=1e-12)
        assert sum(i.count for i in found.items if i.kind == "atrous_separable" and i.searched) == 5
        with pytest.raises(HwnasError, match="3 branches of 9 ops; got 5 branches with atrous_18x15"):
            find_network("DPC", "dpc-tiny")

    def test_it_does_not_fit_other_spaces(self) -> None:
        chain = Space(Chain(Scale(4, 3, (64, 64))), DPCHead(adapter=8), 11)
        fewer = replace(PAPER, head=DPCHead(rates=(1, 6)))
        for space, message in (
            (chain, "encoder without decisions"),
            (replace(PAPER, head=DPCHead(branches=4)), "4 branches of 81 ops; got 5 branches with these ops"),
            (fewer, "5 branches of 21 ops; got 5 branches with atrous_18x15, atrous_6x21, atrous_6x3"),
        ):
            with pytest.raises(HwnasError, match=message):
                published("DPC", space)

    def test_a_genotype_is_the_json_of_the_public_code(self) -> None:
        assert json.loads(str(DPC_CELL))[1] == {"kernel": 3, "rate": [18, 15], "op": "conv", "input": 0}
        rng = np.random.default_rng(0)
        for _ in range(20):
            arch = sample(PAPER, rng)
            own = PAPER.head.genotype(arch)
            assert DPCGenotype.parse(str(own)) == own
            assert Architecture.of(PAPER.name, DPCHead().answers(own)) == arch  # type: ignore[arg-type]
        for bad in ("{}", "[]", "[1]", '[{"op": "conv", "kernel": 3, "rate": [1, 1], "input": 0}]', "not json"):
            with pytest.raises(HwnasError, match="a dense prediction cell looks like"):
                DPCGenotype.parse(bad)


class TestOps:
    def test_rows_and_columns_have_rates_of_their_own(self) -> None:
        op = AtrousSeparable(1, 1, 2, 5).eval()
        torch.nn.init.ones_(op.depthwise.weight)
        torch.nn.init.ones_(op.pointwise.weight)
        image = torch.zeros(1, 1, 21, 21)
        image[0, 0, 10, 10] = 1
        seen = (op(image)[0, 0] > 0).nonzero().tolist()
        assert seen == [[i, j] for i in (8, 10, 12) for j in (5, 10, 15)]

    @pytest.mark.parametrize(("size", "windows"), [((65, 129), ((65, 129), (33, 65), (17, 33), (9, 17)))])
    def test_windows_are_those_of_the_public_code(
        self, size: tuple[int, int], windows: tuple[tuple[int, int], ...]
    ) -> None:
        """``scale_dimension`` of crops of 1025x2049 at stride 16, for grids of 1, 2, 4 and 8."""
        for grid, (height, width) in zip((1, 2, 4, 8), windows, strict=True):
            seen: list[torch.Tensor] = []
            own = WindowPooling(torch.nn.Identity(), grid, grid)
            own.point.register_forward_hook(lambda _module, args, _out, seen=seen: seen.append(args[0]))
            x = torch.rand(1, 2, *size, dtype=torch.float64)
            out = own(x)
            assert out.shape == x.shape
            assert seen[0].shape[2:] == (size[0] - height + 1, size[1] - width + 1)
            torch.testing.assert_close(seen[0][0, 0, 0, 0], x[0, 0, :height, :width].mean())
            torch.testing.assert_close(seen[0][0, 0, -1, -1], x[0, 0, -height:, -width:].mean())

    def test_crops_of_the_paper_have_the_windows_of_the_public_code(self) -> None:
        # scale_dimension of crops of 513 and 769 at stride 16
        for side, windows in ((33, (33, 17, 9, 5)), (49, (49, 25, 13, 7))):
            assert tuple(-(-side // grid) for grid in (1, 2, 4, 8)) == windows

    def test_a_window_of_one_pixel_is_no_op(self) -> None:
        assert not [m for m in WindowPooling(torch.nn.Identity(), 4, 4).modules() if isinstance(m, WindowPool)]
        x = torch.rand(1, 2, 3, 3)
        assert WindowPooling(torch.nn.Identity(), 4, 4)(x) is x

    def test_a_batch_of_one_trains_where_a_window_is_the_whole_map(self) -> None:
        arch = sample(SMALL, np.random.default_rng(0))
        answers = dict(arch.answers) | {d: "pool_1x1" for d, _ in arch.answers if d.endswith("/op")}
        net = SMALL.build(Architecture.of(SMALL.name, answers), "deploy").train()
        assert torch.isfinite(net(torch.rand(1, 3, 45, 61))).all()


class TestPrice:
    def test_an_op_costs_what_it_reads(self) -> None:
        """The feature has other channels than the branches, so that the same op has two prices."""
        table = roofline_table(SMALL, CORRECTION)
        model = LatencyModel(trace_space(SMALL).terms(), table, SMALL.problem)
        arch = sample(SMALL, np.random.default_rng(0))
        prices = {}
        for source in ("feature", "0", "1"):
            own = dict(arch.answers) | {"dpc/2/input": source, "dpc/2/op": "atrous_6x1"}
            prices[source] = model.predict_ms(Architecture.of(SMALL.name, own))
        assert prices["0"] == prices["1"] < prices["feature"]

    def test_with_an_adapter_of_its_channels_the_input_costs_nothing(self) -> None:
        head = replace(SMALL.head, adapter=4)  # type: ignore[type-var]
        terms = trace_space(replace(SMALL, head=head)).terms()
        assert all(len({d for clause in t.gate.clauses for d, _ in clause}) <= 1 for t in terms)
        assert len(terms) < len(trace_space(SMALL).terms())

    def test_the_whole_space_is_traced_and_solved(self) -> None:
        """All cells of the paper under a budget between the fastest and the best."""
        space = recipes.get("dpc-camvid").space
        trace = trace_alternatives(space)
        table = roofline_table(space, CORRECTION)
        model = LatencyModel(trace.terms(), table, space.problem)
        solver = Solver(space.problem.with_rules(NoTwins(space.twins())), model)
        probs = random_probs(space, 0)
        fastest, best = solver.fastest().latency_ms, solver.solve(probs).latency_ms
        assert fastest is not None
        assert best is not None
        budget_ms = fastest + 0.3 * (best - fastest)
        found = solver.solve(probs, budget_ms)
        assert found.latency_ms is not None
        assert found.latency_ms <= budget_ms * (1 + 1e-9)
        built = LatencyModel(trace_space(space, found.arch).terms(), table, space.problem)
        assert built.predict_ms(found.arch) == pytest.approx(found.latency_ms, rel=1e-9)


class TestHead:
    def test_a_feature_that_depends_on_decisions_needs_an_adapter(self) -> None:
        trellis = Trellis(Scale(2, 4, (64, 64)), nodes=2)
        with pytest.raises(HwnasError, match="give the head an adapter, or take another encoder"):
            Space(trellis, DPCHead(), 11)
        Space(trellis, DPCHead(adapter=8), 11)

    @pytest.mark.parametrize(
        "settings",
        [{"channels": 0}, {"branches": 0}, {"rates": ()}, {"rates": (3, 1)}, {"grids": (0, 1)}, {"dropout": 1.0}],
    )
    def test_settings_out_of_range_are_refused(self, settings: dict[str, object]) -> None:
        with pytest.raises(HwnasError, match=next(iter(settings))):
            DPCHead(**settings)  # type: ignore[arg-type]

    def test_it_is_stored_whole(self) -> None:
        for own in (DPCHead(), DPCHead(4, 3, (1, 6), (2,), 0.0, 8, 8)):
            assert decode(encode(own, Head), Head) == own

    def test_a_drawing_has_every_branch(self) -> None:
        arch, figure = published("DPC", PAPER), Figure()
        PAPER.draw(figure, arch, {}, {"stem": 1.0})
        texts = {t.get_text() for axes in figure.axes for t in axes.texts}
        assert {"feature", "0: atrous_1x6", "1: atrous_18x15", "4: atrous_6x21"} <= texts
        dot = PAPER.dot(arch)
        assert dot.count('-> "dpc result"') == 5
        assert '"dpc 1" -> "dpc 2" [label="atrous_6x3"]' in dot

    def test_dropout_is_for_training_alone(self) -> None:
        arch = sample(SMALL, np.random.default_rng(1))
        net = SMALL.build(arch, "deploy")
        image = torch.rand(2, 3, 45, 61)
        for mode, alike in ((True, False), (False, True)):
            net.train(mode)
            with torch.no_grad():
                found = [net(image) for _ in range(2)]
            assert torch.equal(*found) is alike
        assert not [c for c in trace_space(SMALL, arch).calls if "drop" in c.name]

    def test_a_supernet_is_the_mixture_of_what_is_read(self) -> None:
        """By hand: the second branch, from the outputs of its parts."""
        net = SMALL.build().eval()
        branch = net.head.branches[1]  # type: ignore[union-attr]
        feature, first = torch.rand(2, branch.of_feature.ops["conv_1x1"].attrs["c_in"], 3, 4), torch.rand(2, 4, 3, 4)
        inputs, ops = torch.tensor([0.25, 0.75]), F.softmax(torch.arange(9.0), 0)
        with torch.no_grad():
            mixed = branch([feature, first], inputs, ops, None, None)
            parts = zip(branch.of_feature.ops.values(), branch.of_branch.ops.values(), ops, strict=True)
            expected = sum(
                w * (0.25 * of_feature(feature) + 0.75 * of_branch(first)) for of_feature, of_branch, w in parts
            )
        torch.testing.assert_close(mixed, expected)


class TestRecipes:
    @pytest.mark.slow
    def test_the_whole_job(self, tmp_path: Path) -> None:
        do_job(tmp_path, [("profile", "dpc-tiny", "--engine", "fake"), *((verb, "dpc-tiny") for verb in STAGES[1:])])
        with contextlib.chdir(tmp_path):
            run = Run("dpc-tiny")
            derived = run.derived()
            priced = json.loads(done("price", "dpc-tiny", "--foreign-table", "--json").out.splitlines()[-1])
            assert (run.folder / "report.json").exists()
        assert derived.predicted_ms <= derived.budget_ms
        assert priced["predicted_ms"] == pytest.approx(derived.predicted_ms)
        assert '"op": ' in (tmp_path / "search.txt").read_text()

    def test_trials_can_decide_as_well(self) -> None:
        space = recipes.get("dpc-tiny").space
        rng = np.random.default_rng(0)
        tried = [Trial(sample(space, rng), score) for score in rng.random(20)]
        model = LatencyModel(trace_space(space).terms(), roofline_table(space, CORRECTION), space.problem)
        budget_ms = float(np.median([model.predict_ms(t.architecture) for t in tried]))
        (best,) = TrialSolver(space.problem, tried, [model]).best({}, [budget_ms])
        within = [t for t in tried if model.predict_ms(t.architecture) <= budget_ms]
        assert best.arch == max(within, key=lambda t: t.score).architecture

    @pytest.mark.parametrize("name", ["dpc", "dpc-camvid"])
    def test_the_large_ones_have_all_cells(self, name: str) -> None:
        space = recipes.get(name).space
        assert math.prod(len(d.options) for d in space.problem.decisions) == 418_414_128_120
        assert space.genotype(published("DPC", space))[1] == DPC_CELL  # type: ignore[index]
        kinds = Counter(c.spec.kind for c in trace_alternatives(space).calls if c.gate != ALWAYS)
        # Of each op one call that reads the feature and, of all branches but the first, one that reads a branch.
        assert kinds["atrous_separable"] == 64 * 9
