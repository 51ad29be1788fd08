"""Exact derivation: against brute force, against the paper's rule, and the competition of widths."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hwnas.errors import BudgetError, HwnasError, MissingOp
from hwnas.latency import Correction, LatencyModel, LatencyTable, OpRow
from hwnas.ops import OpSpec, Term
from hwnas.problem import (
    ALWAYS,
    AtMost,
    Decision,
    Gate,
    Group,
    Matrices,
    Probabilities,
    Problem,
    TopK,
    at_least,
    choice,
)
from hwnas.search.derive import Solver, reachable_fps, strongest
from hwnas.search.milp import Rows, _silent, minimise
from hwnas.search.program import Program
from hwnas.search.widths import (
    MAX_SAFETY,
    MIN_SCORE,
    SAFETY,
    Candidate,
    Constraint,
    Contest,
    choose,
    count,
    margins,
    price,
    random_latencies_ms,
)
from hwnas.spaces import Scale, Space, check, darts_space, derived_genotype, trace_space
from tests.contracts import constrained_ms, random_probs, roofline_table

OPS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
SIZE = (32, 48)
WHERE = {"device": {"name": "paper"}, "engine": {"name": "paper", "precision": "fp32"}, "batch": 1, "merges": True}


def cells(keep: int, n_ops: int, channels: int = 4) -> Space:
    return darts_space(Scale(channels, 3, SIZE), 5, ops=OPS[: n_ops + 1], nodes=2, keep=keep, head_channels=8)


def priced(terms: list[Term], groups: tuple[Group, ...], rng: np.random.Generator, base_ms: float = 0) -> LatencyModel:
    """Return a model with random prices; a quarter of the ops are free."""
    specs = dict.fromkeys(t.spec for t in terms)
    ms = {s: float(rng.uniform(0.01, 1.0)) * float(rng.random() > 0.25) for s in specs}
    rows = {s.key: OpRow(s.key, v) for s, v in ms.items()}
    return LatencyModel(terms, LatencyTable(WHERE, rows, correction=Correction(base_ms)), Problem("s", groups))


class Brute:
    """All architectures of a space whose groups do not constrain each other, and whether each gate is open in them."""

    def __init__(self, groups: tuple[Group, ...], rules: list[TopK]) -> None:
        self.names = [(d.name, o) for g in groups for d in g.decisions for o in d.options]
        self.scored = np.array([o != "none" for _, o in self.names])
        per_group = []
        for g in groups:
            mine = [r for r in rules if set(r.decisions) <= {d.name for d in g.decisions}]
            picks = np.array(list(itertools.product(range(len(g.options)), repeat=len(g.decisions))))
            kept = picks != g.options.index("none")  # (n, decisions)
            for r in mine:
                columns = [i for i, d in enumerate(g.decisions) if d.name in r.decisions]
                kept, picks = (a[kept[:, columns].sum(1) == r.k] for a in (kept, picks))
            per_group.append(np.eye(len(g.options), dtype=bool)[picks].reshape(len(picks), -1))
        self.onehots = per_group[0]
        for block in per_group[1:]:
            n = len(self.onehots)
            self.onehots = np.hstack([np.repeat(self.onehots, len(block), 0), np.tile(block, (n, 1))])

    def opened(self, gates: tuple[Gate, ...]) -> np.ndarray:
        """Return (architectures, gates) of bool."""
        column = {name: self.onehots[:, i] for i, name in enumerate(self.names)}
        out = np.ones((len(self.onehots), len(gates)), bool)
        for i, gate in enumerate(gates):
            for clause in gate.clauses:
                out[:, i] &= np.any([column[literal] for literal in clause], axis=0)
        return out

    def scores(self, groups: tuple[Group, ...], probs: Matrices) -> np.ndarray:
        p = Probabilities.of(groups, probs).numpy()
        return np.asarray(self.onehots @ (p * self.scored))


def agree(solver: Solver, probs: Matrices, budget_ms: float, score: np.ndarray, ms: np.ndarray) -> bool:
    """Hold the solver against a list of all scores and latencies; return whether something was feasible."""
    fits = ms <= budget_ms
    if not fits.any():
        with pytest.raises(BudgetError, match=f"the fastest takes {ms.min():.4g} ms"):
            solver.solve(probs, budget_ms)
        return False
    got = solver.solve(probs, budget_ms)
    assert got.latency_ms is not None
    assert got.latency_ms <= budget_ms * (1 + 1e-9)
    assert got.score == pytest.approx(score[fits].max(), abs=1e-6)
    return True


@pytest.mark.parametrize(("keep", "n_ops", "cases"), [(2, 3, 70), (1, 3, 60), (1, 4, 50)])
def test_brute_force_over_a_cell_space_agrees(keep: int, n_ops: int, cases: int) -> None:
    spaces = [cells(keep, n_ops, c) for c in (4, 6)]
    terms = [trace_space(s).terms() for s in spaces]
    space = spaces[0]
    brute = Brute(space.groups, space.rules())
    per_group = {(2, 3): 9 * 27, (1, 3): 6 * 9, (1, 4): 8 * 12}[keep, n_ops]
    assert len(brute.onehots) == per_group**2
    opened = [brute.opened(tuple(dict.fromkeys(t.gate for t in ts))) for ts in terms]
    assert any(len(c) > 1 and len({d for d, _ in c}) > 1 for t in terms[0] for c in t.gate.clauses)  # a merged ReLU
    rng = np.random.default_rng(n_ops + 10 * keep)
    outcomes = []
    for case in range(cases):
        model = priced(terms[case % 2], space.groups, rng, base_ms=0.1 * (case % 3))
        solver = Solver(space.problem, model)
        probs = random_probs(space, case, scale=float(rng.choice([0.01, 1.0, 10.0])))
        ms = model.base_ms + opened[case % 2] @ model.gate_ms
        budget_ms = float(ms.min() + rng.uniform(-0.1, 0.8) * (np.median(ms) - ms.min()))
        outcomes.append(agree(solver, probs, budget_ms, brute.scores(space.groups, probs), ms))
    assert 0.05 * cases < outcomes.count(False) < 0.3 * cases  # both sides were tried


def test_brute_force_over_nested_and_merged_gates_agrees() -> None:
    """Gates that no cell space has: several clauses, literals of several decisions, no rule on some decisions."""
    options = ("none", "skip", "conv")
    groups = (
        Group("edges", tuple(Decision(n, options) for n in "abc")),
        Group("path", tuple(Decision(n, ("up", "same", "none")) for n in "de")),
    )
    rules = [TopK(("a", "b", "c"), options, 2)]
    a, b, c, d, e = (
        choice("a", "conv"),
        choice("b", "conv"),
        choice("c", "skip"),
        choice("d", "up"),
        choice("e", "same"),
    )
    gates = [
        ALWAYS,
        a,
        a | b,
        a & d,
        (a | b) & (d | e),
        a & d & e,
        (a & d) | (c & e),
        choice("a", "skip", "conv"),
        b | e,
    ]
    brute = Brute(groups, rules)
    assert len(brute.onehots) == 3 * 4 * 9
    terms = [Term(OpSpec("relu", (), ((1, 1, 1, i + 1),)), g) for i, g in enumerate(gates)]
    opened = brute.opened(tuple(gates))
    brute.scored = np.array([not (o == "none" and d in "abc") for d, o in brute.names])  # a path may be called none
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(60):
        model = priced(terms, groups, rng)
        probs = {g.name: rng.dirichlet(np.ones(3), len(g.decisions)) for g in groups}
        ms = opened @ model.gate_ms
        budget_ms = float(rng.uniform(0.9 * ms.min(), np.median(ms)))
        solver = Solver(Problem("s", groups, tuple(rules)), model)
        outcomes.append(agree(solver, probs, budget_ms, brute.scores(groups, probs), ms))
    assert True in outcomes


class Small:
    """A space small enough to list, two devices that price it at random, and probabilities."""

    def __init__(self, seed: int, ties: bool = False) -> None:
        self.space = cells(2, 3)
        self.groups, self.rules = self.space.groups, self.space.rules()
        rng = np.random.default_rng(seed)
        terms = trace_space(self.space).terms()
        self.models = [priced(terms, self.groups, rng, base_ms=0.1) for _ in range(2)]
        self.brute = Brute(self.groups, self.rules)
        self.ms = np.stack([m.base_ms + self.brute.opened(m.gates) @ m.gate_ms for m in self.models])
        self.probs = random_probs(self.space, seed)
        if ties:
            self.probs = {g.name: rng.choice([0.1, 0.2], g.shape) for g in self.groups}
        self.score = self.brute.scores(self.groups, self.probs)

    def solver(self) -> Solver:
        return Solver(self.space.problem, self.models)

    def taken(self, option: str, group: str = "normal") -> np.ndarray:
        """Return how many decisions of a group take an option, (architectures,)."""
        columns = [i for i, (d, o) in enumerate(self.brute.names) if o == option and d.startswith(group)]
        return np.asarray(self.brute.onehots[:, columns].sum(1))


class TestKBest:
    @pytest.mark.parametrize("seed", range(4))
    def test_they_are_the_best_of_all_that_fit(self, seed: int) -> None:
        small = Small(seed, ties=seed == 3)
        budget_ms = float(np.quantile(small.ms[0], 0.2))
        solver = Solver(small.space.problem, small.models[0])
        got = solver.best(small.probs, budget_ms, 6)
        expected = np.sort(small.score[small.ms[0] <= budget_ms])[::-1][:6]
        assert [s.score for s in got] == pytest.approx(expected.tolist(), abs=1e-6)
        assert len({s.arch for s in got}) == 6
        for s in got:
            check(small.space, s.arch)
            assert s.latency_ms is not None
            assert s.latency_ms <= budget_ms * (1 + 1e-9)
        assert got[0] == solver.solve(small.probs, budget_ms)
        assert got == solver.best(small.probs, budget_ms, 6)

    @pytest.mark.parametrize("seed", range(4))
    def test_one_that_scores_enough_is_the_best_or_there_is_none(self, seed: int) -> None:
        small = Small(seed)
        solver = Solver(small.space.problem, small.models[0])
        for quantile in (0.02, 0.3, 0.8):
            budget_ms = float(np.quantile(small.ms[0], quantile))
            best = solver.solve(small.probs, budget_ms)
            for least in (0.0, best.score - 0.1, best.score):
                assert solver.beats(small.probs, budget_ms, least) == best
            assert solver.beats(small.probs, budget_ms, best.score + 1e-4) is None
        assert solver.beats(small.probs, 0.9 * float(small.ms[0].min()), 0.0) is None

    def test_fewer_come_if_there_are_no_more(self) -> None:
        small = Small(0)
        budget_ms = float(np.sort(small.ms[0])[4]) + 1e-6
        solver = Solver(small.space.problem, small.models[0])
        assert len(solver.best(small.probs, budget_ms, 20)) == int((small.ms[0] <= budget_ms).sum()) < 20


class TestSeveralBudgets:
    @pytest.mark.parametrize("seed", range(6))
    def test_the_best_that_meets_all_agrees_with_a_list_of_all(self, seed: int) -> None:
        small, rng = Small(seed), np.random.default_rng(seed)
        solver = small.solver()
        outcomes = set()
        for quantile in (0.5, 0.1, 0.001):
            budgets = [float(np.quantile(ms, quantile * rng.uniform(0.8, 1.2))) for ms in small.ms]
            fits = (small.ms <= np.array(budgets)[:, None]).all(0)
            outcomes.add(bool(fits.any()))
            nearest = (small.ms / np.array(budgets)[:, None]).max(0).min()
            assert solver.nearest(budgets) == pytest.approx(nearest, rel=1e-5)
            if not fits.any():
                with pytest.raises(BudgetError, match=f"must be {nearest:.4g} times as large"):
                    solver.solve(small.probs, budgets)
                continue
            got = solver.solve(small.probs, budgets)
            assert got.score == pytest.approx(small.score[fits].max(), abs=1e-6)
            assert got.latency_ms is not None
            for ms, model, budget in zip((got.latency_ms, *got.others), small.models, budgets, strict=True):
                assert ms == model.predict_ms(got.arch) <= budget * (1 + 1e-9)
        assert True in outcomes

    def test_the_fastest_within_the_budget_of_another_device(self) -> None:
        small = Small(1)
        most = float(np.quantile(small.ms[1], 0.05))
        got = small.solver().fastest(0, [math.inf, most])
        assert got.latency_ms == pytest.approx(small.ms[0][small.ms[1] <= most].min(), rel=1e-6)

    def test_each_device_prices_by_its_own_table(self) -> None:
        small = Small(2)
        solver = small.solver()
        arch = solver.solve(small.probs).arch
        for i, model in enumerate(small.models):
            assert constrained_ms(solver, arch, i) == pytest.approx(model.predict_ms(arch), rel=1e-6)


class TestLimits:
    @pytest.mark.parametrize("most", [0, 1, 2])
    def test_the_limited_best_agrees_with_a_list_of_all(self, most: int) -> None:
        free = 0
        for seed in range(6):
            small = Small(seed)
            small.probs["normal"][:, OPS.index("skip_connect")] += 0.3  # skips collapse, as they like to
            score = small.brute.scores(small.groups, small.probs)
            limit = AtMost.of(small.groups[0], "skip_connect", most)
            problem = small.space.problem.with_rules(limit)
            kept = small.taken("skip_connect") <= most
            best = strongest(problem, small.probs)
            check(small.space, best)
            assert limit.holds(best)
            solver = Solver(problem, small.models[0])
            unbound = solver.solve(small.probs)
            assert unbound.arch == best
            assert unbound.score == pytest.approx(score[kept].max(), abs=1e-6)
            budget_ms = float(np.quantile(small.ms[0], 0.1))
            fits = kept & (small.ms[0] <= budget_ms)
            got = solver.solve(small.probs, budget_ms)
            assert limit.holds(got.arch)
            assert got.score == pytest.approx(score[fits].max(), abs=1e-6)
            free += not limit.holds(strongest(small.space.problem, small.probs))
        assert free > 0  # it bound

    def test_a_limit_that_does_not_bind_changes_nothing(self) -> None:
        space = cells(2, 4)
        limit = AtMost.of(space.groups[0], "skip_connect", 5)
        for seed in range(5):
            probs = random_probs(space, seed)
            rule = strongest(space.problem, probs)
            assert strongest(space.problem.with_rules(limit), probs) == rule

    def test_what_is_no_limit_is_refused(self) -> None:
        normal = cells(2, 4).groups[0]
        with pytest.raises(HwnasError, match="unknown option of normal 'skip'"):
            AtMost.of(normal, "skip", 2)
        with pytest.raises(HwnasError, match="0 or more, got -1"):
            AtMost.of(normal, "skip_connect", -1)

    def test_a_limit_that_nothing_keeps_says_so(self) -> None:
        space = cells(2, 1)  # each edge is dropped or a pooling
        limited = space.problem.with_rules(AtMost.of(space.groups[0], "max_pool_3x3", 1))
        with pytest.raises(BudgetError, match="no architecture of the space has 1 max_pool_3x3 at most"):
            strongest(limited, random_probs(space, 0))


@pytest.mark.parametrize("seed", range(3))
def test_the_cost_of_a_change_is_the_best_score_less_the_best_that_answers_otherwise(seed: int) -> None:
    small = Small(seed)
    budget_ms = float(np.quantile(small.ms[0], 0.1))
    solver = Solver(small.space.problem, small.models[0])
    arch = solver.solve(small.probs, budget_ms).arch
    fits = small.ms[0] <= budget_ms
    best = small.score[fits].max()
    got = solver.cost_of_change(small.probs, arch, budget_ms)
    assert set(got) == {d.name for g in small.groups for d in g.decisions}
    for decision, lost in got.items():
        column = small.brute.names.index((decision, str(arch.get(decision))))
        others = fits & ~small.brute.onehots[:, column]
        assert lost == pytest.approx(best - small.score[others].max() if others.any() else math.inf, abs=1e-6)


@pytest.fixture(scope="module")
def darts() -> tuple[Space, Solver]:
    space = darts_space(Scale(16, 8, (192, 256)), 11)
    assert [g.shape for g in space.groups] == [(14, 8), (14, 8)]
    return space, Solver(space.problem)


@pytest.mark.parametrize(("scale", "cases"), [(1e-3, 350), (1.0, 350), (100.0, 300)])
def test_without_a_budget_it_is_the_papers_rule(darts: tuple[Space, Solver], scale: float, cases: int) -> None:
    space, solver = darts
    for seed in range(cases):
        # In float32, as a search has them: large alphas then saturate, and edges tie.
        probs = random_probs(space, seed, scale).float()
        got = solver.solve(probs)
        assert got.arch == strongest(space.problem, probs)
        assert got.latency_ms is None
        if seed < 20:
            assert got.arch == derived_genotype(space.cells, probs.matrices()).architecture(space)


class TestTies:
    def test_the_first_edges_and_ops_win_with_and_without_a_budget(self) -> None:
        space = cells(2, 4)
        uniform = {g.name: np.full(g.shape, 1 / len(g.options)) for g in space.groups}
        rule = strongest(space.problem, uniform)
        assert {rule.get(f"{kind}/{e}") for kind in ("normal", "reduce") for e in ("0-2", "1-2", "0-3", "1-3")} == {
            OPS[1]
        }
        assert rule.get("normal/2-3") == rule.get("reduce/2-3") == "none"
        model = LatencyModel(trace_space(space).terms(), roofline_table(space), space.problem)
        solver = Solver(space.problem, model)
        assert solver.solve(uniform).arch == rule
        assert solver.solve(uniform, 1.001 * model.predict_ms(rule)).arch == rule

    def test_the_same_question_gets_the_same_answer(self) -> None:
        space = cells(2, 4)
        model = LatencyModel(trace_space(space).terms(), roofline_table(space), space.problem)
        fastest_ms = Solver(space.problem, model).fastest().latency_ms
        assert fastest_ms is not None
        rng = np.random.default_rng(0)
        for _ in range(5):
            probs = {g.name: rng.choice([0.1, 0.2], g.shape) for g in space.groups}  # ties everywhere
            answers = {Solver(space.problem, model).solve(probs, 1.3 * fastest_ms).arch for _ in range(3)}
            assert len(answers) == 1


def test_bad_probabilities_are_refused() -> None:
    space = cells(1, 3)
    solver = Solver(space.problem)
    for bad in (math.nan, math.inf, -0.1):
        probs = random_probs(space, 0)
        probs["reduce"][2, 1] = bad
        with pytest.raises(HwnasError, match="probabilities must be finite and not negative"):
            solver.solve(probs)


@pytest.mark.parametrize("ms", [0.0123, 1.0, 3.337, 19.5, 19.52, 20000.0, 99.99999, 1 / 3])
def test_suggested_fps_can_be_reached(ms: float) -> None:
    fps = float(reachable_fps(ms))
    assert 0.998 * 1000 / ms <= fps <= 1000 / ms * (1 + 1e-12)


def derive(
    space: Space,
    scales: Sequence[Scale],
    models: Sequence[LatencyModel],
    probs: Matrices,
    budget_ms: float,
    width_utility: float,
    *,
    depth_utility: float = 0.0,
    candidates: int = 1,
    constraints: Sequence[Constraint] = (),
) -> tuple[Candidate, list[Candidate]]:
    contest = Contest(space.problem, scales, models, probs, width_utility, depth_utility, constraints)
    return choose(contest, budget_ms, candidates)


SCALES = (Scale(4, 3, SIZE), Scale(8, 3, SIZE), Scale(16, 3, SIZE))


@pytest.fixture(scope="module")
def space() -> Space:
    return cells(2, 4)


@pytest.fixture(scope="module")
def table(space: Space) -> LatencyTable:
    rows: dict[str, OpRow] = {}
    for s in SCALES:
        rows |= roofline_table(space.at(s)).rows
    return LatencyTable(WHERE, rows, correction=Correction(0.02, 0.9, {}, 0.03, networks=12))


@pytest.fixture(scope="module")
def models(space: Space, table: LatencyTable) -> list[LatencyModel]:
    return price(space, SCALES, table)


@pytest.fixture(scope="module")
def free_ms(space: Space, models: list[LatencyModel]) -> list[float]:
    """Latency of the paper's network at each width."""
    rule = strongest(space.problem, random_probs(space, 0))
    return [m.predict_ms(rule) for m in models]


