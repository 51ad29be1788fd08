"""What tests of studies share: an evaluator that computes nothing, and inputs of a small problem."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwnas.data import Synthetic
from hwnas.problem import Architecture, Matrices
from hwnas.progress import Update, ignore
from hwnas.records import stored
from hwnas.search.costs import Bound
from hwnas.search.strategy import Inputs, Trial
from hwnas.search.strategy import search as run_search
from hwnas.search.study import Evaluation, Evaluator, Outcome, Sampler, Trials, Tried, Uniform
from hwnas.spaces import Lite, MultiScaleHead, Scale, Space
from hwnas.steplog import StepLog

SIZE = (64, 96)
SPACE = Space(Lite(Scale(8, 7, SIZE)), MultiScaleHead(8, nodes=3, inputs=(2, -1)), 11)  # nine edges of nine options
DATA = Synthetic("train", SIZE, length=10)
GOOD = "conv_1x1"


@stored("test-planted")
@dataclass(frozen=True)
class Planted(Evaluator):
    """The share of edges that have the good op; each trial takes a while, and leaves a line in a file.

    Attributes:
        sleep_s: How long.
        log: The file; empty for none.
    """

    sleep_s: float = 0.0
    log: str = ""

    def evaluation(self, inputs: Inputs, folder: Path, seed: int) -> Evaluation:
        return _Planted(self)


class _Planted(Evaluation):
    def __init__(self, config: Planted) -> None:
        self.config = config

    def evaluate(
        self, arch: Architecture, number: int, folder: Path, history: Sequence[Tried], update: Update = ignore
    ) -> Outcome:
        time.sleep(self.config.sleep_s)
        if self.config.log:
            with open(self.config.log, "a", encoding="utf-8") as f:
                f.write(f"{number}\n")
        return Outcome(value(arch))


def value(arch: Architecture) -> float:
    """Return what an architecture is worth to `Planted`: above 0, up to 1, of few ties."""
    each = [o == GOOD for _, o in arch.answers]
    tie = sum(len(o) * (i + 1) for i, (_, o) in enumerate(arch.answers)) % 97
    return 0.01 + 0.9 * sum(each) / len(each) + 1e-4 * tie


class Pools:
    """A resource: how many edges have a pooling."""

    def __call__(self, probs: Matrices, /) -> Tensor:
        (matrix,) = probs.values()
        return sum((matrix[:, i].sum() for i in (6, 7, 8)), torch.zeros(()))


class Edges:
    """A resource: how many edges there are, whatever is on them."""

    def __call__(self, probs: Matrices, /) -> Tensor:
        (matrix,) = probs.values()
        return matrix.sum()


POOLS = Bound("pools", Pools(), 2.0)


def inputs(folder: Path | None = None, bounds: Sequence[Bound] = (POOLS,), **more: Any) -> Inputs:
    return Inputs(SPACE, DATA, bounds, folder=folder, **more)


def trials(sampler: Sampler | None = None, steps: int = 12, **more: Any) -> Trials:
    return Trials(more.pop("evaluator", Planted()), sampler or Uniform(), steps, **more)


def run(strategy: Trials, given: Inputs, place: Path) -> tuple[Trial, ...]:
    """Run a search to its end, its checkpoint and log in a folder."""
    place.mkdir(parents=True, exist_ok=True)
    return run_search(strategy.begin(given), place / "search.pt", {}, StepLog(place / "search.jsonl")).trials


def search_in(folder: str, strategy: Trials) -> None:
    """Run a search that keeps all in a folder: what a process does that is killed."""
    run(strategy, inputs(Path(folder) / "study"), Path(folder))
