"""Profiling: what an op costs between neighbours, which networks are measured, and the table of it all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import HwnasError
from hwnas.files import canonical_json
from hwnas.jobs.profiling import forecast_s
from hwnas.latency import LatencyModel, LatencyTable, predict_ms
from hwnas.ops.trace import Trace
from hwnas.problem import Architecture, Matrices
from hwnas.profile import (
    Calibration,
    add_derived,
    build_table,
    choose_networks,
    make_plan,
)
from hwnas.profile.assembly import ASSEMBLY_FILE, Assembly
from hwnas.profile.context import price
from hwnas.profile.derived import ANCHORS, RANDOM
from hwnas.profile.networks import spread
from hwnas.profile.plan import trace_entry
from hwnas.progress import SILENT, Update
from hwnas.runtime.engines.fake import SAVING_MS, modelled_ms
from hwnas.runtime.measuring.forecast import estimate_ms
from hwnas.runtime.measuring.journal import Journal, read_journal
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan
from hwnas.runtime.measuring.work import measure_plan
from hwnas.search.derive import Solver
from hwnas.search.widths import price as latency_models
from hwnas.search.widths import random_latencies_ms
from hwnas.spaces import Scale, Space, check, darts_space, sample, trace_space

SPACE = darts_space(Scale(4, 3, (24, 32)), 5, nodes=2, head_channels=8)


class Told:
    """Keeps what is reported: by title of the bar, (done, note, total, left_s) of each update."""

    def __init__(self) -> None:
        self.bars: dict[str, list[tuple[Any, ...]]] = {}

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Update]:
        seen = self.bars.setdefault(title, [])

        def update(done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
            seen.append((done, note, total, left_s))

        yield update

    def note(self, text: str, warning: bool = False) -> None:
        raise AssertionError(text)


SCALES = (SPACE.scale, replace(SPACE.scale, channels=8))
STOP = StopRule(min_visits=3, max_visits=12, min_s=0.0)
Change = Callable[[dict[str, Any]], dict[str, Any] | None]


@pytest.fixture(scope="module")
def mixed() -> list[Trace]:
    return [trace_space(SPACE.at(s)) for s in SCALES]


class TestNetworks:
    CALIBRATION = Calibration(8, 12)

    def test_to_fit_and_to_test_on_are_different_ones(self, mixed: list[Trace]) -> None:
        chosen = choose_networks(SPACE, mixed, self.CALIBRATION)
        assert [use for use, _, _ in chosen] == ["fit"] * 8 + ["test"] * 12
        assert len({(i, a.id) for _, i, a in chosen}) == 20
        assert {i for _, i, _ in chosen} == {0, 1}
        for _, _, arch in chosen:
            check(SPACE, arch)

    def test_the_seed_alone_decides(self, mixed: list[Trace]) -> None:
        chosen = choose_networks(SPACE, mixed, self.CALIBRATION)
        assert choose_networks(SPACE, mixed, self.CALIBRATION) == chosen
        assert choose_networks(SPACE, mixed, replace(self.CALIBRATION, seed=1)) != chosen

    def test_those_to_test_on_are_spread_in_latency(self, mixed: list[Trace]) -> None:
        chosen = choose_networks(SPACE, mixed, self.CALIBRATION)
        tested = np.sort([rough_log_ms(i, arch) for use, i, arch in chosen if use == "test"])
        rng = np.random.default_rng(7)
        drawn = [rough_log_ms(int(rng.integers(2)), sample(SPACE, rng, 0.5)) for _ in range(40)]
        span = max(drawn) - min(drawn)
        assert tested[-1] - tested[0] > 0.9 * span  # random ones alone crowd in the middle
        assert np.diff(tested).max() < 2 * (tested[-1] - tested[0]) / 11
        assert np.diff(tested).min() > 0

    @pytest.mark.parametrize("seed", range(5))
    def test_spread_takes_different_values_and_leaves_no_gap(self, seed: int) -> None:
        values = np.random.default_rng(seed).standard_t(2, 500)
        chosen = spread(values, 20)
        assert len(set(chosen)) == 20
        taken = np.sort(values[chosen])
        assert (taken[0], taken[-1]) == (values.min(), values.max())
        ideal = np.linspace(values.min(), values.max(), 20)
        # Where there are values, the gap is some steps; where there are none, no choice can close it.
        widest = np.diff(np.sort(values)).max()
        assert np.diff(taken).max() <= 2 * np.diff(ideal)[0] + widest
        assert spread(np.ones(5), 5) == [0, 1, 2, 3, 4]

    def test_a_space_of_few_networks_cannot_be_calibrated_on_many(self) -> None:
        ops = ("none", "skip_connect", "max_pool_3x3")
        tiny = darts_space(Scale(4, 2, (32, 48)), 5, ops=ops, nodes=1, head_channels=8)
        with pytest.raises(HwnasError, match="too small to calibrate on that many networks; ask for fewer"):
            choose_networks(tiny, [trace_space(tiny)], Calibration(40, 40))


def rough_log_ms(scale: int, arch: Architecture) -> float:
    calls = trace_space(SPACE.at(SCALES[scale]), arch).calls
    return math.log(sum(estimate_ms(c.cost.macs, c.cost.bytes) for c in calls))


def _modelled(space: Space, arch: Architecture) -> float:
    return modelled_ms(trace_entry("net", "n", trace_space(space, arch), None, None))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_plan(SPACE, SCALES, folder, Calibration(fit=8, test=6))
    measure_plan(folder, "fake", stop=STOP)
    return folder


@pytest.fixture(scope="module")
def whole(plan: Path) -> LatencyTable:
    return build_table(plan, plan / "results.jsonl")


def rewritten(plan: Path, into: Path, change: Change) -> Path:
    """Write the results of a plan anew, with its samples changed or, where `change` gives None, left out."""
    header, records = read_journal(plan / "results.jsonl")
    with Journal(into, {k: v for k, v in header.items() if k in ("plan", "where")}) as journal:
        for record in records:
            new = change(record) if record["type"] == "sample" else record if record["type"] == "rule" else None
            if new is not None:
                journal.append(new)
    return into


def failing(keys: set[str], status: str = "failed") -> Change:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        if record["key"] not in keys:
            return record
        return {k: record[k] for k in ("type", "key", "visit")} | {"status": status, "reason": "for the test"}

    return change


def keys_of(plan: Path, role: str) -> list[str]:
    return [e.key for e in load_plan(plan).entries if e.role == role]


def assembly(plan: Path) -> Assembly:
    return Assembly.load(plan, load_plan(plan).id)


def using(table: LatencyTable, text: str) -> Iterator[str]:
    return (key for key in table.rows if text in key)


class TestPlan:
    def test_what_matters_most_comes_first(self, plan: Path) -> None:
        entries = load_plan(plan).entries
        roles = [e.role for e in entries]
        assert list(dict.fromkeys(roles)) == ["boundary", "context", "net", "op"]
        assert roles == sorted(roles, key=["boundary", "context", "net", "op"].index)
        ops = [key.removeprefix("context/") for key in keys_of(plan, "context")]
        assert ops == keys_of(plan, "op")
        assert len(keys_of(plan, "net")) == 14
        uses = [n.use for n in assembly(plan).networks.values()]
        assert sorted(uses) == ["fit"] * 8 + ["test"] * 6
        # The stem at full size is in every network, a dilated convolution in few.
        assert ops.index(next(k for k in ops if k.startswith("conv_bn"))) < 5
        assert ops[-1].split("(")[0] not in ("conv_bn", "upsample")

    def test_all_that_a_price_is_made_up_from_is_measured(self, plan: Path) -> None:
        made = assembly(plan).ops
        needed = {key for op in made.values() for key in op.weights}
        assert needed == {*keys_of(plan, "boundary"), *keys_of(plan, "context")}
        assert {op.entry for op in made.values()} == set(keys_of(plan, "context"))

    @pytest.mark.parametrize("change", [{"plan": "another"}, {"ops": {}}, {"sha256": None}, {"more": 1}])
    def test_an_assembly_that_was_changed_is_refused(self, plan: Path, tmp_path: Path, change: dict[str, Any]) -> None:
        data = json.loads((plan / ASSEMBLY_FILE).read_text())
        (tmp_path / ASSEMBLY_FILE).write_text(canonical_json({**data, **change}))
        with pytest.raises(HwnasError, match="is not whole or of another plan; remove the folder to write it anew"):
            Assembly.load(tmp_path, load_plan(plan).id)
        with pytest.raises(HwnasError, match="of another plan"):
            Assembly.load(plan, "another")

    def test_files_are_there_once_and_every_entry_was_told(self, tmp_path: Path) -> None:
        told = Told()
        space = replace(
            SPACE, encoder=replace(SPACE.encoder, ops=("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3"))
        )
        calibration = Calibration(2, 1, isolated=False)
        n = make_plan(space, [SPACE.scale], tmp_path, calibration, report=told)
        entries = load_plan(tmp_path).entries
        assert list(told.bars) == ["plan: trace the scales", "plan: trace networks", "plan: write files"]
        files = told.bars["plan: write files"]
        assert [update[:3] for update in files] == [(i + 1, e.key, n) for i, e in enumerate(entries)]
        assert files[-1][3] == 0
        assert all(left_s > 0 for *_, left_s in files[1:-1])
        assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.onnx")} == {e.onnx for e in entries}
        assert not any(e.role == "op" for e in entries)
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        make_plan(space, [SPACE.scale], tmp_path, calibration)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


class TestForecast:
    def test_is_a_range_that_counts_rounds_and_the_networks_derived_afterwards(self, plan: Path) -> None:
        loaded, rule = load_plan(plan), StopRule(min_visits=30, max_visits=100, min_s=0)
        low_s, high_s = forecast_s(loaded, rule)
        assert 0 < 1.5 * low_s < high_s
        assert low_s < forecast_s(loaded, replace(rule, min_visits=90))[0] < 3 * low_s  # loading is once
        assert all(np.array(forecast_s(loaded, rule, derived=[12])) > (low_s, high_s))
        slow = replace(rule, min_s=600)
        assert 600 < forecast_s(loaded, slow)[0] < 660
        assert 900 < forecast_s(loaded, slow, derived=[12])[0] < 960


class TestBuild:
    def test_a_whole_table(self, plan: Path, whole: LatencyTable) -> None:
        assert list(whole.rows) == keys_of(plan, "op")
        assert [n.key for n in whole.nets] == keys_of(plan, "net")
        assert {r.status for r in whole.rows.values()} == {"ok"}
        assert whole.unsettled == []
        entries = {e.key: e for e in load_plan(plan).entries}
        ops = assembly(plan).ops
        for key, row in whole.rows.items():
            weights = ops[key].weights
            model_ms = modelled_ms(entries[key])
            assert row.isolated_ms == pytest.approx(model_ms, rel=0.002)
            assert (row.macs, row.bytes) == (entries[key].calls[0].macs, entries[key].calls[0].bytes)
            low_ms, high_ms = row.ci_ms
            assert 0 <= low_ms <= row.latency_ms <= high_ms
            expected_ms = price(weights, {name: (modelled_ms(entries[name]), 0.0) for name in weights})[0]
            assert row.latency_ms == pytest.approx(expected_ms, abs=4e-4)
            assert (row.visits, row.stop) == (3, "ci")

    def test_prices_in_context_sum_to_networks_and_ops_alone_do_not(self, whole: LatencyTable) -> None:
        found = whole.report["predictors"]
        assert found["sum"]["mape"] > 1.5
        assert found["uncorrected"]["mape"] < 0.05
        assert found["ours"]["mape"] < 0.02
        assert whole.report["held_out"] == 6
        assert whole.report["noise_floor"] < 0.002
        # Networks that nobody measured, by the noise-free model.
        for scale, model in zip(SCALES, latency_models(SPACE, SCALES, whole), strict=True):
            rng = np.random.default_rng(5)
            archs = [sample(SPACE, rng) for _ in range(10)]
            errors = [model.predict_ms(a) / _modelled(SPACE.at(scale), a) - 1 for a in archs]
            assert np.abs(errors).mean() < 0.03

    def test_uncorrected_prices_sum_to_networks(self, whole: LatencyTable) -> None:
        """The model saves 2 us less where an op reads two sizes: its sources are two."""
        for net in whole.nets:
            reductions = sum(n for key, n in net.ops.items() if key.startswith("factorized_reduce"))
            plain_ms = sum(whole.sums(net).values()) - SAVING_MS * reductions
            assert plain_ms == pytest.approx(net.latency_ms, rel=0.01)

    def test_without_ops_alone(self, plan: Path, tmp_path: Path) -> None:
        gone = set(keys_of(plan, "op"))
        made = build_table(plan, rewritten(plan, tmp_path / "r", lambda r: None if r["key"] in gone else r))
        assert {r.isolated_ms for r in made.rows.values()} == {None}
        assert list(made.report["predictors"]) == ["flops", "uncorrected", "ours"]
        assert made.unsettled == list(made.rows)  # for these time was up

    def test_an_op_alone_that_failed_costs_only_the_comparison(
        self, plan: Path, whole: LatencyTable, tmp_path: Path
    ) -> None:
        key = next(iter(whole.rows))
        made = build_table(plan, rewritten(plan, tmp_path / "r", failing({key})))
        assert made.rows[key] == replace(whole.rows[key], isolated_ms=None)
        assert made.nets == whole.nets
        assert "sum" not in made.report["predictors"]
        assert made.unsettled == []

    @pytest.mark.parametrize("status", ["failed", "crashed"])
    def test_a_context_that_failed(self, plan: Path, whole: LatencyTable, tmp_path: Path, status: str) -> None:
        key = next(k for k in using(whole, "sep_conv") if any(k in n.ops for n in whole.nets))
        made = build_table(plan, rewritten(plan, tmp_path / "r", failing({f"context/{key}"}, status)))
        row = made.rows[key]
        assert (row.status, row.reason, row.latency_ms) == (status, "for the test", 0.0)
        assert (row.macs, row.bytes) == (whole.rows[key].macs, whole.rows[key].bytes)
        # Its networks are left out: they would have it for free.
        assert [n.key for n in made.nets] == [n.key for n in whole.nets if key not in n.ops]
        assert made.unsettled == []

    def test_a_boundary_that_failed(self, plan: Path, whole: LatencyTable, tmp_path: Path) -> None:
        boundary = keys_of(plan, "boundary")[-1]
        made = build_table(plan, rewritten(plan, tmp_path / "r", failing({boundary})))
        lost = {k for k, r in made.rows.items() if r.status != "ok"}
        assert lost == {k for k, op in assembly(plan).ops.items() if boundary in op.weights} != set()
        assert all(made.rows[k].reason == f"{boundary}: for the test" for k in lost)
        assert len(lost) < len(made.rows)

    def test_a_network_that_failed(self, plan: Path, whole: LatencyTable, tmp_path: Path) -> None:
        key = whole.nets[0].key
        made = build_table(plan, rewritten(plan, tmp_path / "r", failing({key})))
        assert made.nets == whole.nets[1:]
        assert made.correction.networks == 7
        assert made.unsettled == []

    def test_what_was_not_reached(self, plan: Path, whole: LatencyTable, tmp_path: Path) -> None:
        entries = load_plan(plan).entries
        reached = {e.key for e in entries[: len(keys_of(plan, "boundary")) + 20]}
        made = build_table(plan, rewritten(plan, tmp_path / "r", lambda r: r if r["key"] in reached else None))
        states = [(r.status, r.reason, r.latency_ms > 0) for r in made.rows.values()]
        assert states == [("ok", "", True)] * 20 + [("skipped", "time was up", False)] * (len(states) - 20)
        assert made.nets == []
        assert made.correction.networks == 0
        assert set(made.report["left_out"]) == {*keys_of(plan, "net"), *keys_of(plan, "op")}
        assert set(made.unsettled) == {*made.rows, *keys_of(plan, "net")}
        made.save(tmp_path / "t.json")
        assert set(LatencyTable.load(tmp_path / "t.json").unsettled) == set(made.unsettled)

    def test_networks_that_were_not_reached_are_unsettled(self, plan: Path, tmp_path: Path) -> None:
        gone = keys_of(plan, "net")[3:]
        made = build_table(plan, rewritten(plan, tmp_path / "r", lambda r: None if r["key"] in gone else r))
        assert [n.key for n in made.nets] == keys_of(plan, "net")[:3]
        assert made.unsettled == gone

    def test_what_is_doubtful_says_why(self, plan: Path, tmp_path: Path) -> None:
        """Of two entries, one a boundary, the visits differ so much that more were needed than there are."""
        boundary, context = keys_of(plan, "boundary")[0], keys_of(plan, "context")[-1]

        def noisy(r: dict[str, Any]) -> dict[str, Any]:
            factor = 1 + 0.2 * r["visit"] if r["key"] in (boundary, context) else 1
            return {**r, **{k: [factor * v for v in r[k]] for k in ("latency_ms", "wall_ms")}}

        made = build_table(plan, rewritten(plan, tmp_path / "r", noisy))
        rows = [r for r in made.rows.values() if r.status == "doubtful"]
        assert {r.key for r in rows} == set(made.unsettled)
        own = made.rows[context.removeprefix("context/")]
        assert own.stop == "timeout"
        assert {r.reason.split(" ")[0] for r in rows} == {boundary, context}
        assert all(r.latency_ms > 0 or r.ci_ms[1] > 0 for r in rows)

    def test_nothing_that_could_be_measured(self, plan: Path, tmp_path: Path) -> None:
        everything = {e.key for e in load_plan(plan).entries}
        with pytest.raises(HwnasError, match=r"r has no op that could be measured; of .* it says: for the test"):
            build_table(plan, rewritten(plan, tmp_path / "r", failing(everything)))

    def test_nothing_that_was_reached(self, plan: Path, tmp_path: Path) -> None:
        with pytest.raises(HwnasError, match="time was up before any op of .* was measured; go on with the same comm"):
            build_table(plan, rewritten(plan, tmp_path / "r", lambda r: None))

    def test_results_of_another_plan(self, plan: Path, tmp_path: Path) -> None:
        make_plan(SPACE, SCALES[:1], tmp_path, Calibration(2, 1))
        with pytest.raises(HwnasError, match="holds results of another plan"):
            build_table(tmp_path, plan / "results.jsonl")

    def test_the_conditions_are_in_the_report(self, whole: LatencyTable) -> None:
        found = whole.report["conditions"]
        assert found["visits"] > 0
        assert found["slow_share"] == 0
        assert abs(found["drift"]) < 0.01


class TestDerived:
    N = 5
    CALIBRATION = Calibration(refit=0, derived=N)

    @pytest.fixture
    def table(self, plan: Path) -> LatencyTable:
        return build_table(plan, plan / "results.jsonl")

    @pytest.fixture(autouse=True)
    def _plan(self, plan: Path) -> None:
        self.plan = plan

    def add(self, table: LatencyTable, folder: Path, told: Told | None = None) -> Path:
        """Add derived networks; return the folder that was measured."""
        seen = []

        def measure(where: Path, results: Path) -> None:
            seen.append(where)
            measure_plan(where, "fake", stop=STOP, results=results)

        add_derived(table, SPACE, SCALES, self.plan, folder, self.CALIBRATION, measure, told or SILENT)
        return seen[0]

    def test_they_are_marked_and_reported_apart(self, table: LatencyTable, tmp_path: Path) -> None:
        before, n, told = (table.correction, dict(table.report)), len(table.nets), Told()
        where = self.add(table, tmp_path, told)
        new = table.nets[n:]
        assert [done for done, *_ in told.bars["derive networks to check the table on"]] == list(range(self.N + 1))
        assert [net.use for net in new] == ["derived"] * len(new)
        assert 1 < len(new) <= self.N
        assert table.report.pop("derived")["n"] == len(new)
        assert (table.correction, dict(table.report)) == before
        uses = {key: network.use for key, network in assembly(where).networks.items()}
        assert uses.keys() == set(keys_of(where, "net"))
        assert {net.key for net in new} == {key for key, use in uses.items() if use == "derived"}
        assert np.abs([predict_ms(table, net) / net.latency_ms - 1 for net in new]).max() < 0.06

    def test_it_is_fitted_on_some_and_tested_on_others(self, table: LatencyTable, tmp_path: Path) -> None:
        before, folders = table.correction.networks, []

        def measure(where: Path, results: Path) -> None:
            folders.append(where)
            measure_plan(where, "fake", stop=STOP, results=results)

        calibration = Calibration(refit=4, derived=self.N)
        add_derived(table, SPACE, SCALES, self.plan, tmp_path, calibration, measure)
        first, second = ({n.key for n in table.nets if n.use == use} for use in ("fit", "derived"))
        assert len(set(folders)) == 2
        added = [{k for k, n in assembly(where).networks.items() if n.use in ("fit", "derived")} for where in folders]
        assert added[0] <= first
        assert second == added[1] - first
        assert before < table.correction.networks == len(first) <= before + 4
        assert table.report["derived"]["n"] == len(second) > 1
        assert table.report["derived"]["mape"] < 0.03
        again = build_table(self.plan, self.plan / "results.jsonl")
        add_derived(again, SPACE, SCALES, self.plan, tmp_path, calibration, measure)
        assert again == table
        assert len(set(folders)) == 2  # the same two

    def test_the_error_is_relative_to_networks_of_the_table(
        self, table: LatencyTable, plan: Path, tmp_path: Path
    ) -> None:
        """A machine that has become 3 % slower is not an error of the table."""

        def slower(r: dict[str, Any]) -> dict[str, Any]:
            return {**r, **{k: [1.03 * v for v in r[k]] for k in ("latency_ms", "wall_ms")}}

        def measure(where: Path, results: Path) -> None:
            measure_plan(where, "fake", stop=STOP, results=results)
            rewritten(where, where / "slower", slower).replace(results)

        same = replace(table)
        where = self.add(same, tmp_path / "a")
        known = {n.key: n for n in table.nets}
        anchors = [key for key, network in assembly(where).networks.items() if network.use == "anchor"]
        assert len(anchors) == len(set(anchors)) == ANCHORS
        found_ms = sorted(known[key].latency_ms for key in anchors)
        every_ms = [n.latency_ms for n in table.nets]
        assert (found_ms[0], found_ms[-1]) == (min(every_ms), max(every_ms))
        add_derived(table, SPACE, SCALES, plan, tmp_path / "b", self.CALIBRATION, measure)
        expected, found = same.report["derived"], table.report["derived"]
        assert len(expected["again"]) == len(found["again"]) == ANCHORS
        assert (expected["level"], found["level"]) == (pytest.approx(1.0, abs=2e-3), pytest.approx(1.03, abs=2e-3))
        assert found["bias"] == pytest.approx(expected["bias"], abs=2e-3)
        before_ms, after_ms = ([n.latency_ms for n in t.nets if n.use == "derived"] for t in (same, table))
        assert np.divide(after_ms, before_ms) == pytest.approx(1.0, abs=4e-3)

    def test_budgets_from_tight_to_generous_are_met_by_prediction(
        self, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        solve, asked = Solver.solve, []

        def record(self: Solver, probs: Matrices, budget_ms: float | None = None) -> object:
            solution = solve(self, probs, budget_ms)
            asked.append((self.fastest().latency_ms, budget_ms, solution.latency_ms))
            return solution

        monkeypatch.setattr(Solver, "solve", record)
        where = self.add(table, tmp_path)
        solved = [a for a in asked if a[1] is not None][: self.N]
        for fastest_ms, budget_ms, latency_ms in solved:
            assert fastest_ms <= latency_ms <= budget_ms * (1 + 1e-9)
        models = latency_models(SPACE, SCALES, table)
        for i, typical_ms in enumerate(np.median(random_latencies_ms(SPACE.problem, models, RANDOM, seed=0), axis=1)):
            budgets = [budget_ms for _, budget_ms, _ in solved[i::2]]  # the scales take turns
            assert solved[i][0] < budgets[0] < budgets[-1] <= typical_ms
            assert budgets == sorted(budgets)
        networks = assembly(where).networks
        for network in networks.values():
            check(SPACE, Architecture.from_json(network.architecture))
        assert {n.scale["channels"] for n in networks.values()} == {4, 8}

    def test_a_second_time_resumes(self, table: LatencyTable, plan: Path, tmp_path: Path) -> None:
        where = self.add(table, tmp_path)
        files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        again = build_table(plan, plan / "results.jsonl")
        told = Told()
        assert self.add(again, tmp_path, told) == where
        assert told.bars == {}  # nothing was derived anew
        assert again == table
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files

    def test_another_table_has_a_folder_of_its_own(self, table: LatencyTable, tmp_path: Path) -> None:
        other = replace(table, rows={k: replace(r, latency_ms=2 * r.latency_ms) for k, r in table.rows.items()})
        assert self.add(table, tmp_path) != self.add(other, tmp_path)

    def test_those_that_were_not_reached_are_unsettled(self, table: LatencyTable, plan: Path, tmp_path: Path) -> None:
        def measure(where: Path, results: Path) -> None:
            measure_plan(where, "fake", stop=STOP, results=results, minutes=0.0)

        n = len(table.nets)
        add_derived(table, SPACE, SCALES, plan, tmp_path, self.CALIBRATION, measure)
        assert len(table.nets) == n
        assert "derived" not in table.report
        assert len(table.unsettled) > 1
        assert all(re.fullmatch(r"net/.*-c[48]", key) for key in table.unsettled)
        again = build_table(plan, plan / "results.jsonl")
        self.add(again, tmp_path)
        assert again.unsettled == []
        assert again.report["derived"]["n"] == len(table.unsettled)


def test_a_model_of_a_partial_table_names_what_to_do(plan: Path, whole: LatencyTable, tmp_path: Path) -> None:
    gone = f"context/{next(using(whole, 'sep_conv'))}"
    made = build_table(plan, rewritten(plan, tmp_path / "r", lambda r: None if r["key"] == gone else r))
    with pytest.raises(HwnasError, match="sep_conv.* was not reached .*; go on with the same hwnas profile command"):
        LatencyModel([t for s in SCALES for t in trace_space(SPACE.at(s)).terms()], made, SPACE.problem)