class TestWidths:
    def test_wider_networks_cost_more(self, free_ms: list[float]) -> None:
        assert free_ms == sorted(free_ms)

    def test_chosen_is_the_candidate_of_the_highest_utility(
        self, space: Space, models: list[LatencyModel], free_ms: list[float]
    ) -> None:
        probs = random_probs(space, 0)
        rule = strongest(space.problem, probs)
        widths = set()
        for budget_ms in np.linspace(0.9 * free_ms[0], 1.2 * free_ms[2], 7):
            for width_utility in (0.0, 0.05, 1.0):
                chosen, every = derive(space, SCALES, models, probs, float(budget_ms), width_utility)
                assert [c.scale for c in every] == list(SCALES)
                met = [c for c in every if c.arch is not None]
                assert chosen in met
                assert chosen.utility == max(c.utility for c in met)
                for c in met:
                    assert c.arch is not None
                    check(space, c.arch)
                    doublings = math.log2(c.scale.channels / 4)
                    setback = (1.0 + 2 * width_utility) * (c.score < MIN_SCORE)
                    assert c.utility == pytest.approx(c.score + width_utility * doublings - setback)
                    assert c.score <= 1 + 1e-9
                    assert (c.score > 1 - 1e-9) == (c.arch == rule)
                widths.add(chosen.scale.channels)
        assert widths == {4, 8, 16}

    def test_nothing_is_won_by_width_alone(
        self, space: Space, models: list[LatencyModel], free_ms: list[float]
    ) -> None:
        """Worth nothing, width is not bought; among equals the narrowest, which leaves most time, wins."""
        chosen, every = derive(space, SCALES, models, random_probs(space, 0), 2 * free_ms[2], 0.0)
        assert [c.score for c in every] == pytest.approx([1.0, 1.0, 1.0])
        assert chosen is every[0]

    @pytest.mark.parametrize(("relative_error", "margin"), [(None, 0.0), (0.0, 0.0), (0.06, 0.03), (0.3, MAX_SAFETY)])
    def test_the_margin_is_half_a_standard_error_and_at_most_a_tenth(
        self, space: Space, table: LatencyTable, free_ms: list[float], relative_error: float | None, margin: float
    ) -> None:
        assert SAFETY == 0.5
        exact = replace(table, correction=replace(table.correction, relative_error=relative_error))
        models = price(space, SCALES[:1], exact)
        probs = random_probs(space, 0)
        for share in (0.97, 1.0, 1.03, 1.07, 1.12):
            budget_ms = share * free_ms[0]
            chosen, _ = derive(space, SCALES[:1], models, probs, budget_ms, 0.5)
            assert chosen.latency_ms * (1 + margin) <= budget_ms * (1 + 1e-9)
            # The margin is not wider than that: the paper's network is kept as soon as it fits.
            assert (chosen.score > 1 - 1e-9) == (free_ms[0] * (1 + margin) <= budget_ms * (1 + 1e-9))

    def test_an_impossible_budget_names_a_speed_that_can_be_had(self, space: Space, models: list[LatencyModel]) -> None:
        probs = random_probs(space, 0)
        fastest = min(m.predict_ms(Solver(space.problem, m).fastest().arch) for m in models)
        with pytest.raises(BudgetError, match=r"no architecture of the space meets .* fps \(.* ms\)") as caught:
            derive(space, SCALES, models, probs, 0.5 * fastest, 0.5)
        message = str(caught.value)
        assert f"reachable is {1000 / (1.015 * fastest):.1f} fps ({1.015 * fastest:.4g} ms" in message
        suggested = re.search(r"ask for at most --fps ([0-9.]+)$", message)
        assert suggested is not None
        chosen, every = derive(space, SCALES, models, probs, 1000 / float(suggested[1]), 0.5)
        assert chosen.scale == SCALES[0]
        assert [c.arch is None for c in every] == [False, True, True]
        assert all(c.latency_ms > 1000 / float(suggested[1]) for c in every[1:])  # their fastest, margin included

    def test_deterministic(self, space: Space, models: list[LatencyModel], free_ms: list[float]) -> None:
        probs = random_probs(space, 0)
        one, other = (derive(space, SCALES, models, probs, 1.1 * free_ms[1], 0.5) for _ in range(2))
        assert one == other

    def test_every_width_must_be_in_the_table(self, space: Space, table: LatencyTable) -> None:
        with pytest.raises(MissingOp, match="has no row for"):
            price(space, [*SCALES, Scale(12, 3, SIZE)], table)

    def test_random_latencies_are_those_of_valid_networks(self, space: Space, models: list[LatencyModel]) -> None:
        ms = random_latencies_ms(space.problem, models, 50, seed=0)
        assert ms.shape == (3, 50)
        assert np.array_equal(ms, random_latencies_ms(space.problem, models, 50, seed=0))
        for row, m in zip(ms, models, strict=True):
            fastest = Solver(space.problem, m).fastest().latency_ms
            assert fastest is not None
            assert row.min() >= fastest - 1e-9
            assert row.std() > 0


