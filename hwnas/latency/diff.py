"""How two latency tables differ: row by row, by kind of op, and in the conditions they were measured under."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from hwnas.latency.table import UNMEASURED, LatencyTable, NetRow, OpRow
from hwnas.runtime.measuring.device import DENORMALS

CLOSE = 0.01  # entries are measured to intervals of about 1 % on either side: smaller differences are not resolved
IRRELEVANT = (
    "device.logical_cpus",
    "cpus.allowed",
    "os",
    "python",
    "hwnas",
    f"engine.options.{DENORMALS}",
)  # may change without making a table out of date
NETWORK = "(network)"

Verdict = Literal["better", "worse", "ambiguous"]
Order = Literal["faster", "slower", "cannot tell"]


@dataclass(frozen=True)
class RowDiff:
    """One op, or one network, that two tables have measured.

    Attributes:
        kind: Kind of the op; `NETWORK` for a network.
        a: Row of the first table.
        b: Row of the second table.
    """

    kind: str
    a: OpRow | NetRow
    b: OpRow | NetRow

    @property
    def ratio(self) -> float | None:
        """Latency in the second table over that in the first; None for an op that was free there."""
        return self.b.latency_ms / self.a.latency_ms if self.a.latency_ms else None

    @property
    def verdict(self) -> Verdict:
        """How the second table compares: faster is better.

        Ambiguous where the 95 % intervals overlap, or the latencies differ by less than `CLOSE` of the larger one.
        """
        a_ms, b_ms = self.a.latency_ms, self.b.latency_ms
        overlap = max(self.a.ci_ms[0], self.b.ci_ms[0]) <= min(self.a.ci_ms[1], self.b.ci_ms[1])
        if overlap or abs(b_ms - a_ms) < CLOSE * max(a_ms, b_ms):
            return "ambiguous"
        return "better" if b_ms < a_ms else "worse"


@dataclass(frozen=True)
class KindDiff:
    """All rows of one kind.

    Attributes:
        rows: How many there are.
        ratio: Median of their ratios; None if there are none.
        verdicts: How many of each.
    """

    rows: int
    ratio: float | None
    verdicts: Mapping[Verdict, int]


@dataclass(frozen=True)
class Change:
    """One condition that differs between two provenances.

    Attributes:
        name: Dotted path: ``"engine.version"``.
        old: In the first; of two lists, what only the first has. None if it says nothing.
        new: In the second, likewise.
    """

    name: str
    old: Any
    new: Any

    @property
    def counts(self) -> bool:
        """Whether latencies measured under one are out of date under the other."""
        later = self.name.startswith("cpus.") and self.old is None  # older tables do not say
        return self.name not in IRRELEVANT and not later


@dataclass(frozen=True)
class TableDiff:
    """Two tables held against each other.

    Attributes:
        ops: Measured in both, by key.
        nets: Networks of the same ops that were measured in both.
        only_a: Keys of ops that only the first table measured.
        only_b: Keys of ops that only the second table measured.
        where: Conditions that differ.
    """

    ops: tuple[RowDiff, ...]
    nets: tuple[RowDiff, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    where: tuple[Change, ...]


def diff_tables(a: LatencyTable, b: LatencyTable) -> TableDiff:
    """Compare `b` with `a`; they may be of different devices. Rows that could not be measured count as missing."""
    rows_a, rows_b = _measured(a), _measured(b)
    nets_a = {n.key: n for n in a.nets}
    nets = [(nets_a[n.key], n) for n in b.nets if n.key in nets_a and nets_a[n.key].ops == n.ops]
    return TableDiff(
        tuple(RowDiff(row.kind, row, rows_b[key]) for key, row in sorted(rows_a.items()) if key in rows_b),
        tuple(RowDiff(NETWORK, old, new) for old, new in nets),
        tuple(sorted(rows_a.keys() - rows_b.keys())),
        tuple(sorted(rows_b.keys() - rows_a.keys())),
        changes(a.where, b.where),
    )


def _measured(table: LatencyTable) -> dict[str, OpRow]:
    return {key: row for key, row in table.rows.items() if row.status not in UNMEASURED}


def by_kind(rows: Iterable[RowDiff]) -> dict[str, KindDiff]:
    """Return a summary of the rows of each kind, by name of the kind."""
    groups: dict[str, list[RowDiff]] = {}
    for row in rows:
        groups.setdefault(row.kind, []).append(row)
    return {kind: _summary(groups[kind]) for kind in sorted(groups)}


def _summary(rows: list[RowDiff]) -> KindDiff:
    verdicts: dict[Verdict, int] = {"better": 0, "worse": 0, "ambiguous": 0}
    for row in rows:
        verdicts[row.verdict] += 1
    return KindDiff(len(rows), median_ratio(rows), verdicts)


def median_ratio(rows: Iterable[RowDiff]) -> float | None:
    """Return the median of the ratios of some rows; None where no row has one."""
    ratios = [row.ratio for row in rows if row.ratio is not None]
    return median(ratios) if ratios else None


def flatten(where: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a provenance by dotted path: ``{"engine.options.provider": ...}``."""
    out: dict[str, Any] = {}
    for key, value in where.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return the conditions in which two provenances differ, both as JSON values."""
    a, b = flatten(old), flatten(new)
    return tuple(_change(name, a.get(name), b.get(name)) for name in sorted(a | b) if a.get(name) != b.get(name))


def _change(name: str, old: Any, new: Any) -> Change:
    if isinstance(old, list) and isinstance(new, list):  # of dozens of instruction sets, the few that differ
        return Change(name, [v for v in old if v not in new], [v for v in new if v not in old])
    return Change(name, old, new)


def least_difference(relative_error: float) -> float:
    """Return by how much two predictions must differ, as a difference of logarithms, to tell them apart.

    With 95 % confidence, for independent errors of this size (root mean square).
    """
    return 1.96 * math.sqrt(2) * relative_error


def order(a_ms: float, b_ms: float, relative_error: float | None) -> Order:
    """Return how a predicted latency compares with another by the same table, with 95 % confidence.

    Args:
        a_ms: Of the one network.
        b_ms: Of the other, possibly at another scale.
        relative_error: Of the table's predictions; without it the answer is "cannot tell".
    """
    if relative_error is None:
        return "cannot tell"
    apart = math.log(a_ms / b_ms)
    if abs(apart) <= least_difference(relative_error):
        return "cannot tell"
    return "faster" if apart < 0 else "slower"
