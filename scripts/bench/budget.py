"""How far derived networks land from the frames per second that were asked for, measured and not predicted.

Searches on synthetic data, derives at several budgets each, in two ways: open loop, the first network that is derived,
and closed loop, as `hwnas derive --measure` does it. What either has is measured last, in a process of its own that the
loop has not seen. Beside them the published DARTS_V2, at the widest width of the table that is predicted to meet the
budget, and a Pareto front, measured.

A machine that is shared is not always as fast as when its table was made. Networks of the table are measured beside
each network, and say how fast it is just then: so figures of the open loop are also given at the speed of the table,
where what is left is the error of the prediction.

A budget is stated by its percentile, in the logarithm of the latency, of what can be reached: from the fastest network
of the table, with its error allowed for, to the one that the search would take without a budget.

Everything is kept in ``--folder``; the same command goes on where it was stopped.

example: python scripts/bench/budget.py --folder /tmp/budget --table runs/darts-quick/table.json
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import recipes
from hwnas.derived import Landing
from hwnas.errors import BudgetError, HwnasError
from hwnas.jobs import Run, SearchSettings, open_contest, profile, search
from hwnas.jobs.landing import Bench, land_on_budget, name_of
from hwnas.latency import LatencyTable
from hwnas.recipes import Recipe
from hwnas.runtime.measuring.device import device_name
from hwnas.search.front import pareto_front
from hwnas.search.landing import SLOW, Latency
from hwnas.search.widths import Candidate, Contest
from hwnas.show.console import TERMINAL, bar, table
from hwnas.spaces import DARTS_V2
from hwnas.validate import references

TOLERANCE = 0.05
OPEN = 0.04
TRIES = 3  # processes that a network is measured in last, where the machine was slow


@dataclass(frozen=True)
class Outcome:
    """One budget of one search."""

    seed: int
    percentile: float
    budget_ms: float
    open: Candidate
    open_last: Latency
    closed: Candidate
    closed_last: Latency
    landing: Landing
    darts: tuple[int, float, float] | None  # channels, predicted ms, share of the score

    def above(self, last: Latency) -> float:
        """Return frames per second over those asked for, less one."""
        return self.budget_ms / last.ms - 1

    def above_at_speed(self, last: Latency) -> float:
        """Return the same on a machine that is as fast as when the table was made."""
        return self.budget_ms / (last.ms / (last.slowdown or 1.0)) - 1

    @property
    def no_step(self) -> bool:
        """Whether the loop proved that no network of a higher utility lies between."""
        return self.landing.why == "no step"


def bench_recipe(base: str, steps: int, widths: Sequence[int] | None) -> Recipe:
    """Return a recipe with a short search."""
    made = recipes.get(base)
    name = f"{base}-budget"
    made = made.searching(steps=steps, warmup=min(made.search.warmup, steps // 5))
    return replace(made, name=name, widths=tuple(widths or made.widths))


def open_source(made: Recipe, seed: int, path: Path, budget_ms: float | None) -> Run:
    """Search with a seed, unless that is done."""
    run = Run(f"seed{seed}")
    run.ask(recipe=made, seed=seed)
    if not (run.folder / "arch.json").exists():
        search(run, SearchSettings((path,), () if budget_ms is None else (1000 / budget_ms,)), TERMINAL)
    return run


def budgets(contest: Contest, percentiles: Sequence[float]) -> list[float]:
    """Return the budget of each percentile, in milliseconds."""
    scales = range(len(contest.scales))
    low_ms, high_ms = min(map(contest.fastest_ms, scales)), max(map(contest.free_ms, scales))
    return [low_ms * (high_ms / low_ms) ** (p / 100) for p in percentiles]


def darts(made: Recipe, contest: Contest, budget_ms: float) -> tuple[int, float, float] | None:
    """Return channels, predicted latency and share of the score of DARTS_V2 at the widest width within a budget."""
    arch = DARTS_V2.architecture(made.space)
    fitting = [
        (s.channels, ms)
        for s, model in zip(contest.scales, contest.models, strict=True)
        if (ms := model.predict_ms(arch)) <= budget_ms
    ]
    return (*max(fitting), contest.score(arch)) if fitting else None


def measure_last(bench: Bench, candidate: Candidate) -> Latency:
    """Measure in a process of its own, in another where the machine was slow; the quietest counts."""
    found: list[Latency] = []
    while len(found) < TRIES and not any((f.slowdown or 1.0) <= 1 + SLOW for f in found):
        with bar(f"last measurement of {name_of(candidate)}", None) as update:
            found.append(bench.measure(candidate, update))
    return min(found, key=lambda f: f.slowdown or 1.0)


def outcomes(
    made: Recipe, latency: LatencyTable, path: Path, args: argparse.Namespace, late: Callable[[], bool]
) -> list[Outcome]:
    """Derive and measure at every budget of every search, as far as there is time."""
    out: list[Outcome] = []
    beside, space = references(path.parent / "plan", latency), made.space
    for seed in args.seeds:
        if late():
            break
        contest = open_contest(open_source(made, seed, path, None), latency)
        for percentile, budget_ms in zip(args.percentiles, budgets(contest, args.percentiles), strict=True):
            if late():
                break
            print(f"\nsearch {seed}, percentile {percentile:g}: {1000 / budget_ms:.1f} fps", flush=True)
            name = f"seed{seed}-p{percentile:g}"
            first = contest.winner(budget_ms)
            if first is None:
                raise contest.refusal(budget_ms)
            closed, _, landing = land_on_budget(contest, space, latency, beside, Path("landings") / name, budget_ms)
            with Bench(Path("last") / name, latency, space, beside) as bench:
                last = measure_last(bench, first)
                again = last if closed == first else measure_last(bench, closed)
            outcome = Outcome(
                seed,
                percentile,
                budget_ms,
                first,
                last,
                closed,
                again,
                landing,
                darts(made, contest, budget_ms),
            )
            print(f"open {outcome.above(last):+.1%}, closed {outcome.above(again):+.1%}", flush=True)
            out.append(outcome)
    return out


def front(made: Recipe, latency: LatencyTable, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time a front of the first search, and measure its networks."""
    contest = open_contest(open_source(made, args.seeds[0], path, None), latency)
    start_s = time.perf_counter()
    points = pareto_front(contest, args.points)
    seconds = time.perf_counter() - start_s
    with Bench(Path("front"), latency, made.space, references(path.parent / "plan", latency)) as bench:
        took = [measure_last(bench, p.candidate).ms for p in points]
    drops = [1 - b / a for a, b in itertools.pairwise(took) if b <= a]
    rows = [
        [name_of(p.candidate), f"{p.candidate.utility:.3f}", f"{p.candidate.latency_ms:.4g}", f"{ms:.4g}"]
        for p, ms in zip(points, took, strict=True)
    ]
    table("front", ("network", "utility", "predicted ms", "measured ms"), rows, numbers=True)
    return {
        "pareto_s": round(seconds, 2),
        "pareto_asked": args.points,
        "pareto_distinct": len({name_of(p.candidate) for p in points}),
        "pareto_monotone": not drops,
        "pareto_largest_drop": max(drops, default=0.0),
    }