class TestDepths:
    def test_deeper_networks_compete_by_their_own_utility(self, space: Space) -> None:
        scales = [Scale(4, d, SIZE) for d in (3, 4, 6)]
        rows: dict[str, OpRow] = {}
        for s in scales:
            rows |= roofline_table(space.at(s)).rows
        models = price(space, scales, LatencyTable(WHERE, rows))
        probs = random_probs(space, 0)
        for depth_utility, cells_chosen in ((0.0, 3), (0.5, 6)):
            chosen, every = derive(space, scales, models, probs, 1e9, 0.3, depth_utility=depth_utility)
            assert chosen.scale.cells == cells_chosen
            assert [c.utility - c.score for c in every] == pytest.approx(
                [depth_utility * math.log2(d / 3) for d in (3, 4, 6)]
            )
        # Under a tight budget depth has to be given up.
        tight_ms = 1.001 * Solver(space.problem, models[0]).solve(probs).latency_ms  # type: ignore[operator]
        assert derive(space, scales, models, probs, tight_ms, 0.3, depth_utility=0.1)[0].scale.cells == 3

    @pytest.mark.parametrize("seed", range(3))
    def test_what_keeps_little_of_the_score_comes_last(
        self, space: Space, models: list[LatencyModel], seed: int
    ) -> None:
        probs = random_probs(space, seed)
        contest = Contest(space.problem, SCALES, models, probs, width_utility=50.0)
        least_ms = [contest.fastest_ms(i) for i in range(len(SCALES))]
        # Just enough for the widest: its network has given up most of what it could, a narrower one has not.
        budget_ms = 1.0001 * least_ms[-1]
        chosen, every = choose(contest, budget_ms)
        assert every[-1].score < MIN_SCORE < max(c.score for c in every)
        assert chosen.score >= MIN_SCORE
        assert chosen.utility == max(c.utility for c in every)
        assert contest.winner(budget_ms) == chosen
        # Where there is nothing else, it will do.
        alone = Contest(space.problem, SCALES[-1:], models[-1:], probs, width_utility=50.0)
        assert choose(alone, budget_ms)[0].arch == every[-1].arch


