"""Latency tables: what each op costs on one device, how that was measured, and how well it predicts networks."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from hwnas.errors import HwnasError, MissingOp, ProvenanceError
from hwnas.files import canonical_json, read_json, sha256, write_atomic
from hwnas.latency.calibrate import Correction
from hwnas.ops.registry import OpSpec
from hwnas.runtime.measuring.device import device_name, same_device

SCHEMA = 4
UNMEASURED = ("failed", "crashed", "skipped")
STATUS = ("ok", "doubtful", *UNMEASURED)
STOPS = ("ci", "stable", "timeout", "")
USES = ("fit", "test", "derived")
AMOUNTS = ("macs", "bytes", "spread", "repeatability", "n", "visits")


@dataclass(frozen=True)
class OpRow:
    """One measured op.

    Attributes:
        key: `OpSpec.key`.
        latency_ms: What it costs inside a network; 0 if it could not be measured.
        ci_ms: (low, high) that holds this with about 95 % confidence.
        isolated_ms: Latency of the op alone, overheads of a run included; None if that was not measured.
        macs: Multiply-adds.
        bytes: Bytes read and written.
        spread: Interquartile range of the visits over their median: how restless the machine was.
        n: Runs timed, over all visits.
        visits: Visits.
        stop: Why there were no more: ``"ci"``, ``"stable"``, ``"timeout"``.
        status: ``"ok"``, ``"doubtful"`` (not precise enough), ``"failed"``, ``"crashed"``, or ``"skipped"`` (time was
            up before it was reached).
        reason: Why it is not ok.
        about: Further facts of a device with a clock of its own: ``enqueue_ms`` (launched one by one, without a graph)
            and ``cold_ms`` (after the second-level cache was flushed), priced like `latency_ms`; and of the entry that
            has the op in context ``sm_mhz``, ``dropped`` samples and ``throttled_visits``, ``builds`` and
            ``build_spread`` (the slowest over the fastest build, less one).
    """

    key: str
    latency_ms: float
    ci_ms: tuple[float, float] = (0.0, 0.0)
    isolated_ms: float | None = None
    macs: int = 0
    bytes: int = 0
    spread: float = 0.0
    n: int = 0
    visits: int = 0
    stop: str = ""
    status: str = "ok"
    reason: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Kind of the op, e.g. ``"sep_conv"``."""
        return self.key.partition("(")[0]


