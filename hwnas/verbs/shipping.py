"""`hwnas train`, `export` and `validate`: from an architecture to a proof on the device."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from hwnas import __version__
from hwnas.data import CLASSIFICATION, SEGMENTATION, SegmentationData, Task, task_of
from hwnas.errors import HwnasError
from hwnas.export import ending, export, load_weights
from hwnas.files import read_json, sha256, write_atomic
from hwnas.latency.table import LatencyTable
from hwnas.learn.training import Training, evaluate, train
from hwnas.metrics import ConfusionMatrix, score_of
from hwnas.ops.trace import INPUT
from hwnas.problem import Architecture
from hwnas.run import Derived, Run
from hwnas.runtime.deploy.bundle import BUNDLE_FILE, COMPATIBLE, BuildsBundles, Bundle, Input, Output
from hwnas.runtime.engines import using_engine
from hwnas.runtime.measuring.device import provenance
from hwnas.spaces.base import trace_space
from hwnas.steplog import StepLog
from hwnas.ui import bar, console, summary, table
from hwnas.validate import (
    SCORE_LOSS,
    application_of,
    left_out_ms,
    measure_network,
    score,
    verdict,
)
from hwnas.verbs.common import open_table, read_split, references_for


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
    summary({"weights": model, f"best val {training.task.title}": f"{best:.2%}"}, f"hwnas export {run.name}")


def run_export(
    run: Run, kind: str, engine: str | None = None, precision: str | None = None, compatible: str | None = None
) -> None:
    """Export the trained network into a bundle.

    Args:
        run: A run with a trained network.
        kind: What the file gives, one of `hwnas.runtime.deploy.bundle.KINDS`.
        engine: What it is to run on; None for the engine of the run's table, else ONNX Runtime.
        precision: What that is to compute in; None for that of the table if the engine is, else float32.
        compatible: What else is to take an engine that is built, one of `hwnas.runtime.deploy.bundle.COMPATIBLE`.
    """
    if compatible not in (None, *COMPATIBLE):
        raise HwnasError(f"expected --compatible {', '.join(COMPATIBLE)}, got {compatible!r}")
    folder, derived = run.folder / "deploy", run.derived()
    weights = run.require("train/model.safetensors", "train")
    digest = sha256(weights.read_bytes())
    target = name, _, precision = _target(run, engine, precision)
    if (folder / BUNDLE_FILE).exists():
        there = Bundle.load(folder)
        built = there.built or {}
        said = (there.weights_sha256, there.output.kind, (there.engine, there.threads, there.precision))
        if (*said, built.get("compatible")) != (digest, kind, target, compatible):
            raise HwnasError(f"{folder} is another export of this run; remove the folder to write it anew")
        summary({"bundle": folder, "state": "complete, nothing to do"}, f"hwnas validate {run.name}")
        return
    data, path = run.data("val"), folder / "model.onnx"
    with using_engine(*target) as opened:  # one that is not here is refused before anything is written
        if compatible is not None and not opened.capabilities.builds:
            raise HwnasError(f"{name} builds nothing, its file runs wherever it is installed; leave out --compatible")
        _, facts = export(run.space(derived), derived.arch, weights, data, path, kind, precision)
        bundle = _describe(path, derived, data, kind, target, provenance(opened), facts | {"weights_sha256": digest})
        if opened.capabilities.builds:
            builder = cast(BuildsBundles, opened)
            with bar("build", None) as update:
                made = builder.build_bundle(path, folder, lambda at, done, total: update(done, at, total), compatible)
            bundle = replace(bundle, built={**made, "compatible": compatible})
    bundle.save()
    shown: dict[str, object] = {
        "bundle": folder,
        "for": f"{name} in {precision}",
        "output": kind,
        "size": f"{facts['bytes'] / 1e6:.2f} MB, opset {facts['opset']}",
        "parity": _parity(facts["parity"]),
    }
    summary(shown, f"hwnas validate {run.name}")


def _describe(
    path: Path,
    derived: Derived,
    data: SegmentationData,
    kind: str,
    target: tuple[str, int, str],
    where: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> Bundle:
    """Return the bundle of an exported file, without what an engine may build of it."""
    engine, threads, precision = target
    size = derived.scale.size
    return Bundle(
        folder=path.parent,
        onnx=path.name,
        onnx_sha256=facts["sha256"],
        engine=engine,
        precision=precision,
        threads=threads,
        versions={"hwnas": __version__, "opset": facts["opset"], "engine": where["engine"]["version"]},
        device=where,
        input=Input(INPUT, (1, 3, *size), data.mean, data.std, size),
        output=Output(kind, kind, facts["shape"], facts["dtype"]),
        classes=data.classes.names,
        palette=data.classes.palette,
        architecture=derived.arch.id,
        scale=derived.scale.to_json(),
        predicted_ms=derived.predicted_ms,
        budget_ms=derived.budget_ms,
        weights_sha256=facts["weights_sha256"],
        parity=facts["parity"],
    )


def _target(run: Run, engine: str | None, precision: str | None) -> tuple[str, int, str]:
    """Return engine, threads and precision of an export: what was asked for, else those of the run's table."""
    path = run.folder / "table.json"
    known = LatencyTable.load(path).where["engine"] if path.exists() else {}
    name = engine or str(known.get("name", "onnxruntime"))
    own = known.get("precision", "fp32") if name == known.get("name") else "fp32"
    return name, int(known.get("threads", 1)), precision or str(own)


