"""GAS: cells that are searched each for itself, the price of what depends on their nodes, logits through a graph."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from hwnas import recipes
from hwnas.data.synthetic import Synthetic
from hwnas.errors import HwnasError
from hwnas.files import read_json
from hwnas.latency import LatencyModel
from hwnas.problem import ALWAYS, Architecture, Clause, Gate, Group, NoTwins
from hwnas.search.derive import Solver, strongest
from hwnas.search.gradient import BilevelSearch
from hwnas.search.graph_logits import GraphLogits, GraphModule
from hwnas.search.logits import Table
from hwnas.search.relax import softmax
from hwnas.spaces import Independent, Scale, Space, gas_space, sample, trace_space
from hwnas.spaces.cell import CellSpec
from tests.contracts import CORRECTION, SpaceContract, random_probs, roofline_table
from tests.test_derive import agree, priced
from tests.verbs import do_job

OPS = ("none", "skip_connect", "max_pool_3x3", "conv_3x3")


def small(cells: int = 3, size: tuple[int, int] = (37, 51), ops: tuple[str, ...] = OPS, **settings: object) -> Space:
    return gas_space(Scale(4, cells, size), 5, ops=ops, head_channels=8, **settings)  # type: ignore[arg-type]


def valid(spec: CellSpec, options: int) -> np.ndarray:
    """Return all answers to a cell that obey its rule, as indices of options: (n, edges)."""
    (rule,) = spec.rules()
    names = [spec.edge_name(e) for e in spec.edges]
    every = itertools.product(range(options), repeat=len(names))
    archs = [(o, Architecture.of("s", dict(zip(names, (spec.ops[i] for i in o), strict=True)))) for o in every]
    return np.array([o for o, arch in archs if rule.holds(arch)])


class TestIndependent(SpaceContract):
    @pytest.fixture
    def space(self) -> Space:
        return small()

    @pytest.fixture
    def archs(self, space: Space) -> list[Architecture]:
        """Return some without twins, which are frequent: they are priced too high."""
        problem, rng = space.problem.with_rules(NoTwins(space.twins())), np.random.default_rng(0)
        return [problem.draw(rng) for _ in range(4)]

    def frequencies(self, space: Space) -> dict[str, dict[str, float]]:
        out = {}
        for spec in space.cells:
            kept = (valid(replace(spec, ops=("none", "kept")), 2) > 0).mean(0)
            for edge, k in zip(spec.edges, kept, strict=True):
                out[spec.edge_name(edge)] = {o: 1 - k if o == "none" else k / (len(OPS) - 1) for o in OPS}
        return out

    def test_a_sum_is_after_a_convolution_where_an_engine_can_merge_it_into_one(
        self, space: Space, archs: list[Architecture]
    ) -> None:
        """Of a node's three edges which sum is which is not said, but how many are merged: a convolution takes one."""
        for arch in archs:
            merged = alone = 0
            for block in (block for spec in space.cells for block in spec.blocks(arch)):
                convs = sum(op == "conv_3x3" for op, _ in block)
                merged += min(convs, max(0, len(block) - 1))
                alone += max(0, len(block) - 1 - convs)
            strided = [b for spec in space.cells if spec.stride == 2 for b in spec.blocks(arch)]
            skips = [(op, j) for block in strided for op, j in block if op == "skip_connect" and j < 2]
            adds = Counter(
                dict(c.spec.attrs)["after_conv"]
                for c in trace_space(space, arch).calls
                if len(c.inputs) == 2 and c.spec.kind == "add"
            )
            assert adds.total() == merged + alone
            assert merged <= adds[True] <= merged + len(skips)  # with a stride a skip is a convolution, too


@pytest.mark.parametrize(
    "settings", [{}, {"shared": True}, {"nodes": 3, "stem": "imagenet"}, {"nodes": 1}, {"keep": 2}], ids=str
)
def test_what_is_open_is_priced_as_what_is_built(settings: dict[str, object]) -> None:
    space = small(**settings)
    table, limit, rng = roofline_table(space, CORRECTION), NoTwins(space.twins()), np.random.default_rng(0)
    model, counts = LatencyModel(trace_space(space).terms(), table, space.problem), set()
    for concentration in [None] * 4 + [0.2] * 6:
        arch = sample(space, rng, concentration)
        counts |= {spec.alive(arch) for spec in space.cells}
        half = dict(arch.answers[::2])
        for given in (arch, Architecture.of(space.name, half)):
            own = LatencyModel(trace_space(space, given).terms(), table, space.problem)
            if limit.holds(arch):
                assert own.predict_ms(arch) == pytest.approx(model.predict_ms(arch), rel=1e-12)
            assert own.predict_ms(arch) <= model.predict_ms(arch) * (1 + 1e-12)
    assert counts <= set(space.cells[0].counts)
    assert len(counts) >= min(2, len(space.cells[0].counts))


