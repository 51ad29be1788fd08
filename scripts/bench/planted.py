"""Whether a search finds the network it should: a space and a task in which the best architecture is known.

An image has several windows of black and white pixels. A label has one bit for each cell of the space, and each cell
reads two windows: one has the bit in it, the other is chance. What a cell needs follows from how the bit is written:

    colour     white pixels are frequent or rare: any op will do, and skip_connect is free
    lag L      each pixel repeats the one L columns before it, or is its opposite; any L columns in a row are fair coins

The scores are a linear function of means over a window. So an op that sees no two pixels an odd multiple of L apart has
the same expectation for both bits, and is useless exactly: lag 1 needs sep_conv, as the taps of dil_conv are 2 columns
apart, and lag 6 needs what sees that far. `USEFUL` has the ops that solve each, `PRICES_MS` what they cost: among those
that solve a lag one is the fastest, and one is slow. Which window has the bit, and which cell gets what, differ from
seed to seed. The other window, and ops that are useless for a bit, only disturb.

Found is sharp. Without a budget: each cell keeps the edge to the window with the bit, by an op that solves it. With a
budget that has no room for anything dearer: each keeps it by the cheapest such op, one architecture of 10,000.

Four ways to search are compared: under the budget with the learned multiplier, without a budget, and under the budget
with the cost of the plain mixture and with a fixed weight. The solver derives; "by rule" is what the paper's rule
derives, which knows of no budget.
Before that each op is trained alone on each kind of bit, to see that what is said here of the ops is so.

With ``--space autodeeplab`` the same for the trellis of Auto-DeepLab, where the path is planted too: see
`planted_trellis`.

Ends with a line of JSON. example: python scripts/bench/planted.py --seeds 10 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import planted_trellis
import torch
from planted_trellis import WHERE
from torch import Tensor, nn

from hwnas import recipes
from hwnas.data.augment import batch_source
from hwnas.data.base import ClassList, Sample, SampleCache
from hwnas.latency import LatencyModel, LatencyTable, OpRow
from hwnas.learn.losses import task_loss
from hwnas.ops import layers
from hwnas.ops.registry import Op, OpSpec
from hwnas.problem import Architecture
from hwnas.search.costs import Bound
from hwnas.search.derive import strongest
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.widths import Contest, choose, price
from hwnas.seeding import seeded
from hwnas.show.console import bar, console, table
from hwnas.spaces import ClassifierHead, Form, Scale, Space, trace_space
from hwnas.spaces.cell import Cell, CellSpec, preprocessing
from hwnas.spaces.parts import Encoder, EncoderNet, Feature, Features, Map, Maps, Sampled

OPS = ("none", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
LAGS = {"lag 1": 1, "lag 4": 4, "lag 6": 6}
# By how the bit is written: the ops that solve it, cheapest first. Stated before any search; `solves` measures it.
USEFUL: Mapping[str, tuple[str, ...]] = {
    "colour": ("skip_connect", "dil_conv_3x3", "sep_conv_3x3", "dil_conv_5x5", "sep_conv_5x5"),
    "lag 1": ("sep_conv_3x3", "sep_conv_5x5"),
    "lag 4": ("dil_conv_3x3", "sep_conv_3x3", "dil_conv_5x5", "sep_conv_5x5"),
    "lag 6": ("dil_conv_5x5", "sep_conv_5x5"),
}
CUES = ("colour", "lag 1", "lag 4", "lag 6")
PRICES_MS = {("dil_conv", 3): 1.0, ("dil_conv", 5): 2.0, ("sep_conv", 3): 2.0, ("sep_conv", 5): 8.0}
FIXED_MS = 0.1  # of every other op; those are in all networks
ROOM_MS = 0.5  # of the budget above the planted network: half of what the next dearer one takes more

PLANES, MARGIN, ROWS, WIDTH = 3, 4, 8, 24  # augmentation moves images by up to 4 pixels: windows stay in their strip
STRIP = ROWS + 2 * MARGIN
NOISE = 0.1  # share of pixels that are turned over afterwards
# What a search of the recipes of chains has, but for how long it takes.
RECIPE = recipes.get("darts-quick").search
STEPS, WARMUP, BATCH = 1680, 600, 16
WAYS = ("budget", "free", "mixture", "fixed")


@dataclass(frozen=True)
class Plant:
    """Where the bits are.

    Attributes:
        cues: How the bit of each cell is written.
        sides: Which of the two windows of each cell has it, 0 or 1.
    """

    cues: tuple[str, ...]
    sides: tuple[int, ...]

    @classmethod
    def of(cls, seed: int, cues: Sequence[str] = CUES) -> Plant:
        """Return the plant of a seed."""
        rng = np.random.default_rng(seed)
        return cls(tuple(cues[i] for i in rng.permutation(len(cues))), tuple(rng.integers(2, size=len(cues)).tolist()))

    def answers(self, ops: Sequence[str]) -> dict[str, str]:
        """Return the architecture in which each cell keeps the edge to its bit, by one op each."""
        out: dict[str, str] = {}
        for i, (side, op) in enumerate(zip(self.sides, ops, strict=True)):
            out |= {f"cell{i}/{side}-2": op, f"cell{i}/{1 - side}-2": "none"}
        return out

    def right(self, arch: Architecture, cheapest: bool) -> list[bool]:
        """Tell for each cell whether it keeps the edge to its bit, by an op that solves it, or by the cheapest one."""
        return [
            arch.get(f"cell{i}/{side}-2") in USEFUL[cue][: 1 if cheapest else None]
            for i, (cue, side) in enumerate(zip(self.cues, self.sides, strict=True))
        ]


def window_of(index: int) -> tuple[int, int]:
    """Return the plane and the strip of a window: cell i reads windows 2i and 2i + 1."""
    return index % PLANES, index // PLANES


def size_of(cells: int) -> tuple[int, int]:
    """Return the (height, width) of images for so many cells."""
    return STRIP * -(-2 * cells // PLANES), WIDTH


class Textures:
    """Images of a plant as a sequence of samples; image i is a pure function of (seed, i)."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, plant: Plant, seed: int, length: int) -> None:
        """Name the images; each is drawn when it is first read."""
        self.name, self.plant, self.seed, self.length = "planted/train", plant, seed, length
        n = 2 ** len(plant.cues)
        self.classes = ClassList(tuple(map(str, range(n))), ((0, 0, 0),) * n)
        self._cache = SampleCache()

    def __len__(self) -> int:
        """Return the number of images."""
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` and its label ()."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self._cache.get(index, self._draw)

    def _draw(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        n = len(self.plant.cues)
        bits = rng.integers(2, size=n)
        image = 255 * rng.integers(2, size=(*size_of(n), PLANES), dtype=np.uint8)
        for i, (cue, side) in enumerate(zip(self.plant.cues, self.plant.sides, strict=True)):
            plane, strip = window_of(2 * i + side)
            image[strip * STRIP : (strip + 1) * STRIP, :, plane] = 255 * texture(cue, int(bits[i]), rng)
        return Sample(image, np.array(bits @ (1 << np.arange(n)), np.uint8), str(index))


def texture(cue: str, bit: int, rng: np.random.Generator) -> np.ndarray:
    """Return a strip of 0 and 1, uint8 (STRIP, WIDTH), that has a bit written in it."""
    if cue == "colour":
        return (rng.random((STRIP, WIDTH)) < (0.65 if bit else 0.35)).astype(np.uint8)
    lag = LAGS[cue]
    out = rng.integers(2, size=(STRIP, WIDTH), dtype=np.uint8)
    for column in range(lag, WIDTH):
        out[:, column] = out[:, column - lag] ^ bit
    return out ^ (rng.random(out.shape) < NOISE)


class Window(Op):
    """Some rows of one plane of an image."""

    kind, pure = "window", True

    def __init__(self, plane: int, top: int) -> None:
        """Build for a plane and its first row."""
        super().__init__(plane=plane, top=top)
        self.plane, self.top = plane, top

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, ROWS, W)."""
        return x[:, self.plane : self.plane + 1, self.top : self.top + ROWS].contiguous()


@dataclass(frozen=True)
class Planted(Encoder):
    """Cells side by side, each of one node that keeps one of two edges; their results are the channels of a feature."""

    scale: Scale
    name = "planted"

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """One matrix for each cell."""
        return tuple(CellSpec(f"cell{i}", OPS, nodes=1, keep=1) for i in range(self.scale.cells))

    def features(self, arch: Architecture, form: Form) -> Features:
        """Return the one feature."""
        return ((Feature(self.scale.cells * self.scale.channels, 1, activated=True),),)

    def build(self, arch: Architecture, form: Form) -> PlantedNet:
        """Build a network; see `Encoder.build`."""
        return PlantedNet(self, arch, form == "search")

    def genotype(self, arch: Architecture) -> dict[str, Any]:
        """Return the kept edge of each cell."""
        return {spec.name: spec.blocks(arch) for spec in self.cells}

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing of the cells."""
        return [line for spec in self.cells for line in spec.dot(arch)]

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw nothing."""


class PlantedNet(EncoderNet):
    """The network of `Planted`."""

    def __init__(self, planted: Planted, arch: Architecture, search: bool) -> None:
        """Build it; use `Planted.build`."""
        super().__init__()
        n, c = planted.scale.cells, planted.scale.channels
        places = [window_of(i) for i in range(2 * n)]
        self.windows = nn.ModuleList(Window(plane, strip * STRIP + MARGIN) for plane, strip in places)
        self.cells = nn.ModuleList(
            Cell(spec, arch, [preprocessing(1, c, search) for _ in range(2)], c, search) for spec in planted.cells
        )
        self.names = [spec.name for spec in planted.cells]
        self.concat, self.relu = layers.Concat(), layers.ReLU()
        self.bn = layers.BatchNorm(n * c)  # the mean of a mixture is small as long as no op has most of the weight

    def forward(self, image: Tensor, probs: Mapping[str, Tensor] | None = None, sampled: Sampled | None = None) -> Maps:
        """Return the feature (N, cells * channels, ROWS, W) of images (N, 3, H, W)."""
        seen = [w(image) for w in self.windows]
        out = [
            cell(seen[2 * i : 2 * i + 2], *(None if of is None else of[name] for of in (probs, sampled)))
            for i, (name, cell) in enumerate(zip(self.names, self.cells, strict=True))
        ]
        joined = self.relu(self.bn(self.concat(*out)))
        return Maps(((Map(joined),),), joined)


def space_of(cells: int) -> Space:
    """Return the space with so many cells: a linear classifier of their means."""
    return Space(Planted(Scale(4, cells, size_of(cells))), ClassifierHead(), 2**cells)


def cost_ms(spec: OpSpec) -> float:
    """Return what an op costs, by the list."""
    return PRICES_MS.get((spec.kind, int(dict(spec.attrs).get("kernel", 0))), FIXED_MS if spec.attrs else 0.0)


def priced(space: Space) -> LatencyModel:
    """Return the latency model of the table that is written by hand."""
    rows = [OpRow(c.spec.key, cost_ms(c.spec)) for c in trace_space(space).calls]
    (model,) = price(space, [space.scale], LatencyTable(WHERE, {r.key: r for r in rows}))
    return model


def planted(plant: Plant) -> Architecture:
    """Return the network that is to be found under the budget."""
    return Architecture.of("planted", plant.answers([USEFUL[cue][0] for cue in plant.cues]))


def config_of(space: Space, way: str, seed: int, weight: float) -> SearchConfig:
    """Return the settings of a search."""
    cost = {
        "mixture": replace(RECIPE.cost, expectation="mixture"),
        "fixed": replace(RECIPE.cost, weight=weight),
    }.get(way, RECIPE.cost)
    return replace(
        RECIPE,
        scale=space.scale,
        steps=STEPS,
        warmup=WARMUP,
        batch=BATCH,
        crop=space.scale.size,
        cost=cost,
        seed=seed,
    )


def find(way: str, seed: int, weight: float = 0.1) -> dict[str, Any]:
    """Search in one way with one seed, and derive.

    Args:
        way: One of `WAYS`.
        seed: Of the plant, the images and the search.
        weight: Of the cost where it is fixed.

    Returns:
        ``found`` and ``found_by_rule``, what each cell of either got right, the derived answers, and CPU seconds.
    """
    start_s = time.process_time()
    plant, space = Plant.of(seed), space_of(len(CUES))
    model, target = priced(space), planted(plant)
    budget_ms = model.predict_ms(target) + ROOM_MS
    bounds = [] if way == "free" else [Bound("ms", model, budget_ms)]
    search = BilevelSearch(space, config_of(space, way, seed, weight), Textures(plant, seed, 4096), bounds)
    metrics: dict[str, Any] = {}
    while not search.finished:
        metrics = search.advance()
    logits = search.logits()
    probs = space.problem.probabilities(search.config.relaxation.probs(logits))
    rule = strongest(space.problem, probs)
    contest = Contest(space.problem, [space.scale], [model], probs, 0.0)
    arch = rule if way == "free" else choose(contest, budget_ms)[0].arch
    assert arch is not None
    right, right_by_rule = (plant.right(a, cheapest=way != "free") for a in (arch, rule))
    assert all(right) == (arch == target) or way == "free"
    return {
        "way": way,
        "seed": seed,
        "found": all(right),
        "found_by_rule": all(right_by_rule),
        "right": dict(zip(plant.cues, right, strict=True)),
        "right_by_rule": dict(zip(plant.cues, right_by_rule, strict=True)),
        "kept": {
            cue: " ".join(f"{d.name[-3:]}:{o}" for d in g.decisions if (o := arch.get(d.name)) != "none")
            for cue, g in zip(plant.cues, space.groups, strict=True)
        },
        "rule_ms": model.predict_ms(rule),
        "budget_ms": budget_ms,
        "seconds": time.process_time() - start_s,
        **{k: float(metrics[k]) for k in ("train_loss", "val_loss", "entropy", "margin", "lambda") if k in metrics},
    }


def solves(cue: str, option: str, steps: int = 100, seed: int = 0) -> float:
    """Return the share of images of which one op alone tells the bit, over the last quarter of a short training."""
    plant, space = Plant((cue,), (0,)), space_of(1)
    with seeded(seed):
        net = space.build(Architecture.of(space.name, plant.answers([option])))
    batches = batch_source(data := Textures(plant, seed, 2048), range(len(data)), 32, space.scale.size, seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    hits = []
    for step in range(steps):
        images, labels = map(torch.from_numpy, batches(step))
        scores = net(images)
        optimizer.zero_grad()
        task_loss(scores, labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        hits.append(float((scores.argmax(dim=1) == labels).float().mean()))
    return float(np.mean(hits[-steps // 4 :]))


def _one(job: tuple[str, str, int, float]) -> dict[str, Any]:
    torch.set_num_threads(1)
    space, way, seed, weight = job
    return planted_trellis.find(way, seed) if space == "autodeeplab" else find(way, seed, weight)


def _solving_networks() -> dict[str, dict[str, float]]:
    """Measure which networks of the trellis solve each kind alone, and print it."""
    space = planted_trellis.space_of()
    model = planted_trellis.priced(space)
    jobs = [(name, *other) for name in planted_trellis.KINDS for other in planted_trellis.rivals(name)]
    shares: dict[str, dict[str, float]] = {name: {} for name in planted_trellis.KINDS}
    rows = []
    with bar("networks alone", len(jobs)) as update:
        for done, (name, path, cell) in enumerate(jobs, start=1):
            kind = planted_trellis.KINDS[name]
            arch = planted_trellis.network(space, path, cell)
            said = planted_trellis.said(space, arch)
            share = shares[name][said] = planted_trellis.solves(kind, arch)
            mark = " *" if (path, cell) == (kind.path, kind.cell) else ""
            rows.append([name, said, f"{model.predict_ms(arch):.1f}", f"{share:.2f}{mark}"])
            update(done)
    table("fields told by one network alone; * the planted one", ("kind", "network", "ms", "told"), rows)
    return shares


def _solving() -> dict[str, dict[str, float]]:
    """Measure what each op solves alone, and print it."""
    with bar("ops alone", len(CUES) * len(OPS[1:])) as update:
        shares: dict[str, dict[str, float]] = {cue: {} for cue in CUES}
        for done, (cue, option) in enumerate(((c, o) for c in CUES for o in OPS[1:]), start=1):
            shares[cue][option] = solves(cue, option)
            update(done)
    rows = [[c, *(f"{v:.2f}{' *' if o in USEFUL[c] else ''}" for o, v in shares[c].items())] for c in CUES]
    table("bits told by one op alone; * where it is said to solve them", ("bit", *OPS[1:]), rows, numbers=True)
    return shares


def _print_searches(results: Sequence[Mapping[str, Any]], ways: Sequence[str]) -> None:
    parts = sorted({part for r in results for part in r["right"]})
    heads = ("search", "found", "by rule", *parts, "entropy", "CPU s")
    rows = []
    for way in ways:
        own = [r for r in results if r["way"] == way]
        counts = [sum(r["right"][cue] for r in own) for cue in parts]
        means = [np.mean([r[k] for r in own]) for k in ("entropy", "seconds")]
        both = [f"{sum(r[k] for r in own)}/{len(own)}" for k in ("found", "found_by_rule")]
        rows.append([way, *both, *map(str, counts), f"{means[0]:.2f}", f"{means[1]:.1f}"])
    table("the planted network, and each of its parts", heads, rows, numbers=True)
    for r in results:
        if not r["found"]:
            kept = r["kept"]
            if isinstance(kept, str):
                wrong = f"{r['kind']}, {kept}"
            else:
                wrong = ", ".join(f"{cue} {kept[cue]}" for cue, ok in r["right"].items() if not ok)
            console.print(f"{r['way']}, seed {r['seed']}: {wrong}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (%(default)s)")
    parser.add_argument("--space", choices=("darts", "autodeeplab"), default="darts", help="(%(default)s)")
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, "step"), help="(all that the space has)")
    parser.add_argument("--weight", type=float, default=0.1, help="where it is fixed (%(default)s)")
    args = parser.parse_args()
    trellis = args.space == "autodeeplab"
    known = planted_trellis.WAYS if trellis else WAYS
    ways = args.ways or list(known)
    if not set(ways) <= set(known):
        parser.error(f"{args.space} has the ways {', '.join(known)}")
    torch.set_num_threads(1)
    shares = _solving_networks() if trellis else _solving()
    seeds = range(args.first, args.first + args.seeds)
    jobs = [(args.space, way, seed, args.weight) for way in ways for seed in seeds]
    results: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool, bar("searches", len(jobs)) as update:
        for r in pool.imap_unordered(_one, jobs):
            results.append(r)
            update(len(results), f"{sum(r['found'] for r in results)} found")
    results.sort(key=lambda r: (ways.index(r["way"]), r["seed"]))
    _print_searches(results, ways)
    found = {f"found_{w}": sum(r["found"] for r in results if r["way"] == w) for w in ways}
    ruled = {f"rule_{w}": sum(r["found_by_rule"] for r in results if r["way"] == w) for w in ways}
    slowest = max(r["seconds"] for r in results)
    said = {
        "space": args.space,
        "seeds": args.seeds,
        "first": args.first,
        "weight": args.weight,
        "slowest_s": slowest,
        "alone": shares,
        "searches": results,
    }
    print(json.dumps(found | ruled | said))


if __name__ == "__main__":
    main()
