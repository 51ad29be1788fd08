"""What was trained, exported and validated."""

from __future__ import annotations

from collections.abc import Mapping

from hwnas.data import SEGMENTATION
from hwnas.jobs.exporting import ExportResult
from hwnas.jobs.training import TrainResult
from hwnas.jobs.validation import Evaluated, Report, ValidateResult
from hwnas.runtime.measuring import limits
from hwnas.show.console import console, summary, table

COMPLETE = "complete, nothing to do"
CLASSES_SHOWN = 40  # of more, those of the lowest IoU


def trained(result: TrainResult, following: str) -> None:
    """Show what training gave; `following` is the next command."""
    state = ("state", COMPLETE)
    if result.best is not None:
        at = f"{result.best:.2%} after step {result.best_step} of {result.steps}"
        state = (f"best val {result.metric}", at)
    on = {"on": result.device} if result.device else {}
    summary({"weights": result.weights, **on, state[0]: state[1]}, following)


def exported(result: ExportResult, following: str) -> None:
    """Show a bundle; `following` is the next command."""
    bundle = result.bundle
    facts: dict[str, object] = {"bundle": bundle.folder}
    if result.complete:
        facts["state"] = COMPLETE
    else:
        facts |= {
            "for": f"{bundle.engine} in {bundle.precision}",
            "output": bundle.output.kind,
            "size": f"{result.bytes / 1e6:.2f} MB, opset {bundle.versions['opset']}",
            "arithmetic": result.complexity,
            "parity": _parity(bundle.parity),
        }
    summary(facts, following)


def _parity(facts: Mapping[str, float]) -> str:
    if "label_difference" in facts:
        return f"{facts['label_difference']:.2%} of the labels differ from the network's, in ONNX Runtime"
    return f"scores within {facts['score_error']:.1e} of the largest, in ONNX Runtime"


def validated(result: ValidateResult) -> None:
    """Show a report."""
    report, task = result.report, result.report.kind
    if result.complete:
        console.print("measured before, nothing to do; --again measures anew")
    file, network = report.scores
    pixels = f" (pixels {report.pixel_accuracy:.2%})" if task is SEGMENTATION else ""
    evaluated = result.evaluated
    on = "" if report.torch_device is None else f" on {report.torch_device}"
    facts: dict[str, object] = {
        "network": result.architecture,
        "latency": f"{report.measured_ms:.4g} ms where the machine is quiet; of all runs p50 {report.p50_ms:.4g}, "
        f"p90 {report.p90_ms:.4g}, p99 {report.p99_ms:.4g} ms by {report.clock}, wall {report.wall_ms:.4g} ms; "
        f"{report.threads} thread(s), batch {report.batch}, "
        f"{report.scope}{'; doubtful: the machine was busy' if report.doubtful else ''}",
        "machine": "no reference networks: the table is of another engine, or of networks that the recipe does not draw"
        if report.slowdown is None
        else f"networks of the table took {report.slowdown:.3f} of what they took when it was made",
        f"test {task.title}": f"{file:.2%}{pixels}",
        **_means(report),
        "in torch": f"{network:.2%}{on}; the file was computed by {report.scored_with}",
        **_evaluated(evaluated),
        "pictures": result.folder / "predictions.png",
        "report": result.folder / "report.json",
    }
    if (quota := limits.quota_of(report.where)) is not None:
        most = 1000 * quota / (report.measured_ms * report.threads)
        facts["CPU quota"] = f"{quota:g} CPUs: no more than {min(report.fps, most):.1f} of {report.fps:.1f} fps last"
    quantiles = ("quiet_ms", "p50_ms", "p90_ms", "p99_ms")
    rows = [
        [scope.replace("_", " "), *(f"{getattr(times, q):.4g}" for q in quantiles)]
        for scope, times in report.latencies.items()
    ]
    table("milliseconds", ("", "quiet", "p50", "p90", "p99"), rows, numbers=True)
    _by_class(report, evaluated)
    summary(facts, None)
    console.print(
        f"predicted {report.predicted_ms:.4g} ms, measured {report.measured_ms:.4g} ms, fps {report.fps:.1f}, "
        f"budget {report.budget_ms:.4g} ms ({report.budget_fps:.1f} fps): {'met' if report.met else 'missed'}",
        markup=False,
    )


def _means(report: Report) -> dict[str, str]:
    """Return the means beside mIoU, and at which size they were taken; nothing for reports that have none."""
    if report.mean_accuracy is None:
        return {}
    size = "their own sizes" if report.label_size is None else "{}x{}".format(*report.label_size)
    how = {
        None: "",
        "scores": "; the network's scores were resized to them",
        "labels": "; the file gives labels, which were resized to them by nearest",
    }[report.resized]
    return {
        "means": f"boundary mIoU {report.boundary_miou:.2%}, frequency-weighted IoU "
        f"{report.frequency_weighted_iou:.2%}, mean accuracy {report.mean_accuracy:.2%}",
        "label size": f"{size}{how}",
    }


def _evaluated(evaluated: Evaluated | None) -> dict[str, str]:
    if evaluated is None:
        return {}
    return {
        "evaluated": f"{evaluated.miou:.2%} (pixels {evaluated.pixel_accuracy:.2%}, boundary mIoU "
        f"{evaluated.boundary_miou:.2%}) in torch on {evaluated.torch_device}: {evaluated.inference}; "
        "what is timed is the plain network"
    }


def _by_class(report: Report, evaluated: Evaluated | None) -> None:
    """Print IoU, accuracy and boundary IoU of each class, those of the lowest IoU first where there are many."""
    if report.iou is None:
        return
    columns = {"IoU": report.iou, "accuracy": report.recall, "boundary IoU": report.boundary_iou}
    if evaluated is not None:
        columns["IoU as evaluated"] = evaluated.iou
    there = {title: values for title, values in columns.items() if values is not None}
    names = list(report.iou)
    title = "classes"
    if len(names) > CLASSES_SHOWN:
        ious = {name: iou for name, iou in report.iou.items() if iou is not None}
        names = sorted(ious, key=ious.__getitem__)[:CLASSES_SHOWN]
        title = f"{len(names)} of {len(report.iou)} classes, lowest IoU first; all are in report.json"
    rows = [[name, *(_percent(values[name]) for values in there.values())] for name in names]
    table(title, ("", *there), rows, numbers=True)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"