def test_a_node_that_is_left_out_would_have_been_zeros() -> None:
    """What ships is the supernet's one-hot without the channels of the nodes that have no edge."""
    space, rng = small(ops=("none", "skip_connect", "conv_3x3")), np.random.default_rng(1)
    image, smaller = torch.randn(2, 3, *space.scale.size, generator=torch.Generator().manual_seed(0)), 0
    for _ in range(4):
        arch = sample(space, rng)
        wide, narrow = (space.build(arch, form).eval() for form in ("search", "deploy"))  # type: ignore[arg-type]
        weights, own = wide.state_dict(), narrow.state_dict()
        there = [sorted({i - 2 for _, i, _ in spec.kept(arch)}) for spec in space.cells]
        for name, w in own.items():
            full = weights.get(name, w)  # BatchNorm in supernets has neither scale nor shift
            if full.shape != w.shape:
                part, k, which, *_ = name.split(".")
                source = there[-1] if part == "head" else there[int(k) - (1 if which == "preprocess1" else 2)]
                c = w.shape[1] // len(source)
                full, smaller = torch.cat([full[:, c * i : c * i + c] for i in source], 1), smaller + 1
            own[name] = full
        narrow.load_state_dict(own)
        with torch.no_grad():
            torch.testing.assert_close(narrow(image), wide(image), rtol=1e-4, atol=1e-5)
    assert smaller > 4


class Every:
    """All architectures of a space of independent groups, as one-hot rows."""

    def __init__(self, space: Space) -> None:
        blocks = [np.eye(len(s.ops), dtype=bool)[valid(s, len(s.ops))] for s in space.cells]
        flat = [b.reshape(len(b), -1) for b in blocks]
        picks = np.array(list(itertools.product(*(range(len(b)) for b in flat))))
        self.onehots = np.hstack([b[picks[:, i]] for i, b in enumerate(flat)])
        self.index = space.problem.literals.index

    def hold(self, clauses: frozenset[Clause]) -> np.ndarray:
        """Return in which of them all clauses hold."""
        out = np.ones(len(self.onehots), bool)
        for clause in clauses:
            out &= self.onehots[:, [self.index[x] for x in clause]].any(1)
        return out

    def opened(self, gates: Sequence[Gate]) -> np.ndarray:
        """Return (architectures, gates): whether each is open."""
        return np.stack([self.hold(g.clauses) & ~(self.hold(g.unless) & bool(g.unless)) for g in gates], 1)


@pytest.mark.parametrize(
    ("space", "cases"),
    [
        (small(ops=("none", "conv_3x3")), 40),
        (small(ops=("none", "max_pool_3x3")), 30),
        (small(shared=True, ops=("none", "skip_connect", "conv_3x3")), 30),
    ],
    ids=["convolutions", "pools", "shared"],
)
def test_brute_force_over_all_architectures_agrees(space: Space, cases: int) -> None:
    terms, every, rng, outcomes = trace_space(space).terms(), Every(space), np.random.default_rng(cases), []
    gates = tuple(dict.fromkeys(t.gate for t in terms))
    assert any(g.unless for g in gates)
    opened = every.opened(gates)
    for case in range(cases):
        model = priced(terms, space.groups, rng, base_ms=0.1 * (case % 3))
        probs = random_probs(space, case, scale=float(rng.choice([0.01, 1.0, 10.0])))
        ms = model.base_ms + opened[:, [gates.index(g) for g in model.gates]] @ model.gate_ms
        budget_ms = float(ms.min() + rng.uniform(-0.1, 0.8) * (np.median(ms) - ms.min()))
        score = every.onehots @ probs.numpy()  # that of none, too
        outcomes.append(agree(Solver(space.problem, model), probs, budget_ms, score, ms))
    assert 0.03 * cases < outcomes.count(False) < 0.3 * cases


