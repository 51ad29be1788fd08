"""From a bundle to a proof on the device: its speed against prediction and budget, its accuracy against its network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas import records
from hwnas.data import CLASSIFICATION, SEGMENTATION, SegmentationData, Task, task_of
from hwnas.errors import DataError, HwnasError
from hwnas.export import ending, load_weights
from hwnas.files import sha256
from hwnas.jobs.inputs import open_table, read_all, references_for, settle_data
from hwnas.jobs.looking import look_at
from hwnas.latency.table import LatencyTable
from hwnas.learn.device import AUTO, Context, open_device, title
from hwnas.learn.training import evaluate
from hwnas.metrics import ConfusionMatrix, score_of
from hwnas.progress import SILENT, Reporter
from hwnas.records import File, stored
from hwnas.run import Run
from hwnas.runtime.deploy.bundle import BUNDLE_FILE, Bundle
from hwnas.spaces import trace_space
from hwnas.validate import SCORE_LOSS, application_of, left_out_ms, measure_network, score, verdict


@dataclass(frozen=True)
class ValidateSettings:
    """How a bundle is validated.

    Attributes:
        table: Latency table to measure by; None for the run's own.
        foreign_table: Whether one of another device will do.
        again: Measure anew although there is a report, and keep that under a number.
        device: Where torch computes the network that the file is held against; see `hwnas.learn.device.open_device`.
    """

    table: Path | None = None
    foreign_table: bool = False
    again: bool = False
    device: str = AUTO


@dataclass(frozen=True)
class Times:
    """Milliseconds of all runs of one scope."""

    quiet_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    wall_ms: float
    doubtful: bool


@stored("report", version=2)
@dataclass(frozen=True)
class Report:
    """What `report.json` holds; see `hwnas.validate.verdict` for speed.

    Attributes:
        task: ``"segmentation"`` or ``"classification"``; what belongs to the other one is None.
        accepted: Whether the file is as good as its network, but for `hwnas.validate.SCORE_LOSS`.
        test_miou: Of the file on test; so is `test_accuracy`.
        torch_miou: Of its network in torch; so is `torch_accuracy`.
        iou: By class; None for a class that is not there.
        recall: By class.
        pixel_accuracy: Of the file.
        scored_with: The engine that computed the file for this.
        where: Provenance of the measurement.
        table: Name of the latency table.
        model_sha256: Of the ONNX file.
        bundle_sha256: Of all that the bundle says.
        torch_device: Where torch computed the network.
    """

    predicted_ms: float
    measured_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    wall_ms: float
    fps: float
    error: float
    budget_ms: float
    budget_fps: float
    met: bool
    doubtful: bool
    slowdown: float | None
    clock: str
    threads: int
    batch: int
    scope: str
    latencies: Mapping[str, Times]
    task: str
    accepted: bool
    scored_with: str
    where: Mapping[str, Any]
    table: str
    model_sha256: str
    bundle_sha256: str
    test_miou: float | None = None
    torch_miou: float | None = None
    iou: Mapping[str, float | None] | None = None
    pixel_accuracy: float | None = None
    test_accuracy: float | None = None
    torch_accuracy: float | None = None
    recall: Mapping[str, float | None] | None = None
    torch_device: str | None = None

    @property
    def kind(self) -> Task:
        """What the network is for."""
        return CLASSIFICATION if self.task == CLASSIFICATION.name else SEGMENTATION

    @property
    def scores(self) -> tuple[float, float]:
        """Of the file, and of its network in torch."""
        metric = self.kind.metric
        return float(getattr(self, f"test_{metric}")), float(getattr(self, f"torch_{metric}"))


FILE = File("a report", "make it anew with --again", lambda data: {"task": SEGMENTATION.name, **data})


@dataclass(frozen=True)
class ValidateResult:
    """What validation says.

    Attributes:
        report: It.
        folder: Of the run.
        architecture: Id of the network.
        complete: Whether the report was there already.
    """

    report: Report
    folder: Path
    architecture: str
    complete: bool = False

    def require_accepted(self) -> None:
        """Refuse a file that is worse than the network it was exported from.

        Raises:
            HwnasError: If it is.
        """
        if not self.report.accepted:
            file, network = self.report.scores
            raise HwnasError(
                f"the file's test {self.report.kind.title} is {file:.2%}, its network's {network:.2%}: more than "
                f"{100 * SCORE_LOSS:g} points lower; do not use it, export it in fp32 or for another engine"
            )


def validate(run: Run, settings: ValidateSettings = ValidateSettings(), report: Reporter = SILENT) -> ValidateResult:
    """Measure speed and accuracy of the exported file of a run."""
    run.require("arch.json", "search")
    device = open_device(settings.device)
    with run.locked():
        derived, path = run.derived(), run.folder / "report.json"
        bundle = Bundle.load(run.require(f"deploy/{BUNDLE_FILE}", "export").parent)
        settle_data(run, report, read=False)
        if path.exists() and not settings.again:
            there = FILE.load(path, Report)
            if there.bundle_sha256 == bundle.digest:
                return ValidateResult(there, run.folder, derived.architecture.id, complete=True)
        table = open_table(run, settings.table, settings.foreign_table)
        test = read_all(_open_test(run), report)
        look_at(run, {"test": test}, report)
        settle_data(run, report)
        weights = run.require("train/model.safetensors", "train")
        if sha256(weights.read_bytes()) != bundle.weights_sha256:
            raise HwnasError(
                f"{bundle.folder} was exported from other weights than {weights}; remove it and export again"
            )
        new = _prove(run, bundle, table, test, weights, device, report)
        if path.exists():
            path.rename(next(p for n in itertools.count(1) if not (p := path.with_name(f"report-{n}.json")).exists()))
        records.save(path, new, indent=1)
        return ValidateResult(new, run.folder, derived.architecture.id)


def _open_test(run: Run) -> SegmentationData:
    """Open the test split; without one nothing is measured, because a report needs a score beside the speed.

    Raises:
        DataError: If it cannot be used.
    """
    try:
        return run.data("test")
    except DataError as e:
        raise DataError(
            f"{e}; without a test split there is no score of the exported file, so nothing is measured (to score it on "
            "val, give test the files of val)"
        ) from e


def _prove(
    run: Run,
    bundle: Bundle,
    table: LatencyTable,
    test: SegmentationData,
    weights: Path,
    device: torch.device,
    report: Reporter,
) -> Report:
    """Measure a bundle and score it beside its network in torch."""
    derived, kind = run.derived(), bundle.output.kind
    space = run.space(derived)
    whole = trace_space(space, derived.architecture)
    exported = ending(whole if kind == "labels" else whole.before_last(), kind)
    engine = {"name": bundle.engine, "threads": table.where["engine"]["threads"], "precision": bundle.precision}
    same = all(table.where["engine"][key] == value for key, value in engine.items())
    beside = references_for(run, table, report) if same else []
    expected_ms = derived.predicted_ms if same else 0.0  # another engine may be much faster
    with report.bar("measure", None) as update:
        where, measured, slowdown = measure_network(
            bundle.path, exported, bundle.output.name, engine, beside, update, expected_ms=expected_ms
        )
    network = space.build(derived.architecture, form="deploy")
    load_weights(network, weights)
    network = Context(device).module(network)
    with report.bar("test the network", len(test)) as update:
        in_torch = evaluate(network.eval(), test, update, device)
    application, scored_with = application_of(bundle)
    with report.bar("test the file", len(test)) as update, application:
        confusion = score(application, kind, test, run.folder / "predictions.png", update)
    predicted_ms = derived.predicted_ms - left_out_ms(whole, exported, table)
    speed = verdict(measured, where, predicted_ms, derived.budget_ms, slowdown, kind, bundle.classifies)
    return Report(
        **speed | {"latencies": {scope: Times(**times) for scope, times in speed["latencies"].items()}},
        **_quality(confusion, in_torch, test),
        scored_with=scored_with,
        where=where,
        table=table.name,
        model_sha256=bundle.onnx_sha256,
        bundle_sha256=bundle.digest,
        torch_device=title(device),
    )


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
