"""Measuring an exported file beside networks of the table it is held against."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwnas import validate
from hwnas.errors import HwnasError
from hwnas.files import write_atomic
from hwnas.latency import LatencyTable
from hwnas.ops import Trace
from hwnas.ops.onnx_graph import OpExporter
from hwnas.profile import Calibration, build_table, make_plan
from hwnas.runtime.engines.fake import modelled_ms
from hwnas.runtime.journal import read_journal
from hwnas.runtime.measure import Samples, StopRule, summarise
from hwnas.runtime.plan import Plan, load_plan
from hwnas.runtime.results import Row
from hwnas.runtime.work import measure_plan
from hwnas.spaces import DARTS_V2, ChainSpace, Scale, trace_space

SPACE = ChainSpace(Scale(4, 3, (24, 32)), 5, head_channels=8)
ENGINE = {"name": "fake", "threads": 1}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_plan(SPACE, [SPACE.scale], folder, Calibration(fit=3, test=1))
    measure_plan(folder, "fake", stop=StopRule(min_visits=3, max_visits=12, min_s=0.0))
    return folder


@pytest.fixture
def table(plan: Path) -> LatencyTable:
    return build_table(plan, plan / "results.jsonl")


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Trace]:
    traced = trace_space(SPACE, SPACE.architecture(DARTS_V2))
    path = tmp_path / "deploy" / "model.onnx"
    write_atomic(path, OpExporter().network(traced).SerializeToString())
    return path, traced


def test_references_are_the_fastest_networks_of_the_table(plan: Path, table: LatencyTable, tmp_path: Path) -> None:
    found = validate.references(plan, table)
    assert [r.latency_ms for r in found] == sorted(n.latency_ms for n in table.nets)[: validate.REFERENCES]
    assert validate.references(tmp_path, table) == []


def test_a_damaged_plan_is_not_taken_for_no_plan(plan: Path, table: LatencyTable, tmp_path: Path) -> None:
    write_atomic(tmp_path / "plan.json", (plan / "plan.json").read_bytes()[:-20])
    with pytest.raises(HwnasError, match=r"plan\.json"):
        validate.references(tmp_path, table)


def test_on_a_quiet_machine_it_is_measured_once(
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], runs: list[StopRule]
) -> None:
    where, row, slowdown = validate.measure_network(*model, "labels", ENGINE, validate.references(plan, table))
    assert where["engine"]["name"] == "fake"
    assert slowdown == pytest.approx(1.0, rel=0.002)
    assert (len(runs), row.visits) == (1, validate.STOP.min_visits)
    assert row.latency_ms == pytest.approx(modelled_ms(load_plan(model[0].parent).entries[0]), rel=0.003)
    _, alone, nothing = validate.measure_network(*model, "labels", ENGINE)
    assert nothing is None
    assert alone == row


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[StopRule]:
    """The rule of each measurement, which is done in this process by a clock that is not a model's."""
    found: list[StopRule] = []
    collect = validate.collect

    def here(folder: Path, engine: str, threads: int, stop: StopRule, results: Path, update: object) -> None:
        found.append(stop)
        measure_plan(folder, engine, threads, stop, results=results)

    def not_a_model(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        return {**where, "clock": "thread_cpu"}, rows

    monkeypatch.setattr(validate, "supervise", here)
    monkeypatch.setattr(validate, "collect", not_a_model)
    return found


def ticking(monkeypatch: pytest.MonkeyPatch, patience_s: float) -> None:
    """Let a second and a half go by whenever validation looks at the clock."""
    now_s = itertools.count(0.0, 1.5)
    monkeypatch.setattr(validate, "PATIENCE_S", patience_s)
    monkeypatch.setattr(validate, "time", SimpleNamespace(monotonic=lambda: next(now_s)))


@pytest.mark.parametrize(("patience_s", "tries"), [(0.0, 1), (2.5, 2), (4.0, 3)])
def test_a_machine_slower_than_the_table_is_waited_for_and_told(
    plan: Path,
    table: LatencyTable,
    model: tuple[Path, Trace],
    monkeypatch: pytest.MonkeyPatch,
    runs: list[StopRule],
    patience_s: float,
    tries: int,
) -> None:
    """The table says that its networks took two thirds of what they take now."""
    ticking(monkeypatch, patience_s)
    rows = [replace(r, latency_ms=r.latency_ms / 1.5) for r in validate.references(plan, table)]
    _, row, slowdown = validate.measure_network(*model, "labels", ENGINE, rows)
    assert slowdown == pytest.approx(1.5, rel=0.002)
    assert len(runs) == tries
    assert row.visits == tries * validate.STOP.min_visits  # what was measured before still counts
    assert row.n == sum(
        len(r["latency_ms"])
        for r in read_journal(model[0].parent / "validate.jsonl")[1]
        if r["type"] == "sample" and r["key"] == "net/model.onnx"
    )


def test_a_slow_model_clock_is_not_waited_for(
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking(monkeypatch, 1e9)
    rows = [replace(r, latency_ms=r.latency_ms / 2) for r in validate.references(plan, table)]
    _, row, slowdown = validate.measure_network(*model, "labels", ENGINE, rows)
    assert slowdown == pytest.approx(2, rel=0.002)
    assert row.visits == validate.STOP.min_visits


def test_a_doubtful_measurement_is_made_longer(
    model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch, runs: list[StopRule]
) -> None:
    ticking(monkeypatch, 2.5)
    collect = validate.collect

    def doubtful(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        return where, [replace(r, measurement=replace(r.measurement, doubtful=True)) for r in rows if r.measurement]

    monkeypatch.setattr(validate, "collect", doubtful)
    _, row, slowdown = validate.measure_network(*model, "labels", ENGINE)
    assert (row.doubtful, slowdown) == (True, None)
    first, second = runs
    assert (second.min_visits, second.max_visits) == (2 * first.min_visits, first.min_visits + first.max_visits)


def test_measuring_again_is_of_now(model: tuple[Path, Trace], runs: list[StopRule]) -> None:
    for _ in range(2):
        _, row, _ = validate.measure_network(*model, "labels", ENGINE)
        assert row.visits == validate.STOP.min_visits


def test_a_network_the_engine_cannot_run(model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch) -> None:
    collect = validate.collect

    def failed(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        return where, [Row(r.key, "failed", "for the test") for r in rows]

    monkeypatch.setattr(validate, "collect", failed)
    with pytest.raises(HwnasError, match=r"fake could not run .*model\.onnx: for the test"):
        validate.measure_network(*model, "labels", ENGINE)


@pytest.mark.parametrize(("budget_ms", "met"), [(2.0, True), (1.999, False), (4.0, True)])
def test_verdict_by_hand(budget_ms: float, met: bool) -> None:
    """Twenty quiet visits and twenty slow ones, each with an outlier: the budget is held against the quiet level."""
    visits = [Samples(np.array([ms, ms, 9.0]), np.array([ms, ms, ms]) + 1) for ms in [2.0] * 20 + [3.0] * 20]
    measured = summarise(visits, "ci", "wall")
    where = {"clock": "wall", "engine": {"threads": 2}, "batch": 1}
    found = validate.verdict(measured, where, 2.5, budget_ms, 1.01)
    assert (found["measured_ms"], found["wall_ms"], found["fps"]) == (2.0, 3.0, 500.0)
    times = np.concatenate([v.latency_ms for v in visits])
    assert [found[f"p{q}_ms"] for q in (50, 90, 99)] == pytest.approx(np.percentile(times, [50, 90, 99]).tolist())
    assert (found["p50_ms"], found["p99_ms"]) == (3.0, 9.0)  # of all samples, slow ones too
    assert found["error"] == pytest.approx(0.25)
    assert (found["met"], found["budget_fps"], found["slowdown"]) == (met, 1000 / budget_ms, 1.01)
    assert (found["doubtful"], found["threads"], found["clock"]) == (False, 2, "wall")


def test_a_reference_that_fails_says_nothing_about_speed(
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = validate.references(plan, table)
    collect = validate.collect

    def one_failed(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        return where, [Row(r.key, "failed", "for the test") if r.key == bad.entry.key else r for r in rows]

    monkeypatch.setattr(validate, "collect", one_failed)
    _, _, slowdown = validate.measure_network(*model, "labels", ENGINE, [good, bad])
    assert slowdown == pytest.approx(1.0, rel=0.002)
