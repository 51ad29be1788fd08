"""How many images a second a training takes in, beside the same training written as a textbook does.

Both train the same network from the same weights on the same files, of synthetic streets at the recipe's size, with
batches, crops, optimizer, loss and precision of the recipe. Ours is `hwnas.learn.training.Training` as it is used. The
textbook reads with `torch.utils.data.DataLoader` and a dataset that opens both files of a sample, rescales, crops,
mirrors and recolours it by Pillow, and steps with `torch.optim.AdamW` as it comes; it reads the loss after each step.
Its maps are channels first; a second one has them channels last, which tells how much of the difference that is. Steps
are interleaved; time is the CPU time of the process with one thread and without workers, and the figure is the median
of the ratios of rounds. Where each spends it is measured apart: batches alone, the optimizer alone. Prints a table and,
as its last line, one JSON object.

example: python scripts/bench/training_speed.py --recipe darts-quick --rounds 7
example: python scripts/bench/training_speed.py --precision bf16
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hwnas import recipes
from hwnas.data import SegmentationData, Synthetic, open_dataset
from hwnas.data.base import IGNORE_LABEL
from hwnas.learn.losses import weights_of
from hwnas.learn.schedule import learning_rate
from hwnas.learn.settings import TrainConfig
from hwnas.learn.training import Training
from hwnas.seeding import seeded
from hwnas.show.console import table
from hwnas.spaces import sample

WARM = 2  # steps before anything counts: memory is taken, and files are in the cache of the system
IMAGES = 48


def write_folder(folder: Path, size: tuple[int, int]) -> Path:
    """Write drawn streets as files in CamVid's layout; `size` is (height, width)."""
    for split in ("train", "val"):
        drawn = Synthetic(split, size, length=IMAGES if split == "train" else 1)
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in range(len(drawn))))
        for i in range(len(drawn)):
            label = np.where(drawn[i].label == IGNORE_LABEL, 11, drawn[i].label).astype(np.uint8)
            Image.fromarray(drawn[i].image).save(folder / split / "images" / f"{i}.jpg")
            Image.fromarray(label).save(folder / split / "labels" / f"{i}.png")
    return folder


class Files(Dataset[tuple[Tensor, Tensor]]):
    """The files of a folder, augmented one by one."""

    def __init__(self, folder: Path, like: SegmentationData, crop: tuple[int, int]) -> None:
        self.folder, self.crop = folder / "train", crop
        self.names = (folder / "train.txt").read_text().split()
        self.mean, self.std = (torch.tensor(x)[:, None, None] for x in (like.mean, like.std))
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image: Image.Image = Image.open(self.folder / "images" / f"{self.names[index]}.jpg").convert("RGB")
        label: Image.Image = Image.open(self.folder / "labels" / f"{self.names[index]}.png")
        rng, (height, width) = self.rng, self.crop
        scale = rng.uniform(0.5, 2.0)
        size = (round(image.width * scale), round(image.height * scale))
        image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)
        if rng.random() < 0.5:
            image, label = ImageOps.mirror(image), ImageOps.mirror(label)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.8, 1.2))
        more = (0, 0, max(0, width - size[0]), max(0, height - size[1]))
        image, label = ImageOps.expand(image, more, (124, 116, 104)), ImageOps.expand(label, more, 11)
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        box = (int(left), int(top), int(left) + width, int(top) + height)
        pixels = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1).float() / 255
        classes = torch.from_numpy(np.array(label.crop(box))).long()
        classes[classes == 11] = IGNORE_LABEL
        return (pixels - self.mean) / self.std, classes


class Textbook:
    """A training as it is written by hand."""

    def __init__(
        self, net: nn.Module, files: Files, config: TrainConfig, weights: Tensor | None, layout: torch.memory_format
    ) -> None:
        self.net = net.to(memory_format=layout)  # type: ignore[call-overload]  # an overload without it
        self.config, self.weights, self.layout, self.number = config, weights, layout, 0
        self.loader = DataLoader(files, config.batch, shuffle=True, drop_last=True)
        self.batches = self._endless()
        self.optimizer = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.decay)

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> float:
        """Do a step and return its loss."""
        images, labels = next(self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.number)
        self.net.train()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
            scores = self.net(images.contiguous(memory_format=self.layout))
        loss = F.cross_entropy(scores.float(), labels, self.weights, ignore_index=IGNORE_LABEL)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        self.optimizer.step()
        self.number += 1
        return float(loss.detach())


def seconds(work: Callable[[], Any], times: int) -> float:
    """Return the CPU seconds of one call."""
    start_s = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start_s) / times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="darts-quick")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of each training in each round")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipes.get(asked.recipe)
    config, space = replace(recipe.train, precision=asked.precision), recipe.space
    arch = sample(space, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(Path(name), space.scale.size)
        data = open_dataset(str(folder), "train", space.scale.size)
        for i in range(len(data)):
            data[i]  # read before the training begins, as the verb does
        ours = Training(space, arch, config, data)
        theirs: dict[str, Textbook] = {}
        for side, layout in (("textbook", torch.contiguous_format), ("textbook, channels last", torch.channels_last)):
            with seeded(config.seed):
                net = space.build(arch, form="deploy")
            files = Files(folder, data, config.crop)
            theirs[side] = Textbook(net, files, config, weights_of(config, data), layout)
        sides: dict[str, Callable[[], Any]] = {"ours": ours.advance, **{side: t.step for side, t in theirs.items()}}
        for step in sides.values():
            seconds(step, WARM)
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(asked.rounds):
            for side, step in sides.items():
                found[side].append(seconds(step, asked.steps))
        parts = {
            "ours": (seconds(lambda: ours.batches(0), 3), seconds(ours.optimizer.step, 3)),
            **{
                side: (seconds(partial(next, t.batches), 3), seconds(t.optimizer.step, 3)) for side, t in theirs.items()
            },
        }
    ratios = {side: [b / a for a, b in zip(found["ours"], found[side], strict=True)] for side in theirs}
    rows = [
        [
            side,
            f"{config.batch / statistics.median(s):.2f}",
            *(f"{1e3 * x:.1f}" for x in (statistics.median(s), *parts[side])),
        ]
        for side, s in found.items()
    ]
    columns = ("", "images/s", "step ms", "batch ms", "optimizer ms")
    table(f"{asked.recipe}, {asked.precision}, one thread", columns, rows, numbers=True)
    facts = {
        "recipe": asked.recipe,
        "precision": asked.precision,
        "rounds": asked.rounds,
        "images_per_s": {side: config.batch / statistics.median(s) for side, s in found.items()},
        "batch_ms": {side: 1e3 * p[0] for side, p in parts.items()},
        "optimizer_ms": {side: 1e3 * p[1] for side, p in parts.items()},
        "ratio": {side: statistics.median(r) for side, r in ratios.items()},
        "ratio_range": {side: [min(r), max(r)] for side, r in ratios.items()},
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
