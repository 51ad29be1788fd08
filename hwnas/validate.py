"""Proof on the device: latencies and fps of a bundle, its accuracy, and predicted against measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwnas.data.base import SegmentationData
from hwnas.draw import colourise, save_panel
from hwnas.errors import HwnasError
from hwnas.files import sha256, write_atomic
from hwnas.images import resize_labels
from hwnas.latency.table import LatencyTable
from hwnas.metrics import ConfusionMatrix, Measure
from hwnas.ops.layers import resized
from hwnas.ops.trace import Trace
from hwnas.profile import ops_of, trace_entry
from hwnas.progress import Update, ignore
from hwnas.runtime.deploy.bundle import Application, Bundle, HostApplication, find_application
from hwnas.runtime.engines.base import Array
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.measuring.measure import Measurement, StopRule, visit_s
from hwnas.runtime.measuring.plan import PLAN_FILE, Entry, checked_bytes, load_plan, write_plan
from hwnas.runtime.measuring.results import Row, collect
from hwnas.runtime.measuring.supervise import supervise

PICTURES = 4
REFERENCES = 2
CLOSE = 0.03  # slowdown of the references over the table from which on the machine counts as slow
STOP = StopRule(min_visits=30, max_visits=100, min_s=6.0)
LEAST_VISITS, LONG_S = 8, 240.0  # visits that take longer than that together are fewer, but never fewer than these
SCOPES = {"network": "net", "with_copies": "copies", "application": "application"}  # and their roles in a plan
IN_FILE = {
    "labels": "network with upsampling and argmax",
    "logits": "network with upsampling, without argmax",
    "scores": "network without upsampling and argmax",
}
IN_CLASSIFIER = {"labels": "network with argmax"} | dict.fromkeys(("logits", "scores"), "network without argmax")
SCORE_LOSS = 0.005  # accepted loss of the file against the network it was exported from, in mIoU or top-1 accuracy
PATIENCE_S = 60.0  # slow spells of a shared machine were seen to last from seconds to half a minute


@dataclass(frozen=True)
class Reference:
    """A network of the table's plan that is measured again beside the new one.

    Attributes:
        entry: As in the plan.
        content: Its ONNX file.
        latency_ms: What the table says it took.
    """

    entry: Entry
    content: bytes
    latency_ms: float


def references(plan: Path, table: LatencyTable) -> list[Reference]:
    """Return the `REFERENCES` fastest networks of a table that are in a plan; none if the plan is missing.

    Ops and precision must agree: a plan of another size may have networks of the same keys.

    Raises:
        HwnasError: If the plan is there and damaged.
    """
    if not (plan / PLAN_FILE).exists():
        return []
    loaded = load_plan(plan)
    planned = {e.key: e for e in loaded.entries if loaded.precision == table.where["engine"]["precision"]}
    planned_nets = [n for n in table.nets if n.key in planned and ops_of(planned[n.key]) == n.ops]
    fastest = sorted(planned_nets, key=lambda n: n.latency_ms)[:REFERENCES]
    return [Reference(planned[n.key], checked_bytes(planned[n.key], plan), n.latency_ms) for n in fastest]


def visits(expected_ms: float, entries: int) -> StopRule:
    """Return the stop rule for some entries whose runs take so long: the slower, the fewer visits."""
    round_s = entries * visit_s(expected_ms / 1e3)
    least = min(STOP.min_visits, max(LEAST_VISITS, int(LONG_S / round_s)))
    return replace(STOP, min_visits=least, max_visits=STOP.max_visits * least // STOP.min_visits)


def measure_network(
    model: Path,
    trace: Trace,
    output: str,
    engine: Mapping[str, Any],
    beside: Sequence[Reference] = (),
    update: Update = ignore,
    scopes: Mapping[str, str] = SCOPES,
    expected_ms: float = 0.0,
) -> tuple[dict[str, Any], dict[str, Measurement], float | None]:
    """Measure an exported file in a process of its own: the network, with its copies, and as an application.

    Where the references are slower than in the table, it measures again for up to `PATIENCE_S`, as the quiet level
    counts.

    Args:
        model: The ONNX file, in a folder that may be written to.
        trace: Of the network in it.
        output: Name of its output.
        engine: ``name``, ``threads`` and ``precision``.
        beside: Networks of a table of this engine.
        update: Told after each measurement.
        scopes: What is measured of it, some of `SCOPES`.
        expected_ms: What the network may take; slow ones are visited less often, see `visits`.

    Returns:
        Provenance of the measurement, the measurement of each of `scopes`, and how much slower than in the table the
        references were (1.0 is as fast; None without references).

    Raises:
        HwnasError: If the engine could not run it.
    """
    folder = model.parent
    results = folder / "validate.jsonl"
    results.unlink(missing_ok=True)  # results are not resumed
    keys = {scope: f"{role}/{model.name}" for scope, role in scopes.items()}
    digest = sha256(model.read_bytes())
    entries = [trace_entry(role, keys[s], trace, model.name, digest, output) for s, role in scopes.items()]
    for n, r in enumerate(beside):
        name = f"reference-{n}.onnx"
        write_atomic(folder / name, r.content)
        entries.append(replace(r.entry, onnx=name))
    plan = write_plan(folder, entries, str(engine["precision"]))
    start_s, rule = time.monotonic(), visits(expected_ms, len(entries))
    stop = rule
    while True:
        supervise(
            folder,
            str(engine["name"]),
            int(engine["threads"]),
            stop,
            results,
            lambda p: update(p.done, p.note, p.total, p.left_s),
        )
        where, rows = collect(results, plan)
        by_key = {r.key: r for r in rows}
        measured = {scope: _measured(by_key[key], engine, model) for scope, key in keys.items()}
        paired = [(r, by_key[r.entry.key].measurement) for r in beside]
        ratios = [m.latency_ms / r.latency_ms for r, m in paired if m is not None]
        slowdown = float(np.median(ratios)) if ratios else None
        doubtful = any(m.doubtful for m in measured.values())
        quiet = not doubtful and (slowdown is None or slowdown <= 1 + CLOSE)
        if quiet or where["clock"] == "model" or time.monotonic() - start_s > PATIENCE_S:
            return where, measured, slowdown
        # The results are kept; as many visits again are added to them.
        more = max(m.visits for m in (*measured.values(), *(m for _, m in paired if m is not None)))
        stop = replace(rule, min_visits=more + rule.min_visits, max_visits=more + rule.max_visits)


def _measured(row: Row, engine: Mapping[str, Any], model: Path) -> Measurement:
    if row.measurement is None:
        raise HwnasError(f"{engine['name']} could not run {model}: {row.reason}")
    return row.measurement


def application_of(bundle: Bundle) -> tuple[Application, str]:
    """Return the application that measures the accuracy of a bundle, and the name of its engine.

    It is the engine of the bundle; ONNX Runtime where that cannot run files.
    """
    own = find_application(bundle)
    if own is not None:
        return own, bundle.engine
    return HostApplication(bundle, open_onnx(bundle.path, bundle.threads)), "onnxruntime"


def score(
    application: Application,
    kind: str,
    data: SegmentationData,
    pictures: Path,
    update: Update = ignore,
    measures: Sequence[Measure] = (),
) -> ConfusionMatrix:
    """Run an application over a whole split, and draw some predictions beside their labels.

    Where a label has another size than its image, scores are brought to it before the argmax, bilinearly; of a network
    that ends in labels these are, by nearest.

    Args:
        application: Entered.
        kind: What its network gives, one of `hwnas.runtime.deploy.bundle.KINDS`.
        data: The split: images of the bundle's size, labels of any.
        pictures: The PNG to write: image, label, prediction.
        update: Told after each image.
        measures: Told all predictions with their labels, beside the confusion that is returned.

    Raises:
        HwnasError: If a score is not finite, or a label is no class.
    """
    confusion = ConfusionMatrix(len(data.classes.names))
    shown = set(np.linspace(0, len(data) - 1, min(PICTURES, len(data))).astype(int).tolist())
    rows = []
    for i in range(len(data)):
        image, label, name = data[i]
        size = label.shape or None  # () of an image that is classified
        predicted = _predicted(application, kind, image, image.shape[:2] if size is None else size, name)
        if int(predicted.max()) >= len(data.classes):
            raise HwnasError(
                f"label {int(predicted.max())} came out for the image {name}, expected 0 to {len(data.classes) - 1}; "
                "do not use it, export it again"
            )
        predicted = predicted if size is None else resize_labels(predicted, size)
        for measure in (confusion, *measures):
            measure.update(predicted, label)
        if i in shown:
            maps = (_picture(a, image.shape[:2]) for a in (label, predicted))
            rows.append((image, *(colourise(a, data.classes) for a in maps)))
        update(i + 1)
    save_panel(pictures, rows, ("image", "label", "prediction"))
    return confusion


def _predicted(
    application: Application, kind: str, image: NDArray[np.uint8], size: tuple[int, ...], name: str
) -> NDArray[np.uint8]:
    """Return the labels of an image: from scores that are brought to `size`, or as the application gives them."""
    if kind == "labels":
        return application.labels(image)
    output = application.output(image)
    _refuse_infinite(output, kind, name)
    if size == image.shape[:2]:
        return application.labels(image)
    # The network's own scores have the size of the image; what the file leaves out of that is done here first.
    scores = resized(torch.from_numpy(np.array(output, np.float32)), image.shape[:2])
    labels: NDArray[np.uint8] = resized(scores, (size[0], size[1])).argmax(1)[0].cpu().numpy().astype(np.uint8)
    return labels


def _picture(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return labels at the size of a picture; one label fills its picture."""
    return resize_labels(labels, size) if labels.ndim == 2 else np.broadcast_to(labels, size)


