"""Proof on the device: latency and fps of the exported file, its accuracy, and predicted against measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.data.augment import normalise
from hwnas.data.base import SegmentationData
from hwnas.draw import colourise, save_panel
from hwnas.errors import HwnasError
from hwnas.files import sha256
from hwnas.metrics import ConfusionMatrix
from hwnas.ops.trace import Trace
from hwnas.profile import network_entry
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.plan import write_plan
from hwnas.runtime.supervise import supervise
from hwnas.runtime.work import Row, collect
from hwnas.ui import Update, ignore

PICTURES = 4


def measure_network(
    model: Path, trace: Trace, output: str, engine: Mapping[str, Any], passes: int, update: Update = ignore
) -> tuple[dict[str, Any], Row]:
    """Measure an exported file in a process of its own, under the conditions of a table.

    Args:
        model: The ONNX file, in a folder that may be written to.
        trace: Of the network in it.
        output: Name of its output.
        engine: The table's ``where["engine"]``.
        passes: How often it is loaded and measured.
        update: Told after each pass.

    Returns:
        Provenance of the measurement, and the measurement.

    Raises:
        HwnasError: If the engine could not run it.
    """
    folder = model.parent
    results = folder / "validate.jsonl"
    results.unlink(missing_ok=True)  # a measurement is of now
    key = f"net/{model.name}"
    write_plan(folder, [network_entry(key, trace, model.name, sha256(model.read_bytes()), output)])
    supervise(
        folder,
        str(engine["name"]),
        int(engine["threads"]),
        passes,
        results,
        lambda p: update(p.done),
    )
    where, rows = collect(results)
    row = rows[0]
    if row.latency_ms is None:
        raise HwnasError(f"{engine['name']} could not run {model}: {row.reason}")
    return where, row


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


def verdict(row: Row, where: Mapping[str, Any], predicted_ms: float, budget_ms: float) -> dict[str, Any]:
    """Return predicted against measured, and the budget: all that a report says about speed."""
    assert row.latency_ms is not None
    return {
        "predicted_ms": predicted_ms,
        "measured_ms": row.latency_ms,
        "p50_ms": row.latency_ms,
        "p90_ms": row.p90_ms,
        "p99_ms": row.p99_ms,
        "wall_ms": row.wall_ms,
        "fps": 1000 / row.latency_ms,
        "error": predicted_ms / row.latency_ms - 1,
        "budget_ms": budget_ms,
        "budget_fps": 1000 / budget_ms,
        "met": row.latency_ms <= budget_ms,
        "doubtful": row.doubtful,
        "clock": where["clock"],
        "threads": where["engine"]["threads"],
        "batch": where["batch"],
        "scope": "network with upsampling and argmax",
    }
