"""What settings of a training are worth: each one on and off, the same steps, several seeds.

Trains the network of a recipe that decides nothing at a small size, with each setting of `PARTS` added to the plain
training alone, and evaluates its last weights on the test split. The plain training starts from ImageNet weights where
the recipe does. The teacher of the distillation is the same network trained longer by the plain settings.

Ends with a line of JSON. example: python scripts/bench/training_parts.py --data camvid --seeds 2
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hwnas import recipes
from hwnas.data import SegmentationData, open_dataset
from hwnas.errors import HwnasError
from hwnas.learn.distill import Distillation
from hwnas.learn.evaluation import evaluate
from hwnas.learn.settings import TrainConfig
from hwnas.learn.training import Training
from hwnas.problem import Architecture
from hwnas.recipes import Recipe
from hwnas.show.console import bar, table

PARTS: Mapping[str, Mapping[str, Any]] = {  # what is set in each training beside the plain settings
    "plain": {},
    "average": {"average": 0.998},
    "ohem": {"loss": "ohem"},
    "dice": {"dice_weight": 0.5},
    "no class weights": {"class_weights": "none"},
    "slower encoder": {"encoder_lr": 0.5},
    "narrow scales": {"scale_range": (0.75, 1.5)},
    "distillation": {},
    "random encoder": {"encoder_weights": ""},
}
TEACHER = "distillation"  # the part that learns from a teacher
TEACHER_SEED = 1000


def trained(
    made: Recipe, config: TrainConfig, data: SegmentationData, title: str, teacher: nn.Module | None = None
) -> nn.Module:
    """Return the network after a training, with what would be evaluated of it: averages where there are such."""
    arch = Architecture.of(made.space.name, {})
    loss = None if teacher is None else Distillation(teacher, 1.0, 2.0)
    training = Training(made.space, arch, config, data, teacher=loss)
    with bar(title, config.steps) as update:
        while not training.finished:
            training.advance()
            update(training.step)
    return training.judged.eval()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="lite0-fpn-camvid", help="of a network without decisions (%(default)s)")
    parser.add_argument("--data", required=True, help="a folder, see hwnas data")
    parser.add_argument("--size", type=int, nargs=2, default=(120, 160), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=300, help="of each training (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="all of them")
    args = parser.parse_args()
    start_s, made = time.monotonic(), recipes.get(args.recipe)
    if made.searched:
        raise HwnasError(f"the recipe {made.name} searches; take one of a network without decisions")
    size = (args.size[0], args.size[1])
    made = replace(made, space=made.space.at(replace(made.space.scale, size=size)))
    train, test = (open_dataset(args.data, split, size) for split in ("train", "test"))
    plain = TrainConfig(args.steps, args.batch, size, lr=made.train.lr, encoder_weights=made.train.encoder_weights)
    teacher = None
    if TEACHER in args.parts:
        longer = replace(plain, steps=2 * plain.steps, seed=TEACHER_SEED, average=0.998)
        teacher = trained(made, longer, train, "train the teacher")
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for part in args.parts:
            config = replace(plain, seed=seed, **PARTS[part])
            network = trained(made, config, train, f"{part}, seed {seed}", teacher if part == TEACHER else None)
            found.append({"part": part, "seed": seed, "test_miou": evaluate(network, test).miou()})
    rows = []
    for part in args.parts:
        mious = np.array([f["test_miou"] for f in found if f["part"] == part])
        against = [f["test_miou"] for f in found if f["part"] == "plain"]
        worth = f"{100 * (mious - against).mean():+.1f}" if len(against) == len(mious) else ""
        rows.append([part, *(f"{100 * m:.1f}" for m in mious), f"{100 * mious.mean():.1f}", worth])
    header = ("setting", *(f"seed {s}" for s in range(args.seeds)), "mean", "worth")
    table(f"test mIoU in %, {made.name} at {size[0]}x{size[1]}, {args.steps} steps", header, rows, numbers=True)
    out = {"trainings": found, "settings": vars(args), "seconds": round(time.monotonic() - start_s, 1)}
    if teacher is not None:
        out["teacher_miou"] = evaluate(teacher, test).miou()
    print(json.dumps(out))


if __name__ == "__main__":
    with torch.random.fork_rng():
        main()
