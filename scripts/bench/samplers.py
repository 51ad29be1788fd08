"""How good the best architecture is that each sampler finds in so many trials, where what is good is planted.

No images: one architecture of the multi-scale cell is planted. Another is worth the share of its edges that agree with
it, each with its own weight, times a noise that follows from the architecture. So what is compared is what samplers ask
for, at equal numbers of trials. Controllers have settings for some hundred trials, not for 20,000.

Printed are the score of the best trial and the mean score of the last quarter of the trials, means over seeds, then in
how many seeds the latter, and the former, are above those of uniform sampling with the same seed.

Ends with a line of JSON. example: python scripts/bench/samplers.py --seeds 10
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.data import Synthetic
from hwnas.problem import Architecture
from hwnas.progress import Update, ignore
from hwnas.records import stored
from hwnas.search.strategy import Inputs, search
from hwnas.search.study import SAMPLERS, Evaluation, Evaluator, Outcome, Trials, Tried
from hwnas.spaces import Lite, MultiScaleHead, Scale, Space
from hwnas.steplog import StepLog

SIZE = (64, 96)
SPACE = Space(Lite(Scale(8, 7, SIZE)), MultiScaleHead(8, nodes=4, inputs=(2, -1)), 11)
NOISE = 0.02  # standard deviation
# For some hundred trials: the published ones are for 20,000.
CONTROLLER = {"hidden": 32, "lr": 0.01, "baseline": 0.9, "shared": ()}
SETTINGS: dict[str, dict[str, Any]] = {
    "reinforce": CONTROLLER,
    "ppo": CONTROLLER | {"memory": 20, "batch": 10, "epsilon": 0.2},
    "evolution": {"population": 20, "sample": 5},
}


@stored("bench-planted")
@dataclass(frozen=True)
class Planted(Evaluator):
    """What is good is drawn from the seed of the search."""

    def evaluation(self, inputs: Inputs, folder: Path, seed: int) -> Evaluation:
        """Draw it."""
        return _Worth(inputs, seed)


class _Worth(Evaluation):
    def __init__(self, inputs: Inputs, seed: int) -> None:
        rng = np.random.default_rng([seed, 0, 1])  # no trial has this generator
        self.right, self.seed = inputs.problem.draw(rng), seed
        weights = 0.5 + rng.random(len(self.right.answers))
        self.weights = weights / weights.sum()

    def evaluate(
        self, arch: Architecture, number: int, folder: Path, history: Sequence[Tried], update: Update = ignore
    ) -> Outcome:
        """Look it up."""
        agree = [a == b for a, b in zip(arch.answers, self.right.answers, strict=True)]
        noise = np.random.default_rng([self.seed, int(arch.id, 16)]).normal(1.0, NOISE)
        return Outcome(float((0.1 + 0.9 * (self.weights @ agree)) * noise))


def scores(name: str, trials: int, seed: int) -> list[float]:
    """Return what the trials of a search scored, in their order."""
    strategy = Trials(Planted(), SAMPLERS[name](**SETTINGS.get(name, {})), trials, seed, checkpoint_every=trials)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(SPACE, Synthetic("train", SIZE, length=8))
        found = search(strategy.begin(inputs), Path(folder) / "search.pt", {}, StepLog(Path(folder) / "log"))
    return [t.score for t in found.trials]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=list(SAMPLERS), default=list(SAMPLERS))
    args = parser.parse_args()
    names = ["uniform", *(n for n in args.only if n != "uniform")]
    out: dict[str, Any] = {"seeds": args.seeds, "trials": args.trials, "samplers": {}}
    base: list[tuple[float, float]] = []
    for name in names:
        begin_s = time.monotonic()
        each = [scores(name, args.trials, seed) for seed in range(args.seeds)]
        found = [(max(s), float(np.mean(s[-len(s) // 4 :]))) for s in each]
        base = base or found
        won = [sum(a[i] > b[i] for a, b in zip(found, base, strict=True)) for i in (0, 1)]
        best, late = (float(np.mean([f[i] for f in found])) for i in (0, 1))
        out["samplers"][name] = {"best": best, "late": late, "won": won, "seconds": time.monotonic() - begin_s}
        print(f"{name:10} {best:.4f} {late:.4f}  {won[1]}/{args.seeds}  {won[0]}/{args.seeds}", flush=True)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
