"""Whether a searched network is better than random ones of the same latency, and than DARTS_V2, after equal training.

For each seed: a search under a budget in milliseconds; random networks of the space that are predicted to take as long
as what it derived, at any width of the table; of DARTS cells DARTS_V2 too, at the widest width that is predicted no
more than 5 % slower (what Auto-DeepLab published has twice the layers of what is searched here). All are measured in
one interleaved run. Of the random ones those that took nearest to as long as the searched one are trained, as are the
searched one and DARTS_V2: the same steps, batches and seed, at the recipe's size. Then the mIoU of each on the test
split, and where the searched one stands among the random ones. With ``--validate`` the searched one is then exported
and validated as `hwnas validate` does it, beside its prediction.

Width is not searched: the derivation takes the widest that the budget allows, and networks drawn at random are mostly
narrower where the budget is tight. So more are drawn in the same way at the searched network's own width, until there
are as many of these, and it is compared with them apart. Last the searched network of the first seed is trained with
further seeds: how much of the differences between networks is chance.

The recipe is a smaller darts-camvid or autodeeplab-camvid, see `small`. Everything is kept in ``--folder``; the same
command goes on where it was stopped, and with more ``--seeds`` it adds to what is there.

example: python scripts/bench/against_random.py --data camvid --folder /tmp/against_random
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from hwnas import recipes
from hwnas.derived import Gap
from hwnas.errors import HwnasError
from hwnas.files import write_atomic
from hwnas.jobs import Run, SearchSettings, export, open_contest, profile, search, validate
from hwnas.jobs.inputs import read_all
from hwnas.latency import LatencyTable
from hwnas.latency.model import LatencyModel
from hwnas.learn.evaluation import evaluate
from hwnas.learn.training import Training, train
from hwnas.problem import Architecture
from hwnas.profile import Calibration, PlanWriter
from hwnas.recipes import Recipe
from hwnas.records import encode
from hwnas.runtime.measuring.device import device_name
from hwnas.runtime.measuring.journal import Journal
from hwnas.runtime.measuring.measure import Measurement, StopRule
from hwnas.runtime.measuring.plan import PLAN_FILE, load_plan
from hwnas.runtime.measuring.results import collect
from hwnas.runtime.measuring.supervise import supervise
from hwnas.search.widths import price, safety
from hwnas.show.console import TERMINAL, bar, table
from hwnas.spaces import DARTS_V2, Chain, Scale, Space, sample
from hwnas.steplog import StepLog

SIZE = (120, 160)  # (height, width)
CROP = (96, 128)
WIDTHS = (8, 16)
SPACES = {"darts": ("darts-camvid", 5, 8), "autodeeplab": ("autodeeplab-camvid", 6, 4)}  # cells, channels of the search
SLACK = 1.02  # of the budget above what the known network takes, so that both can be at it
TYPICAL = 201  # random networks of the widest width, the median of which is the budget where none is known
WITHIN = 0.02  # of the searched network's prediction: what counts as the same latency
DARTS_WITHIN = 0.05
AGAIN = 1000  # first of the seeds that a network is trained with again
DRAWS = 20_000  # of random networks in all, before the latency counts as one that none has
MEASURED = StopRule(min_visits=30, max_visits=100, min_s=30.0)


@dataclass(frozen=True)
class Network:
    """One of the networks of a seed.

    Attributes:
        name: ``"searched"``, ``"darts_v2"``, ``"random0"`` and so on, or ``"as_wide0"`` and so on.
        arch: Complete.
        scale: The deployment scale.
        predicted_ms: By the table.
    """

    name: str
    arch: Architecture
    scale: Scale
    predicted_ms: float

    @property
    def key(self) -> str:
        """What it is called in a plan."""
        return f"net/{self.arch.id}-c{self.scale.channels}"


@dataclass(frozen=True)
class Outcome:
    """A network after its training.

    Attributes:
        network: Which.
        measured_ms: In a run with others of its seed.
        apart: That over what the searched one took in the same run, less one.
        val_miou: The best; its weights are those that count.
        test_miou: Of these.
        score: Sum of the probabilities of its answers, as a share of that of the rule's network.
    """

    network: Network
    measured_ms: float
    apart: float
    val_miou: float
    test_miou: float
    score: float


def standing(ours: float, others: Sequence[float]) -> dict[str, float]:
    """Return where a score stands among at least two others that are not all equal.

    Returns:
        ``mean`` and ``std`` of the others, ``z``: how many of these standard deviations the score is above that mean,
        and its ``rank`` among all, 1 for the best.
    """
    mean, std = float(np.mean(others)), float(np.std(others, ddof=1))
    return {"mean": mean, "std": std, "z": (ours - mean) / std, "rank": 1 + sum(o > ours for o in others)}


def together(pairs: Sequence[tuple[float, Sequence[float]]]) -> dict[str, float]:
    """Return what all seeds say of one network each, from its score and those of the random ones of its seed.

    Returns:
        ``ahead``: above the mean of the random ones, the mean over seeds; ``z``: that over its standard error if the
        network were one more random one of each seed; ``beaten``: share of all random ones that are worse.
    """
    said = [standing(ours, others) for ours, others in pairs]
    ahead = [ours - s["mean"] for (ours, _), s in zip(pairs, said, strict=True)]
    # One more of the same distribution differs from the mean of n others by its own deviation and by that of the mean.
    variance = sum(s["std"] ** 2 * (1 + 1 / len(others)) for (_, others), s in zip(pairs, said, strict=True))
    beaten = [ours > other for ours, others in pairs for other in others]
    return {"ahead": float(np.mean(ahead)), "z": sum(ahead) / math.sqrt(variance), "beaten": float(np.mean(beaten))}


def worth(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what channels and score are worth in test mIoU, over all networks of all seeds, by least squares.

    Returns:
        ``doubling`` the channels, a ``score`` of 1 over one of 0, their standard errors ``doubling_se`` and
        ``score_se``, and how many ``networks``; None where these do not tell the two apart.
    """
    rows = [
        (i, math.log2(n["channels"]), n["score"], n["test_miou"]) for i, f in enumerate(found) for n in f["networks"]
    ]
    x = np.array([[*(float(i == j) for j in range(len(found))), width, score] for i, width, score, _ in rows])
    y = np.array([miou for *_, miou in rows])
    free = len(y) - x.shape[1]
    if free < 1 or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    *_, doubling, score = fit
    left = y - x @ fit
    *_, doubling_se, score_se = np.sqrt(left @ left / free * np.diag(np.linalg.inv(x.T @ x)))
    return {
        "doubling": float(doubling),
        "doubling_se": float(doubling_se),
        "score": float(score),
        "score_se": float(score_se),
        "networks": len(y),
    }


