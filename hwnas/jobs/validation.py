"""From a bundle to a proof on the device: its speed against prediction and budget, its accuracy against its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from hwnas import records
from hwnas.data import CLASSIFICATION, SEGMENTATION, SegmentationData, Task, task_of
from hwnas.errors import DataError, HwnasError
from hwnas.export import ending, load_trained
from hwnas.files import set_aside, sha256
from hwnas.jobs.inputs import open_table, read_all, references_for, settle_data
from hwnas.jobs.looking import look_at
from hwnas.latency.table import LatencyTable
from hwnas.learn.device import AUTO, open_device, title
from hwnas.learn.evaluation import PLAIN, Inference, as_labels, evaluate
from hwnas.metrics import BoundaryIoU, ConfusionMatrix, by_class, score_of
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
        inference: Other than plain, the network is evaluated so in torch too, beside what is measured.
    """

    table: Path | None = None
    foreign_table: bool = False
    again: bool = False
    device: str = AUTO
    inference: Inference = PLAIN


@dataclass(frozen=True)
class Times:
    """Milliseconds of all runs of one scope."""

    quiet_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    wall_ms: float
    doubtful: bool


@dataclass(frozen=True)
class Evaluated:
    """What the network in torch reaches on test where it may take longer; see docs/evaluation.md.

    Attributes:
        inference: How its scores were computed.
        miou: Mean IoU over classes that occur.
        pixel_accuracy: Share of the labelled pixels that are right.
        mean_accuracy: Mean recall.
        frequency_weighted_iou: Mean IoU, each class by its share of the labelled pixels.
        boundary_miou: Mean boundary IoU.
        iou: By class; None for a class that does not occur. So are `recall` and `boundary_iou`.
        torch_device: Where it was computed.
    """

    inference: Inference
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    boundary_miou: float
    iou: Mapping[str, float | None]
    recall: Mapping[str, float | None]
    boundary_iou: Mapping[str, float | None]
    torch_device: str


@stored("report", version=2)
@dataclass(frozen=True)
class Report:
    """What `report.json` holds; see `hwnas.validate.verdict` for speed.

    Attributes:
        task: ``"segmentation"`` or ``"classification"``; what belongs to the other one is None.
        accepted: Whether the file is as good as its network, but for `hwnas.validate.SCORE_LOSS`.
        test_miou: Of the file on test; so is `test_accuracy`.
        torch_miou: Of its network in torch; so is `torch_accuracy`.
        iou: By class; None for a class that does not occur.
        recall: By class.
        pixel_accuracy: Of the file.
        mean_accuracy: Of the file: mean of `recall`.
        frequency_weighted_iou: Of the file.
        boundary_miou: Of the file: mean of `boundary_iou`.
        boundary_iou: By class.
        label_size: (height, width) of the labels it was held against; None where they differ in size.
        resized: What was brought to the size of the labels, ``"scores"`` or ``"labels"``; None where none was.
        evaluated: Of the network in torch, once for each way that was asked for.
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
    mean_accuracy: float | None = None
    frequency_weighted_iou: float | None = None
    boundary_miou: float | None = None
    boundary_iou: Mapping[str, float | None] | None = None
    label_size: tuple[int, int] | None = None
    resized: str | None = None
    evaluated: tuple[Evaluated, ...] = ()

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
        inference: How the network was to be evaluated in torch, if not plainly.
        complete: Whether the report was there already, with all that was asked for.
    """

    report: Report
    folder: Path
    architecture: str
    inference: Inference = PLAIN
    complete: bool = False

    @property
    def evaluated(self) -> Evaluated | None:
        """What the network reaches in torch in the way that was asked for; None for the plain one."""
        return next((e for e in self.report.evaluated if e.inference == self.inference), None)

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
        there = None if settings.again or not path.exists() else FILE.load(path, Report)
        if there is not None and there.bundle_sha256 != bundle.digest:
            there = None
        if there is not None and _has(there, settings.inference):
            return ValidateResult(there, run.folder, derived.architecture.id, settings.inference, complete=True)
        table = open_table(run, settings.table, settings.foreign_table) if there is None else None
        test = read_all(_open_test(run), report)
        look_at(run, {"test": test}, report)
        settle_data(run, report)
        settings.inference.check(task_of(test))
        weights = run.require("train/model.safetensors", "train")
        if sha256(weights.read_bytes()) != bundle.weights_sha256:
            raise HwnasError(
                f"{bundle.folder} was exported from other weights than {weights}; remove it and export again"
            )
        network = load_trained(run.space(derived), derived.architecture, weights, device)
        if there is None:
            assert table is not None, "it was opened for this"
            there = _prove(run, bundle, table, test, network, device, report)
            if path.exists():
                set_aside(path)
            records.save(path, there, indent=1)
        if not _has(there, settings.inference):
            more = _evaluated(network, test, settings.inference, device, report)
            there = replace(there, evaluated=(*there.evaluated, more))
            records.save(path, there, indent=1)
        return ValidateResult(there, run.folder, derived.architecture.id, settings.inference)


