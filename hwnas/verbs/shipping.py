"""`hwnas train`, `export` and `validate`: from an architecture to a proof on the device."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.arch import Architecture
from hwnas.errors import HwnasError
from hwnas.export import export
from hwnas.files import canonical_json, read_json, sha256, write_atomic
from hwnas.ops.trace import trace
from hwnas.run import Run
from hwnas.steplog import StepLog
from hwnas.train import Training, train
from hwnas.ui import bar, console, summary
from hwnas.validate import measure_network, references, score, verdict
from hwnas.verbs.common import open_table, read_split


def run_train(run: Run) -> None:
    """Train the derived network."""
    model = run.folder / "train" / "model.safetensors"
    derived = run.derived()
    if model.exists():
        summary({"weights": model, "state": "complete, nothing to do"}, f"hwnas export {run.name}")
        return
    config = run.recipe.train
    config = replace(config, seed=int(run.settings.get("seed", config.seed)))
    data, val = read_split(run, "train"), read_split(run, "val")
    training = Training(run.space(derived), derived.arch, config, data)
    settings = {"arch": derived.arch.id, "scale": derived.scale.to_json(), "data": data.name}
    with bar("train", config.steps) as update:
        best = train(training, val, model.parent, settings, StepLog(run.folder / "train.jsonl"), update)
    summary({"weights": model, "best val mIoU": f"{best:.2%}"}, f"hwnas export {run.name}")


def run_export(run: Run, logits: bool) -> None:
    """Export the trained network to ONNX."""
    path = run.folder / "deploy" / "model.onnx"
    derived = run.derived()
    weights = run.require("train/model.safetensors", "train")
    facts_path = run.folder / "deploy" / "export.json"
    digest = sha256(weights.read_bytes())
    if path.exists() and facts_path.exists():
        known = _export_facts(facts_path)
        if known["weights_sha256"] == digest and known["labels"] == (not logits):
            summary({"onnx": path, "state": "complete, nothing to do"}, f"hwnas validate {run.name}")
            return
        raise HwnasError(f"{path} is another export of this run; remove the folder {path.parent} to write it anew")
    _, facts = export(run.space(derived), derived.arch, weights, run.data("val"), path, labels=not logits)
    write_atomic(facts_path, canonical_json(facts | {"weights_sha256": digest}) + "\n")
    shown: dict[str, object] = {
        "onnx": path,
        "output": "logits" if logits else "labels",
        "size": f"{facts['bytes'] / 1e6:.2f} MB, opset {facts['opset']}",
        "parity": f"scores within {facts['score_error']:.1e} of the largest, in ONNX Runtime",
    }
    summary(shown, f"hwnas validate {run.name}")


def _export_facts(path: Path) -> dict[str, Any]:
    """Read what an export said about itself."""
    facts = read_json(path, "the facts of an export")
    if not isinstance(facts, dict) or not {"sha256", "weights_sha256", "labels"} <= facts.keys():
        raise HwnasError(f"{path} is not the facts of an export; remove the folder {path.parent} and export again")
    return facts


def run_validate(run: Run, table_path: Path | None, foreign: bool, again: bool) -> bool:
    """Measure speed and accuracy of the exported file; return whether the budget was met.

    A report that is there is shown again; `again` measures anew and keeps the earlier one under a number.
    """
    derived = run.derived()
    path = run.folder / "report.json"
    model = run.require("deploy/model.onnx", "export")
    facts = _export_facts(run.require("deploy/export.json", "export"))
    if sha256(model.read_bytes()) != facts["sha256"]:
        raise HwnasError(f"{model} is not what was exported; remove the folder {model.parent} and export again")
    if path.exists() and not again:
        report = read_json(path, "a report")
        if report.get("model_sha256") == facts["sha256"]:
            console.print("measured before, nothing to do; --again measures anew")
            _show_verdict(run, report, derived.arch)
            return bool(report["met"])
    latency = open_table(run, table_path, foreign)
    test = read_split(run, "test")
    space = run.space(derived)
    network = space.build(derived.arch, form="deploy", labels=facts["labels"])
    traced = trace(network.eval(), (1, 3, *derived.scale.size))
    output = "labels" if facts["labels"] else "logits"
    beside = references(run.folder / "plan", latency)
    with bar("measure", None) as update:
        where, measured, slowdown = measure_network(model, traced, output, latency.where["engine"], beside, update)
    with bar("test", len(test)) as update:
        confusion = score(model, test, run.folder / "predictions.png", update)
    report = verdict(measured, where, derived.predicted_ms, derived.budget_ms, slowdown)
    ious = dict(zip(test.classes.names, (None if np.isnan(v) else float(v) for v in confusion.iou()), strict=True))
    report |= {"test_miou": confusion.miou(), "pixel_accuracy": confusion.pixel_accuracy(), "iou": ious, "where": where}
    report["model_sha256"] = facts["sha256"]
    if path.exists():
        path.rename(next(p for n in itertools.count(1) if not (p := path.with_name(f"report-{n}.json")).exists()))
    write_atomic(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    _show_verdict(run, report, derived.arch)
    return bool(report["met"])


def _show_verdict(run: Run, report: Mapping[str, Any], arch: Architecture) -> None:
    met = "met" if report["met"] else "missed"
    facts: dict[str, object] = {
        "network": arch.id,
        "latency": f"{report['measured_ms']:.4g} ms where the machine is quiet; of all runs p50 "
        f"{report['p50_ms']:.4g}, p90 {report['p90_ms']:.4g}, p99 {report['p99_ms']:.4g} ms by "
        f"{report['clock']}, wall {report['wall_ms']:.4g} ms; {report['threads']} thread(s), batch {report['batch']}, "
        f"{report['scope']}{'; doubtful: the machine was busy' if report['doubtful'] else ''}",
        "machine": "no reference networks: the plan of the table is not here"
        if report["slowdown"] is None
        else f"networks of the table took {report['slowdown']:.3f} of what they took when it was made",
        "test mIoU": f"{report['test_miou']:.2%} (pixels {report['pixel_accuracy']:.2%})",
        "pictures": run.folder / "predictions.png",
        "report": run.folder / "report.json",
    }
    summary(facts, None)
    console.print(
        f"predicted {report['predicted_ms']:.4g} ms, measured {report['measured_ms']:.4g} ms, fps {report['fps']:.1f}, "
        f"budget {report['budget_ms']:.4g} ms ({report['budget_fps']:.1f} fps): {met}",
        markup=False,
    )
