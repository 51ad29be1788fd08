"""Frames per second on this GPU: a published network and random ones, on every engine that is ready.

The cells of DARTS_V2 and random architectures of a recipe's space, batch 1, in three scopes: ``net``, the network with
its image on the device; ``copies``, the same from and to the host's memory; ``application``, from a camera image in
the host's memory to labels there. Weights are made up: time depends on shapes. The classes are those of Cityscapes
unless another number is asked for. Measures as `hwnas profile` does, prints a table and, as its last line, one JSON
object; goes on where an earlier call in the same folder stopped. Ends with 1 if an engine failed, with 2 if none is
ready.

example: python scripts/bench/gpu_fps.py --engines tensorrt:fp16 torch-cuda-graph:fp16
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gpu_host
import numpy as np
import torch

from hwnas import recipes
from hwnas.errors import HwnasError
from hwnas.files import sha256, write_atomic
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.precision import to_half
from hwnas.problem import Architecture
from hwnas.profile import trace_entry
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import PLAN_FILE, Plan, load_plan, write_plan
from hwnas.runtime.measuring.results import Row, collect
from hwnas.runtime.measuring.supervise import supervise
from hwnas.show.console import bar, console, table
from hwnas.spaces import DARTS_V2, Space, sample, trace_space

SCOPES = ("net", "copies", "application")  # and their roles in a plan
CLASSES = 19  # of Cityscapes
PUBLISHED_AT = 2  # of the recipe's widths, narrowest first
TIMEOUT_S = 600.0  # without a measurement: TensorRT builds a network three times before the first


class Network(NamedTuple):
    """One network.

    Attributes:
        name: For people and files.
        space: At its scale.
        arch: Complete.
    """

    name: str
    space: Space
    arch: Architecture


def networks(recipe: recipes.Recipe, size: tuple[int, int] | None, classes: int, n: int, seed: int) -> list[Network]:
    """Return the networks to measure, the published ones first, then n random ones of random widths."""
    space, rng = replace(recipe.space, classes=classes), np.random.default_rng(seed)
    scales = [replace(s, size=size or s.size) for s in recipe.scales()]
    published = DARTS_V2.architecture(space)
    out = [Network(f"DARTS_V2-c{s.channels}", space.at(s), published) for s in scales[:PUBLISHED_AT]]
    for _ in range(n):
        at, arch = space.at(scales[int(rng.integers(len(scales)))]), sample(space, rng)
        out.append(Network(f"{arch.id}-c{at.scale.channels}", at, arch))
    return out


def make_plan(folder: Path, chosen: Sequence[Network], merges: bool, precision: str) -> Plan:
    """Write what is to be measured, unless it is there already; return it."""
    if not (folder / PLAN_FILE).exists():
        exporter, entries = OpExporter(), []
        for network in chosen:
            traced = trace_space(network.space, network.arch, merge=merges)
            model = exporter.network(traced)
            content = (to_half(model) if precision == "fp16" else model).SerializeToString(deterministic=True)
            file = f"{network.name}.onnx"
            write_atomic(folder / file, content)
            keys = {role: f"{role}/{network.name}" for role in SCOPES}
            entries += [trace_entry(role, key, traced, file, sha256(content)) for role, key in keys.items()]
        write_plan(folder, entries, precision)
    return load_plan(folder)


def measure(folder: Path, plan: Plan, engine: str, stop: StopRule, minutes: float | None) -> dict[str, Any]:
    """Return ``where``, and ``rows``: what each network takes in each scope."""
    with bar(f"measure {engine} {plan.precision}", None) as update:
        results = supervise(
            folder,
            engine,
            stop=stop,
            on_progress=lambda p: update(p.done, p.note, p.total, p.left_s),
            minutes=minutes,
            timeout_s=TIMEOUT_S,
        )
    where, found = collect(results, plan)
    rows = {r.key: r for r in found}
    return {"where": where, "rows": [_row(e.key, rows.get(e.key)) for e in plan.entries]}


def _row(key: str, row: Row | None) -> dict[str, Any]:
    role, _, network = key.partition("/")
    head = {"network": network, "channels": int(network.rpartition("-c")[2]), "scope": role}
    if row is None:
        return {**head, "status": "skipped", "reason": "time was up"}
    if row.measurement is None:
        return {**head, "status": row.status, "reason": row.reason}
    m = row.measurement
    return {
        **head,
        "status": "doubtful" if m.doubtful else "ok",
        "fps": 1000 / m.latency_ms,
        "quiet_ms": m.latency_ms,
        "p50_ms": m.p50_ms,
        "p90_ms": m.p90_ms,
        "p99_ms": m.p99_ms,
        "wall_ms": m.wall_ms,
        "n": m.n,
        "visits": m.visits,
        "about": dict(m.about),
    }


def run(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return what was found on each engine: ``engine``, ``precision``, and where and rows, or a reason."""
    recipe, start_s = recipes.get(args.recipe), time.monotonic()
    chosen = networks(recipe, args.size, args.classes, args.random, args.seed)
    stop = StopRule(min_visits=args.visits, max_visits=max(100, 2 * args.visits), min_s=args.spread)
    found: list[dict[str, Any]] = []
    for i, (engine, precision) in enumerate(args.engines):
        here = gpu_host.engine(engine, precision)
        out: dict[str, Any] = {"engine": engine, "precision": precision, "ready": "reason" not in here}
        found.append(out)
        if "reason" in here:
            out["reason"] = here["reason"]
            continue
        place = folder / f"{engine}-{precision}"
        left = None if args.minutes is None else args.minutes - (time.monotonic() - start_s) / 60
        # The first ones matter most and take longest to build.
        share = None if left is None else max(0.0, left / min(3, len(args.engines) - i))
        try:
            out |= measure(place, make_plan(place, chosen, here["merges"], precision), engine, stop, share)
        except HwnasError as e:
            out["reason"] = str(e)
            continue
        bad = [
            f"{r['scope']}/{r['network']}: {r['reason']}" for r in out["rows"] if r["status"] in ("failed", "crashed")
        ]
        if bad:
            out["reason"] = f"{len(bad)} of {len(out['rows'])} failed, the first: {bad[0]}"
    return found


