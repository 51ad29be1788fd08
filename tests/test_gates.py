"""Gates and rules: one declaration, the same in logic, in probabilities and in linear constraints."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.problem import (
    ALWAYS,
    Architecture,
    Decision,
    Gate,
    Group,
    Literals,
    Marginals,
    Probabilities,
    Problem,
    TopK,
    at_least,
    choice,
    exactly,
)
from hwnas.problem.rules import relaxed_top_k

OPTIONS = ("none", "skip", "conv")
NAMES = ("a", "b", "c")
GROUPS = (
    Group("first", tuple(Decision(n, OPTIONS) for n in NAMES[:2])),
    Group("second", (Decision(NAMES[2], OPTIONS),)),
)
EVERY = [Architecture.of("s", dict(zip(NAMES, o, strict=True))) for o in itertools.product(OPTIONS, repeat=3)]
TOP2 = TopK(NAMES, OPTIONS, 2)
FREE, KEPT_TWO = Problem("s", GROUPS), Problem("s", GROUPS, (TOP2,))

literals = st.tuples(st.sampled_from(NAMES), st.lists(st.sampled_from(OPTIONS), min_size=1, max_size=2, unique=True))
leaves = st.one_of(st.just(ALWAYS), literals.map(lambda pair: choice(pair[0], *pair[1])))
gates = st.recursive(
    leaves,
    lambda inner: st.tuples(inner, inner, st.booleans()).map(lambda t: t[0] & t[1] if t[2] else t[0] | t[1]),
    max_leaves=5,
)
strengths = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=9)


def softmax_probs(seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {g.name: torch.softmax(torch.from_numpy(rng.standard_normal(g.shape)), dim=-1) for g in GROUPS}


def weight(arch: Architecture, probs: dict[str, torch.Tensor]) -> float:
    """Return the probability of an architecture under independent decisions."""
    q = torch.cat([probs[g.name].reshape(-1) for g in GROUPS]).numpy()
    return float(np.prod(q[Literals(GROUPS).vector(arch) == 1]))


@given(gates, gates)
def test_and_or_are_those_of_logic(left: Gate, right: Gate) -> None:
    for arch in EVERY:
        assert (left & right).holds(arch) == (left.holds(arch) and right.holds(arch))
        assert (left | right).holds(arch) == (left.holds(arch) or right.holds(arch))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_at_least_n_of_several_clauses_is_a_count_of_them(n: int) -> None:
    clauses = [frozenset({("a", "0"), ("a", "1")}), frozenset({("b", "1")}), frozenset({("c", "0")})]
    gate = at_least(n, clauses)
    for answers in itertools.product("012", repeat=3):
        arch = Architecture.of("s", dict(zip("abc", answers, strict=True)))
        hold = sum(Gate(frozenset({clause})).holds(arch) for clause in clauses)
        assert gate.holds(arch) is (hold >= n)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_exactly_n_of_several_clauses_is_a_count_of_them(n: int) -> None:
    kept = [frozenset({(d, "skip"), (d, "conv")}) for d in NAMES]
    gate, twice = exactly(n, kept), exactly(n, kept) & choice("a", "conv")
    marginals = Marginals(FREE, [gate, twice])
    for arch in EVERY:
        count = sum(arch.get(d) != "none" for d in NAMES)
        assert gate.holds(arch) == (count == n)
        assert twice.holds(arch) == (count == n and arch.get("a") == "conv")
        q = marginals.literal_probs(FREE.one_hot(arch))
        assert marginals.gate_probs(q).tolist() == [float(gate.holds(arch)), float(twice.holds(arch))]


def test_exactly_one_and_exactly_two_add_up_to_one_or_more() -> None:
    """Their expectations, too: one of two is what is left by two of two."""
    kept = [frozenset({(d, "skip"), (d, "conv")}) for d in NAMES[:2]]
    marginals = Marginals(FREE, [exactly(0, kept), exactly(1, kept), exactly(2, kept)])
    for seed in range(5):
        probs = softmax_probs(seed)
        a, b = (1 - probs["first"][:, 0]).tolist()
        expected = [(1 - a) * (1 - b), a + b - 2 * a * b, a * b]
        np.testing.assert_allclose(marginals.gate_probs(marginals.literal_probs(probs)), expected, atol=1e-12)


def test_what_an_exception_says_again_is_left_out() -> None:
    """Both kept but not both skipped: P(a kept) P(b kept) - P(a skip) P(b skip), exactly."""
    skips = choice("a", "skip") & choice("b", "skip")
    gate = (choice("a", "skip", "conv") & choice("b", "skip", "conv")).except_where(skips)
    marginals = Marginals(FREE, [gate])
    for seed in range(3):
        probs = softmax_probs(seed)
        expected = sum(weight(a, probs) * gate.holds(a) for a in EVERY)
        assert float(marginals.gate_probs(marginals.literal_probs(probs))) == pytest.approx(expected, abs=1e-12)


def test_always_is_neutral_in_and_and_absorbing_in_or() -> None:
    gate = choice("a", "skip")
    assert gate & ALWAYS == ALWAYS & gate == gate
    assert gate | ALWAYS == ALWAYS | gate == ALWAYS
    assert all(ALWAYS.holds(a) for a in [*EVERY, Architecture.of("s", {})])


def test_what_is_common_is_not_distributed() -> None:
    """So that the factors of a product stay independent: P((a and b) or (a and c)) = P(a) P(b or c)."""
    a, b, c = choice("a", "skip"), choice("b", "skip"), choice("c", "skip")
    assert (a & b) | (a & c) == a & (b | c)
    assert (a & b) | a == a | (a & b) == a


def test_a_gate_on_an_open_decision_is_closed() -> None:
    assert not choice("a", *OPTIONS).holds(Architecture.of("s", {"b": "skip"}))


def test_literals_are_in_the_order_of_groups_decisions_options() -> None:
    order = Literals(GROUPS)
    assert order.names == [(d, o) for d in NAMES for o in OPTIONS]
    assert [order.index[name] for name in order.names] == list(range(len(order))) == list(range(9))
    arch = Architecture.of("s", {"a": "conv", "c": "none"})
    assert order.vector(arch).tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0]
    matrices = Probabilities.one_hot(order, arch)
    third = 1 / 3
    torch.testing.assert_close(matrices["first"], torch.tensor([[0, 0, 1], [third, third, third]]))
    torch.testing.assert_close(matrices["second"], torch.tensor([[1.0, 0, 0]]))


@settings(max_examples=50)
@given(st.lists(gates, max_size=4))
def test_probability_on_one_hots_is_whether_the_gate_holds(some: list[Gate]) -> None:
    marginals = Marginals(FREE, some)
    for arch in EVERY:
        q = marginals.literal_probs(FREE.one_hot(arch))
        assert marginals.gate_probs(q).tolist() == [float(g.holds(arch)) for g in some]


A, B, C = (choice(n, "conv") for n in NAMES)
READ_ONCE = [ALWAYS, A, choice("a", "skip", "conv"), A & B, A | B, A | choice("a", "skip"), A & (B | C), A | B | C]


def test_probability_is_the_mean_over_architectures_of_independent_decisions() -> None:
    marginals = Marginals(FREE, READ_ONCE)
    for seed in range(10):
        probs = softmax_probs(seed)
        expected = sum(weight(a, probs) * np.array([g.holds(a) for g in READ_ONCE], float) for a in EVERY)
        np.testing.assert_allclose(marginals.gate_probs(marginals.literal_probs(probs)), expected, atol=1e-12)


def test_gradient_of_probabilities_is_that_of_finite_differences() -> None:
    marginals = Marginals(KEPT_TWO, READ_ONCE)
    logits = [torch.from_numpy(np.random.default_rng(3).standard_normal(g.shape)).requires_grad_() for g in GROUPS]

    def probability(*values: torch.Tensor) -> torch.Tensor:
        probs = {g.name: torch.softmax(v, dim=-1) for g, v in zip(GROUPS, values, strict=True)}
        return marginals.gate_probs(marginals.literal_probs(probs))

    assert torch.autograd.gradcheck(probability, logits)


def test_no_gates_have_no_probabilities() -> None:
    marginals = Marginals(KEPT_TWO, [])
    assert marginals.gate_probs(marginals.literal_probs(softmax_probs(0))).shape == (0,)


def test_top_k_is_the_same_in_logic_constraint_and_relaxation() -> None:
    order = Literals(GROUPS)
    (row,) = TOP2.rows()
    valid = 0
    for arch in EVERY:
        total = sum(
            row.coefficients.get(name, 0.0) * on for name, on in zip(order.names, order.vector(arch), strict=True)
        )
        kept = sum(arch.get(n) != "none" for n in NAMES)
        assert TOP2.holds(arch) == (row.low <= total <= row.high) == (kept == 2)
        if TOP2.holds(arch):
            valid += 1
            q = torch.from_numpy(order.vector(arch))
            assert torch.equal(TOP2.relax(q, order), q)
    assert valid == 3 * 2**2


def test_top_k_does_not_hold_where_edges_are_open() -> None:
    assert not TOP2.holds(Architecture.of("s", {"a": "conv"}))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_relaxed_marginals_keep_k_edges_and_the_proportions_of_ops(k: int) -> None:
    order, rule = Literals(GROUPS), TopK(NAMES, OPTIONS, k)
    for seed in range(10):
        probs = torch.cat([softmax_probs(seed)[g.name].reshape(-1) for g in GROUPS])
        before, after = probs.reshape(3, 3), rule.relax(probs, order).reshape(3, 3)  # (edges, options)
        torch.testing.assert_close(after.sum(1), torch.ones(3).double())
        keep = after[:, 1:].sum(1)
        assert float(keep.sum()) == pytest.approx(k, rel=1e-12)
        torch.testing.assert_close(after[:, 1] / after[:, 2], before[:, 1] / before[:, 2])
        # The strongest edge by its best op is the one most likely kept.
        assert torch.equal(keep.sort(stable=True).indices, before[:, 1:].amax(1).sort(stable=True).indices) or k == 3
        assert ((after >= 0) & (after <= 1 + 1e-12)).all()


def test_other_literals_stay_as_they_are() -> None:
    order, rule = Literals(GROUPS), TopK(NAMES[:2], OPTIONS, 1)
    probs = torch.cat([softmax_probs(0)[g.name].reshape(-1) for g in GROUPS])
    assert torch.equal(rule.relax(probs, order)[6:], probs[6:])


@given(strengths, st.integers(1, 4))
def test_relaxed_top_k_is_proportional_to_strength_capped_at_one(values: list[float], k: int) -> None:
    strength = torch.tensor(values, dtype=torch.float64)
    keep = relaxed_top_k(strength, k)
    if len(values) <= k:
        assert keep.tolist() == [1.0] * len(values)
        return
    # The oracle: the factor c with sum(min(1, c * strength)) = k, by bisection.
    low, high = 0.0, k / min(values)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle * strength).clamp(max=1).sum()) < k else (low, middle)
    torch.testing.assert_close(keep, (high * strength).clamp(max=1), rtol=1e-6, atol=1e-9)


def test_relaxed_top_k_is_exact_where_only_k_are_positive() -> None:
    assert relaxed_top_k(torch.tensor([0.0, 1e-30, 0.0, 1.0]), 2).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_gradient_of_relaxed_top_k_is_that_of_finite_differences() -> None:
    for values in ([0.3, 0.2, 0.25, 0.1], [0.9, 0.1, 0.15, 0.05], [0.9, 0.8, 0.01, 0.02, 0.03]):
        strength = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda s: relaxed_top_k(s, 2), (strength,))
