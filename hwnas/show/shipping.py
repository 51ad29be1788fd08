"""What was trained, exported and validated."""

from __future__ import annotations

from collections.abc import Mapping

from hwnas.data import SEGMENTATION
from hwnas.jobs.exporting import ExportResult
from hwnas.jobs.training import TrainResult
from hwnas.jobs.validation import ValidateResult
from hwnas.show.console import console, summary, table

COMPLETE = "complete, nothing to do"


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
        "in torch": f"{network:.2%}{on}; the file was computed by {report.scored_with}",
        "pictures": result.folder / "predictions.png",
        "report": result.folder / "report.json",
    }
    quantiles = ("quiet_ms", "p50_ms", "p90_ms", "p99_ms")
    rows = [
        [scope.replace("_", " "), *(f"{getattr(times, q):.4g}" for q in quantiles)]
        for scope, times in report.latencies.items()
    ]
    table("milliseconds", ("", "quiet", "p50", "p90", "p99"), rows, numbers=True)
    summary(facts, None)
    console.print(
        f"predicted {report.predicted_ms:.4g} ms, measured {report.measured_ms:.4g} ms, fps {report.fps:.1f}, "
        f"budget {report.budget_ms:.4g} ms ({report.budget_fps:.1f} fps): {'met' if report.met else 'missed'}",
        markup=False,
    )
