"""How long the exact derivation under a budget takes at the paper's scale, for cells alone and for path and cell.

Alphas are drawn at random, of searches that decided much and of searches that decided little; budgets are quantiles of
random networks. Prices are arithmetic (multiply-adds and bytes), so it runs anywhere. Each derivation is the product's:
one `Solver` for a space, asked again and again. Beside it: what it takes to trace the space, to price it, to set the
solver up, and to build the network that was derived last. Times are of one thread, by its CPU clock.

Prints a table and, as its last line, one JSON object.

example: python scripts/bench/derivation.py --space autodeeplab --seeds 3
example: python scripts/bench/derivation.py --space cas gas --seeds 1 --sizes 768x1536 769x1537 720x960
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hwnas import recipes
from hwnas.latency import LatencyTable, OpRow
from hwnas.problem import NoTwins
from hwnas.runtime.measuring.forecast import estimate_ms
from hwnas.search.derive import Solver
from hwnas.search.relax import open_logits, softmax
from hwnas.search.widths import price, random_latencies_ms
from hwnas.show.console import bar, table
from hwnas.spaces import Space, trace_space

# And the recipe whose space it is, at its scale.
SPACES = {"darts": "darts-gpu", "autodeeplab": "autodeeplab", "cas": "cas", "gas": "gas"}
WHERE = {"device": {"name": "paper"}, "engine": {"name": "paper", "precision": "fp32"}, "batch": 1, "merges": True}
SURE = (3.0, 1.0, 0.3, 0.05)  # standard deviations of alphas, from decided to undecided
BUDGETS = (0.1, 0.5, 0.9)  # as quantiles of random networks
RANDOM = 50


def timed(do: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its CPU seconds."""
    start_s = time.process_time()
    out = do()
    return out, time.process_time() - start_s


def probabilities(space: Space, sure: float, seed: int) -> dict[str, np.ndarray]:
    """Return what a search might have found: ``{group: (decisions, options)}``."""
    rng = np.random.default_rng(seed)
    logits = {g.name: torch.from_numpy(sure * rng.standard_normal(g.shape)) for g in space.groups}
    return {name: p.numpy() for name, p in softmax(open_logits(logits, space.groups)).items()}


def measure(space: Space, seeds: int) -> dict[str, Any]:
    """Return the seconds of each part: to trace, to price, to set up, of each derivation, and to build the last."""
    trace, trace_s = timed(lambda: trace_space(space))
    rows = {c.spec.key: OpRow(c.spec.key, estimate_ms(c.cost.macs, c.cost.bytes)) for c in trace.calls}
    (model,), price_s = timed(lambda: price(space, [space.scale], LatencyTable(WHERE, rows)))
    solver, setup_s = timed(lambda: Solver(space.problem.with_rules(NoTwins(space.twins())), model))
    ms = random_latencies_ms(space.problem, [model], RANDOM, seed=0)
    asked = [(s, seed, q) for s in SURE for seed in range(seeds) for q in BUDGETS]
    derived = []
    with bar("derive", len(asked)) as update:
        for done, (sure, seed, q) in enumerate(asked, start=1):
            probs, budget_ms = probabilities(space, sure, seed), float(np.quantile(ms, q))
            found, seconds = timed(lambda p=probs, b=budget_ms: solver.solve(p, b))
            assert found.latency_ms <= budget_ms * (1 + 1e-6)
            derived.append({"sure": sure, "seed": seed, "budget": q, "seconds": round(seconds, 4)})
            update(done)
    program = solver.program
    _, build_s = timed(lambda: space.build(found.arch, "deploy"))
    return {
        "trace_s": trace_s,
        "price_s": price_s,
        "setup_s": setup_s,
        "build_s": build_s,
        "variables": program.size,
        "derived": derived,
    }


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of a text as 768x1536."""
    height, width = map(int, text.split("x"))
    return height, width


def at_sizes(name: str, sizes: Sequence[tuple[int, int]]) -> dict[str, Space]:
    """Return a space at its recipe's scale, or at each of the sizes."""
    space = recipes.get(SPACES[name]).space
    at = [replace(space.scale, size=size) for size in sizes] or [space.scale]
    return {f"{name} {s.size[0]}x{s.size[1]}": space.at(s) for s in at}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, nargs="+", default=list(SPACES), help="(all)")
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[], metavar="HxW", help="(that of the recipe)")
    parser.add_argument("--seeds", type=int, default=3, help="of alphas (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    spaces = {title: space for name in args.space for title, space in at_sizes(name, args.sizes).items()}
    out = {title: measure(space, args.seeds) for title, space in spaces.items()}
    rows = []
    for name, found in out.items():
        for sure in SURE:
            for q in BUDGETS:
                s = [d["seconds"] for d in found["derived"] if (d["sure"], d["budget"]) == (sure, q)]
                rows.append([name, f"{sure:g}", f"{q:.0%}", f"{np.median(s):.2f}", f"{max(s):.2f}"])
        parts = ", ".join(f"{k} {found[f'{k}_s']:.2f} s" for k in ("trace", "price", "setup", "build"))
        print(f"{name}: {parts}; {found['variables']} variables", flush=True)
    header = ("space", "deviation of alphas", "budget, quantile", "median s", "longest s")
    table("CPU seconds of a derivation", header, rows, numbers=True)
    print(json.dumps(out, allow_nan=False))


if __name__ == "__main__":
    main()