def show(found: Sequence[dict[str, Any]], title: str) -> None:
    """Print the figures for people."""
    rows = [
        [
            f"{f['engine']} {f['precision']}",
            r["network"],
            r["scope"],
            *([r["status"], *[""] * 4] if "fps" not in r else _figures(r)),
        ]
        for f in found
        for r in f.get("rows", ())
    ]
    table(title, ("engine", "network", "scope", "fps", "quiet ms", "p50", "p90", "p99"), rows, numbers=True)
    for f in found:
        if "reason" in f:
            console.print(f"{f['engine']} {f['precision']}: {f['reason']}", markup=False)


def _figures(row: dict[str, Any]) -> list[str]:
    doubt = " (doubtful)" if row["status"] == "doubtful" else ""
    return [f"{row['fps']:.1f}{doubt}", *(f"{row[f'{name}_ms']:.3f}" for name in ("quiet", "p50", "p90", "p99"))]


def main() -> int:
    """Read the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="darts-gpu", help="whose space, widths and size are meant (%(default)s)")
    parser.add_argument("--size", type=gpu_host.size, metavar="HxW", help="of images (the recipe's)")
    parser.add_argument("--classes", type=int, default=CLASSES, help="%(default)s")
    parser.add_argument(
        "--engines",
        type=gpu_host.pair,
        nargs="+",
        default=gpu_host.ORDER,
        metavar="ENGINE:PRECISION",
        help="in their order (all for GPUs that are ready)",
    )
    parser.add_argument("--random", type=int, default=4, help="random networks (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random networks (%(default)s)")
    parser.add_argument("--visits", type=int, default=30, help="least visits to each (%(default)s)")
    parser.add_argument(
        "--spread", type=float, default=20.0, metavar="S", help="seconds they are spread over (%(default)g)"
    )
    parser.add_argument("--minutes", type=float, help="bound on the time, shared by the engines")
    parser.add_argument("--folder", type=Path, help="where plans and results are kept (runs/bench/...)")
    args = parser.parse_args()
    if args.visits < 1 or args.random < 0 or args.classes < 1:
        parser.error("--visits and --classes must be at least 1, --random not negative")
    torch.set_num_threads(1)  # many small tensors: threads would only wait for each other
    try:
        size = "x".join(map(str, args.size or recipes.get(args.recipe).space.scale.size))
        own = f"gpu_fps-{args.recipe}-{size}-{args.classes}-{args.random}-{args.seed}"
        found = run(args, args.folder or Path("runs/bench") / own)
    except HwnasError as e:
        print(f"gpu_fps: {e}", file=sys.stderr)
        return 2
    ready = [f for f in found if f["ready"]]
    if not ready:
        print(f"gpu_fps: no engine is ready here; {found[0]['engine']}: {found[0]['reason']}", file=sys.stderr)
        return 2
    show(found, f"{args.recipe} at {size}, {args.classes} classes, batch 1")
    out = {"recipe": args.recipe, "size": size, "classes": args.classes, "seed": args.seed, "engines": found}
    print(json.dumps(out, allow_nan=False))
    return 1 if any("reason" in f for f in ready) else 0


if __name__ == "__main__":
    sys.exit(main())
