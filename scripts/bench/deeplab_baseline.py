"""Auto-DeepLab beside what it was made to replace, DeepLabv3+ on Xception: parameters, multiply-adds and latency.

Measures whole networks as `hwnas profile` does: all of them in each round of visits, in one process, so that a slow
spell of the machine meets all alike. Weights are made up: time depends on shapes. Prints a table and, as its last
line, one JSON object, with all ratios over the first network: what each has, over what Auto-DeepLab has.

example: python scripts/bench/deeplab_baseline.py --size 513 513 --filters 20
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwnas.files import sha256, write_atomic
from hwnas.ops.onnx_graph import OpExporter
from hwnas.problem import Architecture
from hwnas.profile import trace_entry
from hwnas.runtime.engines import capabilities
from hwnas.runtime.measuring.device import device_name
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import Plan, write_plan
from hwnas.runtime.measuring.results import collect
from hwnas.runtime.measuring.supervise import supervise
from hwnas.show.console import bar, table
from hwnas.spaces import Scale, Space, autodeeplab_space, published, trace_space, xception_space
from hwnas.spaces.encoders.xception import ENTRY_65, ENTRY_71, PUBLISHED

CLASSES = 19  # of Cityscapes
LAYERS = 12
# 71 at an output stride of 8 is what the paper compares with: it alone has the 43.48 M parameters of its table 5.
BASELINES = {"65/16": (ENTRY_65, 16), "65/8": (ENTRY_65, 8), "71/16": (ENTRY_71, 16), "71/8": (ENTRY_71, 8)}
TIMEOUT_S = 600.0  # without a measurement: one visit to a large network takes half a minute


def networks(args: argparse.Namespace) -> dict[str, tuple[Space, Architecture]]:
    """Return the networks to compare by name, Auto-DeepLab first."""
    size = (args.size[0], args.size[1])
    out: dict[str, tuple[Space, Architecture]] = {}
    for filters in args.filters:
        trellis = autodeeplab_space(Scale(filters, LAYERS, size), CLASSES)
        out[f"Auto-DeepLab F={filters}"] = (trellis, published("AUTO_DEEPLAB", trellis))
    for name in args.baselines:
        entry, stride = BASELINES[name]
        xception = xception_space(Scale(*PUBLISHED, size), CLASSES, entry, stride)
        out[f"DeepLabv3+ Xception-{name}"] = (xception, Architecture.of(xception.name, {}))
    return out


def make_plan(folder: Path, chosen: Mapping[str, tuple[Space, Architecture]], merges: bool) -> Plan:
    """Write the networks into a folder, to be measured."""
    entries = []
    with bar("export", len(chosen)) as update:
        for i, (name, (space, arch)) in enumerate(chosen.items()):
            traced = trace_space(space, arch, merge=merges)
            content = OpExporter().network(traced).SerializeToString(deterministic=True)
            file = f"{i}.onnx"
            write_atomic(folder / file, content)
            entries.append(trace_entry("net", name, traced, file, sha256(content)))
            update(i + 1, name)
    return write_plan(folder, entries)


def on_paper(space: Space, arch: Architecture) -> dict[str, float]:
    """Return what can be counted: parameters and multiply-adds."""
    calls = trace_space(space, arch).calls
    return {
        "parameters": sum(p.numel() for module in {c.module for c in calls} for p in module.parameters()),
        "macs": sum(c.cost.macs for c in calls),
    }


def measure(args: argparse.Namespace, folder: Path, plan: Plan) -> tuple[Mapping[str, Any], dict[str, dict[str, Any]]]:
    """Return where it was measured, and the times of each network by name.

    Raises:
        SystemExit: If one could not be measured.
    """
    with bar("measure", None) as update:
        results = supervise(
            folder,
            args.engine,
            stop=StopRule(min_visits=args.visits, max_visits=2 * args.visits, min_s=0.0),
            on_progress=lambda p: update(p.done, p.note, p.total, p.left_s),
            timeout_s=TIMEOUT_S,
        )
    where, rows = collect(results, plan)
    times = {}
    for row in rows:
        m = row.measurement
        if m is None:
            sys.exit(f"deeplab_baseline: {row.key} {row.status}: {row.reason}")
        times[row.key] = {
            "latency_ms": m.latency_ms,
            "ci_ms": m.ci_ms,
            "p50_ms": m.p50_ms,
            "wall_ms": m.wall_ms,
            "repeatability": m.repeatability,
            "visits": m.visits,
            "doubtful": m.doubtful,
        }
    return where, times


def show(found: Sequence[dict[str, Any]], title: str) -> None:
    """Print the figures for people."""
    rows = []
    for f in found:
        low_ms, high_ms = f["ci_ms"]
        rows.append(
            [
                f["network"],
                f"{f['parameters'] / 1e6:.2f} ({f['times_parameters']:.2f}x)",
                f"{f['macs'] / 1e9:.2f} ({f['times_macs']:.2f}x)",
                f"{f['latency_ms']:.0f} ({f['times_latency']:.2f}x){' doubtful' if f['doubtful'] else ''}",
                f"{low_ms:.0f} to {high_ms:.0f}",
                f"{f['p50_ms']:.0f}",
                f"{f['macs'] / f['latency_ms'] / 1e6:.1f}",
            ]
        )
    header = ("network", "M parameters", "G multiply-adds", "ms", "interval", "p50 ms", "G multiply-adds a second")
    table(title, header, rows, numbers=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, nargs="+", default=[20], help="F of Auto-DeepLab: 20 is S, 32 M, 48 L")
    parser.add_argument(
        "--baselines",
        nargs="+",
        choices=BASELINES,
        default=["65/16", "65/8", "71/8"],
        help="layers of Xception and output stride (65/16 65/8 71/8)",
    )
    parser.add_argument("--size", type=int, nargs=2, default=[513, 513], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--engine", default="onnxruntime", help="%(default)s")
    parser.add_argument("--visits", type=int, default=10, help="least visits to each, of eight runs (%(default)s)")
    args = parser.parse_args()
    chosen = networks(args)
    with tempfile.TemporaryDirectory() as name:
        plan = make_plan(Path(name), chosen, capabilities(args.engine).merges)
        where, times = measure(args, Path(name), plan)
    found = [{"network": n, **on_paper(*chosen[n]), **times[n]} for n in chosen]
    for f in found:
        for what, of in (("parameters", "parameters"), ("macs", "macs"), ("latency", "latency_ms")):
            f[f"times_{what}"] = f[of] / found[0][of]
    engine = where["engine"]
    about = {
        "size": args.size,
        "device": device_name(where),
        "engine": f"{engine['name']} {engine['version']}",
        "threads": engine["threads"],
        "clock": where["clock"],
    }
    show(found, f"{args.size[0]}x{args.size[1]}, {about['device']}, {about['engine']}, {about['threads']} thread(s)")
    print(json.dumps({**about, "networks": found}, allow_nan=False))


if __name__ == "__main__":
    main()