class TestConstraints:
    def test_another_device_is_held_to_its_own_budget_and_safety(
        self, space: Space, table: LatencyTable, models: list[LatencyModel], free_ms: list[float]
    ) -> None:
        slow = replace(table, correction=replace(table.correction, common=3.0, relative_error=0.01))
        there = price(space, SCALES, slow)
        widest_ms = Solver(space.problem, there[2]).fastest().latency_ms
        assert widest_ms is not None
        other = Constraint("slow", there, 1.0025 * widest_ms)  # the safety of 0.5 % makes it too little
        probs = random_probs(space, 0)
        alone, _ = derive(space, SCALES, models, probs, 2 * free_ms[2], 1.0)
        assert alone.scale == SCALES[2]
        both, every = derive(space, SCALES, models, probs, 2 * free_ms[2], 1.0, constraints=[other])
        assert both.scale.channels < 16
        for c in every:
            if c.arch is not None:
                assert c.others[0] == other.models[SCALES.index(c.scale)].predict_ms(c.arch)
                assert c.others[0] * 1.005 <= other.most * (1 + 1e-9)

    @pytest.mark.parametrize("resource", ["macs", "params"])
    def test_a_count_is_kept_and_needs_no_safety(
        self, space: Space, models: list[LatencyModel], free_ms: list[float], resource: str
    ) -> None:
        counts = count(space, SCALES, resource)
        probs = random_probs(space, 0)
        rule = strongest(space.problem, probs)
        taken = counts[0].predict_ms(rule)
        for most, kept in ((taken, True), (taken - 1, False)):
            bound = Constraint(resource, counts[:1], most)
            chosen, _ = derive(space, SCALES[:1], models[:1], probs, 2 * free_ms[2], 0.0, constraints=[bound])
            assert chosen.others[0] <= most
            assert (chosen.arch == rule) == kept

    def test_what_can_be_reached_is_named_for_each(
        self, space: Space, table: LatencyTable, models: list[LatencyModel], free_ms: list[float]
    ) -> None:
        other = Constraint("b.json", price(space, SCALES, table), 0.9 * free_ms[0])
        macs = Constraint("macs", count(space, SCALES, "macs"), 1000.0)
        probs = random_probs(space, 0)
        with pytest.raises(
            BudgetError, match=r"fps by b\.json \(at best .* fps by b\.json\); .* macs \(at best"
        ) as caught:
            derive(space, SCALES, models, probs, 2 * free_ms[0], 0.5, constraints=[other, macs])
        message = str(caught.value)
        eased = re.search(r"all eased alike: --fps ([\d.]+), ([\d.]+) fps by b\.json, ([\d.e+]+) macs$", message)
        assert eased is not None, message
        within = [replace(other, most=1001 / float(eased[2])), replace(macs, most=1.001 * float(eased[3]))]
        assert derive(space, SCALES, models, probs, 1001 / float(eased[1]), 0.5, constraints=within)[0].arch is not None

    def test_more_candidates_change_nothing_about_the_choice(
        self, space: Space, models: list[LatencyModel], free_ms: list[float]
    ) -> None:
        probs = random_probs(space, 0)
        alone, one = derive(space, SCALES, models, probs, 0.95 * free_ms[2], 0.5)
        chosen, every = derive(space, SCALES, models, probs, 0.95 * free_ms[2], 0.5, candidates=3)
        assert chosen == alone
        assert [c.scale for c in every] == [s for s in SCALES for _ in range(3)]
        assert every[::3] == one
        for first in (0, 3, 6):
            utilities = [c.utility for c in every[first : first + 3]]
            assert utilities == sorted(utilities, reverse=True)

    def test_the_interval_is_that_of_the_table(self, space: Space, table: LatencyTable, free_ms: list[float]) -> None:
        tested = replace(table, correction=replace(table.correction, interval=0.05))
        models = price(space, SCALES[:1], tested)
        chosen, _ = derive(space, SCALES[:1], models, random_probs(space, 0), 2 * free_ms[0], 0.5)
        assert chosen.interval_ms == pytest.approx((chosen.latency_ms / 1.05, chosen.latency_ms / 0.95))


