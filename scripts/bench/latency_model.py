"""How well latency tables predict whole networks, by what is measured and how it is added up.

Measures, in one interleaved run, every op of a space alone and between neighbours, and whole networks: 12 to fit
corrections on, the others to test them, spread evenly in log latency. Then networks that are derived with the table.
Prints a row per predictor and, as its last line, one JSON object. Goes on where an earlier call with the same
arguments stopped.

example: python scripts/bench/latency_model.py --space darts --nets 60 --seed 0
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import recipes
from hwnas.latency import LatencyTable, NetRow, errors, fit, predictors
from hwnas.latency.calibrate import conformal
from hwnas.latency.validation import affine, predict_ms
from hwnas.ops import make_op
from hwnas.profile import Calibration, add_derived, build_table, make_plan
from hwnas.runtime.engines import capabilities
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan
from hwnas.runtime.measuring.supervise import supervise
from hwnas.show.console import TERMINAL, bar, console, table

# The recipes whose spaces, widths and sizes are meant.
SPACES = {"darts": "darts-quick", "autodeeplab": "autodeeplab-quick", "cas": "cas-quick", "gas": "gas-quick"}
FIT = 12
# Networks until their own interval is within 0.5 %, ops within 1 %.
STOP = StopRule(min_visits=40, max_visits=240, min_s=90.0, relative_ci=0.01, net_relative_ci=0.005, net_stable=False)
NAMES = {
    "flops": "FLOPs, affine",
    "params": "parameters, affine",
    "sum": "ops alone: plain sum",
    "sum_affine": "ops alone: affine",
    "sum_by_kind": "ops alone: a factor per kind",
    "uncorrected": "ops in context: plain sum (ours, uncalibrated)",
    "context_affine": "ops in context: affine",
    "ours": "ops in context: a factor per kind (ours)",
    "derived": "ours, on derived networks",
}


def measure(args: argparse.Namespace, folder: Path) -> tuple[LatencyTable, float]:
    """Return the table of a fresh or resumed run, with derived networks, and the minutes this took."""
    start_s = time.perf_counter()
    recipe = recipes.get(SPACES[args.space])
    calibration = Calibration(fit=FIT, test=args.nets - FIT, derived=args.derived, seed=args.seed)
    plan, results = folder / "plan", folder / "results.jsonl"
    if not (plan / "plan.json").exists():
        make_plan(recipe.space, recipe.scales(), plan, calibration, capabilities(args.engine).merges, TERMINAL)

    def run(where: Path, into: Path, stop: StopRule = STOP) -> None:
        with bar(f"measure {where.name}", None) as update:
            supervise(
                where, args.engine, 1, stop, into, lambda p: update(p.done, p.note, p.total, p.left_s), seed=args.seed
            )

    run(plan, results)
    made = build_table(plan, results)
    brief = replace(STOP, min_s=STOP.min_s / 2)
    derived = folder / "derived"
    add_derived(
        made, recipe.space, recipe.scales(), plan, derived, calibration, lambda where, into: run(where, into, brief)
    )
    return made, (time.perf_counter() - start_s) / 60


def compare(made: LatencyTable, plan: Path) -> dict[str, dict[str, float]]:
    """Return the errors of every predictor on the same held-out networks, all fitted on the same others."""
    fitted, tested = ([n for n in made.nets if n.use == use] for use in ("fit", "test"))
    calls = {c.key: c.calls[0] for c in load_plan(plan).entries if c.role == "op"}
    params = {k: sum(p.numel() for p in make_op(c.op, dict(c.attrs)).parameters()) for k, c in calls.items()}

    def count(net: NetRow) -> float:
        return sum(n * params[key] for key, n in net.ops.items())

    def by_kind(net: NetRow) -> dict[str, float]:
        out: dict[str, float] = {}
        for key, n in net.ops.items():
            row = made.rows[key]
            out[row.kind] = out.get(row.kind, 0.0) + n * (row.isolated_ms or 0.0)
        return out

    alone = fit([by_kind(n) for n in fitted], [n.latency_ms for n in fitted], [n.calls for n in fitted])
    found: dict[str, Callable[[NetRow], float]] = {
        **predictors(made),
        "params": affine(count, fitted),
        "sum_by_kind": lambda n: alone.total_ms(by_kind(n), n.calls),
        "context_affine": affine(lambda n: sum(made.sums(n).values()), fitted),
    }
    measured = [n.latency_ms for n in tested]
    return {name: errors([found[name](n) for n in tested], measured) for name in NAMES if name in found}


def noise_of_medians(results: Path, keys: Sequence[str]) -> float:
    """Return how far the median over odd visits to a network is from that over even ones: the usual statistic."""
    visits: dict[str, list[float]] = {key: [] for key in keys}
    for record in read_journal(results)[1]:
        if record.get("type") == "sample" and record["key"] in visits:
            visits[record["key"]].append(float(np.median(record["latency_ms"])))
    return float(np.mean([abs(np.median(v[1::2]) / np.median(v[::2]) - 1) for v in visits.values()]))


def coverage(made: LatencyTable) -> float:
    """Return the share of held-out networks within the 95 % interval that follows from the others."""
    relative = [predict_ms(made, n) / n.latency_ms - 1 for n in made.nets if n.use == "test"]
    inside = [abs(x) <= (conformal([*relative[:i], *relative[i + 1 :]]) or 0.0) for i, x in enumerate(relative)]
    return float(np.mean(inside))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=sorted(SPACES), default="darts")
    parser.add_argument("--nets", type=int, default=60, help=f"whole networks, {FIT} of them to fit on (%(default)s)")
    parser.add_argument("--derived", type=int, default=12, help="networks derived with the table (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of networks and of the order (%(default)s)")
    parser.add_argument("--engine", default="onnxruntime", help="%(default)s")
    parser.add_argument("--folder", type=Path, help="where plans and results are kept (runs/bench/...)")
    args = parser.parse_args()
    if args.nets < FIT + 2:
        parser.error(f"--nets must be at least {FIT + 2}: {FIT} are for the fit")
    folder = args.folder or Path("runs/bench") / f"latency_model-{args.engine}-{args.space}-{args.nets}-{args.seed}"
    made, minutes = measure(args, folder)
    found: dict[str, Any] = compare(made, folder / "plan")
    shown = {**found, "derived": made.report["derived"]} if "derived" in made.report else found
    rows = [
        [NAMES[name], *(f"{e[k]:+.2%}" if k == "bias" else f"{e[k]:.2%}" for k in ("mape", "bias")),
         *(f"{e[k]:.0%}" for k in ("within_5", "within_10")), f"{e['tau']:.3f}", str(e["n"])]
        for name, e in shown.items()
    ]  # fmt: skip
    header = ("predictor", "MAPE", "bias", "within 5 %", "within 10 %", "tau", "networks")
    table(f"held-out networks, {made.name}", header, rows, numbers=True)
    tested = [n for n in made.nets if n.use == "test"]
    widths = np.array([(n.ci_ms[1] - n.ci_ms[0]) / 2 / n.latency_ms for n in tested])
    machine = made.report["conditions"]
    medians = noise_of_medians(folder / "results.jsonl", [n.key for n in tested])
    console.print(
        f"noise floor {made.report['noise_floor']:.2%} (one network, odd against even visits; by their medians "
        f"{medians:.2%}); interval within 0.5 % for {np.mean(widths <= STOP.net_relative_ci):.0%} of them; "
        f"intervals of the others hold {coverage(made):.0%}; "
        f"latencies span {made.report['span']:.2f}x; machine slow {machine['slow_share']:.0%} of the time; "
        f"{minutes:.1f} minutes"
    )
    out = {
        "predictors": found,
        "derived": made.report.get("derived"),
        "noise_floor": made.report["noise_floor"],
        "noise_of_medians": medians,
        "held_out": len(tested),
        "span": made.report["span"],
        "interval_95": made.correction.interval,
        "covered": coverage(made),
        "slow_share": machine["slow_share"],
        "minutes": minutes,
        "seed": args.seed,
        "device": made.name,
    }
    print(json.dumps(out, allow_nan=False))


if __name__ == "__main__":
    main()
