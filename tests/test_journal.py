"""The results file: what was written is read back, and nothing else is."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import HwnasError, ProvenanceError
from hwnas.runtime.measuring import journal as journal_module
from hwnas.runtime.measuring.journal import SCHEMA, Journal, read_journal

HEADER = {"plan": "p1", "where": {"clock": "model", "engine": {"name": "fake", "threads": 1}}}
RECORDS = [
    {"type": "start", "key": "a", "visit": 0},
    {"type": "sample", "key": "a", "visit": 0, "latency_ms": 1e-5, "ci_ms": [0.1, 0.25], "reason": "µs, not ms"},
]


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LOCK_S", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    with Journal(path, HEADER) as journal:
        for record in RECORDS:
            journal.append(record)
    return path


def test_what_was_appended_is_read(path: Path) -> None:
    header, records = read_journal(path)
    assert header == {"schema": SCHEMA, **HEADER}
    assert records == RECORDS
    with Journal(path, HEADER) as journal:
        assert journal.records == RECORDS
        journal.append({"type": "more"})
        assert journal.records == [*RECORDS, {"type": "more"}]
    assert read_journal(path)[1] == [*RECORDS, {"type": "more"}]


def test_a_line_is_an_object_with_a_checksum(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert all(isinstance(json.loads(line)["crc32"], int) for line in lines)


def test_a_line_torn_at_any_byte_is_dropped_and_truncated(path: Path) -> None:
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_journal(path)[1] == RECORDS[:1]
        with Journal(path, HEADER) as journal:
            assert journal.records == RECORDS[:1]
            journal.append(RECORDS[1])
        assert path.read_bytes() == whole


def test_a_torn_header_is_written_anew(path: Path) -> None:
    whole = path.read_bytes()
    for cut in (0, 1, whole.index(b"\n")):
        path.write_bytes(whole[:cut])
        with pytest.raises(HwnasError, match="holds no results yet"):
            read_journal(path)
        with Journal(path, HEADER) as journal:
            assert journal.records == []
        assert read_journal(path) == ({"schema": SCHEMA, **HEADER}, [])


def test_every_single_bit_flip_is_detected(path: Path) -> None:
    whole = path.read_bytes()
    for i in range(len(whole) - 1):  # the last newline is what tells a torn line: tested above
        for bit in range(8):
            changed = bytearray(whole)
            changed[i] ^= 1 << bit
            path.write_bytes(bytes(changed))
            with pytest.raises(HwnasError, match=r"results\.jsonl line [123] "):
                read_journal(path)


@settings(max_examples=300)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_every_single_byte_change_is_detected(tmp_path_factory: pytest.TempPathFactory, at: float, byte: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "results.jsonl"
    with Journal(path, HEADER) as journal:
        for record in RECORDS:
            journal.append(record)
    whole = bytearray(path.read_bytes())
    i = int(at * (len(whole) - 1))
    same = whole[i] == byte
    whole[i] = byte
    path.write_bytes(bytes(whole))
    if same:
        assert read_journal(path)[1] == RECORDS
    else:
        with pytest.raises(HwnasError, match=r"results\.jsonl line [123] "):
            read_journal(path)


def test_a_damaged_line_names_file_and_line(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1].replace(b'"a"', b'"b"'), *lines[2:]]))
    message = r"results\.jsonl line 2 is damaged: its checksum does not match; measure into another"
    with pytest.raises(HwnasError, match=message):
        read_journal(path)
    with pytest.raises(HwnasError, match=message), Journal(path, HEADER):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "1", None, True])
def test_a_latency_that_is_none_is_refused_and_leaves_no_trace(path: Path, value: object) -> None:
    whole = path.read_bytes()
    with Journal(path, HEADER) as journal:
        with pytest.raises(HwnasError, match="refused to record"):
            journal.append({"type": "sample", "latency_ms": value})
        with pytest.raises(HwnasError, match="refused to record"):
            journal.append({"type": "sample", "ci_ms": [0.1, value]})
    assert path.read_bytes() == whole


def test_another_plan_or_provenance_is_refused(path: Path) -> None:
    with pytest.raises(ProvenanceError, match="holds results of another plan; use another results file"):
        Journal(path, {**HEADER, "plan": "p2"}).__enter__()
    where = {"clock": "model", "engine": {"name": "fake", "threads": 2}}
    with pytest.raises(ProvenanceError, match=r"with where\.engine\.threads = 1, now it is 2; use another results"):
        Journal(path, {**HEADER, "where": where}).__enter__()
    with Journal(path) as journal:  # without a header it takes what is there
        assert journal.records == RECORDS


def test_an_unknown_schema_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SCHEMA", SCHEMA + 1)
    with pytest.raises(HwnasError, match=f"has schema {SCHEMA}, this version reads {SCHEMA + 1}"):
        read_journal(path)


def test_a_first_line_that_is_no_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(journal_module._encode({"schema": SCHEMA, "plan": "p"}))
    with pytest.raises(HwnasError, match="line 1 is not a header"):
        read_journal(path)


def test_a_second_writer_is_refused(path: Path) -> None:
    with Journal(path, HEADER), pytest.raises(HwnasError, match="another process measures into .*results"):
        Journal(path, HEADER).__enter__()
    with Journal(path, HEADER):
        pass  # the lock is gone


def test_a_lock_that_is_about_to_go_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process holds its lock until the system has cleared it away."""
    monkeypatch.setattr(journal_module, "LOCK_S", 30.0)
    holder = Journal(path, HEADER).__enter__()
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            holder.__exit__()

    monkeypatch.setattr(journal_module.time, "sleep", sleep)
    with Journal(path, HEADER) as journal:
        assert journal.records == RECORDS
    assert len(waits) == 3


def _append_from_a_child(path: Path) -> None:
    journal_module.LOCK_S = 0.0  # this process has read the module anew
    try:
        with Journal(path, HEADER) as journal:
            journal.append({"type": "from the child"})
    except HwnasError:
        os._exit(7)


def test_a_writer_in_another_process_is_refused(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with Journal(path, HEADER):
        child = context.Process(target=_append_from_a_child, args=(path,))
        child.start()
        child.join(30)
        assert child.exitcode == 7
    assert read_journal(path)[1] == RECORDS


def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, write = path.read_bytes(), os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 20:
            return write(fd, data[:20])
        raise OSError(28, "No space left on device")

    with Journal(path, HEADER) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(HwnasError, match=r"cannot write results to .*No space left"):
                journal.append({"type": "sample", "key": "b"})
        assert path.read_bytes() == whole
        journal.append({"type": "after"})
    assert read_journal(path)[1] == [*RECORDS, {"type": "after"}]


def test_30000_visits_are_read_in_seconds(tmp_path: Path) -> None:
    path, times = tmp_path / "long.jsonl", [round(1 + i / 7, 7) for i in range(25)]
    with Journal(path, HEADER) as journal:
        journal.append({"type": "sample", "key": "a", "visit": 0, "latency_ms": times, "wall_ms": times})
    head, line = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + 30_000 * line)
    start_s = time.process_time()
    assert len(read_journal(path)[1]) == 30_000
    assert time.process_time() - start_s < 3


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="cannot read results at .*No such file"):
        read_journal(tmp_path / "none.jsonl")
    with pytest.raises(HwnasError, match="cannot open results at .*No such file"):
        Journal(tmp_path / "none.jsonl").__enter__()
    with pytest.raises(HwnasError, match="cannot open results at .*No such file"):
        Journal(tmp_path / "no" / "folder.jsonl", HEADER).__enter__()
