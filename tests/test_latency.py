"""Latency: the correction, tables on disk, and the expected latency of a network whose decisions are open."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.arch import Architecture, Decision, Group
from hwnas.errors import HwnasError, MissingOp
from hwnas.files import canonical_json, sha256
from hwnas.gates import ALWAYS, Literals, choice
from hwnas.latency import Correction, LatencyModel, LatencyTable, NetRow, OpRow, fit, select
from hwnas.latency.calibrate import errors
from hwnas.ops import OpSpec, Term
from hwnas.profile import Calibration, calibrate, choose_networks
from hwnas.spaces import ChainSpace, Scale, check, decisions, trace_space
from tests.contracts import TableContract, random_probs, roofline_table

KINDS = ("add", "conv_bn", "relu", "sep_conv")
FACTORS = np.array([0.4, 0.9, 0.6, 0.75])
WHERE = {
    "device": {"name": "paper"},
    "engine": {"name": "paper", "precision": "fp32", "version": "1", "threads": 1},
    "clock": "thread_cpu",
    "batch": 1,
    "merges": True,
}


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


def table_of(rows: list[OpRow], nets: list[NetRow] | None = None) -> LatencyTable:
    correction = Correction(0.05, 0.9, {"relu": 0.5}, 0.02, 12)
    report = {"ours": {"mape": 0.02}, "noise": 0.01}
    return LatencyTable(WHERE, {r.key: r for r in rows}, nets or [], correction, report)


def spec(kind: str, size: int = 8) -> OpSpec:
    return OpSpec(kind, (), ((1, 4, size, size),))


RELU, POOL, ADD, CONCAT = (spec(k) for k in ("relu", "global_pool", "add", "concat"))
ROWS = [
    OpRow(RELU.key, 0.25, 0.01, 300),
    OpRow(POOL.key, 0.5, 0.2, 300, "doubtful", "passes differ by 20 %"),
    OpRow(ADD.key, 0.0, 0.0, 0, "failed", "not implemented"),
    OpRow(CONCAT.key, 0.0, 0.0, 0, "crashed"),
]


class TestTable(TableContract):
    @pytest.fixture
    def table(self) -> LatencyTable:
        nets = [NetRow("net/a-c4", {RELU.key: 2, POOL.key: 1}, 1.0, 0.01, "fit")]
        return table_of(ROWS, nets)

    def test_what_is_doubtful_counts_and_what_failed_does_not(self, table: LatencyTable) -> None:
        assert table[RELU] == 0.25
        assert table[POOL] == 0.5
        with pytest.raises(MissingOp, match=r"add\(\)@1x4x8x8 could not be measured for paper/paper-fp32-b1: not impl"):
            _ = table[ADD]
        with pytest.raises(MissingOp, match=r"concat\(\)@1x4x8x8 could not be measured .*: crashed"):
            _ = table[CONCAT]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d["rows"][1].update(latency_ms=float("nan")), "NaN is not a number a file may hold"),
            (lambda d: d["rows"][1].update(latency_ms=float("inf")), "Infinity is not a number a file may hold"),
            (lambda d: d["rows"][1].update(latency_ms=-0.1), r"row 1: -0\.1 is not a latency in milliseconds"),
            (lambda d: d["rows"][1].update(latency_ms="0.1"), "row 1: '0.1' is not a latency in milliseconds"),
            (lambda d: d["rows"][1].update(latency_ms=None), "row 1: None is not a latency in milliseconds"),
            (lambda d: d["rows"][1].update(latency_ms=10**400), "row 1: 1000.* is not a latency in milliseconds"),
            (lambda d: d["nets"][0].update(latency_ms=-1), "row 0: -1 is not a latency in milliseconds"),
            (lambda d: d["rows"][2].update(status="great"), "row 2: status 'great' is none of ok, doubtful, failed"),
            (lambda d: d["rows"].append(d["rows"][0]), r"two rows for add\(\)@1x4x8x8; measure it anew"),
            (lambda d: d["rows"][0].update(colour="red"), "is not a whole latency table: .*colour"),
            (lambda d: d["rows"][0].pop("key"), "is not a whole latency table: .*key"),
            (lambda d: d.pop("nets"), "is not a whole latency table: 'nets'"),
            (lambda d: d.update(rows=3), "is not a whole latency table"),
            (lambda d: d.update(correction={"slope": 1.0}), "is not a whole latency table: .*slope"),
            (lambda d: d["where"].update(clock="wall"), "its checksum does not fit"),
        ],
    )
    def test_a_bad_file_is_refused_by_name_and_row(
        self, table: LatencyTable, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        path = tmp_path / "bad.json"
        table.save(path)
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        with pytest.raises(HwnasError, match=rf"(?s)bad\.json.*{message}"):
            LatencyTable.load(path)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1, "schema": 1}', "\x00"])
    def test_what_is_no_table_is_refused_by_name(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(HwnasError, match=r"bad\.json"):
            LatencyTable.load(tmp_path / "bad.json")

    def test_a_number_beyond_floats_is_refused_by_row(self, table: LatencyTable, tmp_path: Path) -> None:
        table.save(tmp_path / "bad.json")
        text = (tmp_path / "bad.json").read_text()
        (tmp_path / "bad.json").write_text(text.replace('"latency_ms": 0.25', '"latency_ms": 1e999'))
        with pytest.raises(HwnasError, match=r"bad\.json, row 3: inf is not a latency"):
            LatencyTable.load(tmp_path / "bad.json")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(HwnasError, match=r"cannot read a latency table at .*none\.json: No such file"):
            LatencyTable.load(tmp_path / "none.json")

    def test_an_interrupted_write_leaves_the_old_file(
        self, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "t.json"
        table.save(path)
        before = path.read_bytes()

        def fail(*_: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr("os.fsync", fail)
        table.rows.pop(RELU.key)
        with pytest.raises(OSError, match="no space left"):
            table.save(path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["t.json"]

    def test_checksum_is_of_what_the_table_says_not_of_its_layout(self, table: LatencyTable, tmp_path: Path) -> None:
        table.save(tmp_path / "t.json")
        data = json.loads((tmp_path / "t.json").read_text())
        (tmp_path / "u.json").write_text(json.dumps(data, indent=3))
        assert LatencyTable.load(tmp_path / "u.json").rows == table.rows
        said = {k: data[k] for k in ("where", "correction", "report", "rows", "nets")}
        assert data["sha256"] == sha256(canonical_json(said))


def test_calibration_is_fitted_on_some_networks_and_judged_on_others() -> None:
    kinds = [spec(k) for k in KINDS]
    rng = np.random.default_rng(0)
    rows = [OpRow(s.key, float(rng.uniform(0.1, 1)), 0.0, 9) for s in kinds]
    ms = np.array([r.latency_ms for r in rows])
    nets = []
    for i in range(16):
        counts = rng.integers(1, 20, len(KINDS))
        true_ms = float(0.3 + (counts * ms) @ FACTORS)
        ops = {s.key: int(n) for s, n in zip(kinds, counts, strict=True)}
        nets.append(NetRow(f"net/{i}", ops, true_ms, 0.01 * i, "fit" if i < 12 else "test"))
    table = LatencyTable(WHERE, {r.key: r for r in rows}, nets)
    calibrate(table)
    assert table.correction.networks == 12
    assert table.report["ours"]["n"] == table.report["sum"]["n"] == 4
    assert table.report["ours"]["mape"] < 0.005
    assert table.report["sum"]["mape"] > 0.1
    assert table.report["noise"] == pytest.approx(0.075)


SMALL = ChainSpace(Scale(4, 3, (32, 48)), 5, nodes=2, head_channels=8)


def test_networks_to_fit_and_to_test_on_are_different_ones() -> None:
    scales = [Scale(4, 3, (32, 48)), Scale(8, 3, (32, 48))]
    mixed = [trace_space(SMALL.at(s)) for s in scales]
    chosen = choose_networks(SMALL, mixed, Calibration(6, 4))
    assert [use for use, _, _ in chosen] == ["fit"] * 6 + ["test"] * 4
    assert len({(i, a.id) for _, i, a in chosen}) == 10
    assert {i for _, i, _ in chosen} == {0, 1}
    for _, _, arch in chosen:
        check(SMALL, arch)
    assert choose_networks(SMALL, mixed, Calibration(6, 4)) == chosen


def test_a_space_of_few_networks_cannot_be_calibrated_on_many() -> None:
    tiny = ChainSpace(Scale(4, 2, (32, 48)), 5, ops=("none", "skip_connect", "max_pool_3x3"), nodes=1, head_channels=8)
    with pytest.raises(HwnasError, match="too small to calibrate on that many networks; ask for fewer"):
        choose_networks(tiny, [trace_space(tiny)], Calibration(40, 40))


class TestModel:
    def test_gradient_is_that_of_finite_differences(self) -> None:
        table = roofline_table(SMALL, Correction(0.05, 0.9, {"relu": 0.5}))
        model = LatencyModel(trace_space(SMALL).terms(), table, SMALL.groups, SMALL.rules())
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
        space = ChainSpace(
            Scale(4, 3, (33, 47)),
            5,
            ops=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"),
            nodes=1,
            head_channels=8,
        )
        model = LatencyModel(trace_space(space).terms(), roofline_table(space), space.groups, space.rules())
        names = [d.name for d in decisions(space)]
        archs = [
            Architecture.of(space.name, dict(zip(names, o, strict=True)))
            for o in itertools.product(space.ops[1:], repeat=len(names))
        ]
        assert len(archs) == 4**4
        ms = np.array([model.predict_ms(a) for a in archs])
        onehots = np.array([Literals(space.groups).vector(a) for a in archs]) == 1
        for seed in range(5):
            probs = random_probs(space, seed)
            rows = np.concatenate([probs[g.name] for g in space.groups])
            p = (rows / (1 - rows[:, :1])).reshape(-1)  # ops renormalised over non-none
            weights = np.array([p[on].prod() for on in onehots])
            assert weights.sum() == pytest.approx(1, rel=1e-9)
            expected = float(model({k: torch.from_numpy(v) for k, v in probs.items()}))
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
        table = table_of([OpRow(s.key, ms, 0.0, 1) for s, ms in prices.items()])
        model = LatencyModel(terms, table, [group], [])
        assert len(model.gates) == 3  # the two ops under one gate share its price
        probs = torch.softmax(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3))), dim=-1)
        mean = 0.0
        for picks in itertools.product(range(3), repeat=3):
            arch = Architecture.of("s", {n: options[i] for n, i in zip("abc", picks, strict=True)})
            mean += model.predict_ms(arch) * float(probs[range(3), picks].prod())
        assert float(model({"g": probs})) == pytest.approx(mean, rel=1e-12)

    def test_the_correction_is_in_it(self) -> None:
        table = table_of(ROWS)  # base 0.05, ReLU at half price, others at 0.9
        model = LatencyModel([Term(RELU, ALWAYS), Term(POOL, ALWAYS)], table, [], [])
        arch = Architecture.of("s", {})
        assert model.predict_ms(arch) == pytest.approx(0.05 + 0.5 * 0.25 + 0.9 * 0.5)
        assert model.by_kind(arch) == pytest.approx({"global_pool": 0.45, "relu": 0.125, "(base)": 0.05})
        assert list(model.by_kind(arch)) == ["global_pool", "relu", "(base)"]
        assert model.relative_error == 0.02

    def test_dtype_follows_the_probabilities(self) -> None:
        model = LatencyModel(trace_space(SMALL).terms(), roofline_table(SMALL), SMALL.groups, SMALL.rules())
        probs = {k: torch.from_numpy(v) for k, v in random_probs(SMALL, 0).items()}
        single = model({k: v.float() for k, v in probs.items()})
        assert (single.dtype, model(probs).dtype) == (torch.float32, torch.float64)
        assert float(single) == pytest.approx(float(model(probs)), rel=1e-5)

    def test_a_missing_price_is_an_error_and_never_zero(self) -> None:
        table = roofline_table(SMALL)
        terms = trace_space(SMALL).terms()
        gone = terms[5].spec.key
        del table.rows[gone]
        with pytest.raises(MissingOp, match=r"has no row for .*; measure it with: hwnas profile"):
            LatencyModel(terms, table, SMALL.groups, SMALL.rules())
