"""Latency tables: what they say, what they refuse, and what is on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwnas.errors import HwnasError, MissingOp
from hwnas.files import canonical_json, sha256
from hwnas.latency import Correction, LatencyTable, NetRow, OpRow
from hwnas.ops import OpSpec
from tests.contracts import TableContract, paper_table


def spec(kind: str) -> OpSpec:
    return OpSpec(kind, (), ((1, 4, 8, 8),))


RELU, POOL, ADD, CONCAT, UP = (spec(k) for k in ("relu", "global_pool", "add", "concat", "upsample"))
ROWS = [
    OpRow(RELU.key, 0.25, (0.2, 0.3), 0.4, 0, 2048, 0.01, 300, 20, "ci"),
    OpRow(POOL.key, 0.5, (0.1, 0.9), None, 256, 1024, 0.2, 500, 100, "timeout", "doubtful", "not precise enough"),
    OpRow(ADD.key, 0.0, status="failed", reason="not implemented"),
    OpRow(CONCAT.key, 0.0, status="crashed"),
    OpRow(UP.key, 0.0, status="skipped", reason="time was up"),
]
NETS = [
    NetRow("net/a-c4", {RELU.key: 2, POOL.key: 1}, 1.0, "fit", (0.99, 1.01), 0.001, 0.01, 300, 20, "ci"),
    NetRow("net/b-c4", {RELU.key: 3}, 0.75, "test", (0.7, 0.8), 0.02, 0.1, 500, 100, "timeout", "doubtful"),
    NetRow("net/c-c4", {POOL.key: 3}, 1.5, "derived", (1.4, 1.6), 0.0, 0.1, 500, 40, "stable"),
]
# Keys of ops are long; the laws about single bytes need a table of every sort of row, not a long one.
SMALL = [ROWS[0], ROWS[2]], [replace(NETS[0], ops={RELU.key: 2})]


class TestContract(TableContract):
    @pytest.fixture
    def table(self) -> LatencyTable:
        made = paper_table(*SMALL, Correction(0.05, 0.9, {"relu": 0.5}, 0.02, 0.03, 12))
        made.report = {"noise_floor": 0.01}
        return made


@pytest.fixture
def table() -> LatencyTable:
    made = paper_table(ROWS, NETS, Correction(0.05, 0.9, {"relu": 0.5}, 0.02, 0.03, 12))
    made.report = {"noise_floor": 0.01}
    return made


def test_what_is_doubtful_counts_and_what_was_not_measured_does_not(table: LatencyTable) -> None:
    assert table[RELU] == 0.25
    assert table[POOL] == 0.5
    with pytest.raises(MissingOp, match=r"add\(\)@1x4x8x8 could not be measured for paper/paper-fp32-b1: not impl"):
        _ = table[ADD]
    with pytest.raises(MissingOp, match=r"concat\(\)@1x4x8x8 could not be measured .*: crashed"):
        _ = table[CONCAT]
    with pytest.raises(MissingOp, match=r"upsample\(\)@1x4x8x8 was not reached .*; go on with the same hwnas profile"):
        _ = table[UP]


def test_sums_by_kind(table: LatencyTable) -> None:
    assert table.sums(NETS[0]) == {"relu": 0.5, "global_pool": 0.5}
    other = replace(ROWS[0], key="relu()@1x4x4x4", latency_ms=0.125)
    table.rows[other.key] = other
    assert table.sums(NetRow("net/d", {RELU.key: 2, other.key: 4}, 1.0, "fit")) == {"relu": 1.0}


def test_unsettled_is_what_measuring_once_more_may_settle(table: LatencyTable) -> None:
    assert table.unsettled == [POOL.key, UP.key, "net/b-c4"]  # what failed or crashed would do so again
    table.report = {"left_out": ["net/d-c4", UP.key]}
    assert table.unsettled == [POOL.key, UP.key, "net/b-c4", "net/d-c4"]
    assert paper_table(ROWS[:1], NETS[:1]).unsettled == []


NAN, INF = float("nan"), float("inf")


def field(where: str, index: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data[where][index].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (field("rows", 2, latency_ms=NAN), r"row 2 \('global_pool\(\)@1x4x8x8'\): nan is not a latency in milli"),
        (field("rows", 2, latency_ms=INF), "row 2 .*: inf is not a latency"),
        (field("rows", 2, latency_ms=-INF), "row 2 .*: -inf is not a latency"),
        (field("rows", 2, latency_ms=-0.1), r"row 2 .*: -0\.1 is not a latency"),
        (field("rows", 2, latency_ms="0.1"), "row 2 .*: '0.1' is not a latency"),
        (field("rows", 2, latency_ms=None), "row 2 .*: None is not a latency"),
        (field("rows", 2, latency_ms=True), "row 2 .*: True is not a latency"),
        (field("rows", 2, latency_ms=10**400), "row 2 .*: 1000.* is not a latency"),
        (field("rows", 3, isolated_ms=NAN), r"row 3 \('relu\(\)@1x4x8x8'\): nan is not a latency"),
        (field("rows", 3, isolated_ms=-1.0), r"row 3 .*: -1\.0 is not a latency"),
        (field("rows", 3, isolated_ms=""), "row 3 .*: '' is not a latency"),
        (field("rows", 3, ci_ms=[0.1, NAN]), "row 3 .*: nan is not a latency"),
        (field("rows", 3, ci_ms=[-0.1, 0.1]), r"row 3 .*: -0\.1 is not a latency"),
        (field("rows", 3, ci_ms=[0.1]), "row 3 .*: None is not a latency"),
        (field("rows", 3, ci_ms=0.1), "row 3 .*: None is not a latency"),
        (field("rows", 3, spread=NAN), "row 3 .*: spread must be a number and not negative, got nan"),
        (field("rows", 3, macs=-5), "row 3 .*: macs must be a number and not negative, got -5"),
        (field("rows", 3, bytes=INF), "row 3 .*: bytes must be a number and not negative, got inf"),
        (field("rows", 3, n="many"), "row 3 .*: n must be a number and not negative, got 'many'"),
        (field("nets", 1, latency_ms=-1), r"network 1 \('net/b-c4'\): -1 is not a latency"),
        (field("nets", 1, ci_ms=[INF, INF]), "network 1 .*: inf is not a latency"),
        (field("nets", 1, repeatability=NAN), "network 1 .*: repeatability must be a number and not negative, got nan"),
        (field("nets", 1, visits=-1), "network 1 .*: visits must be a number"),
        (field("rows", 1, status="great"), "row 1 .*: status 'great' is none of ok, doubtful, failed, crashed, skipp"),
        (field("rows", 1, status=["ok"]), r"row 1 .*: status \['ok'\] is none of ok"),
        (field("rows", 1, stop="soon"), "row 1 .*: stop 'soon' is none of ci, stable, timeout"),
        (field("nets", 2, status=""), "network 2 .*: status '' is none of ok"),
        (field("nets", 2, use="train"), "network 2 .*: use 'train' is none of fit, test, derived"),
        (lambda d: d["rows"].append(d["rows"][0]), r"row 5: add\(\)@1x4x8x8 has a row already"),
        (lambda d: d["nets"].append(d["nets"][1]), "network 3: net/b-c4 has a row already"),
        (
            field("rows", 0, colour="red"),
            r"row 0: expected about, bytes, ci_ms, .*, got \['about', 'bytes', 'ci_ms', 'colour'",
        ),
        (lambda d: d["rows"][0].pop("key"), "row 0: expected about, bytes, ci_ms, .*, got "),
        (lambda d: d["nets"][0].pop("use"), "network 0: expected about, ci_ms, .*, got "),
        (lambda d: d["nets"].append(7), "network 3: expected about, ci_ms, .*, got int"),
        (field("rows", 1, about=None), "row 1 .*: about must be an object, got None"),
        (field("nets", 0, about={"cold_ms": NAN}), "is not a whole latency table: .*not JSON compliant"),
        (field("rows", 0, key=["a"]), "is not a whole latency table: unhashable"),
        (lambda d: d.pop("nets"), "is not a whole latency table: 'nets'"),
        (lambda d: d.pop("sha256"), "is not a whole latency table: 'sha256'"),
        (lambda d: d.update(rows=3), "is not a whole latency table"),
        (lambda d: d.update(correction={"slope": 1.0}), "is not a whole latency table: .*slope"),
        (lambda d: d.update(correction=None), "is not a whole latency table"),
        (lambda d: d["correction"].update(base_ms=NAN), "is not a whole latency table: .*not JSON compliant"),
        (lambda d: d["where"].update(clock="wall"), "its checksum does not fit"),
        (lambda d: d["report"].update(noise_floor=0.0), "its checksum does not fit"),
        (lambda d: d.update(sha256="0" * 64), "its checksum does not fit"),
        (lambda d: d["rows"].reverse(), "its checksum does not fit"),
        (lambda d: None, "its checksum does not fit"),  # only the layout differs
    ],
)
def test_a_bad_file_is_refused_by_name_and_row(
    table: LatencyTable, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "bad.json"
    table.save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(HwnasError, match=rf"bad\.json.*{message}") as caught:
        LatencyTable.load(path)
    assert str(caught.value).count("measure it anew") == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 4, "schema": 4}', '{"schema": 4}', "\x00"])
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(HwnasError, match=r"bad\.json"):
        LatencyTable.load(tmp_path / "bad.json")


def test_a_number_beyond_floats_is_refused_by_row(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "bad.json")
    text = (tmp_path / "bad.json").read_text()
    (tmp_path / "bad.json").write_text(text.replace('"latency_ms": 0.25', '"latency_ms": 1e999'))
    with pytest.raises(HwnasError, match=r"bad\.json, row 3 \('relu.*: inf is not a latency"):
        LatencyTable.load(tmp_path / "bad.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match=r"cannot read a latency table at .*none\.json: No such file"):
        LatencyTable.load(tmp_path / "none.json")


def test_an_interrupted_write_leaves_the_old_file(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_checksum_is_of_all_the_table_says(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "t.json")
    data = json.loads((tmp_path / "t.json").read_text())
    said = {k: data[k] for k in ("where", "correction", "report", "rows", "nets")}
    assert data.keys() == {*said, "schema", "sha256"}
    assert data["sha256"] == sha256(canonical_json(said))


def test_a_table_that_holds_no_number_is_not_written(table: LatencyTable, tmp_path: Path) -> None:
    table.rows[RELU.key] = replace(ROWS[0], latency_ms=NAN)
    with pytest.raises(ValueError, match="not JSON compliant"):
        table.save(tmp_path / "t.json")
    assert not list(tmp_path.iterdir())
