"""The published Auto-DeepLab, from a latency table of its space to its proof: whether it takes as long as predicted.

Makes a table of the recipe `autodeeplab` at one size and one width: all ops of the space, and a few random networks to
correct their sum. The published network is then what the run has derived; it is trained for one step, as time depends
on shapes alone, exported, and validated as with `hwnas validate`. Everything is kept in ``runs/`` of ``--folder``, and
the same command goes on where it was stopped. Prints a table and, as its last line, one JSON object.

Nothing else may run on the machine meanwhile. With F=20 at 513x513 it takes an hour on one core.

example: python scripts/bench/published.py --filters 20 --size 513 513 --folder /tmp/published
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hwnas import recipes
from hwnas.errors import HwnasError
from hwnas.jobs import Derived, Run, export, profile, train, validate
from hwnas.jobs.validation import Report
from hwnas.latency import LatencyTable
from hwnas.learn.training import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes import Recipe
from hwnas.runtime.deploy.bundle import Bundle
from hwnas.runtime.measuring.device import device_name
from hwnas.runtime.measuring.measure import StopRule
from hwnas.search.widths import price
from hwnas.show.console import table
from hwnas.spaces import published

ROOM = 1.05  # of the budget over the prediction: what predictions are held to


def paper(filters: int, size: tuple[int, int], networks: int, visits: int) -> Recipe:
    """Return `autodeeplab` at one width and size, measured in few visits.

    Args:
        filters: F of the networks: 20, 32 and 48 are S, M and L.
        size: (height, width) of the images.
        networks: Random ones to measure; three of five to fit the correction on, the rest to test it on.
        visits: Least to each entry; each is eight runs.
    """
    base = recipes.get("autodeeplab")
    fit = networks * 3 // 5
    return replace(
        base,
        name=f"autodeeplab-{filters}-{size[0]}x{size[1]}",
        space=base.space.at(replace(base.space.scale, channels=filters, size=size)),
        widths=(filters,),
        train=TrainConfig(steps=1, batch=2, crop=(129, 129)),
        data="synthetic",
        calibration=Calibration(fit=fit, test=networks - fit, refit=0, derived=0, isolated=False),
        stop=StopRule(min_visits=visits, max_visits=2 * visits, min_s=0.0),
    )


def job(made: Recipe) -> tuple[Run, Report]:
    """Do whatever of the job is not done yet: profile, hand over the published network, train, export, validate."""
    run = Run(made.name)
    run.ask(recipe=made)
    latency = profile(run).table
    if not (run.folder / "arch.json").exists():
        space, (scale,) = made.space, made.scales()
        (model,) = price(space, [scale], latency)
        arch = published("AUTO_DEEPLAB", space)
        predicted_ms = model.predict_ms(arch)
        run.write_derived(Derived(arch, scale, ROOM * predicted_ms, predicted_ms))
    train(run)
    export(run)
    result = validate(run)
    result.require_accepted()
    return run, result.report


def figures(run: Run, report: Report) -> dict[str, Any]:
    """Return what a finished run says of its network and of its table."""
    latency = LatencyTable.load(run.folder / "table.json")
    keys = ("predicted_ms", "measured_ms", "error", "doubtful", "slowdown", "p50_ms", "threads")
    return {
        **{k: getattr(report, k) for k in keys},
        "table": latency.report.get("predictors"),
        "rows": len(latency.rows),
        "not_ok": sum(r.status != "ok" for r in latency.rows.values()),
        "conditions": latency.report["conditions"],
        "parity": Bundle.load(run.folder / "deploy").parity,
        "device": device_name(latency.where),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, default=20, help="F: 20 is S, 32 M, 48 L (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=[513, 513], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--networks", type=int, default=14, help="random ones in the table (%(default)s)")
    parser.add_argument("--visits", type=int, default=12, help="least visits to each entry (%(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="keeps everything; the same goes on where it was")
    parser.add_argument("--require", type=float, metavar="PERCENT", help="exit with 1 if they are further apart")
    args = parser.parse_args()
    start_s = time.monotonic()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.chdir(args.folder):
            found = figures(*job(paper(args.filters, (args.size[0], args.size[1]), args.networks, args.visits)))
    except HwnasError as e:
        sys.exit(f"published: {e}")
    table(
        f"Auto-DeepLab F={args.filters}, {args.size[0]}x{args.size[1]}, {found['device']}",
        ("", "ms"),
        [[name, f"{found[key]:.1f}"] for name, key in (("predicted", "predicted_ms"), ("measured", "measured_ms"))],
        numbers=True,
    )
    print(
        f"predicted over measured, less one: {found['error']:+.1%}{', which is doubtful' if found['doubtful'] else ''}"
    )
    said = {"filters": args.filters, "size": args.size, "networks": args.networks, "visits": args.visits}
    print(json.dumps({**said, **found, "seconds": round(time.monotonic() - start_s, 1)}, allow_nan=False))
    if args.require is not None and not abs(found["error"]) <= args.require / 100:
        sys.exit(f"published: predicted and measured are more than {args.require:g} % apart")


if __name__ == "__main__":
    main()
