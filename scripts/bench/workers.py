"""How many images a second a training takes, by the number of processes that make its batches ahead.

Trainings of the same network with 0, 1, 2, ... workers take turns, some steps each, so that what else the machine does
meets all alike; the figure is the median over rounds. Prints a table and, as its last line, one JSON object.

example: python scripts/bench/workers.py --rounds 5 --steps 10
example: python scripts/bench/workers.py --device cuda --workers 0 1 2 4 8
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import numpy as np
import torch

from hwnas import recipes
from hwnas.data import open_dataset
from hwnas.learn.device import open_device, read, title
from hwnas.learn.training import Training
from hwnas.show.console import table
from hwnas.spaces import sample

WARM = 3  # steps before anything counts: workers are started, and memory is taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="darts-quick")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of each training in each round")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    device, recipe = open_device(asked.device), recipes.get(asked.recipe)
    data = open_dataset(str(recipe.data), "train", recipe.space.scale.size)
    for i in range(len(data)):
        data[i]  # read before workers are forked, as the verbs do
    arch = sample(recipe.space, np.random.default_rng(0))
    trainings = {n: Training(recipe.space, arch, recipe.train, data, device, n) for n in asked.workers}
    for training in trainings.values():
        steps(training, WARM)
    rates: dict[int, list[float]] = {n: [] for n in asked.workers}
    for _ in range(asked.rounds):
        for n, training in trainings.items():
            start_s = time.perf_counter()
            steps(training, asked.steps)
            images = asked.steps * recipe.train.batch * recipe.train.accumulate
            rates[n].append(images / (time.perf_counter() - start_s))
    for training in trainings.values():
        training.close()
    medians = {n: statistics.median(found) for n, found in rates.items()}
    rows = [[str(n), f"{m:.2f}", f"{min(rates[n]):.2f} to {max(rates[n]):.2f}"] for n, m in medians.items()]
    table(f"{asked.recipe} on {title(device)}: images a second", ("workers", "median", "range"), rows, numbers=True)
    facts = {
        "recipe": asked.recipe,
        "device": title(device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "rounds": asked.rounds,
        "images_per_s": medians,
    }
    print(json.dumps(facts))


def steps(training: Training, count: int) -> None:
    """Do some steps, and wait for the device."""
    for _ in range(count):
        loss = training.advance()["loss"]
    read(loss)


if __name__ == "__main__":
    main()
