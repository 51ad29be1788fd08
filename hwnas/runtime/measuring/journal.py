"""Results as they come: an append-only file of JSON lines that survives a kill at any moment.

Every line is the canonical JSON of one record with a `crc32` of the line without it, written before the next visit
starts and synced every second. A last line without its newline was being written when the process died: it is dropped.
Anything else that is not exactly what was written is an error that names the line.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError, ProvenanceError, SystemRefusal, refusal
from hwnas.files import canonical_json, naming, sync, sync_dir
from hwnas.lock import Lock
from hwnas.runtime.measuring.device import SINCE

SCHEMA = 2
SYNC_S = 1.0  # a kill loses nothing that was written; a power cut loses what is younger than this
LOCK_S = 2.0  # a killed process holds its lock until the system has cleared it away
_CRC32 = re.compile(rb',"crc32":(\d+)(?=}$)|"crc32":(\d+),')
Record = dict[str, Any]


def read_journal(path: Path) -> tuple[Record, list[Record]]:
    """Read a journal, also while it is being written.

    Returns:
        Its header (schema, plan, where) and the records after it, in order.

    Raises:
        HwnasError: If it cannot be read, is empty, or a line is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise HwnasError(f"cannot read results at {path}: {e.strerror}") from e
    lines, _ = _parse(data, path)
    if not lines:
        raise HwnasError(f"{path} holds no results yet; run the measurement")
    return lines[0], lines[1:]


class Journal:
    """The one writer of a results file; a context manager that holds its lock.

    Attributes:
        records: All records after the header: those found on entering, and those appended since.
    """

    def __init__(self, path: Path, header: Mapping[str, Any] | None = None) -> None:
        """Name the file; nothing is opened before entering.

        Args:
            path: The file, made if it does not exist.
            header: Plan id and provenance that a new file gets and an old one must have. None accepts the header
                of an existing file.
        """
        self.path = path
        self.records: list[Record] = []
        self._header = None if header is None else {"schema": SCHEMA, **header}
        self._fd = -1
        self._stack = ExitStack()
        self._synced_s = 0.0

    def __enter__(self) -> Journal:
        """Lock, drop a torn last line, check or write the header.

        Raises:
            HwnasError: If another process writes here, the file cannot be opened, or a line is damaged.
            ProvenanceError: If its header differs from the one given.
        """
        create = 0 if self._header is None else os.O_CREAT
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | create, 0o666)
        except OSError as e:
            raise SystemRefusal(f"cannot open results at {refusal(e, self.path)}") from e
        held = f"another process measures into {self.path}; wait for it or use another results file"
        try:
            self._stack.callback(os.close, self._fd)
            self._stack.enter_context(Lock(self.path, held, LOCK_S))
            self._stack.callback(self._sync, self._fd)
            self._recover()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Sync and close the file, and release the lock."""
        self._fd = -1
        self._stack.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; it survives a kill of this process at once, a power cut after a second.

        Raises:
            HwnasError: If it holds NaN, infinity or a negative latency, or cannot be written.
        """
        try:
            line = _encode(record)
        except (TypeError, ValueError) as e:
            raise HwnasError(f"refused to record {dict(record)}: {e}") from e
        size = os.fstat(self._fd).st_size
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            if time.monotonic() - self._synced_s >= SYNC_S:
                sync(self._fd)
                self._synced_s = time.monotonic()
        except BaseException as e:
            os.ftruncate(self._fd, size)  # half a line in the middle would spoil what comes after it
            if isinstance(e, OSError):
                raise SystemRefusal(f"cannot write results to {refusal(e, self.path)}") from e
            raise
        self.records.append(dict(record))

    def _sync(self, fd: int) -> None:
        with naming(self.path):
            sync(fd)

    def _recover(self) -> None:
        data = b"".join(iter(lambda: os.read(self._fd, 1 << 20), b""))
        lines, good = _parse(data, self.path)
        os.ftruncate(self._fd, good)
        if lines:
            if self._header is not None:
                _check_header(lines[0], json.loads(canonical_json(self._header)), self.path)
            self.records = lines[1:]
        elif self._header is None:
            raise HwnasError(f"{self.path} holds no results yet; run the measurement")
        else:
            self.append(self._header)
            self.records = []
            sync_dir(self.path.parent)


def _encode(record: Mapping[str, Any]) -> bytes:
    """Return the line of a record."""
    _check_times(record)
    crc32 = zlib.crc32(canonical_json(dict(record)).encode())
    return (canonical_json({**record, "crc32": crc32}) + "\n").encode()


def _decode(line: bytes) -> Record:
    """Return the record of a line without its newline; raise ValueError unless it is exactly what was written."""
    found = _CRC32.search(line)
    if found is None:
        raise ValueError("it has no checksum")
    body = line[: found.start()] + line[found.end() :]
    if (found[1] or found[2]) != b"%d" % zlib.crc32(body):
        raise ValueError("its checksum does not match")
    record = json.loads(body)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    _check_times(record)
    return record


def _parse(data: bytes, path: Path) -> tuple[list[Record], int]:
    """Return the whole lines, header first, and the number of bytes they take."""
    good = data.rfind(b"\n") + 1
    lines: list[Record] = []
    for number, line in enumerate(data[:good].split(b"\n")[:-1], start=1):
        try:
            lines.append(_decode(line))
        except (ValueError, RecursionError) as e:
            raise HwnasError(f"{path} line {number} is damaged: {e}; measure into another results file") from e
    if lines and lines[0].get("schema") != SCHEMA:
        got = lines[0].get("schema")
        raise HwnasError(f"{path} line 1 has schema {got!r}, this version reads {SCHEMA}; use another results file")
    if lines and not (isinstance(lines[0].get("plan"), str) and isinstance(lines[0].get("where"), dict)):
        raise HwnasError(f"{path} line 1 is not a header of results: it needs plan and where")
    return lines, good


def _check_times(record: Mapping[str, Any]) -> None:
    for name, value in record.items():
        if name.endswith("_ms"):
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= 0:
                    raise ValueError(f"{name} must be a number and not negative, got {number!r}")


def _check_header(old: Record, new: Record, path: Path) -> None:
    if old.get("plan") != new.get("plan"):
        raise ProvenanceError(f"{path} holds results of another plan; use another results file")
    for name, was, now in _differences(old, new):
        if (name in SINCE and was == "null") or name == "where.cpus.allowed":  # threads keep to CPUs of their own
            continue
        raise ProvenanceError(f"{path} was measured with {name} = {was}, now it is {now}; use another results file")


def _differences(old: Any, new: Any, name: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted name, old, new) of every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for key in sorted(old.keys() | new.keys()):
            out += _differences(old.get(key), new.get(key), f"{name}.{key}".removeprefix("."))
        return out
    return [] if old == new else [(name, json.dumps(old), json.dumps(new))]