def _parity(facts: Mapping[str, float]) -> str:
    if "label_difference" in facts:
        return f"{facts['label_difference']:.2%} of the labels differ from the network's, in ONNX Runtime"
    return f"scores within {facts['score_error']:.1e} of the largest, in ONNX Runtime"


def run_validate(run: Run, table_path: Path | None, foreign: bool, again: bool) -> bool:
    """Measure speed and accuracy of the exported file; return whether the budget was met.

    A report that is there is shown again; `again` measures anew and keeps the earlier one under a number.

    Raises:
        HwnasError: If the file is worse than the network it was exported from; the report is written before.
    """
    derived = run.derived()
    path = run.folder / "report.json"
    bundle = Bundle.load(run.require(f"deploy/{BUNDLE_FILE}", "export").parent)
    if path.exists() and not again:
        report = read_json(path, "a report")
        if report.get("bundle_sha256") == bundle.digest:
            console.print("measured before, nothing to do; --again measures anew")
            return _judge(run, report, derived.arch)
    latency = open_table(run, table_path, foreign)
    test = read_split(run, "test")
    weights = run.require("train/model.safetensors", "train")
    if sha256(weights.read_bytes()) != bundle.weights_sha256:
        raise HwnasError(f"{bundle.folder} was exported from other weights than {weights}; remove it and export again")
    report = _prove(run, bundle, latency, test, weights)
    if path.exists():
        path.rename(next(p for n in itertools.count(1) if not (p := path.with_name(f"report-{n}.json")).exists()))
    write_atomic(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return _judge(run, report, derived.arch)


def _prove(run: Run, bundle: Bundle, latency: LatencyTable, test: SegmentationData, weights: Path) -> dict[str, Any]:
    """Measure a bundle and score it beside its network in torch; return the report."""
    derived, kind = run.derived(), bundle.output.kind
    space = run.space(derived)
    exported = ending(trace_space(space, derived.arch, labels=kind == "labels"), kind)
    engine = {"name": bundle.engine, "threads": latency.where["engine"]["threads"], "precision": bundle.precision}
    same = all(latency.where["engine"][key] == value for key, value in engine.items())
    beside = references_for(run, latency) if same else []
    expected_ms = derived.predicted_ms if same else 0.0  # another engine may be much faster
    with bar("measure", None) as update:
        where, measured, slowdown = measure_network(
            bundle.path, exported, bundle.output.name, engine, beside, update, expected_ms=expected_ms
        )
    network = space.build(derived.arch, form="deploy")
    load_weights(network, weights)
    with bar("test the network", len(test)) as update:
        in_torch = evaluate(network.eval(), test, update)
    application, scored_with = application_of(bundle)
    with bar("test the file", len(test)) as update, application:
        confusion = score(application, kind, test, run.folder / "predictions.png", update)
    predicted_ms = derived.predicted_ms - left_out_ms(space, derived.arch, exported, latency)
    return {
        **verdict(measured, where, predicted_ms, derived.budget_ms, slowdown, kind, bundle.classifies),
        **_quality(confusion, in_torch, test),
        "scored_with": scored_with,
        "where": where,
        "table": latency.name,
        "model_sha256": bundle.onnx_sha256,
        "bundle_sha256": bundle.digest,
    }


def _quality(file: ConfusionMatrix, network: ConfusionMatrix, test: SegmentationData) -> dict[str, Any]:
    """Return what a report says about accuracy: of the file, beside its network in torch."""
    task = task_of(test)
    score_of_file, score_of_network = score_of(file, task), score_of(network, task)
    if task is SEGMENTATION:
        name, by_class, more = "iou", file.iou(), {"pixel_accuracy": file.pixel_accuracy()}
    else:
        name, by_class, more = "recall", file.recall(), {}
    values = [None if np.isnan(v) else float(v) for v in by_class]
    return {
        "task": task.name,
        f"test_{task.metric}": score_of_file,
        f"torch_{task.metric}": score_of_network,
        "accepted": score_of_file >= score_of_network - SCORE_LOSS,
        **more,
        name: dict(zip(test.classes.names, values, strict=True)),
    }


def _judge(run: Run, report: Mapping[str, Any], arch: Architecture) -> bool:
    """Show a report; return whether the budget was met.

    Raises:
        HwnasError: If the file is worse than the network.
    """
    _show_verdict(run, report, arch)
    if not report["accepted"]:
        task, (file, network) = _scores(report)
        raise HwnasError(
            f"the file's test {task.title} is {file:.2%}, its network's {network:.2%}: more than "
            f"{100 * SCORE_LOSS:g} points lower; do not use it, export it in fp32 or for another engine"
        )
    return bool(report["met"])


def _scores(report: Mapping[str, Any]) -> tuple[Task, tuple[float, float]]:
    """Return the task of a report, and the scores of the file and of its network in torch."""
    task = CLASSIFICATION if report.get("task") == CLASSIFICATION.name else SEGMENTATION  # the first reports name none
    return task, (report[f"test_{task.metric}"], report[f"torch_{task.metric}"])


def _show_verdict(run: Run, report: Mapping[str, Any], arch: Architecture) -> None:
    met = "met" if report["met"] else "missed"
    task, (file, network) = _scores(report)
    pixels = f" (pixels {report['pixel_accuracy']:.2%})" if task is SEGMENTATION else ""
    facts: dict[str, object] = {
        "network": arch.id,
        "latency": f"{report['measured_ms']:.4g} ms where the machine is quiet; of all runs p50 "
        f"{report['p50_ms']:.4g}, p90 {report['p90_ms']:.4g}, p99 {report['p99_ms']:.4g} ms by "
        f"{report['clock']}, wall {report['wall_ms']:.4g} ms; {report['threads']} thread(s), batch {report['batch']}, "
        f"{report['scope']}{'; doubtful: the machine was busy' if report['doubtful'] else ''}",
        "machine": "no reference networks: the table is of another engine, or of networks that the recipe does not draw"
        if report["slowdown"] is None
        else f"networks of the table took {report['slowdown']:.3f} of what they took when it was made",
        f"test {task.title}": f"{file:.2%}{pixels}",
        "in torch": f"{network:.2%}; the file was computed by {report['scored_with']}",
        "pictures": run.folder / "predictions.png",
        "report": run.folder / "report.json",
    }
    times = report["latencies"]
    quantiles = ("quiet_ms", "p50_ms", "p90_ms", "p99_ms")
    rows = [[scope.replace("_", " "), *(f"{times[scope][q]:.4g}" for q in quantiles)] for scope in times]
    table("milliseconds", ("", "quiet", "p50", "p90", "p99"), rows, numbers=True)
    summary(facts, None)
    console.print(
        f"predicted {report['predicted_ms']:.4g} ms, measured {report['measured_ms']:.4g} ms, fps {report['fps']:.1f}, "
        f"budget {report['budget_ms']:.4g} ms ({report['budget_fps']:.1f} fps): {met}",
        markup=False,
    )
