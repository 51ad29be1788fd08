"""`hwnas ls`: what is here."""

from __future__ import annotations

from hwnas.latency.table import LatencyTable
from hwnas.run import RUNS, Run
from hwnas.ui import table

STAGES = ("profiled", "searched", "trained", "exported", "validated")


def show_runs() -> None:
    """List the runs here and how far each is."""
    rows = []
    for run in (Run(p.parent.name) for p in sorted(RUNS.glob("*/run.json"))):
        stages = ("table.json", "arch.json", "train/model.safetensors", "deploy/engine.json", "report.json")
        done = [verb for stage, verb in zip(stages, STAGES, strict=True) if (run.folder / stage).exists()]
        made = run.folder / "table.json"
        device = LatencyTable.load(made).name if made.exists() else ""
        rows.append([run.name, str(run.settings["recipe"]), ", ".join(done) or "nothing yet", device])
    table("runs", ("name", "recipe", "done", "table"), rows)
