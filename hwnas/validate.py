"""Proof on the device: latency and fps of the exported file, its accuracy, and predicted against measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.data.augment import normalise
from hwnas.data.base import SegmentationData
from hwnas.draw import colourise, save_panel
from hwnas.errors import HwnasError
from hwnas.files import sha256, write_atomic
from hwnas.latency.table import LatencyTable
from hwnas.metrics import ConfusionMatrix
from hwnas.ops.trace import Trace
from hwnas.profile import trace_entry
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.measure import Measurement, StopRule
from hwnas.runtime.plan import PLAN_FILE, Entry, checked_bytes, load_plan, write_plan
from hwnas.runtime.results import collect
from hwnas.runtime.supervise import supervise
from hwnas.ui import Update, ignore

PICTURES = 4
REFERENCES = 2
CLOSE = 0.03  # the references may be so much slower than in the table before the machine counts as slow
STOP = StopRule(min_visits=30, max_visits=100, min_s=6.0)
PATIENCE_S = 60.0  # slow spells of a shared machine were seen to last from seconds to half a minute


@dataclass(frozen=True)
class Reference:
    """A network of the table's own plan, measured again beside the new one.

    Attributes:
        entry: As in the plan.
        content: Its ONNX file.
        latency_ms: What the table says it took.
    """

    entry: Entry
    content: bytes
    latency_ms: float


def references(plan: Path, table: LatencyTable) -> list[Reference]:
    """Return the `REFERENCES` fastest networks of a table whose plan is still there, else none.

    Raises:
        HwnasError: If the plan is there and damaged.
    """
    if not (plan / PLAN_FILE).exists():
        return []
    took_ms = {n.key: n.latency_ms for n in table.nets}
    found = [e for e in load_plan(plan).entries if e.key in took_ms]
    found.sort(key=lambda e: took_ms[e.key])
    return [Reference(e, checked_bytes(e, plan), took_ms[e.key]) for e in found[:REFERENCES]]


def measure_network(
    model: Path,
    trace: Trace,
    output: str,
    engine: Mapping[str, Any],
    beside: Sequence[Reference] = (),
    update: Update = ignore,
) -> tuple[dict[str, Any], Measurement, float | None]:
    """Measure an exported file in a process of its own, under the conditions of a table.

    Where the machine is slower than it was for the table, which the references tell, it is measured again for up to
    `PATIENCE_S`: its quiet level counts.

    Args:
        model: The ONNX file, in a folder that may be written to.
        trace: Of the network in it.
        output: Name of its output.
        engine: The table's ``where["engine"]``.
        beside: Networks of the table.
        update: Told after each measurement.

    Returns:
        Provenance of the measurement, the measurement, and how much slower than in the table the references were
        (1.0 is as fast; None without references).

    Raises:
        HwnasError: If the engine could not run it.
    """
    folder = model.parent
    results = folder / "validate.jsonl"
    results.unlink(missing_ok=True)  # a measurement is of now
    key = f"net/{model.name}"
    entries = [trace_entry("net", key, trace, model.name, sha256(model.read_bytes()), output)]
    for n, r in enumerate(beside):
        name = f"reference-{n}.onnx"
        write_atomic(folder / name, r.content)
        entries.append(replace(r.entry, onnx=name))
    plan = write_plan(folder, entries)
    start_s, stop = time.monotonic(), STOP
    while True:
        supervise(
            folder,
            str(engine["name"]),
            int(engine["threads"]),
            stop,
            results,
            lambda p: update(p.done, total=p.total),
        )
        where, rows = collect(results, plan)
        by_key = {r.key: r for r in rows}
        measured = by_key[key].measurement
        if measured is None:
            raise HwnasError(f"{engine['name']} could not run {model}: {by_key[key].reason}")
        found = [(r, by_key[r.entry.key].measurement) for r in beside]
        ratios = [m.latency_ms / r.latency_ms for r, m in found if m is not None]
        slowdown = float(np.median(ratios)) if ratios else None
        quiet = not measured.doubtful and (slowdown is None or slowdown <= 1 + CLOSE)
        if quiet or where["clock"] == "model" or time.monotonic() - start_s > PATIENCE_S:
            return where, measured, slowdown
        # What was measured so far stays in the results; as many visits again go on top.
        more = max(m.visits for m in (measured, *(m for _, m in found if m is not None)))
        stop = replace(STOP, min_visits=more + STOP.min_visits, max_visits=more + STOP.max_visits)


def score(model: Path, data: SegmentationData, pictures: Path, update: Update = ignore) -> ConfusionMatrix:
    """Run an exported file over a whole split with ONNX Runtime, and draw some predictions beside their labels.

    Args:
        model: Gives ``labels`` or ``logits``.
        data: The split, at the file's size.
        pictures: The PNG to write: image, label, prediction.
        update: Told after each image.
    """
    confusion = ConfusionMatrix(len(data.classes.names))
    shown = set(np.linspace(0, len(data) - 1, min(PICTURES, len(data))).astype(int).tolist())
    rows = []
    with open_onnx(model) as runner:
        for i in range(len(data)):
            image, label, _ = data[i]
            out = runner.run({"image": normalise(image, data.mean, data.std)[None]})
            predicted = (out["labels"] if "labels" in out else out["logits"].argmax(1))[0]
            confusion.update(predicted, label)
            if i in shown:
                rows.append((image, colourise(label, data.classes), colourise(predicted, data.classes)))
            update(i + 1)
    save_panel(pictures, rows, ("image", "label", "prediction"))
    return confusion


def verdict(
    measured: Measurement, where: Mapping[str, Any], predicted_ms: float, budget_ms: float, slowdown: float | None
) -> dict[str, Any]:
    """Return predicted against measured, and the budget: all that a report says about speed."""
    return {
        "predicted_ms": predicted_ms,
        "measured_ms": measured.latency_ms,
        "p50_ms": measured.p50_ms,
        "p90_ms": measured.p90_ms,
        "p99_ms": measured.p99_ms,
        "wall_ms": measured.wall_ms,
        "fps": 1000 / measured.latency_ms,
        "error": predicted_ms / measured.latency_ms - 1,
        "budget_ms": budget_ms,
        "budget_fps": 1000 / budget_ms,
        "met": measured.latency_ms <= budget_ms,
        "doubtful": measured.doubtful,
        "slowdown": slowdown,
        "clock": where["clock"],
        "threads": where["engine"]["threads"],
        "batch": where["batch"],
        "scope": "network with upsampling and argmax",
    }
