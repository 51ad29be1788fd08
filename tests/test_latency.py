"""Latency: the correction, how well a table predicts, and the expected latency of an undecided network."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hwnas.errors import MissingOp
from hwnas.latency import (
    Correction,
    LatencyModel,
    LatencyTable,
    NetRow,
    OpRow,
    calibrate,
    conformal,
    errors,
    fit,
    predict_ms,
    predictors,
    select,
)
from hwnas.latency.diff import order
from hwnas.latency.validation import affine, report_derived
from hwnas.ops import OpSpec, Term
from hwnas.problem import ALWAYS, Architecture, Decision, Group, Problem, choice
from hwnas.spaces import Scale, darts_space, decisions, trace_space
from tests.contracts import paper_table, random_probs, roofline_table

KINDS = ("add", "conv_bn", "relu", "sep_conv")
FACTORS = np.array([0.4, 0.9, 0.6, 0.75])


def networks(n: int, seed: int) -> np.ndarray:
    """Return isolated milliseconds by kind of made-up networks, (n, kinds)."""
    return np.random.default_rng(seed).uniform(0.5, 8.0, (n, len(KINDS)))


def named(x: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(KINDS, map(float, row), strict=True)) for row in x]


def corrected(c: Correction, x: np.ndarray) -> np.ndarray:
    out: np.ndarray = c.base_ms + x @ np.array([c.factor(k) for k in KINDS])
    return out


class TestCorrection:
    def test_recovers_the_factors_it_was_made_with(self) -> None:
        x = networks(20, 0)
        c = fit(named(x), x @ FACTORS + 0.7)
        assert [c.factor(k) for k in KINDS] == pytest.approx(FACTORS, rel=0.02)
        assert c.base_ms == pytest.approx(0.7, rel=0.2)
        assert c.networks == 20
        fresh = networks(50, 1)
        np.testing.assert_allclose(corrected(c, fresh), fresh @ FACTORS + 0.7, rtol=0.005)
        assert c.relative_error is not None
        assert c.relative_error < 0.005

    def test_stated_error_is_the_noise_on_networks_it_has_not_seen(self) -> None:
        rng = np.random.default_rng(0)
        ratios = []
        for seed in range(20):
            x = networks(15, seed)
            c = fit(named(x), (x @ FACTORS) * (1 + 0.03 * rng.standard_normal(15)))
            fresh = networks(200, 100 + seed)
            noisy = (fresh @ FACTORS) * (1 + 0.03 * rng.standard_normal(200))
            assert c.relative_error is not None
            ratios.append(c.relative_error / np.sqrt(np.mean((corrected(c, fresh) / noisy - 1) ** 2)))
        assert 0.8 < np.median(ratios) < 1.2

    def test_is_never_negative(self) -> None:
        x = networks(10, 0)
        y = x @ np.array([-0.3, 1.0, 1.0, 1.0])  # a free fit would give the first kind a negative factor
        assert (y > 0).all()
        free, *_ = np.linalg.lstsq(x, y, rcond=None)
        assert free.min() < 0
        c = fit(named(x), y)
        assert min(c.base_ms, *(c.factor(k) for k in KINDS)) >= 0
        assert c.factor("add") < 0.1

    def test_scales_with_the_unit(self) -> None:
        x = networks(12, 0)
        y = x @ FACTORS * (1 + 0.02 * np.random.default_rng(0).standard_normal(12))
        one, thousand = fit(named(x), y), fit(named(1000 * x), 1000 * y)
        assert thousand.base_ms == pytest.approx(1000 * one.base_ms, rel=1e-6, abs=1e-9)
        assert dict(thousand.factors) == pytest.approx(dict(one.factors), rel=1e-6)
        assert thousand.relative_error == pytest.approx(one.relative_error, rel=1e-6)

    def test_kinds_that_vary_together_share_what_is_known(self) -> None:
        """Two columns that are always equal cannot be told apart: both get the mean, not one everything."""
        x = networks(12, 0)
        x[:, 1] = x[:, 0]
        c = fit(named(x), x @ np.array([0.5, 0.9, 0.7, 0.7]))
        assert c.factor("add") == pytest.approx(c.factor("conv_bn"), rel=1e-6)
        assert c.factor("add") == pytest.approx(0.7, rel=0.02)

    def test_an_unseen_kind_gets_the_common_factor(self) -> None:
        x = networks(8, 0)
        c = fit(named(x), 0.5 * x.sum(1))
        assert c.factor("never seen") == c.common == pytest.approx(0.5, rel=1e-9)

    @pytest.mark.parametrize("n", [0, 1])
    def test_too_few_networks_leave_the_plain_sum(self, n: int) -> None:
        assert fit(named(networks(n, 0)), [3.0] * n) == Correction()
        assert Correction().factor("relu") == 1.0

    def test_json_round_trip(self) -> None:
        x = networks(6, 0)
        c = fit(named(x), x @ FACTORS)
        assert Correction.from_json(json.loads(json.dumps(c.to_json()))) == c

    def test_tells_what_each_call_costs_from_what_the_run_does(self) -> None:
        x, calls = networks(20, 0), np.random.default_rng(1).integers(20, 200, 20)
        c = fit(named(x), x @ FACTORS + 0.7 + 0.01 * calls, calls.tolist())
        assert (c.base_ms, c.call_ms) == (pytest.approx(0.7, rel=0.2), pytest.approx(0.01, rel=0.1))
        assert [c.factor(k) for k in KINDS] == pytest.approx(FACTORS, rel=0.02)
        assert c.priced("relu", 2.0) == pytest.approx(c.call_ms + 2 * c.factor("relu"))
        expected = [c.total_ms(s, n) for s, n in zip(named(x), calls, strict=True)]
        assert expected == pytest.approx(x @ FACTORS + 0.7 + 0.01 * calls, rel=5e-3)
        thousand = fit(named(1000 * x), 1000 * (x @ FACTORS + 0.7 + 0.01 * calls), calls.tolist())
        assert thousand.call_ms == pytest.approx(1000 * c.call_ms, rel=1e-6)
        assert fit(named(x), x @ FACTORS).call_ms == 0.0


class TestSelect:
    def test_gives_different_networks_and_the_same_every_time(self) -> None:
        features = networks(100, 0)
        chosen = select(features, 10)
        assert len(set(chosen)) == len(chosen) == 10
        assert set(chosen) <= set(range(100))
        assert select(features, 10) == chosen
        assert select(features, 4) == chosen[:4]

    def test_gives_all_where_there_are_no_more(self) -> None:
        assert sorted(select(networks(5, 0), 9)) == [0, 1, 2, 3, 4]
        assert sorted(select(np.ones((4, 3)), 4)) == [0, 1, 2, 3]

    def test_tells_factors_apart_better_than_chance(self) -> None:
        features = networks(100, 0)
        rng = np.random.default_rng(0)

        def information(rows: list[int]) -> float:
            shares = features[rows] / features[rows].sum(1, keepdims=True)
            return float(np.linalg.slogdet(shares.T @ shares)[1])

        by_chance = [information(rng.choice(100, 8, replace=False).tolist()) for _ in range(200)]
        assert information(select(features, 8)) > np.quantile(by_chance, 0.99)


def test_errors_against_hand_computation() -> None:
    got = errors([12.0, 9.6, 20.0, 32.4], [10.0, 10.0, 20.0, 30.0])  # +20 %, -4 %, 0, +8 %
    assert got["mape"] == pytest.approx(0.08)
    assert got["bias"] == pytest.approx(0.06)
    assert (got["within_5"], got["within_10"]) == (0.5, 0.75)
    assert got["n"] == 4


@pytest.mark.parametrize(
    ("n", "coverage", "expected"),
    [
        (1, 0.95, 1),  # one error covers the next with 1/2, and more cannot be had
        (18, 0.95, 18),
        (19, 0.95, 19),  # ceil(20 * 0.95) = 19
        (20, 0.95, 20),  # ceil(19.95) = 20
        (38, 0.95, 38),  # ceil(37.05) = 38
        (39, 0.95, 38),
        (99, 0.95, 95),
        (9, 0.5, 5),
    ],
)
def test_conformal_takes_the_right_one_of_the_ranked_errors(n: int, coverage: float, expected: int) -> None:
    ranked = 0.01 * np.arange(1, n + 1)
    signed = np.random.default_rng(0).permutation(ranked * np.where(np.arange(n) % 2, -1, 1))
    assert conformal(signed.tolist(), coverage) == pytest.approx(0.01 * expected)


def test_conformal_of_nothing_is_nothing() -> None:
    assert conformal([]) is None


@pytest.mark.parametrize("n", [19, 20, 48])
def test_conformal_covers_fresh_errors_however_they_spread(n: int) -> None:
    rng = np.random.default_rng(0)
    draws = {
        "normal": lambda size: 0.02 * rng.standard_normal(size),
        "heavy": lambda size: 0.01 * rng.standard_t(2, size),
        "biased": lambda size: 0.03 + 0.01 * rng.exponential(size=size),
    }
    for name, draw in draws.items():
        covered = [np.abs(draw(1)[0]) <= (conformal(draw(n)) or 0.0) for _ in range(3000)]
        assert 0.93 <= np.mean(covered) <= 0.95 + 1 / (n + 1) + 0.015, name


def spec(kind: str) -> OpSpec:
    return OpSpec(kind, (), ((1, 4, 8, 8),))


def made_up(n_fit: int, n_test: int, seed: int = 0, isolated: bool = True) -> LatencyTable:
    """Return a table of ops, and networks that take 0.3 ms and what `FACTORS` make of their ops."""
    rng = np.random.default_rng(seed)
    rows = [
        OpRow(spec(k).key, ms, isolated_ms=2 * ms + 0.1 if isolated else None, macs=int(rng.integers(1, 9)) * 10**6)
        for k, ms in zip(KINDS, rng.uniform(0.1, 1, len(KINDS)).tolist(), strict=True)
    ]
    ms = np.array([r.latency_ms for r in rows])
    nets = []
    for i in range(n_fit + n_test):
        counts = rng.integers(1, 20, len(KINDS))
        ops = {r.key: int(n) for r, n in zip(rows, counts, strict=True)}
        use = "fit" if i < n_fit else "test"
        nets.append(NetRow(f"net/{i}", ops, float(0.3 + (counts * ms) @ FACTORS), use, repeatability=0.001 * i))
    return paper_table(rows, nets)


class TestValidation:
    def test_the_correction_is_fitted_on_some_networks_and_judged_on_others(self) -> None:
        table = made_up(12, 4)
        table.report = {"conditions": {"visits": 3}, "left_out": ["net/z"], "derived": {"mape": 1.0}, "held_out": 99}
        calibrate(table)
        assert table.correction.networks == 12
        assert {e["n"] for e in table.report["predictors"].values()} == {table.report["held_out"]} == {4}
        assert table.report["predictors"]["ours"]["mape"] < 0.005
        assert table.report["predictors"]["uncorrected"]["mape"] > 0.1
        assert table.report["noise_floor"] == pytest.approx(0.0135)
        tested = [n.latency_ms for n in table.nets if n.use == "test"]
        assert table.report["span"] == pytest.approx(max(tested) / min(tested))
        assert table.report["conditions"] == {"visits": 3}
        assert table.report["left_out"] == ["net/z"]
        assert "derived" not in table.report  # that was another table's error

    def test_error_and_interval_are_of_the_networks_it_was_not_fitted_on(self) -> None:
        table = made_up(12, 4)
        off = {f"net/{12 + i}": e for i, e in enumerate((0.1, -0.2, 0.0, 0.05))}
        table.nets = [replace(n, latency_ms=n.latency_ms / (1 + off.get(n.key, 0.0))) for n in table.nets]
        table.nets.append(replace(table.nets[0], key="net/d", use="derived", latency_ms=99.0))  # judged apart
        calibrate(table)
        relative = [predict_ms(table, n) / n.latency_ms - 1 for n in table.nets[12:16]]
        assert relative == pytest.approx(list(off.values()), abs=0.01)
        assert table.correction.relative_error == pytest.approx(np.sqrt(np.mean(np.square(relative))))
        assert table.correction.interval == pytest.approx(max(map(abs, relative)))
        assert table.report["predictors"]["ours"]["bias"] == pytest.approx(np.mean(relative))

    def test_networks_to_test_on_never_change_the_fit(self) -> None:
        plain, other = made_up(8, 3), made_up(8, 3)
        other.nets = [*other.nets[:8], *(replace(n, latency_ms=9 * n.latency_ms) for n in other.nets[8:])]
        other.nets.append(replace(other.nets[0], key="net/d", use="derived", latency_ms=99.0))
        for table in (plain, other):
            calibrate(table)
        same = {"relative_error": None, "interval": None}
        assert replace(plain.correction, **same) == replace(other.correction, **same)

    @pytest.mark.parametrize(("again", "level"), [((), 1.0), ((1.1, 1.25, 3.0), 1.25)])
    def test_derived_networks_are_judged_apart(self, again: tuple[float, ...], level: float) -> None:
        table = made_up(12, 4)
        calibrate(table)
        before = dict(table.report), table.correction
        ours = predict_ms(table, table.nets[0])
        table.nets = [*table.nets, replace(table.nets[0], key="net/d", use="derived", latency_ms=ours / 0.8)]
        report_derived(table, again)
        found = table.report.pop("derived")
        assert (found.pop("level"), found.pop("again")) == (level, list(again))
        assert found == pytest.approx(
            {"mape": 0.2, "bias": -0.2, "within_5": 0.0, "within_10": 0.0, "tau": 0.0, "n": 1}
        )
        assert (dict(table.report), table.correction) == before

    @pytest.mark.parametrize("n_fit", [0, 1])
    def test_without_networks_to_fit_on_the_plain_sum_is_judged(self, n_fit: int) -> None:
        table = made_up(n_fit, 3)
        calibrate(table)
        assert table.correction.networks == 0
        found = table.report["predictors"]
        assert found.keys() == {"sum", "uncorrected", "ours"}
        assert found["ours"] == found["uncorrected"]

    def test_without_networks_to_test_on_nothing_is_claimed(self) -> None:
        table = made_up(6, 0)
        calibrate(table)
        assert table.report == {}
        assert table.correction.interval is None
        assert table.correction.relative_error is not None  # by leaving one out

    def test_the_predictors_by_hand(self) -> None:
        rows = [
            OpRow("a()@1", 1.0, isolated_ms=3.0, macs=100),
            OpRow("b()@1", 2.0, isolated_ms=5.0, macs=300),
        ]
        counts = [(1, 0), (0, 1), (2, 1), (1, 3), (5, 2)]
        # Measured so that the sum of ops alone, 3a + 5b, is affine in it: latency = 0.5 + 0.2 (3a + 5b).
        nets = [
            NetRow(f"net/{i}", {"a()@1": a, "b()@1": b}, 0.5 + 0.2 * (3 * a + 5 * b), "fit" if i < 4 else "test")
            for i, (a, b) in enumerate(counts)
        ]
        table = paper_table(rows, nets, Correction(0.1, 1.0, {"a": 0.5, "b": 2.0}))
        found = predictors(table)
        assert list(found) == ["flops", "sum", "sum_affine", "uncorrected", "ours"]
        net = nets[4]
        assert found["sum"](net) == 25.0
        assert found["sum_affine"](net) == pytest.approx(5.5, rel=1e-9)
        assert found["uncorrected"](net) == 9.0
        assert found["ours"](net) == pytest.approx(0.1 + 0.5 * 5 + 2.0 * 4)
        # Networks of the same multiply-adds are the same to it: 3 x 100 + 0 and 0 + 1 x 300.
        three, one = (NetRow("n", {k: n}, 1.0, "test") for k, n in (("a()@1", 3), ("b()@1", 1)))
        assert found["flops"](three) == pytest.approx(found["flops"](one))

    def test_without_ops_alone_these_predictors_are_left_out(self) -> None:
        assert list(predictors(made_up(6, 3, isolated=False))) == ["flops", "uncorrected", "ours"]
        table = made_up(6, 3)
        key = next(iter(table.rows))
        table.rows[key] = replace(table.rows[key], isolated_ms=None)  # one is enough: a sum without it is none
        assert list(predictors(table)) == ["flops", "uncorrected", "ours"]

    def test_affine_recovers_a_line_and_minds_relative_errors(self) -> None:
        nets = [NetRow(f"net/{n}", {"a()@1": n}, 0.7 + 0.25 * n, "fit") for n in (1, 2, 7)]
        line = affine(lambda net: float(net.ops["a()@1"]), nets)
        assert line(NetRow("net", {"a()@1": 100}, 1.0, "test")) == pytest.approx(25.7, rel=1e-9)
        # Of two latencies for one feature, relative least squares lies at 2 xy / (x + y) of their inverses' means.
        twice = [NetRow(f"net/{y}", {"a()@1": 1}, y, "fit") for y in (1.0, 3.0)]
        between = affine(lambda net: 1.0, twice)(twice[0])
        assert between == pytest.approx((1 / 1 + 1 / 3) / (1 / 1 + 1 / 9))


RELU, POOL, ADD, CONCAT = (spec(k) for k in ("relu", "global_pool", "add", "concat"))
SMALL = darts_space(Scale(4, 3, (32, 48)), 5, nodes=2, head_channels=8)


class TestModel:
    def test_gradient_is_that_of_finite_differences(self) -> None:
        table = roofline_table(SMALL, Correction(0.05, 0.9, {"relu": 0.5}))
        model = LatencyModel(trace_space(SMALL).terms(), table, SMALL.problem)
        rng = np.random.default_rng(0)
        logits = [torch.from_numpy(rng.standard_normal(g.shape)).requires_grad_() for g in SMALL.groups]

        def ms(*values: torch.Tensor) -> torch.Tensor:
            probs = {g.name: torch.softmax(v, dim=-1) for g, v in zip(SMALL.groups, values, strict=True)}
            out: torch.Tensor = model(probs)
            return out

        assert torch.autograd.gradcheck(ms, logits)
        assert all(g.abs().max() > 1e-3 for g in torch.autograd.grad(ms(*logits), logits))

    def test_expectation_is_the_mean_over_all_networks_where_every_edge_is_kept(self) -> None:
        """With one node of two edges nothing is dropped, so decisions are independent and the mean is exact."""
        space = darts_space(
            Scale(4, 3, (33, 47)),
            5,
            ops=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"),
            nodes=1,
            head_channels=8,
        )
        model = LatencyModel(trace_space(space).terms(), roofline_table(space), space.problem)
        names = [d.name for d in decisions(space)]
        archs = [
            Architecture.of(space.name, dict(zip(names, o, strict=True)))
            for o in itertools.product(space.groups[0].options[1:], repeat=len(names))
        ]
        assert len(archs) == 4**4
        ms = np.array([model.predict_ms(a) for a in archs])
        onehots = np.array([space.problem.literals.vector(a) for a in archs]) == 1
        for seed in range(5):
            probs = random_probs(space, seed)
            rows = np.concatenate([probs[g.name] for g in space.groups])
            p = (rows / (1 - rows[:, :1])).reshape(-1)  # ops renormalised over non-none
            weights = np.array([p[on].prod() for on in onehots])
            assert weights.sum() == pytest.approx(1, rel=1e-9)
            expected = float(model(probs))
            assert expected == pytest.approx(float(weights @ ms), rel=1e-9)
            # The mean of samples approaches it too.
            drawn = np.random.default_rng(seed).choice(len(ms), 4000, p=weights / weights.sum())
            assert expected == pytest.approx(ms[drawn].mean(), abs=5 * ms.std() / math.sqrt(4000))

    def test_expectation_of_merged_and_nested_ops(self) -> None:
        """Or: one ReLU read by two edges counts once. And: an op inside a chosen branch counts with both."""
        options = ("none", "skip", "conv")
        group = Group("g", tuple(Decision(n, options) for n in "abc"))
        a, b, c = (choice(n, "conv") for n in "abc")
        terms = [Term(RELU, a | b), Term(POOL, ALWAYS), Term(ADD, c & choice("a", "skip")), Term(CONCAT, a | b)]
        prices = {RELU: 0.25, POOL: 0.5, ADD: 1.25, CONCAT: 3.0}
        table = paper_table((OpRow(s.key, ms) for s, ms in prices.items()), (), Correction(0.05, 0.9, {"relu": 0.5}))
        model = LatencyModel(terms, table, Problem("s", (group,)))
        assert len(model.gates) == 3  # the two ops under one gate share its price
        probs = torch.softmax(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3))), dim=-1)
        mean = 0.0
        for picks in itertools.product(range(3), repeat=3):
            arch = Architecture.of("s", {n: options[i] for n, i in zip("abc", picks, strict=True)})
            mean += model.predict_ms(arch) * float(probs[range(3), picks].prod())
        assert float(model({"g": probs})) == pytest.approx(mean, rel=1e-12)

    def test_the_correction_is_in_it(self) -> None:
        correction = Correction(0.05, 0.9, {"relu": 0.5}, 0.02, 0.03, 12)
        table = paper_table([OpRow(RELU.key, 0.25), OpRow(POOL.key, 0.5)], (), correction)
        model = LatencyModel([Term(RELU, ALWAYS), Term(POOL, ALWAYS)], table, Problem("s", ()))
        arch = Architecture.of("s", {})
        assert model.predict_ms(arch) == pytest.approx(0.05 + 0.5 * 0.25 + 0.9 * 0.5)
        assert model.by_kind(arch) == pytest.approx({"global_pool": 0.45, "relu": 0.125, "(base)": 0.05})
        assert list(model.by_kind(arch)) == ["global_pool", "relu", "(base)"]
        assert (model.relative_error, model.interval) == (0.02, 0.03)

    def test_dtype_follows_the_probabilities(self) -> None:
        model = LatencyModel(trace_space(SMALL).terms(), roofline_table(SMALL), SMALL.problem)
        probs = random_probs(SMALL, 0)
        single = model(probs.float())
        assert (single.dtype, model(probs).dtype) == (torch.float32, torch.float64)
        assert float(single) == pytest.approx(float(model(probs)), rel=1e-5)

    def test_a_missing_price_is_an_error_and_never_zero(self) -> None:
        table = roofline_table(SMALL)
        terms = trace_space(SMALL).terms()
        gone = terms[5].spec.key
        del table.rows[gone]
        with pytest.raises(MissingOp, match=r"has no row for .*; measure it with: hwnas profile"):
            LatencyModel(terms, table, SMALL.problem)


ARCHS = {name: Architecture.of("s", {"d": name}) for name in ("none", "relu", "pool")}


def compare(model: LatencyModel, a: Architecture, b: Architecture) -> str:
    return order(model.predict_ms(a), model.predict_ms(b), model.relative_error)


class TestConfidence:
    """What a prediction is worth: an interval, and an answer to which of two networks is faster."""

    def model(self, relative_error: float | None, interval: float | None) -> LatencyModel:
        """Return a model of three networks that take 1.0, 1.1 and 2.0 ms."""
        group = Group("g", (Decision("d", ("none", "relu", "pool")),))
        correction = Correction(1.0, 1.0, {}, relative_error, interval, 12)
        table = paper_table([OpRow(RELU.key, 0.1), OpRow(POOL.key, 1.0)], (), correction)
        terms = [Term(RELU, choice("d", "relu")), Term(POOL, choice("d", "pool"))]
        return LatencyModel(terms, table, Problem("s", (group,)))

    def test_interval_by_hand(self) -> None:
        low_ms, high_ms = self.model(0.1, 0.25).interval_ms(ARCHS["pool"]) or (0.0, 0.0)
        assert (low_ms, high_ms) == pytest.approx((2 / 1.25, 2 / 0.75))
        # At its ends the error of the prediction is just the half-width.
        assert (2 / low_ms - 1, 2 / high_ms - 1) == pytest.approx((0.25, -0.25))

    def test_an_interval_of_a_table_that_is_far_off_is_finite(self) -> None:
        low_ms, high_ms = self.model(1.0, 1.5).interval_ms(ARCHS["pool"]) or (0.0, 0.0)
        assert 0 < low_ms < 2 < high_ms < math.inf

    def test_an_untested_table_gives_no_interval_and_no_answer(self) -> None:
        model = self.model(None, None)
        assert model.interval_ms(ARCHS["none"]) is None
        assert compare(model, ARCHS["none"], ARCHS["pool"]) == "cannot tell"

    def test_compare(self) -> None:
        none, relu, pool = ARCHS.values()
        # log 1.1 = 0.0953 is 1.96 sqrt(2) times 0.0344.
        for error, answer in ((0.033, "faster"), (0.036, "cannot tell")):
            model = self.model(error, 0.1)
            assert compare(model, none, relu) == answer
            assert compare(model, relu, none) == {"faster": "slower"}.get(answer, answer)
            assert compare(model, relu, pool) == "faster"
            assert compare(model, pool, pool) == "cannot tell"

    def test_of_equal_networks_one_comparison_in_twenty_is_wrong(self) -> None:
        """Networks that both take a millisecond, predicted with errors of the stated size."""
        rng, error, wrong = np.random.default_rng(0), 0.03, 0
        group = Group("g", (Decision("d", ("none", "relu")),))
        a, b = (Architecture.of("s", {"d": o}) for o in ("none", "relu"))
        for one, two in 1 + error * rng.standard_normal((400, 2)):
            table = paper_table([OpRow(RELU.key, two), OpRow(POOL.key, one)], (), Correction(0, 1, {}, error))
            terms = [Term(RELU, choice("d", "relu")), Term(POOL, choice("d", "none"))]
            wrong += compare(LatencyModel(terms, table, Problem("s", (group,))), a, b) != "cannot tell"
        assert 0.02 < wrong / 400 < 0.08
