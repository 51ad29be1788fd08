"""How far the latency of a network depends on where its memory happens to lie, with small and with huge pages.

Loads the same networks several times in one process, other ops between them, and visits all in rounds; then the same
under the malloc settings that measuring uses. Prints a table and, as its last line, one JSON object.

example: python scripts/bench/load_noise.py --seconds 60
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hwnas import recipes
from hwnas.profile import Calibration, make_plan
from hwnas.runtime.engines import open_engine
from hwnas.runtime.measuring.device import HUGE_PAGES, malloc_tunables
from hwnas.runtime.measuring.measure import halves_apart, level, visit
from hwnas.runtime.measuring.plan import load_plan
from hwnas.runtime.measuring.work import pin_to_cpus
from hwnas.show.console import table

NETS, LOADS, BETWEEN = 6, 6, 4


def worker(folder: Path, engine: str, seconds: float) -> None:
    """Print levels by network and load, and how repeatable they are, as JSON."""
    pin_to_cpus(1)
    rng, opened = np.random.default_rng(0), open_engine(engine)
    entries = load_plan(folder).entries
    nets, ops = ([e for e in entries if (e.role == "net") == net] for net in (True, False))
    runners, keep = [], []
    for load in range(LOADS):
        for i in rng.permutation(NETS):
            runners.append((int(i), load, opened.load(nets[i], folder).__enter__()))
            for j in rng.integers(len(ops), size=BETWEEN):
                keep.append(opened.load(ops[j], folder).__enter__())
                keep[-1].time(2)
    visits: list[list[float]] = [[] for _ in runners]
    start_s = time.monotonic()
    while time.monotonic() - start_s < seconds or len(visits[0]) < 2:
        for r in rng.permutation(len(runners)):
            samples = visit(runners[r][2], len(visits[r]), opened.clock, fresh=False)
            visits[r].append(float(np.median(samples.latency_ms)))
    levels = np.zeros((NETS, LOADS))
    for (i, load, _), v in zip(runners, visits, strict=True):
        levels[i, load] = level(v)
    noise = float(np.mean([abs(halves_apart(v)) for v in visits]))
    print(json.dumps({"levels_ms": levels.tolist(), "noise": noise, "visits": len(visits[0])}))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="darts-quick", help="%(default)s")
    parser.add_argument("--engine", default="onnxruntime", help="%(default)s")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring, each way (%(default)g)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.worker, args.engine, args.seconds)
        return
    if malloc_tunables() is None:
        sys.exit("load_noise: this system gives no huge pages on request, or GLIBC_TUNABLES is set; nothing to compare")
    recipe = recipes.get(args.recipe)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_plan(recipe.space, recipe.scales(), folder, Calibration(fit=2, test=NETS - 2, isolated=False))
        for way, tunables in (("small pages", ""), ("huge pages", HUGE_PAGES)):
            command = [sys.executable, __file__, "--worker", name, "--engine", args.engine]
            command += ["--seconds", str(args.seconds)]
            environment = {**os.environ, "GLIBC_TUNABLES": tunables}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
    rows, out = [], {}
    for way, data in found.items():
        levels = np.array(data["levels_ms"])
        between = levels.std(axis=1, ddof=1) / levels.mean(axis=1)
        out[way] = {"load_std": float(np.sqrt(np.mean(between**2))), "noise": data["noise"], "visits": data["visits"]}
        rows.append([way, f"{out[way]['load_std']:.2%}", f"{between.max():.2%}", f"{data['noise']:.2%}"])
    small, huge = (np.array(found[way]["levels_ms"]).mean(axis=1) for way in found)
    out["ratio"] = float(np.mean(huge / small))
    header = ("memory", "spread between loads", "of the worst network", "odd against even visits")
    table(f"{NETS} networks, each loaded {LOADS} times", header, rows, numbers=True)
    print(f"with huge pages networks take {out['ratio']:.3f} of what they take with small ones")
    print(json.dumps(out, allow_nan=False))


if __name__ == "__main__":
    main()