def _has(report: Report, inference: Inference) -> bool:
    """Tell whether a report says how the network does under an inference; the plain one is that of the file."""
    return inference.plain or any(e.inference == inference for e in report.evaluated)


def _open_test(run: Run) -> SegmentationData:
    """Open the test split; without one nothing is measured, because a report needs a score beside the speed.

    Raises:
        DataError: If it cannot be used.
    """
    try:
        return run.data("test", own_labels=True)
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
    network: torch.nn.Module,
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
    application, scored_with = application_of(bundle)
    boundary, sizes = BoundaryIoU(len(test.classes)), _Sizes()
    measures = (boundary, sizes) if task_of(test) is SEGMENTATION else ()
    with report.bar("test the file", len(test)) as update, application:
        file = score(application, kind, test, run.folder / "predictions.png", update, measures)
    resized = kind if sizes.seen - {bundle.input.size} else None
    # The file is held against its network by labels that are made in the same way.
    alike = as_labels(network) if resized == "labels" else network
    with report.bar("test the network", len(test)) as update:
        in_torch = evaluate(alike, test, update, device)
    predicted_ms = derived.predicted_ms - left_out_ms(whole, exported, table)
    speed = verdict(measured, where, predicted_ms, derived.budget_ms, slowdown, kind, bundle.classifies)
    return Report(
        **speed | {"latencies": {scope: Times(**times) for scope, times in speed["latencies"].items()}},
        **_quality(file, in_torch, boundary, test),
        scored_with=scored_with,
        where=where,
        table=table.name,
        model_sha256=bundle.onnx_sha256,
        bundle_sha256=bundle.digest,
        torch_device=title(device),
        label_size=next(iter(sizes.seen)) if len(sizes.seen) == 1 else None,
        resized="scores" if resized == "logits" else resized,
    )


class _Sizes:
    """The sizes (height, width) of the labels of a split."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()

    def update(self, pred: NDArray[Any], label: NDArray[Any]) -> None:
        """Add that of one label map."""
        assert pred.shape == label.shape, "predictions are brought to labels"
        self.seen.add((label.shape[0], label.shape[1]))


def _evaluated(
    network: torch.nn.Module, test: SegmentationData, inference: Inference, device: torch.device, report: Reporter
) -> Evaluated:
    """Evaluate the network in torch as was asked for."""
    boundary = BoundaryIoU(len(test.classes))
    with report.bar(f"test the network, {inference}", len(test)) as update:
        confusion = evaluate(network, test, update, device, inference, (boundary,))
    quality = _of_segmentation(confusion, boundary, test)
    return Evaluated(inference=inference, miou=confusion.miou(), **quality, torch_device=title(device))


def _quality(
    file: ConfusionMatrix, network: ConfusionMatrix, boundary: BoundaryIoU, test: SegmentationData
) -> dict[str, Any]:
    """Return what a report says about accuracy: of the file, beside its network in torch."""
    task = task_of(test)
    score_of_file, score_of_network = score_of(file, task), score_of(network, task)
    recall = {"recall": by_class(test.classes.names, file.recall())}
    more = _of_segmentation(file, boundary, test) if task is SEGMENTATION else recall
    return {
        "task": task.name,
        f"test_{task.metric}": score_of_file,
        f"torch_{task.metric}": score_of_network,
        "accepted": score_of_file >= score_of_network - SCORE_LOSS,
        **more,
    }


def _of_segmentation(confusion: ConfusionMatrix, boundary: BoundaryIoU, test: SegmentationData) -> dict[str, Any]:
    """Return what is said about predicted label maps beside mIoU, by the names that records have for it."""
    names = test.classes.names
    return {
        "pixel_accuracy": confusion.pixel_accuracy(),
        "mean_accuracy": confusion.mean_accuracy(),
        "frequency_weighted_iou": confusion.frequency_weighted_iou(),
        "boundary_miou": boundary.miou(),
        "iou": by_class(names, confusion.iou()),
        "recall": by_class(names, confusion.recall()),
        "boundary_iou": by_class(names, boundary.iou()),
    }