@dataclass(frozen=True)
class NetRow:
    """One measured whole network.

    Attributes:
        key: Its name in the plan.
        ops: How often it calls each op, by `OpSpec.key`.
        latency_ms: Measured.
        use: ``"fit"`` if the correction was fitted on it, ``"test"`` if its error was measured on it, ``"derived"`` if
            that was done on its own, because it was derived with this table.
        ci_ms: As in `OpRow`; so are `spread`, `n`, `visits`, `stop`, `status` and `about`.
        repeatability: Relative difference between the latencies from odd and from even visits.
    """

    key: str
    ops: Mapping[str, int]
    latency_ms: float
    use: str
    ci_ms: tuple[float, float] = (0.0, 0.0)
    repeatability: float = 0.0
    spread: float = 0.0
    n: int = 0
    visits: int = 0
    stop: str = ""
    status: str = "ok"
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How many ops it calls."""
        return sum(self.ops.values())


@dataclass
class LatencyTable:
    """Measured ops of one device under one set of conditions.

    Attributes:
        where: Provenance: device, engine with version, precision and threads, clock, batch.
        rows: By `OpSpec.key`.
        nets: Whole networks measured beside them.
        correction: What turns a sum of ops into a network, fitted on some of `nets`.
        report: Its error on the other `nets`, beside that of simpler predictors, for people; ``left_out`` has the keys
            of what was not reached when time was up, networks and ops alone.
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

    @property
    def unsettled(self) -> list[str]:
        """Keys of ops and networks that measuring once more may settle: doubtful ones and those time left out."""
        states = [(r.key, r.status) for r in self.rows.values()] + [(n.key, n.status) for n in self.nets]
        keys = [key for key, status in states if status in ("doubtful", "skipped")]
        return list(dict.fromkeys([*keys, *self.report.get("left_out", ())]))

    def __getitem__(self, spec: OpSpec) -> float:
        """Return what one op costs inside a network, uncorrected, in milliseconds.

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
        if row.status == "skipped":
            raise MissingOp(
                f"{spec.key} was not reached when {self.path or self.name} was measured; go on with the same hwnas "
                "profile command, without --minutes"
            )
        if row.status in UNMEASURED:
            raise MissingOp(
                f"{spec.key} could not be measured for {self.path or self.name}: {row.reason or row.status}"
            )
        return row.latency_ms

    def sums(self, net: NetRow) -> dict[str, float]:
        """Return the uncorrected milliseconds of a network by kind of op."""
        out: dict[str, float] = {}
        for key, n in net.ops.items():
            row = self.rows[key]
            out[row.kind] = out.get(row.kind, 0.0) + n * row.latency_ms
        return out

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
        write_atomic(path, self.text())
        self.path = path

    def text(self) -> str:
        """Return the one text of the table: what `save` writes."""
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
        return "{\n" + "\n".join(lines) + f'\n"rows": [\n{rows}\n],\n"nets": [\n{nets}\n]\n}}\n'

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
        data = read_json(path, "a latency table", nan=True)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise HwnasError(f"{path}: a latency table of schema {SCHEMA} was expected, got {got!r}; measure it anew")
        try:
            rows = [_row(OpRow, r, path, i) for i, r in enumerate(data["rows"])]
            nets = [_row(NetRow, r, path, i) for i, r in enumerate(data["nets"])]
            table = cls(data["where"], {r.key: r for r in rows}, nets, Correction.from_json(data["correction"]))
            table.report, table.path = data["report"], path
            checksum, text = data["sha256"], table.text()
        except HwnasError:
            raise  # names the row already
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise HwnasError(f"{path} is not a whole latency table: {e}; measure it anew") from e
        for what, keys in (("row", [r.key for r in rows]), ("network", [n.key for n in nets])):
            if len(set(keys)) != len(keys):
                i = next(i for i, key in enumerate(keys) if key in keys[:i])
                raise HwnasError(f"{path}, {what} {i}: {keys[i]} has a row already; measure it anew")
        # Bytes, not text: reading text takes a carriage return for a line feed.
        if checksum != sha256(canonical_json(table._content())) or path.read_bytes() != text.encode():
            raise HwnasError(f"{path} was changed after it was measured: its checksum does not fit; measure it anew")
        return table


RowType = TypeVar("RowType", OpRow, NetRow)


def _row(kind: type[RowType], data: Any, path: Path, index: int) -> RowType:
    """Return a row of a file, refusing what no measurement gives."""
    at = f"{path}, {'row' if kind is OpRow else 'network'} {index}"
    names = {f.name for f in fields(kind)}
    if not isinstance(data, dict) or set(data) != names:
        got = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise HwnasError(f"{at}: expected {', '.join(sorted(names))}, got {got}; measure it anew")
    at += f" ({data['key']!r})"
    times = [data["latency_ms"]] + ([] if data.get("isolated_ms") is None else [data["isolated_ms"]])
    times += data["ci_ms"] if isinstance(data["ci_ms"], list) and len(data["ci_ms"]) == 2 else [None]
    for ms in times:
        if not _is_amount(ms):
            raise HwnasError(f"{at}: {ms!r} is not a latency in milliseconds; measure it anew")
    for name in sorted(names & set(AMOUNTS)):
        if not _is_amount(data[name]):
            raise HwnasError(f"{at}: {name} must be a number and not negative, got {data[name]!r}; measure it anew")
    if not isinstance(data["about"], dict):
        raise HwnasError(f"{at}: about must be an object, got {data['about']!r}; measure it anew")
    for name, allowed in (("status", STATUS), ("stop", STOPS), ("use", USES)):
        if name in data and data[name] not in allowed:
            raise HwnasError(f"{at}: {name} {data[name]!r} is none of {', '.join(allowed)}; measure it anew")
    return kind(**{**data, "ci_ms": tuple(data["ci_ms"])})


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max