def test_without_a_budget_each_edge_takes_its_most_probable_option() -> None:
    space, dropped = gas_space(Scale(4, 14, (64, 64)), 11), 0
    rng = np.random.default_rng(0)
    for _ in range(10):
        zero_is_likely = np.eye(8)[0] * 1.5
        logits = {g.name: torch.from_numpy(rng.standard_normal(g.shape) + zero_is_likely) for g in space.groups}
        probs = space.problem.probabilities(softmax(logits))
        arch = strongest(space.problem, probs)
        for spec in space.cells:
            of = {d.name: probs.by_decision[d.name] for d in spec.group.decisions}
            argmax = {d: max(p, key=p.__getitem__) for d, p in of.items()}
            if spec.rules()[0].holds(Architecture.of(space.name, argmax)):
                assert {d: arch.get(d) for d in argmax} == argmax
                dropped += spec.alive(arch) < spec.nodes
    assert dropped > 10  # not all cells have both nodes


def test_the_papers_scale_is_traced_and_derived() -> None:
    """14 cells of 5 edges: of what reads them, one op for each number of nodes."""
    space = recipes.get("gas").space
    cells = space.scale.cells
    assert [g.name for g in space.groups] == [f"cell{k}" for k in range(cells)]
    assert all(g.shape == (5, 8) for g in space.groups)
    traced = trace_space(space)
    table = roofline_table(space)
    model = LatencyModel(traced.terms(), table, space.problem)
    alone = [c for c in traced.calls if c.gate.unless and "preprocess0.0" in c.name]
    assert len(alone) >= cells - 2
    solver = Solver(space.problem.with_rules(NoTwins(space.twins())), model)
    probs, fastest = random_probs(space, 0), solver.fastest().latency_ms
    free = solver.solve(probs).latency_ms
    assert fastest is not None
    assert free is not None
    found = solver.solve(probs, (fastest + free) / 2)
    built = LatencyModel(trace_space(space, found.arch).terms(), table, space.problem)
    assert built.predict_ms(found.arch) == pytest.approx(found.latency_ms, rel=1e-9)


def test_cells_of_their_own_are_of_one_depth() -> None:
    own, shared = small(), small(shared=True)
    with pytest.raises(HwnasError, match="decisions on 3 cells say nothing of 4"):
        own.at(Scale(4, 4, (37, 51)))
    assert shared.at(Scale(4, 4, (37, 51))).groups == shared.groups
    assert [g.name for g in shared.groups] == ["normal-cells", "reduction-cells"]
    assert len(own.groups) == 3


def test_edges_that_are_not_as_in_the_cell_before_are_bold() -> None:
    space = small(cells=4)
    assert isinstance(space.encoder, Independent)
    answers = {d.name: "none" for g in space.groups for d in g.decisions}
    answers |= {f"cell{k}/1-2": "conv_3x3" for k in range(4)} | {"cell2/0-2": "skip_connect"}
    figure, arch = Figure(), Architecture.of(space.name, answers)
    space.problem.check(arch)
    space.draw(figure, arch, {}, {})
    widths = [
        sorted(t.arrow_patch.get_linewidth() for t in axes.texts if getattr(t, "arrow_patch", None))
        for axes in figure.axes
    ]
    assert [len(w) for w in widths] == [1, 1, 2, 1]
    assert widths[0] == widths[1] == widths[3] == widths[2][:1]
    assert widths[2][1] > widths[2][0]
    assert str(space.genotype(arch)).startswith("Cells(cell0=[[('conv_3x3', 1)], []], cell1=")


TINY = recipes.get("gas-tiny")


def searched(**settings: object) -> BilevelSearch:
    config = replace(TINY.search, warmup=1, **settings)  # type: ignore[arg-type]
    return BilevelSearch(TINY.space, config, Synthetic("train", TINY.search.size, length=6))


