"""What independent cells and the graph are worth: shared, independent, independent + graph and random cells.

For each seed one search for each way, of the same steps, and random networks of the independent space. All are derived
for, or drawn within `WITHIN` below, one budget at one width and trained with the same steps and seed; then their mIoU
on the test split. The budget is a quantile of random networks. Latencies are those of a table with --table; without
one ops are priced by their arithmetic, so that it runs anywhere: then networks are equal in that, and not in time.

The recipe gives everything else; --steps and --train change how long it searches and trains.

Ends with a line of JSON. example: python scripts/bench/ablation_gas.py --recipe gas-quick --seeds 3
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas import recipes
from hwnas.data import open_dataset
from hwnas.errors import HwnasError
from hwnas.latency import LatencyModel, LatencyTable, OpRow
from hwnas.learn.evaluation import evaluate
from hwnas.learn.training import Training
from hwnas.problem import Architecture, NoTwins
from hwnas.profile.networks import estimate_ms
from hwnas.recipes import Recipe
from hwnas.search.costs import Bound
from hwnas.search.derive import Solver
from hwnas.search.gradient import BilevelSearch
from hwnas.search.graph_logits import GraphLogits
from hwnas.search.logits import LogitModel, Table
from hwnas.search.widths import price, random_latencies_ms
from hwnas.show.console import bar, table
from hwnas.spaces import Independent, Space, trace_space

WHERE = {"device": {"name": "paper"}, "engine": {"name": "paper", "precision": "fp32"}, "batch": 1, "merges": True}
WAYS: Mapping[str, tuple[bool, LogitModel]] = {  # whether cells are shared, and where logits come from
    "shared": (True, Table()),
    "independent": (False, Table()),
    "independent + graph": (False, GraphLogits()),
}
WITHIN = 0.05  # below the budget: where random networks are
DRAWS = 5_000  # of random networks, before the budget counts as one that none has
RANDOM = 200  # networks whose latencies give the budget


def spaced(made: Recipe, shared: bool) -> Space:
    """Return the recipe's space with shared cells or without."""
    encoder = made.space.encoder
    if not isinstance(encoder, Independent):
        raise HwnasError(f"the recipe {made.name} has no independent cells; take one of GAS")
    return replace(made.space, encoder=replace(encoder, shared=shared))


def priced(space: Space, path: Path | None) -> LatencyModel:
    """Return the latencies of a space at its own scale, by a table or by the arithmetic of ops."""
    if path is not None:
        return price(space, [space.scale], LatencyTable.load(path))[0]
    calls = trace_space(space).calls
    rows = {c.spec.key: OpRow(c.spec.key, estimate_ms(c.cost.macs, c.cost.bytes)) for c in calls}
    return price(space, [space.scale], LatencyTable(WHERE, rows))[0]


def searched(made: Recipe, way: str, seed: int, path: Path | None, budget_ms: float) -> tuple[Architecture, Space]:
    """Search in one way, and derive for the budget."""
    shared, logits = WAYS[way]
    space = spaced(made, shared)
    model = priced(space, path)
    config = replace(made.search, logits=logits, seed=seed)
    data = open_dataset(str(made.data), "train", config.size)
    search = BilevelSearch(space, config, data, [Bound("ms", model, budget_ms)])
    with bar(f"search, {way}", config.steps) as update:
        while not search.finished:
            search.advance()
            update(search.step)
    solver = Solver(space.problem.with_rules(NoTwins(space.twins())), model)
    return solver.solve(search.findings().probabilities, budget_ms).arch, space


def random_networks(space: Space, model: LatencyModel, budget_ms: float, n: int, seed: int) -> list[Architecture]:
    """Return random networks just below the budget.

    Raises:
        HwnasError: If there are too few.
    """
    rng, out = np.random.default_rng(seed), dict[str, Architecture]()
    problem = space.problem.with_rules(NoTwins(space.twins()))
    for _ in range(DRAWS):
        arch = problem.draw(rng)
        if budget_ms * (1 - WITHIN) <= model.predict_ms(arch) <= budget_ms:
            out.setdefault(arch.id, arch)
        if len(out) == n:
            return list(out.values())
    raise HwnasError(f"only {len(out)} of {DRAWS} random networks are near {budget_ms:.4g} ms; take another --quantile")


def trained(made: Recipe, space: Space, arch: Architecture, seed: int, title: str) -> float:
    """Return the mIoU on the test split after the recipe's training, of its last weights."""
    train, test = (open_dataset(str(made.data), split, space.scale.size) for split in ("train", "test"))
    config = replace(made.train, seed=seed)
    training = Training(space, arch, config, train)
    with bar(title, config.steps) as update:
        for step in range(config.steps):
            training.advance()
            update(step + 1)
    training.net.eval()
    return evaluate(training.net, test).miou()


def compare(made: Recipe, seed: int, path: Path | None, quantile: float, n: int) -> list[dict[str, Any]]:
    """Return what each network of a seed is, and how good."""
    own = spaced(made, shared=False)
    model = priced(own, path)
    budget_ms = float(np.quantile(random_latencies_ms(own.problem, [model], RANDOM, seed), quantile))
    networks = [(way, *searched(made, way, seed, path, budget_ms)) for way in WAYS]
    networks += [("random", arch, own) for arch in random_networks(own, model, budget_ms, n, seed)]
    out = []
    for way, arch, space in networks:
        ms = priced(space, path).predict_ms(arch)
        miou = trained(made, space, arch, seed, f"train, {way}")
        genotype = str(space.genotype(arch))
        out.append({"seed": seed, "way": way, "ms": ms, "budget_ms": budget_ms, "miou": miou, "genotype": genotype})
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="gas-quick", help="(%(default)s)")
    parser.add_argument("--data", help="a folder; None for the recipe's own")
    parser.add_argument("--table", type=Path, help="latencies; None for arithmetic")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--random", type=int, default=3, help="networks for each seed (%(default)s)")
    parser.add_argument("--quantile", type=float, default=0.3, help="of random networks, for the budget (%(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of images; None for the recipe's"
    )
    parser.add_argument("--steps", type=int, help="of the searches; None for the recipe's")
    parser.add_argument("--train", type=int, help="steps of the trainings; None for the recipe's")
    args = parser.parse_args()
    start_s, made = time.monotonic(), recipes.get(args.recipe)
    if args.steps:
        made = made.searching(steps=args.steps, warmup=args.steps // 5)
    made = replace(made, data=args.data or made.data)
    if args.size:
        size = (args.size[0], args.size[1])
        made = made.searching(scale=replace(made.search.scale, size=size))
        made = replace(made, space=made.space.at(replace(made.space.scale, size=size)))
    if args.train:
        made = replace(made, train=replace(made.train, steps=args.train))
    with torch.random.fork_rng():
        found = [n for s in range(args.seeds) for n in compare(made, s, args.table, args.quantile, args.random)]
    rows = []
    for way in (*WAYS, "random"):
        mious = [n["miou"] for n in found if n["way"] == way]
        ms = [n["ms"] / n["budget_ms"] for n in found if n["way"] == way]
        rows.append([way, str(len(mious)), f"{np.mean(mious):.4f}", f"{np.std(mious):.4f}", f"{np.mean(ms):.3f}"])
    table("After equal training", ("cells", "networks", "test mIoU", "deviation", "of the budget"), rows, numbers=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if v is not None}
    print(json.dumps({"networks": found, "settings": settings, "seconds": round(time.monotonic() - start_s, 1)}))


if __name__ == "__main__":
    main()