def test_margins_are_best_less_second_best() -> None:
    space = cells(1, 3)
    probs = {g.name: np.tile([0.1, 0.5, 0.15, 0.25], (len(g.decisions), 1)) for g in space.groups}
    probs["normal"][0] = [0.5, 0.5, 0.0, 0.0]
    got = margins(space.problem.probabilities(probs))
    assert set(got) == {d.name for g in space.groups for d in g.decisions}
    assert got.pop("normal/0-2") == 0.0
    assert list(got.values()) == pytest.approx([0.25] * len(got))


def test_what_the_solver_prints_is_thrown_away(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    print("before")
    with _silent():
        libc.puts(b"of its own")
    libc.puts(b"after")
    libc.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"


def test_a_program_is_solved_without_a_word() -> None:
    code = (
        "import numpy as np\n"
        "from scipy.sparse import csr_matrix\n"
        "from hwnas.search.milp import Rows, minimise\n"
        "rows = Rows(csr_matrix(np.ones((1, 3))), np.array([-np.inf]), np.array([2.0]))\n"
        "print(np.abs(minimise(-np.array([1.0, 3, 2]), np.ones(3), np.ones(3, bool), rows)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[0. 1. 1.]\n", "")


@pytest.mark.parametrize("seed", range(20))
def test_programs_have_the_cost_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, cost = rng.normal(size=(4, 9)), rng.normal(size=9)
    high = rng.normal(-1.0, 1.0, 4)
    every = np.array(list(itertools.product((0.0, 1.0), repeat=9)))
    allowed = every[(every @ matrix.T <= high).all(axis=1)]
    got = minimise(cost, np.ones(9), np.ones(9, bool), Rows(csr_matrix(matrix), np.full(4, -np.inf), high))
    if not len(allowed):
        assert got is None
        return
    assert got is not None
    assert cost @ got == pytest.approx((allowed @ cost).min(), abs=1e-6)
    relaxed = minimise(cost, np.ones(9), np.zeros(9, bool), Rows(csr_matrix(matrix), np.full(4, -np.inf), high))
    assert relaxed is not None
    assert cost @ relaxed <= cost @ got + 1e-6


def test_one_of_two_gates_is_paid_for_by_fractions_too() -> None:
    """Some edge ends in a convolution, or none does: the solver must not half-answer its way out of both."""
    group = Group("g", tuple(Decision(f"g/{i}", ("none", "pool", "conv")) for i in range(3)))
    some = at_least(1, [frozenset({(d.name, "conv")}) for d in group.decisions])
    none = at_least(3, [frozenset({(d.name, "none"), (d.name, "pool")}) for d in group.decisions])
    either: Any = SimpleNamespace(base_ms=0.5, gates=[some, none], gate_ms=[2.0, 2.0])
    program = Program(Problem("some", (group,)), [either])
    price, constant = program.prices[0]
    first = {("g/0", o) for o in ("none", "pool", "conv")}
    assert {program.literals.names[i] for i, ms in price.items() if ms} == first
    assert {ms for ms in price.values() if ms} == {2.0}  # of what always adds up to 1
    assert constant == 0.5
