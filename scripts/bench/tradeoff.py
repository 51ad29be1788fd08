"""What a search gives for each resource it is charged for: mIoU, latency, multiply-adds and parameters by constraint.

For each resource (latency by each table, multiply-adds, parameters) and each weight of the cost all groups are searched
at once, the network is derived by the probabilities alone, without a budget, at the recipe's width and depth, and is
trained for some steps. Weight 0 is the same search without a cost, the same for all resources. Per resource the rank
correlation of the weight with what the network takes of it: -1 where every larger weight gives less.

Everything is kept in ``--folder``; the same command goes on where it was stopped.

example: python scripts/bench/tradeoff.py --recipe cas-quick --table runs/cas-quick/table.json --folder /tmp/tradeoff
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from hwnas import recipes
from hwnas.complexity import complexity
from hwnas.data import SegmentationData, open_dataset
from hwnas.errors import HwnasError
from hwnas.files import write_atomic
from hwnas.latency import LatencyTable
from hwnas.latency.resources import RESOURCES
from hwnas.learn.training import Training, train
from hwnas.problem import Architecture, NoTwins
from hwnas.recipes import Recipe
from hwnas.runtime.measuring.device import device_name
from hwnas.search.config import SearchConfig
from hwnas.search.costs import Bound, CostConfig
from hwnas.search.derive import Solver
from hwnas.search.gradient import search
from hwnas.search.strategy import Inputs
from hwnas.search.widths import count, price, typical
from hwnas.show.console import TERMINAL, bar, console, table
from hwnas.steplog import StepLog


@dataclass(frozen=True)
class Point:
    """One search: the resource it is charged for, or None, and the weight of the cost."""

    resource: str | None
    weight: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.resource or 'free'}-{self.weight:g}"


@dataclass(frozen=True)
class Outcome:
    """A network that was searched and trained: what it takes of each resource, by name, and its best mIoU on val."""

    resource: str | None
    weight: float
    architecture: str
    taken: dict[str, float]
    miou: float


def points(resources: Sequence[str], weights: Sequence[float]) -> list[Point]:
    """Return all searches: the one without a cost first."""
    return [Point(None, 0.0), *(Point(r, w) for r in resources for w in weights)]


def correlations(found: Sequence[Outcome]) -> dict[str, float | None]:
    """Return of each resource the rank correlation of weight and amount; None where all networks take the same."""
    out: dict[str, float | None] = {}
    for resource in dict.fromkeys(o.resource for o in found if o.resource is not None):
        own = [o for o in found if o.resource in (None, resource)]
        amounts = [o.taken[resource] for o in own]
        constant = len(set(amounts)) == 1
        out[resource] = None if constant else float(spearmanr([o.weight for o in own], amounts).statistic)
    return out


def one(point: Point, recipe: Recipe, bounds: Sequence[Bound], args: argparse.Namespace) -> Outcome:
    """Search, derive and train one network, or go on with that."""
    folder = args.folder / point.name
    folder.mkdir(parents=True, exist_ok=True)
    space, strategy = recipe.space, recipe.stages[0].strategy
    if not isinstance(strategy, SearchConfig):
        raise HwnasError(f"the recipe {recipe.name} does not begin with a search by gradients")
    weighed = None if point.resource is None else {point.resource: 1.0}
    cost = CostConfig("linear", point.weight, "mixture", weighed)
    steps = args.search_steps
    config = replace(strategy, steps=steps, warmup=steps // 5, alpha_lr=args.alpha_lr, cost=cost)
    data, val = _data(recipe, "train", config.scale.size), _data(recipe, "val", space.scale.size)
    inputs = Inputs(space, data, bounds)
    made_with = {"point": asdict(point), "table": [str(t) for t in args.table]}
    with bar(f"search {point.name}", steps) as update:
        findings = search(
            config.begin(inputs), folder / "search.pt", made_with, StepLog(folder / "search.jsonl"), update
        )
    probs = space.problem.probabilities({k: torch.from_numpy(p) for k, p in findings.probabilities.items()})
    arch = Solver(space.problem.with_rules(NoTwins(space.twins()))).solve(probs).arch
    miou = _trained(point, recipe, arch, val, args)
    usage = {b.name: float(b.resource(space.problem.one_hot(arch))) for b in bounds}
    counted = complexity(space, arch)
    assert (usage["macs"], usage["params"]) == (counted.macs, counted.params)
    return Outcome(point.resource, point.weight, arch.id, usage, miou)


def _trained(
    point: Point, recipe: Recipe, arch: Architecture, val: SegmentationData, args: argparse.Namespace
) -> float:
    """Train a network and return its best mIoU on val."""
    folder, steps = args.folder / point.name / arch.id, args.train_steps
    config = replace(recipe.train, steps=steps, evaluate_every=max(1, steps // 2))
    training = Training(recipe.space, arch, config, _data(recipe, "train", recipe.space.scale.size))
    folder.mkdir(exist_ok=True)
    with bar(f"train {point.name}", steps) as update:
        return train(training, val, folder, {"arch": arch.id}, StepLog(folder / "train.jsonl"), update)


def _data(recipe: Recipe, split: str, size: tuple[int, int]) -> SegmentationData:
    if recipe.data is None:
        raise HwnasError(f"the recipe {recipe.name} needs {recipe.needs}; take one of drawn streets")
    return open_dataset(recipe.data, split, size)


def outcomes(recipe: Recipe, bounds: Sequence[Bound], args: argparse.Namespace) -> Iterator[Outcome]:
    """Yield what each search gives, from the folder where that is there."""
    for point in points([b.name for b in bounds], args.weights):
        path = args.folder / f"{point.name}.json"
        if not path.exists():
            write_atomic(path, json.dumps(asdict(one(point, recipe, bounds, args))))
        yield Outcome(**json.loads(path.read_text()))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cas-quick", help="(%(default)s)")
    parser.add_argument("--table", type=Path, required=True, action="append", help="of a CPU, of a GPU; once for each")
    parser.add_argument("--folder", type=Path, required=True, help="keeps everything; the same goes on where it was")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 1.0, 10.0], help="of the cost (0.1 1 10)")
    parser.add_argument("--search-steps", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--train-steps", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--alpha-lr", type=float, default=0.05, help="of the searches (%(default)s)")
    args = parser.parse_args()
    start_s = time.monotonic()
    torch.set_num_threads(1)  # small tensors; and the same sums on any machine
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        recipe = recipes.get(args.recipe)
        space, scales = recipe.space, [recipe.space.scale]
        tables = [LatencyTable.load(path) for path in args.table]
        models = {f"ms_{i}" if i > 1 else "ms": price(space, scales, t)[0] for i, t in enumerate(tables, start=1)}
        models |= {r: count(space, scales, r)[0] for r in RESOURCES}
        bounds = [typical(space.problem, model, name) for name, model in models.items()]
        found = list(outcomes(recipe, bounds, args))
    except HwnasError as e:
        sys.exit(f"tradeoff: {e}")
    columns = ("constraint", "weight", "val mIoU", *(n for n in models if n.startswith("ms")), "M macs", "k params")
    rows = [[o.resource or "none", f"{o.weight:g}", f"{o.miou:.2%}", *_amounts(o)] for o in found]
    TERMINAL.note(f"{args.search_steps} search steps, {args.train_steps} training steps, relative to typical networks")
    table("by constraint", columns, rows, numbers=True)
    report: dict[str, Any] = {
        "outcomes": [asdict(o) for o in found],
        "typical": {b.name: b.budget for b in bounds},
        "correlation": correlations(found),
        "devices": [device_name(t.where) for t in tables],
        "recipe": args.recipe,
        "search_steps": args.search_steps,
        "train_steps": args.train_steps,
        "alpha_lr": args.alpha_lr,
        "seconds": round(time.monotonic() - start_s, 1),
    }
    console.print(json.dumps(report, allow_nan=False), markup=False, soft_wrap=True)


def _amounts(outcome: Outcome) -> list[str]:
    """Return what a network takes as a table shows it."""
    ms = [f"{v:.4g}" for k, v in outcome.taken.items() if k.startswith("ms")]
    return [*ms, f"{outcome.taken['macs'] / 1e6:.2f}", f"{outcome.taken['params'] / 1e3:.1f}"]


if __name__ == "__main__":
    main()
