"""What the table of a recipe costs, by phase, and how good it is; beside it, what the usual way of measuring ops costs.

The usual way: each op exported and loaded alone, 10 runs to warm up, the mean of 100 runs by the wall clock, one op
after the other; a network is the sum of its ops. Both are held against the same whole networks. Prints a table and, as
its last line, one JSON object.

example: python scripts/bench/profile_cost.py --recipe darts-quick
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwnas import recipes
from hwnas.latency import LatencyTable, NetRow, errors
from hwnas.profile import add_derived, build_table, make_plan
from hwnas.runtime.engines import capabilities, open_engine
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan
from hwnas.runtime.measuring.supervise import supervise
from hwnas.show.console import TERMINAL, bar, console, table

WARM_UP, RUNS = 10, 100


def ours(recipe: recipes.Recipe, engine: str, folder: Path) -> tuple[LatencyTable, dict[str, float], int]:
    """Return the table, seconds by phase and the number of entries: all that `hwnas profile` does."""
    seconds: dict[str, float] = {}
    start_s = time.perf_counter()
    plan, results = folder / "plan", folder / "results.jsonl"
    entries = make_plan(recipe.space, recipe.scales(), plan, recipe.calibration, capabilities(engine).merges, TERMINAL)
    seconds["export"] = time.perf_counter() - start_s

    def run(where: Path, into: Path, stop: StopRule) -> None:
        with bar(f"measure {where.name}", None) as update:
            supervise(where, engine, 1, stop, into, lambda p: update(p.done, p.note, p.total, p.left_s))

    start_s = time.perf_counter()
    run(plan, results, recipe.stop)
    seconds["build and measure"] = time.perf_counter() - start_s
    start_s = time.perf_counter()
    made = build_table(plan, results)
    add_derived(
        made,
        recipe.space,
        recipe.scales(),
        plan,
        folder / "derived",
        recipe.calibration,
        lambda where, into: run(where, into, recipe.stop),
    )
    seconds["fit, derive and measure derived networks"] = time.perf_counter() - start_s
    return made, seconds, entries


def build_seconds(engine: str, plan: Path) -> float:
    """Return the seconds it takes to load every entry once: the part of measuring that is not timing."""
    opened, start_s = open_engine(engine), time.perf_counter()
    for entry in load_plan(plan).entries:
        with opened.load(entry, plan):
            pass
    return time.perf_counter() - start_s


def usual(engine: str, plan: Path) -> tuple[dict[str, float], float]:
    """Return milliseconds of each op by its key, and the seconds to load and time them."""
    opened, start_s = open_engine(engine), time.perf_counter()
    took_ms = {}
    for entry in (e for e in load_plan(plan).entries if e.role == "op"):
        with opened.load(entry, plan) as runner:
            runner.time(WARM_UP)
            took_ms[entry.key] = float(runner.time(RUNS).wall_ms.mean())
    return took_ms, time.perf_counter() - start_s


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="darts-quick", help="%(default)s")
    parser.add_argument("--engine", default="onnxruntime", help="%(default)s")
    args = parser.parse_args()
    recipe = recipes.get(args.recipe)
    recipe = replace(recipe, calibration=replace(recipe.calibration, isolated=True))  # for the usual way
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_s = time.perf_counter()
        made, seconds, entries = ours(recipe, args.engine, folder)
        minutes = (time.perf_counter() - start_s) / 60
        build_s = build_seconds(args.engine, folder / "plan")
        took_ms, usual_s = usual(args.engine, folder / "plan")
    tested = [n for n in made.nets if n.use == "test"]

    def plain(net: NetRow) -> float:
        return sum(n * took_ms[key] for key, n in net.ops.items())

    theirs = errors([plain(n) for n in tested], [n.latency_ms for n in tested])
    mine = made.report["predictors"]["ours"]
    ops = len(took_ms)
    rows = [[phase, f"{s:.1f}", f"{1000 * s / entries:.0f}"] for phase, s in seconds.items()]
    rows.insert(2, ["  of which loading", f"{build_s:.1f}", f"{1000 * build_s / entries:.0f}"])
    rows += [["all", f"{60 * minutes:.1f}", f"{60e3 * minutes / entries:.0f}"]]
    rows += [[f"the usual way, {ops} ops, without export", f"{usual_s:.1f}", f"{1000 * usual_s / ops:.0f}"]]
    table(f"{args.recipe} on {made.name}: {entries} entries", ("phase", "s", "ms an entry"), rows, numbers=True)
    for title, e in (("ours", mine), ("the usual way", theirs)):
        console.print(
            f"{title}: MAPE {e['mape']:.2%}, bias {e['bias']:+.2%}, within 5 % {e['within_5']:.0%}, tau {e['tau']:.3f} "
            f"on {e['n']} held-out networks"
        )
    out: dict[str, Any] = {
        "minutes": minutes,
        "entries": entries,
        "mape": mine["mape"],
        "tau": mine["tau"],
        "within_5": mine["within_5"],
        "derived": made.report.get("derived"),
        "noise_floor": made.report["noise_floor"],
        "slow_share": made.report["conditions"]["slow_share"],
        "seconds": seconds | {"of which loading": build_s},
        "usual": {"minutes": (seconds["export"] * ops / entries + usual_s) / 60, "entries": ops, **theirs},
        "device": made.name,
    }
    print(json.dumps(out, allow_nan=False))


if __name__ == "__main__":
    main()
