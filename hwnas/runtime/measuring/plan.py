"""A plan is a folder: ONNX files of what to measure, and `plan.json`, the list of them with checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json, sha256, write_atomic

SCHEMA = 3
PLAN_FILE = "plan.json"
ROLES = ("op", "context", "boundary", "net", "copies", "application")
PRECISIONS = ("fp32", "tf32", "fp16")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One op of an entry, with what it costs on paper.

    Attributes:
        op: Name of the op, e.g. ``"sep_conv"``.
        attrs: Its settings, JSON values.
        in_shapes: Shape of each input, (N, C, H, W).
        inputs: Name of each input value.
        output: Name of the value it makes.
        out_shape: Shape of that value.
        macs: Multiply-accumulates.
        bytes: Bytes read and written: inputs, weights and output.
    """

    op: str
    attrs: Mapping[str, Any]
    in_shapes: tuple[Shape, ...]
    inputs: tuple[str, ...]
    output: str
    out_shape: Shape
    macs: int
    bytes: int


@dataclass(frozen=True)
class Entry:
    """One thing to measure.

    Attributes:
        key: Unique in its plan.
        role: ``"op"``, an op alone; ``"context"``, an op between neighbours; ``"boundary"``, neighbours alone;
            ``"net"``, a whole network; ``"copies"``, the same with its input copied to the device and its output back;
            ``"application"``, from a camera image in the host's memory to labels in the host's memory.
        onnx: Path of the ONNX file inside the plan folder; None for engines that need no file.
        sha256: Hex digest of that file.
        calls: The ops, in the order they run.
        inputs: Shape of each network input by name; all are float32.
        outputs: Names of the network outputs.
    """

    key: str
    role: str
    onnx: str | None
    sha256: str | None
    calls: tuple[Call, ...]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]

    def output_shapes(self) -> dict[str, Shape]:
        """Return the shape of each output, in order."""
        shapes = {**self.inputs, **{c.output: c.out_shape for c in self.calls}}
        return {name: shapes[name] for name in self.outputs}


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        id: SHA-256 of the canonical JSON of all this.
        entries: With unique keys, what matters most first.
        precision: What engines compute in, one of `PRECISIONS`. Files have float16 inside where it is ``"fp16"``, and
            float32 inputs and outputs always; ``"tf32"`` is float32 in the file.
    """

    id: str
    entries: tuple[Entry, ...]
    precision: str = "fp32"


def plan_id(entries: Sequence[Entry], precision: str = "fp32") -> str:
    """Return the id of a plan of these entries."""
    return _id([asdict(entry) for entry in entries], precision)


def write_plan(folder: Path, entries: Sequence[Entry], precision: str = "fp32") -> Plan:
    """Write `plan.json` into `folder`, beside ONNX files that are already there.

    Raises:
        HwnasError: If an entry is not valid, or its ONNX file is missing or has another checksum.
    """
    rows = [asdict(entry) for entry in entries]
    plan = _parse(json.loads(canonical_json(rows)), precision, folder / PLAN_FILE)
    _check_files(folder, plan)
    lines = ",\n".join(canonical_json(row) for row in rows)  # one entry per line: diffs stay readable
    head = f'"schema":{SCHEMA},"id":"{plan.id}","precision":"{precision}"'
    write_atomic(folder / PLAN_FILE, f'{{{head},"entries":[\n{lines}\n]}}\n')
    return plan


def load_plan(folder: Path) -> Plan:
    """Read a plan folder and check all of it: schema, id, keys, shapes and the checksum of every file.

    Raises:
        HwnasError: Naming the file and the entry.
    """
    path = folder / PLAN_FILE
    content = read_json(path, "a plan")
    if not isinstance(content, dict) or not {"schema", "id", "entries"} <= set(content):
        raise HwnasError(f"{path} is not a plan: expected an object with schema, id and entries; write it again")
    if content["schema"] != SCHEMA:
        raise HwnasError(f"{path} has schema {content['schema']!r}, this version reads {SCHEMA}; write the plan again")
    plan = _parse(content["entries"], content.get("precision"), path)
    if plan.id != content["id"]:
        raise HwnasError(f"{path} was changed after it was written: its id does not match its entries; write it again")
    _check_files(folder, plan)
    return plan


def checked_bytes(entry: Entry, folder: Path) -> bytes:
    """Return the content of the entry's ONNX file.

    Raises:
        HwnasError: If the entry has no file, it cannot be read, or its checksum differs.
    """
    if entry.onnx is None:
        raise HwnasError(f"entry {entry.key!r} has no ONNX file; this engine needs one, write the plan with files")
    path = folder / entry.onnx
    try:
        content = path.read_bytes()
    except OSError as e:
        raise HwnasError(f"cannot read {path} of entry {entry.key!r}: {e.strerror}; copy the whole folder") from e
    if sha256(content) != entry.sha256:
        raise HwnasError(f"{path} of entry {entry.key!r} does not match its checksum; copy or write the plan again")
    return content


def _check_files(folder: Path, plan: Plan) -> None:
    for entry in plan.entries:
        if entry.onnx is not None:
            checked_bytes(entry, folder)


def _id(rows: Any, precision: str) -> str:
    return sha256(canonical_json({"precision": precision, "entries": rows}))


def _parse(rows: Any, precision: Any, path: Path) -> Plan:
    if precision not in PRECISIONS:
        raise HwnasError(f"{path}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not isinstance(rows, list):
        raise HwnasError(f"{path}: entries must be a list, got {type(rows).__name__}")
    entries: dict[str, Entry] = {}
    for i, row in enumerate(rows):
        name = repr(row.get("key", i)) if isinstance(row, dict) else str(i)
        try:
            entry = _entry(row)
        except (TypeError, ValueError) as e:
            raise HwnasError(f"{path}: entry {name}: {e}; write the plan again") from e
        if entry.key in entries:
            raise HwnasError(f"{path}: entry {name}: the key occurs twice")
        entries[entry.key] = entry
    return Plan(_id(rows, precision), tuple(entries.values()), precision)


def _entry(row: Any) -> Entry:
    _fields(row, Entry)
    entry = Entry(
        key=_text(row, "key"),
        role=_text(row, "role"),
        onnx=None if row["onnx"] is None else _text(row, "onnx"),
        sha256=None if row["sha256"] is None else _text(row, "sha256"),
        calls=tuple(_call(call) for call in _list(row, "calls")),
        inputs={str(name): _shape(shape) for name, shape in dict(row["inputs"]).items()},
        outputs=tuple(str(name) for name in _list(row, "outputs")),
    )
    if entry.role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, got {entry.role!r}")
    if (entry.onnx is None) != (entry.sha256 is None):
        raise ValueError("onnx and sha256 go together: give both or neither")
    parts = PurePosixPath(entry.onnx or "").parts
    if ".." in parts or "\\" in (entry.onnx or "") or parts[:1] == ("/",):
        raise ValueError(f"onnx must be a path inside the plan folder, got {entry.onnx!r}")
    known = {*entry.inputs, *(call.output for call in entry.calls)}
    unmade = [name for name in entry.outputs if name not in known]
    if unmade or not entry.outputs:
        raise ValueError(f"outputs must name values that its calls make, got {list(entry.outputs)}")
    return entry


def _call(row: Any) -> Call:
    _fields(row, Call)
    if not isinstance(row["attrs"], dict):
        raise TypeError(f"attrs must be an object, got {row['attrs']!r}")
    call = Call(
        op=_text(row, "op"),
        attrs=row["attrs"],
        in_shapes=tuple(_shape(shape) for shape in _list(row, "in_shapes")),
        inputs=tuple(str(name) for name in _list(row, "inputs")),
        output=_text(row, "output"),
        out_shape=_shape(row["out_shape"]),
        macs=_count(row, "macs"),
        bytes=_count(row, "bytes"),
    )
    if len(call.inputs) != len(call.in_shapes):
        raise ValueError(f"call {call.op!r} has {len(call.inputs)} inputs and {len(call.in_shapes)} in_shapes")
    return call


def _fields(row: Any, kind: type[Entry | Call]) -> None:
    names = {f.name for f in fields(kind)}
    if not isinstance(row, dict) or set(row) != names:
        got = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise TypeError(f"expected an object with {', '.join(sorted(names))}, got {got}")


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row[name], str) or not row[name]:
        raise TypeError(f"{name} must be a text, got {row[name]!r}")
    return str(row[name])


def _list(row: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(row[name], list):
        raise TypeError(f"{name} must be a list, got {row[name]!r}")
    return list(row[name])


def _shape(value: Any) -> Shape:
    if not isinstance(value, list) or not all(type(d) is int and d > 0 for d in value):
        raise TypeError(f"a shape must be a list of positive integers, got {value!r}")
    return tuple(value)


def _count(row: dict[str, Any], name: str) -> int:
    if type(row[name]) is not int or row[name] < 0:
        raise TypeError(f"{name} must be an integer and not negative, got {row[name]!r}")
    return int(row[name])