def small(space: str, search_steps: int, train_steps: int, batch: int) -> Recipe:
    """Return a darts-camvid or autodeeplab-camvid that fits one core for an hour."""
    of, cells, searched = SPACES[space]
    base = recipes.get(of)
    name = "camvid-against-random"
    # As deep as what is derived, so that width alone is a proxy.
    made = base.searching(
        scale=Scale(searched, cells, SIZE),
        steps=search_steps,
        warmup=search_steps // 6,
        crop=CROP,
        alpha_lr=0.1,  # in so few steps DARTS' own leaves all undecided
    )
    return replace(
        made,
        name=name,
        title=f"{of} at 120x160, {cells} cells, 8 or 16 channels",
        space=base.space.at(Scale(WIDTHS[-1], cells, SIZE)),
        widths=WIDTHS,
        depths=(),
        train=replace(base.train, steps=train_steps, batch=batch, crop=CROP, evaluate_every=max(1, train_steps // 4)),
        calibration=Calibration(isolated=False),
    )


def open_search(made: Recipe, seed: int, data: str, path: Path, budget_ms: float) -> Run:
    """Search with a seed, unless that is done."""
    run = Run(f"seed{seed}")
    run.ask(recipe=made, seed=seed, data=data)
    if not (run.folder / "arch.json").exists():
        search(run, SearchSettings((path,), (1000 / budget_ms,)), TERMINAL)
    return run


def draw(
    space: Space,
    scales: Sequence[Scale],
    models: Sequence[LatencyModel],
    target: Network,
    n: int,
    rng: np.random.Generator,
    name: str = "random",
    but: Sequence[Network] = (),
) -> list[Network]:
    """Return n different random networks that are predicted to take as long as `target`, at any of some scales.

    Args:
        space: At any scale.
        scales: The scales.
        models: Their prices.
        target: What they are to be as fast as; not among them.
        n: How many.
        rng: Where chance comes from.
        name: What they are called, with a number.
        but: Others that are not to be among them.

    Raises:
        HwnasError: If the space has too few of them.
    """
    found: dict[str, Network] = {}
    known = {target.key, *(o.key for o in but)}
    for _ in range(DRAWS):
        if len(found) >= n:
            break
        arch = sample(space, rng)
        for scale, model in zip(scales, models, strict=True):
            ms = model.predict_ms(arch)
            if abs(ms / target.predicted_ms - 1) <= WITHIN:
                made = Network(f"{name}{len(found)}", arch, scale, ms)
                if made.key not in known:
                    found.setdefault(made.key, made)
    if len(found) < n:
        raise HwnasError(
            f"only {len(found)} of {DRAWS} random networks are within {WITHIN:.0%} of "
            f"{target.predicted_ms:.4g} ms, {n} were expected; give another --fps"
        )
    return list(found.values())[:n]


def published(space: Space) -> Architecture | None:
    """Return a known network of a space; None if none is known that is of its size."""
    return DARTS_V2.architecture(space) if isinstance(space.encoder, Chain) else None


def typical_ms(space: Space, model: LatencyModel) -> float:
    """Return what a random network of a space is predicted to take, in the median."""
    rng = np.random.default_rng(0)
    return float(np.median([model.predict_ms(sample(space, rng)) for _ in range(TYPICAL)]))


def darts(arch: Architecture, scales: Sequence[Scale], models: Sequence[LatencyModel], target_ms: float) -> Network:
    """Return DARTS_V2 at the widest scale at most 5 % slower than `target_ms`, or the narrowest if none is."""
    every = [Network("darts_v2", arch, s, m.predict_ms(arch)) for s, m in zip(scales, models, strict=True)]
    fitting = [d for d in every if d.predicted_ms <= (1 + DARTS_WITHIN) * target_ms]
    return max(fitting, key=lambda d: d.scale.channels) if fitting else every[0]


def measure(networks: Sequence[Network], space: Space, latency: LatencyTable, folder: Path) -> dict[str, float]:
    """Measure networks in one interleaved run, and return the milliseconds of each by its name.

    Raises:
        HwnasError: If the engine could not run one.
    """
    if not (folder / PLAN_FILE).exists():
        writer = PlanWriter(folder, precision=str(latency.where["engine"]["precision"]))
        for n in networks:
            writer.plan_network("compared", space.at(n.scale), n.arch, bool(latency.where["merges"]))
        writer.write()
    engine, results = latency.where["engine"], folder / "results.jsonl"
    with bar(f"measure {len(networks)} networks", None) as update:
        supervise(
            folder,
            str(engine["name"]),
            int(engine["threads"]),
            MEASURED,
            results,
            lambda p: update(p.done, p.note, p.total, p.left_s),
        )
    _, rows = collect(results, load_plan(folder))
    found: dict[str, Measurement | None] = {r.key: r.measurement for r in rows}
    out: dict[str, float] = {}
    for n in networks:
        measurement = found.get(n.key)
        if measurement is None:
            raise HwnasError(f"{engine['name']} could not run {n.key}; see {results}")
        out[n.name] = measurement.latency_ms
    return out


def trained(network: Network, seed: int) -> Path:
    """Return the folder of a training."""
    return Path("trained") / f"seed{seed}" / network.key.rpartition("/")[2]


class Trainer:
    """Trains networks alike, and keeps what came out in a journal."""

    def __init__(self, made: Recipe, run: Run, journal: Journal) -> None:
        """Read all three splits."""
        self._made, self._journal = made, journal
        self._train, self._val, self._test = (read_all(run.data(s), TERMINAL) for s in ("train", "val", "test"))
        self._known = {(r["seed"], r["key"]): r for r in journal.records}

    def train(self, network: Network, seed: int, title: str) -> tuple[float, float]:
        """Return the best mIoU on val, and that of the same weights on test."""
        if (seed, network.key) not in self._known:
            self._known[seed, network.key] = self._run(network, seed, title)
        record = self._known[seed, network.key]
        return float(record["val_miou"]), float(record["test_miou"])

    def done(self, network: Network, seed: int) -> bool:
        """Tell whether a network was trained."""
        return (seed, network.key) in self._known

    def _run(self, network: Network, seed: int, title: str) -> dict[str, Any]:
        start_s = time.monotonic()
        folder = trained(network, seed)
        folder.mkdir(parents=True, exist_ok=True)
        config = replace(self._made.train, seed=seed)
        training = Training(self._made.space.at(network.scale), network.arch, config, self._train)
        with bar(title, config.steps) as update:
            val = train(training, self._val, folder, network.key, StepLog(folder / "train.jsonl"), update)
        training.net.load_state_dict(training.best)
        training.net.eval()
        record = {
            "type": "training",
            "seed": seed,
            "key": network.key,
            "val_miou": val,
            "test_miou": evaluate(training.net, self._test).miou(),
            "seconds": round(time.monotonic() - start_s, 1),
        }
        self._journal.append(record)
        return record


def prove(run: Run, weights: Path) -> dict[str, Any]:
    """Export the searched network as it was trained, validate it, and return what the report says."""
    own = run.folder / "train" / "model.safetensors"
    if not own.exists():
        write_atomic(own, weights.read_bytes())
    export(run, report=TERMINAL)
    result = validate(run, report=TERMINAL)
    result.require_accepted()
    keys = ("predicted_ms", "measured_ms", "error", "budget_ms", "met", "doubtful", "test_miou", "torch_miou")
    return {k: getattr(result.report, k) for k in keys}


def told(run: Run) -> dict[str, Any]:
    """Return how sure a search was of its network."""
    derived = run.derived()
    steps = StepLog(run.folder / "search.jsonl").read()
    sure = np.array(list(derived.margins.values()))
    last = {k: steps[-1][k] for k in ("entropy", "lambda", "expected_ms", "derived_ms")}
    return {
        **last,
        "genotype": derived.genotype,
        "margin_mean": float(sure.mean()),
        "margin_median": float(np.median(sure)),
        "decisions": len(sure),
        "coin_tosses": len(derived.coin_tosses),
        "flips": len(derived.flips),
        "discretisation": encode(derived.discretisation_gap, Gap),
        "search_s": round(sum(s["seconds"] for s in steps), 1),
    }


def _as_wide(said: Mapping[str, Any] | None) -> str:
    return "fewer than two" if said is None else "{mean:.4f} +- {std:.4f}, z {z:+.2f}, rank {rank}".format(**said)


def compare_all(
    made: Recipe, args: argparse.Namespace, late: Callable[[], bool]
) -> tuple[LatencyTable, list[dict[str, Any]], list[float]]:
    """Measure a table and compare with every seed, as far as there is time.

    Returns:
        The table, what came out by seed, and the test mIoU of the first searched network, trained again and again.
    """
    # In the journal's header, so that what is there under other settings is refused and not reported under these.
    settings = {
        "search": made.search.to_json(),
        "train": asdict(made.train),
        "data": args.data,
        "fps": args.fps,
        "drawn": [args.random, args.measured],
    }
    found = []
    with Journal(Path("trainings.jsonl"), {"plan": "trainings", "where": settings}) as journal:
        run = Run("profiled")
        run.ask(recipe=made)
        path = (run.folder / "table.json").resolve()
        if not path.exists():  # else what is doubtful would be measured again, and searches have used it
            profile(run, report=TERMINAL)
        latency = LatencyTable.load(path)
        for seed in args.seeds:
            if late() and not any(r["seed"] == seed for r in journal.records):
                break
            outcome = compare(made, latency, path, seed, args, journal, late)
            if outcome is not None:
                found.append(outcome)
                show(outcome)
        again = train_again(made, found[0]["seed"], args.again, journal, late) if found else []
    return latency, found, again


def train_again(made: Recipe, searched: int, n: int, journal: Journal, late: Callable[[], bool]) -> list[float]:
    """Train the searched network of a seed with n further seeds, and return the test mIoU of each."""
    run = Run(f"seed{searched}")
    derived, trainer, out = run.derived(), Trainer(made, run, journal), []
    network = Network("searched", derived.architecture, derived.scale, derived.predicted_ms)
    for seed in range(AGAIN, AGAIN + n):
        if late() and not trainer.done(network, seed):
            break
        out.append(trainer.train(network, seed, f"searched, again, seed {seed}")[1])
        print(f"searched, again, seed {seed}: test {out[-1]:.4f}", flush=True)
    return out


def compare(
    made: Recipe,
    latency: LatencyTable,
    path: Path,
    seed: int,
    args: argparse.Namespace,
    journal: Journal,
    late: Callable[[], bool],
) -> dict[str, Any] | None:
    """Search, draw, measure and train with one seed; None if time was up before two random networks were trained.

    The budget, if none is asked for, is what DARTS_V2 takes at the widest width, or else what a random network does in
    the median; with the table's error allowed for, and somewhat more.
    """
    space, scales = made.space, made.scales()
    models = price(space, scales, latency)
    known = published(space)
    known_ms = typical_ms(space, models[-1]) if known is None else models[-1].predict_ms(known)
    budget_ms = 1000 / args.fps if args.fps else SLACK * known_ms * safety(models[-1])
    run = open_search(made, seed, args.data, path, budget_ms)
    derived = run.derived()
    ours = Network("searched", derived.architecture, derived.scale, derived.predicted_ms)
    ahead = [ours] if known is None else [ours, darts(known, scales, models, ours.predicted_ms)]
    folder = Path("measured")
    drawn = draw(space, scales, models, ours, args.measured, np.random.default_rng([seed, 1]))
    took = measure([*ahead, *drawn], space, latency, folder / f"seed{seed}")
    chosen = [(n, took) for n in (*ahead, *nearest(ours, drawn, took, args.random))]
    missing = args.random - sum(n.scale == ours.scale for n, _ in chosen[len(ahead) :])
    if missing:
        at = [scales.index(ours.scale)]
        same = [scales[i] for i in at], [models[i] for i in at]
        more = draw(space, *same, ours, args.measured, np.random.default_rng([seed, 2]), "as_wide", drawn)
        took = measure([ours, *more], space, latency, folder / f"seed{seed}-as-wide")
        chosen += [(n, took) for n in nearest(ours, more, took, missing)]
    contest = open_contest(run, latency)
    trainer, found = Trainer(made, run, journal), []
    for i, (n, took) in enumerate(chosen):
        if late() and not trainer.done(n, seed):
            break
        title = f"seed {seed}, {i + 1} of {len(chosen)}: {n.name}, {n.scale.channels} channels"
        val, test = trainer.train(n, seed, title)
        apart = took[n.name] / took[ours.name] - 1
        found.append(Outcome(n, took[n.name], apart, val, test, contest.score(n.arch)))
        print(f"{title}: val {val:.4f}, test {test:.4f}", flush=True)
    if len(found) < len(ahead) + 2:
        return None
    return {
        "seed": seed,
        "budget_ms": budget_ms,
        "left_out": len(chosen) - len(found),
        **figures(found),
        "search": told(run),
        "proof": prove(run, trained(ours, seed) / "model.safetensors") if args.validate else None,
    }


def nearest(ours: Network, drawn: Sequence[Network], took: Mapping[str, float], n: int) -> list[Network]:
    """Return the n networks that took nearest to as long as the searched one."""
    return sorted(drawn, key=lambda d: abs(took[d.name] / took[ours.name] - 1))[:n]


def figures(found: Sequence[Outcome]) -> dict[str, Any]:
    """Return what is to be said of the networks of a seed: the searched one, DARTS_V2 if it is there, random ones."""
    ours, *drawn = found
    beside = [drawn.pop(0)] if drawn[0].network.name == "darts_v2" else []
    others = [o.test_miou for o in drawn if o.network.name.startswith("random")]
    wide = [o.test_miou for o in drawn if o.network.scale == ours.network.scale]
    as_wide = {"random": wide, **standing(ours.test_miou, wide)} if len(wide) > 1 else None
    return {
        "ours": ours.test_miou,
        "darts_v2": [{**standing(o.test_miou, others), "miou": o.test_miou, "measured_apart": o.apart} for o in beside],
        "random": others,
        **standing(ours.test_miou, others),
        "as_wide": as_wide,
        "random_measured_apart_most": max(abs(o.apart) for o in drawn),
        # Whether what the search found probable is what trains well, over all that were trained.
        "score_against_test_miou": float(spearmanr([o.score for o in found], [o.test_miou for o in found])[0]),
        "networks": [
            {
                "name": o.network.name,
                "key": o.network.key,
                "channels": o.network.scale.channels,
                "predicted_ms": o.network.predicted_ms,
                "measured_ms": o.measured_ms,
                "measured_apart": o.apart,
                "val_miou": o.val_miou,
                "test_miou": o.test_miou,
                "score": o.score,
            }
            for o in found
        ],
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the networks of a seed, the best first, and where the searched one stands."""
    ranked = sorted(found["networks"], key=lambda n: -n["test_miou"])
    rows = [
        [n["name"], str(n["channels"])]
        + [f"{n[k]:.4g}" for k in ("predicted_ms", "measured_ms")]
        + [f"{n[k]:.4f}" for k in ("val_miou", "test_miou")]
        + [f"{n['score']:.3f}"]
        for n in ranked
    ]
    header = ("network", "channels", "predicted ms", "measured ms", "val mIoU", "test mIoU", "score")
    table(f"seed {found['seed']}", header, rows, numbers=True)
    s = found["search"]
    print(
        f"random {found['mean']:.4f} +- {found['std']:.4f}; searched {found['ours']:.4f}, rank {found['rank']} of "
        f"{len(found['random']) + 1}, z {found['z']:+.2f}"
        + "".join(f"; DARTS_V2 {d['miou']:.4f}, z {d['z']:+.2f}" for d in found["darts_v2"])
        + f"\nrandom ones as wide as the searched: {_as_wide(found['as_wide'])}\n"
        f"search: entropy {s['entropy']:.3f}, margins mean {s['margin_mean']:.3f} median {s['margin_median']:.3f}, "
        f"{s['coin_tosses']} undecided decisions and {s['flips']} flips of {s['decisions']}, "
        f"discretisation gap {s['discretisation'].get('gap', float('nan')):+.3f}; "
        f"rank correlation of score and test mIoU {found['score_against_test_miou']:+.2f}\n{s['genotype']}",
        flush=True,
    )
    if found["proof"]:
        p = found["proof"]
        print(
            f"searched, exported and validated: predicted {p['predicted_ms']:.4g} ms ({p['error']:+.1%}), "
            f"measured {p['measured_ms']:.4g} ms, budget {p['budget_ms']:.4g} ms {'met' if p['met'] else 'missed'}, "
            f"test mIoU {p['test_miou']:.4f}",
            flush=True,
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder, see hwnas data")
    parser.add_argument("--folder", type=Path, required=True, help="keeps everything; the same goes on where it was")
    parser.add_argument("--space", choices=SPACES, default="darts", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of search, draw and training (0 1)")
    parser.add_argument(
        "--fps",
        type=float,
        help="the budget (what DARTS_V2, or else a random network, takes at the widest width, and the table's error)",
    )
    parser.add_argument("--random", type=int, default=8, help="random networks to train, a seed (%(default)s)")
    parser.add_argument("--measured", type=int, default=16, help="to measure, of which these are (%(default)s)")
    parser.add_argument("--again", type=int, default=4, help="trainings of one network with other seeds (%(default)s)")
    parser.add_argument("--search-steps", type=int, default=700, help="(%(default)s)")
    parser.add_argument("--train-steps", type=int, default=700, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="of the trainings (%(default)s)")
    parser.add_argument("--validate", action="store_true", help="export and validate the searched networks at the end")
    parser.add_argument("--minutes", type=float, default=45.0, help="begin no training after that (%(default)s)")
    args = parser.parse_args()
    if not 2 <= args.random <= args.measured:
        parser.error(f"--random must be 2 to --measured ({args.measured}), got {args.random}")
    start_s = time.monotonic()
    torch.set_num_threads(1)  # small tensors; and the same sums on any machine
    args.data = str(Path(args.data).resolve())
    made = small(args.space, args.search_steps, args.train_steps, args.batch)
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.chdir(args.folder):
            latency, found, again = compare_all(made, args, lambda: time.monotonic() - start_s > 60 * args.minutes)
    except HwnasError as e:
        sys.exit(f"against_random: {e}")
    if not found:
        sys.exit("against_random: time was up before there was anything to compare; give the same command again")
    over = {"ours": together([(f["ours"], f["random"]) for f in found])}
    if all(f["darts_v2"] for f in found):
        over["darts_v2"] = together([(f["darts_v2"][0]["miou"], f["random"]) for f in found])
    if all(f["as_wide"] for f in found):
        over["ours_as_wide"] = together([(f["ours"], f["as_wide"]["random"]) for f in found])
    for name, said in over.items():
        print(
            f"{name}, {len(found)} seeds: {said['ahead']:+.4f} against the mean of the random ones, "
            f"z {said['z']:+.2f}; better than {said['beaten']:.0%} of them"
        )
    valued = worth(found)
    if valued:
        doubling, score = (f"{valued[k]:+.4f} +- {valued[k + '_se']:.4f}" for k in ("doubling", "score"))
        print(
            f"over {valued['networks']} networks twice the channels are worth {doubling} of test mIoU, "
            f"and a score of 1 over one of 0 is worth {score}"
        )
    if again:
        again = [found[0]["ours"], *again]
        print(f"searched, {len(again)} trainings of one network: {np.mean(again):.4f} +- {np.std(again, ddof=1):.4f}")
    report = {
        "seeds": found,
        "same_network": {"test_miou": again, "std": float(np.std(again, ddof=1)) if again else None},
        "over_seeds": over,
        "worth": valued,
        "device": device_name(latency.where),
        "table_on_derived": latency.report.get("derived"),
        "size": SIZE,
        "crop": CROP,
        "space": args.space,
        "cells": made.space.scale.cells,
        "widths": WIDTHS,
        "search_steps": args.search_steps,
        "train_steps": args.train_steps,
        "batch": args.batch,
        "seeds_left_out": len(args.seeds) - len(found),
        "seconds": round(time.monotonic() - start_s, 1),
    }
    print(json.dumps(report, allow_nan=False))


if __name__ == "__main__":
    main()
