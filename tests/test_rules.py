"""Rules and problems: the same in drawing, in the paper's answer, in relaxation, constraints and partial answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.problem import (
    Architecture,
    AtMost,
    Decision,
    FreeEdges,
    Group,
    NoTwins,
    OnePath,
    Probabilities,
    Problem,
    TopK,
)
from hwnas.problem.rules.one_path import path_answers, path_group, path_of
from hwnas.search.derive import Solver, strongest

OPTIONS = ("none", "skip", "conv")
EDGES = Group("edges", tuple(Decision(n, OPTIONS) for n in "abcd"))
PATH = path_group(3)
# One input, state 0, and nodes 1 to 3: two read it, and one the node before.
FREE = FreeEdges((("a", 0, 1), ("b", 0, 2), ("c", 1, 2), ("d", 2, 3)), OPTIONS, inputs=1)
# Two inputs and two nodes; the second input is needed.
NEEDED = FreeEdges((("a", 0, 2), ("b", 1, 2), ("c", 1, 3), ("d", 2, 3)), OPTIONS, inputs=2, needed=1)
CASES: dict[str, Problem] = {
    "top-k": Problem("s", (EDGES,), (TopK(tuple("abcd"), OPTIONS, 2),)),
    "free edges": Problem("s", (EDGES,), (FREE,)),
    "free edges, an input needed": Problem("s", (EDGES,), (NEEDED,)),
    "one path": Problem("s", (PATH,), (OnePath(3),)),
    "one path, two thirds": Problem("s", (PATH,), (OnePath(3, "two-thirds"),)),
    "at most": Problem("s", (EDGES,), (AtMost.of(EDGES, "skip", 1),)),
    "no twins": Problem("s", (EDGES,), (NoTwins(((("a", "skip"), ("b", "skip")), (("c", "conv"), ("d", "none")))),)),
    "several": Problem(
        "s",
        (EDGES, PATH),
        (TopK(tuple("abcd"), OPTIONS, 2), OnePath(3), AtMost.of(EDGES, "skip", 1), NoTwins(((("a", "conv"),),))),
    ),
}


def every(problem: Problem) -> Iterator[Architecture]:
    """Yield all answers to all decisions, whether they obey or not; of paths all that are one, and a few others."""
    names = [d.name for d in problem.decisions if not d.name.startswith("path/")]
    edges = [dict(zip(names, o, strict=True)) for o in itertools.product(OPTIONS, repeat=len(names))]
    paths: list[dict[str, str]] = [{}]
    if PATH in problem.groups:
        levels = itertools.product(range(4), repeat=3)
        steps = [p for p in levels if p[0] <= 1 and all(abs(b - a) <= 1 for a, b in itertools.pairwise(p))]
        paths = [path_answers(p) for p in steps]
        paths += [p | {"path/2/4": "same"} for p in paths[:3]] + [dict.fromkeys(paths[0], "none")]
    for one, other in itertools.product(edges, paths):
        yield Architecture.of(problem.name, one | other)


def probs_of(problem: Problem, seed: int, sure: float = 1.0) -> Probabilities:
    """Return softmax probabilities of random logits; closed options get none."""
    rng = np.random.default_rng(seed)
    matrices = {}
    for g in problem.groups:
        logits = torch.from_numpy(sure * rng.standard_normal(g.shape))
        matrices[g.name] = torch.softmax(logits.masked_fill(torch.tensor(g.closed), -torch.inf), dim=1)
    return problem.probabilities(matrices)


@pytest.fixture(params=CASES)
def problem(request: pytest.FixtureRequest) -> Problem:
    return CASES[request.param]


def test_constraints_are_the_rule(problem: Problem) -> None:
    index, held = problem.literals.index, 0
    for arch in every(problem):
        on = problem.literals.vector(arch)
        for rule in problem.rules:
            sums = [(r, sum(c * on[index[x]] for x, c in r.coefficients.items())) for r in rule.rows()]
            assert all(r.low - 1e-9 <= total <= r.high + 1e-9 for r, total in sums) == rule.holds(arch)
        held += problem.broken(arch) is None
    assert held > 1


def test_draws_obey_and_follow_the_seed(problem: Problem) -> None:
    rngs = [np.random.default_rng(1) for _ in range(2)]
    drawn, again = ([problem.draw(rng, c) for c in (None, 0.1) for _ in range(30)] for rng in rngs)
    assert drawn == again
    for arch in drawn:
        problem.check(arch)
    assert len(set(drawn)) > 3


def test_relaxation_is_the_identity_on_what_obeys(problem: Problem) -> None:
    for arch in every(problem):
        if problem.broken(arch) is None:
            q = problem.relax(problem.one_hot(arch).double()).numpy()
            np.testing.assert_allclose(q, problem.literals.vector(arch), atol=1e-12)


def test_the_papers_answer_has_the_largest_score_of_all_that_obey(problem: Problem) -> None:
    obeying = [a for a in every(problem) if problem.broken(a) is None]
    for seed in range(5):
        probs = probs_of(problem, seed)
        scores = problem.scores(probs)
        best = max(float(scores @ problem.literals.vector(a)) for a in obeying)
        found = strongest(problem, probs)
        assert problem.broken(found) is None
        assert float(scores @ problem.literals.vector(found)) == pytest.approx(best, abs=1e-6)


class TestFixed:
    """A problem whose first answers are fixed is the same problem restricted to them."""

    @pytest.fixture(params=["one", "half", "all but one"])
    def fixed(self, request: pytest.FixtureRequest, problem: Problem) -> Problem:
        arch = problem.draw(np.random.default_rng(5))
        # Of a path, the places in order of layers; of edges, the first ones.
        n = {"one": 1, "half": len(arch.answers) // 2, "all but one": len(arch.answers) - 1}[request.param]
        names = [d.name for d in problem.decisions][:n]
        return problem.fix(Architecture.of(problem.name, {d: str(arch.get(d)) for d in names}))

    def obeying(self, fixed: Problem) -> list[Architecture]:
        return [
            a
            for a in every(fixed)
            if fixed.broken(a) is None and all(a.get(d) == o for d, o in fixed.fixed)
        ]  # fmt: skip

    def test_draws_keep_the_fixed_answers(self, fixed: Problem) -> None:
        rng, allowed = np.random.default_rng(0), set(self.obeying(fixed))
        drawn = {fixed.draw(rng) for _ in range(200)}
        assert drawn <= allowed
        assert len(drawn) > min(len(allowed), 20) / 2

    def test_the_solver_and_the_papers_answer_keep_them(self, fixed: Problem) -> None:
        allowed, solver = self.obeying(fixed), Solver(fixed)
        for seed in range(3):
            probs = probs_of(fixed, seed)
            scores = fixed.scores(probs)
            best = max(float(scores @ fixed.literals.vector(a)) for a in allowed)
            for found in (strongest(fixed, probs), solver.solve(probs).arch):
                assert found in allowed
                assert float(scores @ fixed.literals.vector(found)) == pytest.approx(best, abs=1e-6)

    def test_marginals_of_the_fixed_answers_are_certain(self, fixed: Problem) -> None:
        for seed in range(3):
            q = fixed.relax(probs_of(fixed, seed))
            by_decision = Probabilities(fixed.literals, q).by_decision
            for d, o in fixed.fixed:
                assert by_decision[d][o] == pytest.approx(1.0, abs=1e-9)
            for d in fixed.decisions:
                assert sum(by_decision[d.name].values()) == pytest.approx(1.0, abs=1e-9)

    def test_relaxation_is_the_identity_on_what_obeys(self, fixed: Problem) -> None:
        for arch in self.obeying(fixed):
            q = fixed.relax(fixed.one_hot(arch).double()).numpy()
            np.testing.assert_allclose(q, fixed.literals.vector(arch), atol=1e-12)


class TestFreeEdges:
    """Two inputs and two nodes: what a cell is, how it is drawn, and what is certain of it."""

    PAIRS = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    GROUP = Group("cell", tuple(Decision(f"{j}-{i}", OPTIONS) for j, i in PAIRS))
    EDGES = tuple((f"{j}-{i}", j, i) for j, i in PAIRS)
    PATTERNS: ClassVar = {None: 27, 1: 22}  # without input 1 node 2 has one choice and node 3 four, or none and one

    @pytest.fixture(params=PATTERNS, autouse=True)
    def needed(self, request: pytest.FixtureRequest) -> None:
        """Any input will do, or the second one is needed."""
        self.need: int | None = request.param
        self.rule = FreeEdges(self.EDGES, OPTIONS, inputs=2, needed=self.need)
        self.problem = Problem("s", (self.GROUP,), (self.rule,))

    def is_cell(self, arch: Architecture) -> bool:
        """Say it anew, in other words than the rule: some node is reached, and no edge leaves one that is not."""
        kept = [tuple(map(int, d.split("-"))) for d, o in arch.answers if o != "none"]
        reached = {0, 1}
        for j, i in sorted(kept, key=lambda edge: edge[1]):
            if j in reached:
                reached.add(i)
        read = self.need is None or any(j == self.need for j, _ in kept)
        return reached != {0, 1} and read and all(j in reached for j, _ in kept)

    def all(self) -> list[Architecture]:
        return [a for a in every(self.problem) if self.is_cell(a)]

    def test_what_is_a_cell(self) -> None:
        assert set(self.all()) == {a for a in every(self.problem) if self.rule.holds(a)}

    def test_every_choice_of_kept_edges_is_drawn_equally_often(self) -> None:
        def pattern(arch: Architecture) -> tuple[bool, ...]:
            return tuple(o != "none" for _, o in arch.answers)

        rng, n = np.random.default_rng(0), 2700
        drawn = [pattern(self.problem.draw(rng)) for _ in range(n)]
        patterns = {pattern(a) for a in self.all()}
        assert len(patterns) == self.PATTERNS[self.need]
        counts, each = [drawn.count(p) for p in patterns], n / len(patterns)
        assert sum(counts) == n
        assert sum((c - each) ** 2 / each for c in counts) < 50  # chi-squared of at most 26: 1 in 300 is above

    def test_marginals_are_those_of_independent_edges_that_obey(self) -> None:
        cells = np.array([self.problem.literals.vector(a) for a in self.all()])
        for seed in range(5):
            probs = probs_of(self.problem, seed, 2.0)
            weights = np.prod(np.where(cells > 0, probs.numpy(), 1.0), axis=1)
            np.testing.assert_allclose(self.problem.relax(probs), weights @ cells / weights.sum(), atol=1e-12)

    def test_marginals_have_gradients_where_all_but_nothing_is_kept(self) -> None:
        logits = torch.tensor([[20.0, 0.0, 0.0]] * 5, requires_grad=True)
        q = self.problem.relax(self.problem.probabilities({"cell": torch.softmax(logits, 1)}))
        assert float(q.detach().view(5, 3)[:, 1:].sum()) == pytest.approx(1.0, abs=1e-4)  # one edge, from an input
        (grad,) = torch.autograd.grad(q[1], logits)
        assert torch.isfinite(grad).all()

    def test_without_a_budget_each_edge_takes_its_argmax_where_that_is_a_cell(self) -> None:
        seen = []
        for seed in range(60):
            probs = probs_of(self.problem, seed, 2.0)
            of = probs.by_decision
            argmax = Architecture.of("s", {d: max(OPTIONS, key=of[d].__getitem__) for d in of})
            seen.append(self.is_cell(argmax))
            assert (strongest(self.problem, probs) == argmax) == seen[-1]
        assert 10 < sum(seen) < 60

    def test_ties_keep_the_first_op(self) -> None:
        uniform = self.problem.uniform()
        assert {o for _, o in strongest(self.problem, uniform).answers} == {"skip"}
        assert Solver(self.problem).solve(uniform).arch == strongest(self.problem, uniform)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("top-k", {"a": "skip", "b": "skip", "c": "conv"}),
        ("top-k", {"a": "none", "b": "none", "c": "none"}),
        ("free edges", {"a": "none", "b": "none"}),
        ("free edges", {"b": "none", "c": "none", "d": "skip"}),
        ("free edges", {"a": "none", "c": "conv"}),
        ("free edges, an input needed", {"b": "none", "c": "none"}),
        ("one path", {"path/0/4": "none"}),
        ("one path", {"path/1/4": "same", "path/1/8": "same"}),
        ("at most", {"a": "skip", "b": "skip"}),
        ("no twins", {"c": "conv", "d": "none"}),
    ],
)
def test_fixed_answers_that_break_a_rule_are_refused(name: str, answers: dict[str, str]) -> None:
    with pytest.raises(HwnasError, match="fixed answers"):
        CASES[name].fix(Architecture.of("s", answers))


def test_what_is_fixed_is_not_answered_otherwise() -> None:
    fixed = CASES["top-k"].fix(Architecture.of("s", {"a": "skip"}))
    assert fixed.fix(Architecture.of("s", {"a": "skip", "b": "conv"})).answers == {"a": "skip", "b": "conv"}
    with pytest.raises(HwnasError, match="a is fixed to 'skip', got 'conv'"):
        fixed.fix(Architecture.of("s", {"a": "conv"}))
    with pytest.raises(HwnasError, match="a is fixed to 'skip', got 'none'"):
        fixed.check(Architecture.of("s", {"a": "none", "b": "conv", "c": "conv", "d": "none"}))
    with pytest.raises(HwnasError, match="of space 's' was expected, got one of 't'"):
        fixed.fix(Architecture.of("t", {"b": "conv"}))


def test_fixed_answers_of_another_problem_are_refused() -> None:
    with pytest.raises(HwnasError, match="unknown decision 'z'"):
        CASES["top-k"].fix(Architecture.of("s", {"z": "skip"}))


def test_limits_that_no_draw_meets_say_so() -> None:
    problem = CASES["top-k"].with_rules(*(AtMost.of(EDGES, o, 0) for o in ("skip", "conv")))
    with pytest.raises(HwnasError, match="0 skip at most, 0 conv at most; allow more of it"):
        problem.draw(np.random.default_rng(0))


def test_a_path_is_read_as_it_was_written() -> None:
    for path in [(0, 0, 0), (1, 2, 3), (1, 0, 1)]:
        assert path_of(Architecture.of("s", path_answers(path)), 3) == path
    assert path_of(Architecture.of("s", {}), 3) is None


class TestProbabilities:
    def test_views_by_group_and_by_decision_are_one_vector(self) -> None:
        problem = CASES["several"]
        probs = probs_of(problem, 0)
        assert list(probs) == ["edges", "path"]
        assert torch.equal(torch.cat([p.reshape(-1) for p in probs.values()]), probs.vector)
        assert probs.by_decision["b"]["conv"] == float(probs["edges"][1, 2])
        assert probs.numpy()[problem.literals.index["b", "conv"]] == float(probs["edges"][1, 2])
        assert {k: v.tolist() for k, v in probs.matrices().items()} == {k: v.tolist() for k, v in probs.items()}
        assert problem.probabilities(probs) is probs

    def test_they_carry_gradients(self) -> None:
        problem = CASES["several"]
        logits = {g.name: torch.zeros(g.shape, requires_grad=True) for g in problem.groups}
        problem.probabilities({k: torch.softmax(v, 1) for k, v in logits.items()})["edges"][0, 1].backward()
        assert logits["edges"].grad is not None

    @pytest.mark.parametrize(
        ("matrices", "message"),
        [
            ({}, "probabilities of 'edges' are missing"),
            ({"edges": np.ones((4, 2))}, r"shape \(4, 2\), expected \(4, 3\)"),
        ],
    )
    def test_others_are_refused(self, matrices: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(HwnasError, match=message):
            CASES["top-k"].probabilities(matrices)


def test_every_rule_is_a_value() -> None:
    for problem in CASES.values():
        for rule in problem.rules:
            assert hash(rule) == hash(rule.given({}))
            assert rule.given({}) == rule
            assert str(rule)
