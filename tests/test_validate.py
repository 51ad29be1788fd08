"""Measuring an exported file beside networks of the table it is held against."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwnas import validate
from hwnas.errors import HwnasError
from hwnas.files import write_atomic
from hwnas.latency import LatencyTable
from hwnas.ops import Trace
from hwnas.ops.onnx_graph import OpExporter
from hwnas.profile import Calibration, build_table, make_plan
from hwnas.runtime.journal import Journal, read_journal
from hwnas.runtime.work import Row, measure_plan
from hwnas.spaces import DARTS_V2, ChainSpace, Scale, trace_space

SPACE = ChainSpace(Scale(4, 3, (24, 32)), 5, head_channels=8)
ENGINE = {"name": "fake", "threads": 1}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_plan(SPACE, [SPACE.scale], folder, Calibration(fit=3, test=1))
    measure_plan(folder, "fake", passes=1)
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
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate.time, "sleep", lambda s: pytest.fail("it waited"))
    where, row, slowdown = validate.measure_network(*model, "labels", ENGINE, validate.references(plan, table))
    assert where["engine"]["name"] == "fake"
    assert slowdown == pytest.approx(1.0)
    assert row.passes == validate.PASSES
    assert row.latency_ms is not None
    _, alone, nothing = validate.measure_network(*model, "labels", ENGINE)
    assert nothing is None
    assert alone.latency_ms == row.latency_ms


@pytest.mark.parametrize(("patience_s", "tries"), [(0.0, 1), (2.5, 2)])
def test_a_machine_slower_than_the_table_is_waited_for_and_told(
    plan: Path,
    table: LatencyTable,
    model: tuple[Path, Trace],
    monkeypatch: pytest.MonkeyPatch,
    patience_s: float,
    tries: int,
) -> None:
    """The table says that its networks took two thirds of what they take now."""
    rows = [validate.Reference(r.entry, r.content, r.latency_ms / 1.5) for r in validate.references(plan, table)]
    now_s, waited = [0.0], []
    monkeypatch.setattr(validate, "PATIENCE_S", patience_s)
    monkeypatch.setattr(validate.time, "monotonic", lambda: now_s.append(now_s[-1] + 1.5) or now_s[-1])
    monkeypatch.setattr(validate.time, "sleep", waited.append)
    monkeypatch.setattr(validate, "supervise", _here)
    _, row, slowdown = validate.measure_network(*model, "labels", ENGINE, rows)
    assert slowdown == pytest.approx(1.5)
    assert waited == [validate.PAUSE_S] * (tries - 1)
    assert row.passes > validate.PASSES if tries > 1 else row.passes == validate.PASSES


def _here(folder: Path, engine: str, threads: int, passes: int, results: Path, update: object) -> None:
    """Measure in this process: the clock of the test is not the child's."""
    measure_plan(folder, engine, threads, passes, results=results)


def test_a_reference_that_fails_says_nothing_about_speed(
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = validate.references(plan, table)
    collect = validate.collect

    def one_failed(results: Path) -> tuple[dict[str, object], list[Row]]:
        where, rows = collect(results)
        return where, [Row(r.key, "failed", "for the test") if r.key == bad.entry.key else r for r in rows]

    monkeypatch.setattr(validate, "collect", one_failed)
    _, _, slowdown = validate.measure_network(*model, "labels", ENGINE, [good, bad])
    assert slowdown == pytest.approx(1.0)


def test_a_network_with_an_op_that_failed_is_left_out_of_the_correction(plan: Path, tmp_path: Path) -> None:
    header, records = read_journal(plan / "results.jsonl")
    failed = next(r["key"] for r in records if r["type"] == "sample" and r["key"].startswith("dil_conv"))
    with Journal(tmp_path / "r.jsonl", {k: v for k, v in header.items() if k != "schema"}) as journal:
        for r in records:
            bad = r["key"] == failed and r["type"] == "sample"
            journal.append(
                {**{k: r[k] for k in ("type", "key", "pass")}, "status": "failed", "reason": "x"} if bad else r
            )
    made, whole = build_table(plan, tmp_path / "r.jsonl"), build_table(plan, plan / "results.jsonl")
    assert made.rows[failed].status == "failed"
    assert any(failed in n.ops for n in whole.nets)
    assert [n.key for n in made.nets] == [n.key for n in whole.nets if failed not in n.ops]
