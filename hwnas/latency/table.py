"""Latency tables: what each op costs on one device, how that was measured, and how well it predicts networks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hwnas.errors import HwnasError, MissingOp, ProvenanceError
from hwnas.files import canonical_json, read_json, sha256, write_atomic
from hwnas.latency.calibrate import Correction
from hwnas.ops.registry import OpSpec
from hwnas.runtime.device import device_name, same_device

SCHEMA = 1
UNMEASURED = ("failed", "crashed")
STATUS = ("ok", "doubtful", *UNMEASURED)


@dataclass(frozen=True)
class OpRow:
    """One measured op.

    Attributes:
        key: `OpSpec.key`.
        latency_ms: Median over passes of the median in each; 0 if it could not be measured.
        spread: Of the passes, (max - min) / median.
        n: Runs timed, over all passes.
        status: ``"ok"``, ``"doubtful"`` (noisy), ``"failed"`` or ``"crashed"``.
        reason: Why it is not ok.
    """

    key: str
    latency_ms: float
    spread: float
    n: int
    status: str = "ok"
    reason: str = ""


@dataclass(frozen=True)
class NetRow:
    """One measured whole network.

    Attributes:
        key: Its name in the plan.
        ops: How often it calls each op, by `OpSpec.key`.
        latency_ms: As in `OpRow`.
        spread: As in `OpRow`.
        use: ``"fit"`` if the correction was fitted on it, ``"test"`` if its error was measured on it.
    """

    key: str
    ops: Mapping[str, int]
    latency_ms: float
    spread: float
    use: str


@dataclass
class LatencyTable:
    """Measured ops of one device under one set of conditions.

    Attributes:
        where: Provenance: device, engine with version, precision and threads, clock, batch.
        rows: By `OpSpec.key`.
        nets: Whole networks measured beside them.
        correction: What turns a sum of ops into a network, fitted on some of `nets`.
        report: Its error on the other `nets`, for people.
        path: Where it was read from or written to, for messages.
    """

    where: Mapping[str, Any]
    rows: dict[str, OpRow]
    nets: Sequence[NetRow] = ()
    correction: Correction = field(default_factory=Correction)
    report: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def name(self) -> str:
        """How messages call it: device and engine."""
        engine = self.where["engine"]
        return f"{device_name(self.where)}/{engine['name']}-{engine['precision']}-b{self.where['batch']}"

    def __getitem__(self, spec: OpSpec) -> float:
        """Return the latency of one op in isolation, in milliseconds.

        Raises:
            MissingOp: If it was never measured, or could not be. The message names the table and the command that
                adds it.
        """
        row = self.rows.get(spec.key)
        if row is None:
            raise MissingOp(
                f"the table {self.path or self.name} has no row for {spec.key}; "
                "measure it with: hwnas profile RECIPE --run NAME, with the recipe that needs it"
            )
        if row.status in UNMEASURED:
            raise MissingOp(
                f"{spec.key} could not be measured for {self.path or self.name}: {row.reason or row.status}"
            )
        return row.latency_ms

    def require_device(self, where: Mapping[str, Any], allow_foreign: bool = False) -> None:
        """Refuse to speak for another device.

        Raises:
            ProvenanceError: If `where` is not the device the table was measured on and `allow_foreign` is False.
        """
        if not allow_foreign and not same_device(self.where, where):
            raise ProvenanceError(
                f"the table {self.path or self.name} was measured on {device_name(self.where)}, this is "
                f"{device_name(where)}; measure here with hwnas profile, or plan for that device with --foreign-table"
            )

    def save(self, path: Path) -> None:
        """Write the table, one row per line, with a checksum of all it says."""
        head = {
            "schema": SCHEMA,
            "sha256": sha256(canonical_json(self._content())),
            "where": self.where,
            "correction": self.correction.to_json(),
            "report": self.report,
        }
        lines = [f"{json.dumps(k)}: {json.dumps(v, sort_keys=True, allow_nan=False)}," for k, v in head.items()]
        rows = ",\n".join(json.dumps(asdict(r), allow_nan=False) for _, r in sorted(self.rows.items()))
        nets = ",\n".join(json.dumps(asdict(n), allow_nan=False) for n in self.nets)
        text = "{\n" + "\n".join(lines) + f'\n"rows": [\n{rows}\n],\n"nets": [\n{nets}\n]\n}}\n'
        write_atomic(path, text)
        self.path = path

    def _content(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "correction": self.correction.to_json(),
            "report": self.report,
            "rows": [asdict(r) for _, r in sorted(self.rows.items())],
            "nets": [asdict(n) for n in self.nets],
        }

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            HwnasError: If it is missing, damaged, of an unknown schema, or holds a number no latency can be; the
                message names the file and, where there is one, the row.
        """
        data = read_json(path, "a latency table")
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise HwnasError(f"{path}: a latency table of schema {SCHEMA} was expected, got {found!r}; measure it anew")
        try:
            rows = [_row(OpRow, r, path, i) for i, r in enumerate(data["rows"])]
            nets = [_row(NetRow, r, path, i) for i, r in enumerate(data["nets"])]
            table = cls(data["where"], {r.key: r for r in rows}, nets, Correction.from_json(data["correction"]))
            table.report, table.path = data["report"], path
            said = data["sha256"]
        except (KeyError, TypeError) as e:
            raise HwnasError(f"{path} is not a whole latency table: {e}; measure it anew") from e
        if len(table.rows) != len(rows):
            twice = next(r.key for i, r in enumerate(rows) if r.key in {other.key for other in rows[:i]})
            raise HwnasError(f"{path} has two rows for {twice}; measure it anew")
        if said != sha256(canonical_json(table._content())):
            raise HwnasError(f"{path} was changed after it was measured: its checksum does not fit; measure it anew")
        return table


RowType = TypeVar("RowType", OpRow, NetRow)


def _row(kind: type[RowType], data: Any, path: Path, index: int) -> RowType:
    row = kind(**data)
    if not (isinstance(row.latency_ms, int | float) and 0 <= row.latency_ms <= sys.float_info.max):
        raise HwnasError(f"{path}, row {index}: {row.latency_ms!r} is not a latency in milliseconds")
    if isinstance(row, OpRow) and row.status not in STATUS:
        raise HwnasError(f"{path}, row {index}: status {row.status!r} is none of {', '.join(STATUS)}")
    return row
