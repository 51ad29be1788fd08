"""Whether logits through a graph find a planted chain whose neighbouring cells agree, beside logits of a table.

No images: the loss is a function of what the relaxation samples. All cells of a chain are the same: in one case all of
their edges have one right op, in the other each edge has its own. Each cell is told of it by weak evidence: at every
step a random number for each edge and op, whose mean is a little larger for the right one. Neighbouring cells are
rewarded where they sample the same, whether it is right or not. So the evidence of one cell is weak within the steps
there are, that of all cells together is not, and a chain may freeze in pieces that disagree. Sampling, temperature,
optimiser and logits are those of the product.

The nodes of the graph are edges, and all it knows of an edge are its logits. So what it passes on can be which ops are
good, and not which edge they are good on, unless the logits tell edges apart already.

*Found*: every edge of every cell has its right op at the end. Beside it the share of edges that have.

Ends with a line of JSON. example: python scripts/bench/planted_graph.py --seeds 10
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hwnas.problem import Group
from hwnas.search.graph_logits import GraphLogits, GraphModule
from hwnas.search.logits import LogitModel, Table
from hwnas.search.relax import GumbelSoftmax, Moment, softmax
from hwnas.show.console import table
from hwnas.spaces import Independent, Scale

EDGE = 0.3  # by how much the right op is better, in the mean
NOISE = 1.0  # standard deviation of the evidence
AGREE = 0.1  # reward for each edge that two neighbours have in common
ALPHA_LR, BETAS = 0.02, (0.5, 0.999)  # of Adam, as in a search


def groups_of(cells: int) -> tuple[Group, ...]:
    """Return the decisions of a chain of independent cells: 5 edges of 8 ops each."""
    return Independent(Scale(4, cells, (64, 64))).groups


def run(logits: LogitModel, same: bool, cells: int, steps: int, seed: int) -> tuple[float, float, torch.nn.Module]:
    """Search once; return the share of edges with the right op, their mean probability, and the trained logits.

    Args:
        logits: Where they come from.
        same: Whether all edges of a cell have one right op.
        cells: In the chain.
        steps: Of the search.
        seed: Of everything random.
    """
    groups = groups_of(cells)
    p, q = groups[0].shape
    rng = np.random.default_rng([seed, 1])
    ops = np.broadcast_to(rng.integers(q, size=(1 if same else p, 1)), (p, 1)).copy()
    right = torch.zeros(p, q).scatter(1, torch.from_numpy(ops), 1.0)
    module, relaxation = logits.build(groups, seed), GumbelSoftmax()
    optimiser = torch.optim.Adam(module.parameters(), ALPHA_LR, betas=BETAS)
    for step in range(steps):
        sampled = list(relaxation.weights(module(), Moment(seed, step, steps)).values())
        loss = torch.zeros(())
        for k, z in enumerate(sampled):
            evidence = EDGE * right + NOISE * torch.from_numpy(rng.standard_normal((p, q))).float()
            loss = loss - (z * evidence).sum()
            if k:
                loss = loss - AGREE * (z * sampled[k - 1]).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        probs = torch.stack(list(softmax(module()).values()))  # (cells, edges, ops)
    correct = probs.argmax(-1) == right.argmax(-1)
    return float(correct.float().mean()), float((probs * right).sum(-1).mean()), module


def compare(ways: Mapping[str, LogitModel], same: bool, cells: int, steps: int, seeds: int) -> dict[str, Any]:
    """Return for each way in how many seeds the chain was found, and by seed the share of edges that are right."""
    out: dict[str, Any] = {}
    for name, logits in ways.items():
        start_s = time.process_time()
        found = [run(logits, same, cells, steps, seed) for seed in range(seeds)]
        shares = [round(share, 4) for share, _, _ in found]
        out[name] = {
            "found": sum(share == 1.0 for share in shares),
            "right": shares,
            "probability": round(float(np.mean([p for _, p, _ in found])), 4),
            "seconds": round(time.process_time() - start_s, 1),
        }
        if isinstance(found[0][2], GraphModule):
            with torch.no_grad():
                rows = torch.stack(list(found[0][2].adjacency().values()))  # (cells - 1, edges, edges)
            own = torch.diagonal(rows, dim1=1, dim2=2).mean()
            out[name]["own_edge"] = round(float(own), 4)  # uniform: 1 / edges
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--cells", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="(%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, LogitModel] = {"independent": Table(), "independent + graph": GraphLogits()}
    cases = {"one op": True, "an op for each edge": False}
    out = {case: compare(ways, same, args.cells, args.steps, args.seeds) for case, same in cases.items()}
    rows = [
        [case, name, f"{o['found']} of {args.seeds}", f"{np.mean(o['right']):.1%}", f"{o['probability']:.2f}"]
        for case, found in out.items()
        for name, o in found.items()
    ]
    table("A planted chain", ("right is", "logits", "found", "edges right", "their probability"), rows, numbers=True)
    print(json.dumps(out | {"settings": vars(args)}, allow_nan=False))


if __name__ == "__main__":
    main()