def show(found: Sequence[Outcome]) -> None:
    """Print a line for each budget."""
    rows = []
    for o in found:
        up = o.landing.next_up
        step = "" if not o.no_step else "none" if up is None else f"{up.predicted_ms:.4g}"
        slow = f"{o.closed_last.slowdown or 1.0:.3f}"
        other = "none fits" if o.darts is None else f"{o.darts[0]} ch, {o.darts[1]:.4g} ms, {o.darts[2]:.2f}"
        rows.append(
            [
                f"{o.seed}, p{o.percentile:g}",
                f"{1000 / o.budget_ms:.1f}",
                f"{o.above(o.open_last):+.1%}",
                f"{o.above_at_speed(o.open_last):+.1%}",
                f"{o.above(o.closed_last):+.1%}",
                slow,
                str(len(o.landing.rounds)),
                o.landing.why,
                step,
                f"{o.closed.scale.channels} ch, {o.closed.latency_ms:.4g} ms, {o.closed.score:.2f}",
                other,
            ]
        )
    figures = ("open", "at table's speed", "closed", "machine", "rounds", "why", "next ms")
    header = ("search", "fps", *figures, "closed is", "DARTS_V2")
    table("frames per second over the budget's", header, rows, numbers=True)


def figures(found: Sequence[Outcome]) -> dict[str, Any]:
    """Return what the runs say together."""
    first = np.array([o.above(o.open_last) for o in found])
    predicted = np.array([o.above_at_speed(o.open_last) for o in found])
    last = np.array([o.above(o.closed_last) for o in found])
    steps = np.array([not o.no_step for o in found])
    met = last >= 0
    speeds = [x.slowdown or 1.0 for o in found for x in (o.open_last, o.closed_last)]
    return {
        "runs": len(found),
        "open_within_4": int((np.abs(first) <= OPEN).sum()),
        "open_within_4_at_table_speed": int((np.abs(predicted) <= OPEN).sum()),
        "open_met": int((first >= 0).sum()),
        "open_met_at_table_speed": int((predicted >= 0).sum()),
        "closed_met": int(met.sum()),
        "closed_within_5": int((met & (last <= TOLERANCE)).sum()),
        "closed_above_5_without_a_step": int((met & (last > TOLERANCE) & ~steps).sum()),
        "closed_above_5_with_a_step": int((met & (last > TOLERANCE) & steps).sum()),
        "open_median": float(np.median(first)),
        "open_median_at_table_speed": float(np.median(predicted)),
        "closed_median": float(np.median(last)),
        "rounds_mean": float(np.mean([len(o.landing.rounds) for o in found])),
        "machine": [min(speeds), max(speeds)],
        "details": [
            {
                "seed": o.seed,
                "percentile": o.percentile,
                "budget_fps": 1000 / o.budget_ms,
                "open": o.above(o.open_last),
                "open_at_table_speed": o.above_at_speed(o.open_last),
                "closed": o.above(o.closed_last),
                "open_slowdown": o.open_last.slowdown,
                "closed_slowdown": o.closed_last.slowdown,
                "open_predicted_ms": o.open.latency_ms,
                "closed_predicted_ms": o.closed.latency_ms,
                "closed_channels": o.closed.scale.channels,
                "closed_score": o.closed.score,
                "rounds": len(o.landing.rounds),
                "why": o.landing.why,
                "next_up": None if o.landing.next_up is None else asdict(o.landing.next_up),
                "darts_v2": o.darts,
            }
            for o in found
        ],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="keeps everything; the same goes on where it was")
    parser.add_argument("--recipe", default="darts-quick", help="see hwnas ls (%(default)s)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="latency table of the recipe, its plan beside it")
    parser.add_argument("--widths", type=int, nargs="+", help="channels (the recipe's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="one search each")
    parser.add_argument("--percentiles", type=float, nargs="+", default=[10, 30, 50, 70, 90], metavar="P")
    parser.add_argument("--steps", type=int, default=60, help="of each search (%(default)s)")
    parser.add_argument("--points", type=int, default=12, help="budgets of the front, 0 for none (%(default)s)")
    parser.add_argument("--minutes", type=float, default=38.0, help="begin no budget after that (%(default)s)")
    args = parser.parse_args()
    start_s = time.monotonic()
    path = None if args.table is None else args.table.resolve()
    made = bench_recipe(args.recipe, args.steps, args.widths)
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.chdir(args.folder):
            if path is None:
                run = Run("profiled")
                run.ask(recipe=made)
                profile(run, report=TERMINAL)
                path = (run.folder / "table.json").resolve()
            latency = LatencyTable.load(path)
            found = outcomes(made, latency, path, args, lambda: time.monotonic() - start_s > 60 * args.minutes)
            if not found:
                sys.exit("budget: time was up before the first budget; give more --minutes")
            drawn = front(made, latency, path, args) if args.points else {}
    except (HwnasError, BudgetError) as e:
        sys.exit(f"budget: {e}")
    show(found)
    asked = len(args.seeds) * len(args.percentiles)
    at = {
        "device": device_name(latency.where),
        "engine": latency.where["engine"]["name"],
        "left_out": asked - len(found),
    }
    seconds = round(time.monotonic() - start_s, 1)
    text = json.dumps({**figures(found), **drawn, **at, "seconds": seconds}, allow_nan=False, default=float)
    print(text)


if __name__ == "__main__":
    main()