class TestGraphLogits:
    GROUPS = TINY.space.groups

    def module(self, **settings: float) -> GraphModule:
        return GraphLogits(**settings).build(self.GROUPS, seed=3)  # type: ignore[arg-type]

    @staticmethod
    def stir(module: GraphModule) -> None:
        for parameter in module.after[1].parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))

    def test_it_begins_as_a_table(self) -> None:
        table = Table().build(self.GROUPS, seed=3)
        assert all(torch.equal(a, b) for a, b in zip(self.module()().values(), table().values(), strict=True))

    def test_the_last_cell_moves_the_logits_of_all_before_it(self) -> None:
        module = self.module()
        self.stir(module)
        last = module()[self.GROUPS[-1].name]
        last.square().sum().backward()
        for alpha in module.alphas.logits.values():
            assert alpha.grad is not None
            assert alpha.grad.abs().sum() > 0
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())

    def test_it_is_the_formula(self) -> None:
        module = self.module(gamma=0.3)
        self.stir(module)
        out, alphas = module(), dict(module.alphas().items())
        before = out[self.GROUPS[0].name]
        assert torch.equal(before, alphas[self.GROUPS[0].name])
        for g in self.GROUPS[1:]:
            a = alphas[g.name]
            adjacency = torch.softmax(module.query(a) @ module.key(before).T, dim=1)
            torch.testing.assert_close(module.adjacency()[g.name].sum(1), torch.ones(len(a)))
            passed = module.after(adjacency @ module.before(before) @ module.graph.weight.T)
            torch.testing.assert_close(out[g.name], a + 0.3 * passed)
            before = out[g.name]

    def test_with_its_last_layer_at_zero_the_search_is_the_independent_one(self, one_thread: None) -> None:
        found = []
        for logits in (Table(), GraphLogits()):
            search = searched(logits=logits)
            if isinstance(search.alphas, GraphModule):
                search.alphas.after[1].requires_grad_(False)
            for _ in range(3):
                search.advance()
            found.append((search.logits(), search.net.state_dict()))
        for own, graph in zip(*found, strict=True):
            assert own.keys() == graph.keys()
            assert all(torch.equal(own[k], graph[k]) for k in own)

    def test_its_weights_are_trained_and_kept_in_checkpoints(self, one_thread: None) -> None:
        search, again = searched(), searched()
        for _ in range(3):
            search.advance()
        assert isinstance(search.alphas, GraphModule)
        assert float(search.alphas.after[1].weight.detach().abs().sum()) > 0
        assert torch.isfinite(torch.cat([p.flatten() for p in search.alphas.parameters()])).all()
        again.restore(copy.deepcopy(search.state()))  # optimisers share tensors with what they load
        for one in (search, again):
            one.advance()
        assert all(torch.equal(a, b) for a, b in zip(search.logits().values(), again.logits().values(), strict=True))

    def test_cells_of_other_shapes_are_refused(self) -> None:
        other = replace(self.GROUPS[0], name="other", decisions=self.GROUPS[0].decisions[:2])
        with pytest.raises(HwnasError, match="cell0 has 5 edges of 8 ops, other 2 of 8"):
            GraphLogits().build((*self.GROUPS, other), seed=0)
        renamed = tuple(replace(d, options=(*d.options[:-1], "else")) for d in self.GROUPS[0].decisions)
        with pytest.raises(HwnasError, match="or others"):
            GraphLogits().build((self.GROUPS[0], Group("ops", renamed)), seed=0)

    def test_no_part_of_it_is_in_what_is_derived(self) -> None:
        arch = sample(TINY.space, np.random.default_rng(0))
        names = {n for n, _ in TINY.space.build(arch, "deploy").named_parameters()}
        own = {n.split(".")[0] for n, _ in self.module().named_parameters()}
        assert not own & {part for n in names for part in n.split(".")}


def test_a_gate_of_all_nodes_is_always_open_where_there_is_one() -> None:
    assert CellSpec("c", OPS, nodes=1, keep=None).counted(1) == ALWAYS
    assert CellSpec("c", OPS, nodes=3, keep=2).counted(3) == ALWAYS


def test_the_whole_job(tmp_path: Path) -> None:
    name = "gas-tiny"
    verbs = [("profile", name, "--engine", "fake"), ("search", name), *((v, name) for v in ("train", "export"))]
    do_job(tmp_path, [*verbs, ("validate", name)])
    run = tmp_path / "runs" / name
    report, arch = (read_json(run / f"{n}.json", "an output") for n in ("report", "arch"))
    assert report["met"]
    assert report["predicted_ms"] == pytest.approx(report["measured_ms"], rel=0.01)
    found = Architecture.from_json(arch["architecture"])
    TINY.space.problem.check(found)
    assert "not measured: a single-level search" in (tmp_path / "search.txt").read_text()
    with contextlib.chdir(tmp_path):
        assert TINY.space.dot(found) == (run / "arch.dot").read_text()
    drawing = (run / "search.svg").read_text()
    assert all(f"<!-- {title} -->" in drawing for title in ("cell1 reads cell0", "cell2 reads cell1"))
    assert "drawing " in (tmp_path / "search.txt").read_text()