def _refuse_infinite(scores: Array, kind: str, name: str) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise HwnasError(
            f"{bad} of {scores.size} {kind} for the image {name} are not finite; export it in fp32, or train it again"
        )


def left_out_ms(complete: Trace, exported: Trace, table: LatencyTable) -> float:
    """Return the latency, by a table, of the ops at the end of a network that its exported part lacks."""
    return sum(table.correction.priced(c.spec.kind, table[c.spec]) for c in complete.calls[len(exported.calls) :])


def verdict(
    measured: Mapping[str, Measurement],
    where: Mapping[str, Any],
    predicted_ms: float,
    budget_ms: float,
    slowdown: float | None,
    kind: str = "labels",
    classifies: bool = False,
) -> dict[str, Any]:
    """Return predicted against measured, and the budget: all that a report says about speed.

    Args:
        measured: Of each of `SCOPES`; prediction and budget are held against the network.
        where: Provenance of the measurement.
        predicted_ms: Of the network as it is in the file.
        budget_ms: What it may take.
        slowdown: Of the references, as `measure_network` returns it.
        kind: What the file gives, one of `hwnas.runtime.deploy.bundle.KINDS`.
        classifies: Whether it gives that of whole images.
    """
    network = measured["network"]
    return {
        "predicted_ms": predicted_ms,
        "measured_ms": network.latency_ms,
        "p50_ms": network.p50_ms,
        "p90_ms": network.p90_ms,
        "p99_ms": network.p99_ms,
        "wall_ms": network.wall_ms,
        "fps": 1000 / network.latency_ms,
        "error": predicted_ms / network.latency_ms - 1,
        "budget_ms": budget_ms,
        "budget_fps": 1000 / budget_ms,
        "met": network.latency_ms <= budget_ms,
        "doubtful": network.doubtful,
        "slowdown": slowdown,
        "clock": where["clock"],
        "threads": where["engine"]["threads"],
        "batch": where["batch"],
        "scope": (IN_CLASSIFIER if classifies else IN_FILE)[kind],
        "latencies": {
            scope: {
                "quiet_ms": m.latency_ms,
                "p50_ms": m.p50_ms,
                "p90_ms": m.p90_ms,
                "p99_ms": m.p99_ms,
                "wall_ms": m.wall_ms,
                "doubtful": m.doubtful,
            }
            for scope, m in measured.items()
        },
    }
