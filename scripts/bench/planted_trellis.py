"""The space of Auto-DeepLab with a network that is known to be the best; see `planted.py --space autodeeplab`.

An image is a board of black and white fields, and each field has a label. What a network needs follows from that:

    far     fields of 8 pixels; the label is the colour of the field 4 fields beside it
    pair    fields of 16 pixels; whether a field is like the one 2 fields beside it
    own     fields of 8 pixels; its own colour

All fields are fair coins, so to guess tells half of them; what the head pools over the image tells some more. Fields of
8 pixels are blurred where a map of stride 16 or 32 is all that the last cell reads, those of 16 at stride 32. A cell
costs less the larger its stride, so the budget draws the path down and the fields hold it back. `KINDS` has the one
network that is the cheapest of those that solve each. With fields of 8 pixels its path goes down to stride 16, where
cells are cheap, and comes back to stride 8; the fields reach its end by the other input of the last cell, from the
first. Lags of 4 are two steps of 2, as one atrous convolution makes: one on each of the two edges.

Four ways to search are compared: under the budget with the learned multiplier, without a budget, under the budget with
the cost of the plain mixture, and ("step") with the supernet's cells weighted as in equation 6 of the paper, where the
others weight them by paths: see `Trellis.weighting`.

Found is sharp: under a budget that has no room for anything dearer, the derived network is the planted one. Without a
budget many networks solve a task, so what counts there is measured: the derived network, trained alone, does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hwnas import recipes
from hwnas.data.augment import BatchSource
from hwnas.data.base import IGNORE_LABEL, ClassList, Sample, SampleCache
from hwnas.latency import LatencyModel, LatencyTable, OpRow
from hwnas.learn.losses import task_loss, tensors
from hwnas.ops.registry import OpSpec
from hwnas.problem import Architecture
from hwnas.problem.rules.one_path import Path
from hwnas.search.costs import Bound
from hwnas.search.derive import strongest
from hwnas.search.gradient import BilevelSearch
from hwnas.search.widths import Contest, choose, price
from hwnas.seeding import seeded
from hwnas.spaces import Scale, Space, Trellis, TrellisGenotype, autodeeplab_space, trace_space, trellis_architecture

OPS = ("none", "avg_pool_3x3", "skip_connect", "atrous_conv_3x3", "sep_conv_3x3")
FILTERS, LAYERS, SIZE = 4, 3, (16, 96)  # 13 paths, 16 cells: 208 networks
CELL_MS = (8.0, 4.0, 2.0, 1.0)  # of a cell by its level, in the price of its one sum
OP_MS = {"avg_pool": 0.8, "atrous_conv": 0.4, "sep_conv": 1.5}  # at any level; a skip is free
ROOM_MS = 0.4  # of the budget above the planted network: half of what the next dearer one that solves it takes more
WHERE = {"device": {"name": "paper"}, "engine": {"name": "paper", "precision": "fp32"}, "batch": 1, "merges": True}
SOLVED = 0.9  # share of fields that a network tells when it is trained alone

# What a search of the recipes of trellises has, but for how long it takes.
RECIPE = recipes.get("autodeeplab-quick")
STEPS, WARMUP, BATCH = 300, 100, 16
WAYS = ("budget", "free", "mixture", "step")


@dataclass(frozen=True)
class Kind:
    """A task, and the cheapest network that solves it.

    Attributes:
        level: Whose stride is the side of a field.
        lags: How many fields beside it those are of which a label is the parity; 0 is its own.
        path: Levels of the layers.
        cell: Ops of the edges from H^{l-2} and from H^{l-1}.
    """

    level: int
    lags: tuple[int, ...]
    path: Path
    cell: tuple[str, str]

    def architecture(self, space: Space) -> Architecture:
        """Return the network."""
        return network(space, self.path, self.cell)


ATROUS, SKIP = "atrous_conv_3x3", "skip_connect"
KINDS: Mapping[str, Kind] = {
    "far": Kind(1, (4,), (1, 2, 1), (ATROUS, ATROUS)),
    "pair": Kind(2, (0, 2), (1, 2, 2), (SKIP, ATROUS)),
    "own": Kind(1, (0,), (1, 2, 1), (SKIP, SKIP)),
}


# What else is measured alone: networks within the budget, those that lack one thing, and the next dearer that solve.
RIVALS: Mapping[str, tuple[tuple[Path, tuple[str, str]], ...]] = {
    "far": (
        ((1, 2, 1), (SKIP, ATROUS)),
        ((1, 2, 1), (ATROUS, SKIP)),
        ((1, 1, 2), (ATROUS, ATROUS)),
        ((1, 2, 2), (ATROUS, ATROUS)),
        ((1, 1, 1), (SKIP, ATROUS)),
    ),
    "pair": (
        ((1, 2, 2), (SKIP, SKIP)),
        ((1, 2, 2), (ATROUS, SKIP)),
        ((1, 2, 3), (SKIP, ATROUS)),
        ((1, 2, 3), (ATROUS, ATROUS)),
        ((1, 2, 2), (ATROUS, ATROUS)),
    ),
    "own": (
        ((1, 1, 2), (SKIP, SKIP)),
        ((1, 2, 2), (SKIP, SKIP)),
        ((1, 2, 3), (SKIP, SKIP)),
        ((1, 1, 1), (SKIP, SKIP)),
    ),
}


def rivals(name: str) -> list[tuple[Path, tuple[str, str]]]:
    """Return the planted network of a kind, and then what else is measured beside it, as paths and cells."""
    return [(KINDS[name].path, KINDS[name].cell), *RIVALS[name]]


def kind_of(seed: int) -> str:
    """Return the kind that a seed plants: each in turn."""
    return tuple(KINDS)[seed % len(KINDS)]


class Boards:
    """Images of a kind as a sequence of samples; image i is a pure function of (seed, i)."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, kind: Kind, seed: int, length: int) -> None:
        """Name the images; the seed says too on which side of a field the others are."""
        self.name, self.kind, self.seed, self.length = "planted/train", kind, seed, length
        self.side = int(np.random.default_rng(seed).integers(2))
        self.classes = ClassList(("0", "1"), ((0, 0, 0),) * 2)
        self._cache = SampleCache()

    def __len__(self) -> int:
        """Return the number of images."""
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` and its label map; fields without another are void."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self._cache.get(index, self._draw)

    def _draw(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        side, reach = 4 << self.kind.level, max(self.kind.lags)
        rows, columns = SIZE[0] // side, SIZE[1] // side
        fields = rng.integers(2, size=(rows, columns), dtype=np.uint8)
        labels = np.full_like(fields, IGNORE_LABEL)
        labels[:, reach:] = np.bitwise_xor.reduce([fields[:, reach - g : columns - g] for g in self.kind.lags])
        if self.side:
            fields, labels = fields[:, ::-1], labels[:, ::-1]
        pixels, label = (a.repeat(side, axis=0).repeat(side, axis=1) for a in (fields, labels))
        return Sample(np.repeat(255 * pixels[:, :, None], 3, axis=2), label, str(index))


def space_of(way: str = "budget") -> Space:
    """Return the space; in the way "step" cells are weighted as in the paper."""
    own = RECIPE.space.encoder
    assert isinstance(own, Trellis)
    weighting: Any = "step" if way == "step" else own.weighting
    scale = Scale(FILTERS, LAYERS, SIZE)
    return autodeeplab_space(scale, 2, OPS, nodes=1, keep=2, head_channels=4, weighting=weighting)


def network(space: Space, path: Path, cell: tuple[str, str]) -> Architecture:
    """Return the network of a path, and of a cell of one block that keeps both its edges."""
    return trellis_architecture(space, path, (((cell[0], 0), (cell[1], 1)),))


def cost_ms(spec: OpSpec) -> float:
    """Return what an op costs, by the list; what all networks have is free."""
    if spec.kind == "add":
        return CELL_MS[(spec.in_shapes[0][1] // FILTERS).bit_length() - 1]
    # The atrous convolutions of the head have larger rates.
    return 0.0 if int(dict(spec.attrs).get("dilation", 1)) > 2 else OP_MS.get(spec.kind, 0.0)


def priced(space: Space) -> LatencyModel:
    """Return the latency model of the table that is written by hand."""
    rows = [OpRow(c.spec.key, cost_ms(c.spec)) for c in trace_space(space).calls]
    (model,) = price(space, [space.scale], LatencyTable(WHERE, {r.key: r for r in rows}))
    return model


def as_drawn(source: BatchSource) -> BatchSource:
    """Return the batches of a source without augmentation: to another scale a lag would be another."""
    return BatchSource(source.data, source.indices, source.batch, source.size, source.seed, augment=False)


def find(way: str, seed: int) -> dict[str, Any]:
    """Search in one way with one seed, and derive.

    Args:
        way: One of `WAYS`.
        seed: Of the kind, the images and the search.

    Returns:
        ``found`` and ``found_by_rule``, what either got right, the derived network, and CPU seconds; without a budget
        the share of fields that it tells alone, too.
    """
    start_s = time.process_time()
    name, space = kind_of(seed), space_of(way)
    kind, model = KINDS[name], priced(space)
    target = kind.architecture(space)
    budget_ms = model.predict_ms(target) + ROOM_MS
    bounds = [] if way == "free" else [Bound("ms", model, budget_ms)]
    own = RECIPE.search
    cost = replace(own.cost, expectation="mixture") if way == "mixture" else own.cost
    timing = {"steps": STEPS, "warmup": WARMUP, "batch": BATCH}
    config = replace(own, scale=space.scale, crop=SIZE, cost=cost, seed=seed, **timing)
    search = BilevelSearch(space, config, Boards(kind, seed, 4096), bounds)
    search.weight_batches, search.alpha_batches = map(as_drawn, (search.weight_batches, search.alpha_batches))
    metrics: dict[str, Any] = {}
    while not search.finished:
        metrics = search.advance()
    probs = space.problem.probabilities(config.relaxation.probs(search.logits()))
    rule = strongest(space.problem, probs)
    contest = Contest(space.problem, [space.scale], [model], probs, 0.0)
    arch = rule if way == "free" else choose(contest, budget_ms)[0].arch
    assert arch is not None
    seconds = time.process_time() - start_s
    right, right_by_rule = (parts(space, kind, a) for a in (arch, rule))
    alone = {"alone": solves(kind, arch, seed=seed)} if way == "free" else {}
    found = alone["alone"] > SOLVED if alone else arch == target
    return {
        "way": way,
        "seed": seed,
        "kind": name,
        "found": found,
        "found_by_rule": found if alone else rule == target,
        "right": right,
        "right_by_rule": right_by_rule,
        "kept": said(space, arch),
        "ms": model.predict_ms(arch),
        "rule_ms": model.predict_ms(rule),
        "budget_ms": budget_ms,
        "seconds": seconds,
        **alone,
        **{k: float(metrics[k]) for k in ("train_loss", "val_loss", "entropy", "margin", "lambda") if k in metrics},
    }


def genotype(space: Space, arch: Architecture) -> TrellisGenotype:
    """Return the strides and the blocks of a network."""
    found = space.genotype(arch)
    assert isinstance(found, TrellisGenotype)
    return found


def parts(space: Space, kind: Kind, arch: Architecture) -> dict[str, bool]:
    """Tell what of a network is as planted."""
    own, planted = genotype(space, arch), genotype(space, kind.architecture(space))
    return {"path": own.strides == planted.strides, "cell": own.blocks == planted.blocks}


def said(space: Space, arch: Architecture) -> str:
    """Return a network for people: its strides, and the ops of its edges."""
    network = genotype(space, arch)
    return "-".join(map(str, network.strides)) + " " + " ".join(op for op, _ in network.blocks[0])


def solves(kind: Kind, arch: Architecture, steps: int = 200, seed: int = 0) -> float:
    """Return the share of fields of which one network tells the label, over the last quarter of a short training."""
    space = space_of()
    with seeded(seed):
        net = space.build(arch).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batches = BatchSource(Boards(kind, seed, 4096), range(4096), 16, SIZE, seed, augment=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    hits = []
    for step in range(steps):
        images, labels = tensors(batches(step))
        scores = net(images)
        optimizer.zero_grad()
        task_loss(scores, labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        hits.append(float((scores.argmax(dim=1) == labels)[labels != IGNORE_LABEL].float().mean()))
    return float(np.mean(hits[-steps // 4 :]))
