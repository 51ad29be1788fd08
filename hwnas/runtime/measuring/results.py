"""What the records of a results file say: what is left to do, what an entry took, whose fault a death was.

Whose fault is a death? A signal such as SIGSEGV, an exit or a hang is the engine's, at the entry it was at: two of
them, and the entry is `crashed`; five, if it has been measured before. SIGKILL, SIGTERM and the like may come from a
user or from a system short of memory, and after a death of everything at once nobody can tell. These prove something
only when they keep striking: five at the same visit to the same entry. That visit is the first one to be tried after
each of them, so kills at random moments would have to hit it five times in a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from hwnas.errors import HwnasError
from hwnas.runtime.measuring.journal import Record, read_journal
from hwnas.runtime.measuring.measure import DEFAULT_STOP, Measurement, Samples, StopRule, level, samples_from, summarise
from hwnas.runtime.measuring.plan import Plan

DEATHS = 2  # by the engine's own doing, at any visit of an entry that was never measured
DEATHS_LATER = 5  # the same for an entry that was: not all its visits are deadly
OUTSIDE_DEATHS = 5  # by a signal from outside, or with everything else, at one and the same visit
REFERENCE_EVERY = 25  # visits between two of the reference op
SLOW = 1.05  # of its quiet level: the machine was slow


@dataclass(frozen=True)
class Row:
    """One entry over all its visits.

    Attributes:
        key: The entry.
        status: ``"ok"``, or ``"failed"`` or ``"crashed"`` if that happened in any visit.
        reason: Why it is not ok, else empty.
        measurement: None unless ok.
    """

    key: str
    status: str
    reason: str = ""
    measurement: Measurement | None = None


@dataclass(frozen=True)
class Conditions:
    """How restless the machine was, by an op that was timed again and again.

    Attributes:
        reference: Key of that op; empty if it never was timed.
        visits: How often it was timed.
        slow_share: Share of these in which it was more than 5 % above its quiet level.
        drift: Its quiet level in the second half over that in the first, less one.
    """

    reference: str = ""
    visits: int = 0
    slow_share: float = 0.0
    drift: float = 0.0


class History:
    """What the records of a results file say.

    Attributes:
        stop: When an entry needs no more visits: the rule that was given last.
        done: Number of visits.
        references: How often the reference op was timed.
        reference_due: Whether it is to be timed again.
        before_s: How long the processes that are gone have been measuring.
    """

    def __init__(self, records: Sequence[Record], plan: Plan) -> None:
        """Take all records into account."""
        self.stop, self.done = DEFAULT_STOP, 0
        self.references, self.reference_due = 0, True
        self.before_s = max((float(r["at_s"]) for r in records if "at_s" in r), default=0.0)
        self._since_reference = 0
        self._nets = {e.key for e in plan.entries if e.role == "net"}
        # Reference or not and key of the engine's own deaths; the visit too of all others.
        self._deaths: Counter[tuple[bool, str]] = Counter()
        self._outside: Counter[tuple[bool, str, int]] = Counter()
        self._bad: dict[str, Record] = {}
        self._reasons: dict[str, str] = {}
        self._first_s: dict[str, float] = {}
        self._medians_ms: dict[str, list[float]] = {}
        self._reached: dict[str, tuple[int, str | None]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take one more record into account."""
        kind = record.get("type")
        if kind == "rule":
            self.stop = StopRule(**{name: value for name, value in record.items() if name != "type"})
            self._reached = {}
            return
        key, reference = str(record.get("key")), bool(record.get("reference"))
        which = (reference, key, int(record.get("visit", -1)))
        if kind == "start":
            self._outside[which] += 1  # until something tells otherwise
        elif not (kind == "death" and record.get("outside")):
            self._outside[which] -= 1
        if kind == "death":
            self._reasons[key] = str(record.get("reason"))
            self._deaths[reference, key] += not record.get("outside")
        elif kind == "reference":
            self.references += 1
            self._since_reference, self.reference_due = 0, False
        elif kind == "sample":
            self._add_sample(key, record)

    def _add_sample(self, key: str, record: Record) -> None:
        self.done += 1
        self._since_reference += 1
        self.reference_due = self.references == 0 or self._since_reference >= REFERENCE_EVERY
        self._first_s.setdefault(key, float(record.get("at_s", 0.0)))
        if record.get("status") == "ok":
            self._medians_ms.setdefault(key, []).append(median(samples_from(record).latency_ms.tolist()))
        else:
            self._bad[key] = record

    def visits(self, key: str) -> int:
        """Return how often an entry has been visited."""
        return len(self._medians_ms.get(key, ())) + (key in self._bad)

    def medians_ms(self, key: str) -> Sequence[float]:
        """Return the median of each visit to an entry, in their order."""
        return self._medians_ms.get(key, ())

    def bad(self, key: str) -> Record | None:
        """Return the record that says why an entry cannot be measured, if there is one."""
        return self._bad.get(key)

    def reached(self, key: str) -> str | None:
        """Return why an entry needs no more visits, None if it does or has none."""
        medians = self._medians_ms.get(key, [])
        known = self._reached.get(key)
        if known is None or known[0] != len(medians):
            known = self._reached[key] = (len(medians), self.stop.reached(medians, key in self._nets))
        return known[1]

    def first_s(self, key: str) -> float:
        """Return how long had been measured when an entry was first visited."""
        return self._first_s.get(key, 0.0)

    def crash(self, key: str, visit_: int, reference: bool = False) -> str | None:
        """Return why an entry is not to be tried again, else None."""
        limit = DEATHS_LATER if key in self._medians_ms else DEATHS
        if self._deaths[reference, key] >= limit or self._outside[reference, key, visit_] >= OUTSIDE_DEATHS:
            return self._reasons.get(key, "everything died several times while it was measured")
        return None


def collect(results: Path, plan: Plan) -> tuple[Record, list[Row]]:
    """Read a results file.

    Args:
        results: What `measure_plan` wrote.
        plan: The plan that was measured.

    Returns:
        Where it was measured (the provenance), and one row per entry that was visited, by key.

    Raises:
        HwnasError: If the file cannot be read or is damaged, or is of another plan.
    """
    header, records = read_journal(results)
    if header["plan"] != plan.id:
        raise HwnasError(f"{results} holds results of another plan; measure this one, or name its own results")
    history = History(records, plan)
    samples: dict[str, list[Samples]] = {}
    for record in records:
        if record.get("type") == "sample":
            found = samples.setdefault(str(record["key"]), [])
            if record.get("status") == "ok":
                found.append(samples_from(record))
    rows = []
    for key in sorted(samples):
        bad = history.bad(key)
        if bad is not None:
            rows.append(Row(key, str(bad["status"]), str(bad.get("reason", ""))))
            continue
        measured = summarise(samples[key], history.reached(key) or "timeout", str(header["where"]["clock"]))
        rows.append(Row(key, "ok", measurement=measured))
    return header["where"], rows


def conditions(results: Path) -> Conditions:
    """Return how restless the machine was while a results file was made.

    Raises:
        HwnasError: If the file cannot be read or is damaged.
    """
    found = [r for r in read_journal(results)[1] if r.get("type") == "reference" and r.get("status") == "ok"]
    if not found:
        return Conditions()
    medians = [median(samples_from(r).latency_ms.tolist()) for r in found]
    half = len(medians) // 2
    drift = level(medians[half:]) / level(medians[:half]) - 1 if half else 0.0
    slow = float(np.mean(np.array(medians) > SLOW * level(medians)))
    return Conditions(str(found[0]["key"]), len(medians), slow, drift)
