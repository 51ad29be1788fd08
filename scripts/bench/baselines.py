"""Real-time networks made by hand: parameters, multiply-adds, measured latency, and latency predicted from their ops.

Measures every op of all networks in context, and the networks whole, in one plan. Each network is predicted twice: by
the plain sum of its ops, and with the correction that is fitted on the others, as `hwnas price` does with a table that
does not know it. Weights are made up: time depends on shapes. Prints a table and, as its last line, one JSON object.

example: python scripts/bench/baselines.py --size 256 512 --networks FAST_SCNN STDC1
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwnas.complexity import complexity
from hwnas.latency.calibrate import errors, fit
from hwnas.latency.table import LatencyTable
from hwnas.problem import Architecture
from hwnas.profile.build import build_table
from hwnas.profile.context import contexts
from hwnas.profile.plan import PlanWriter
from hwnas.runtime.engines import capabilities
from hwnas.runtime.measuring.device import device_name
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.supervise import supervise
from hwnas.show.console import bar, table
from hwnas.spaces import Space, alone_names, own_space, trace_space

TIMEOUT_S = 600.0  # without a measurement: one visit to a large network takes a while


def networks(names: Sequence[str], size: tuple[int, int], classes: int) -> dict[str, tuple[Space, Architecture]]:
    """Return the networks by name."""
    out = {}
    for name in names:
        space = own_space(name, size, classes)
        assert space is not None, "choices are names of such networks"
        out[name] = (space, Architecture.of(space.name, {}))
    return out


def make_plan(folder: Path, chosen: dict[str, tuple[Space, Architecture]], merges: bool) -> dict[str, str]:
    """Write all ops in context and all networks into a folder, to be measured; return the key of each network."""
    traces = [trace_space(space, arch, merge=merges) for space, arch in chosen.values()]
    context_of = contexts(traces, [[1.0] * len(t.calls) for t in traces])
    writer, keys = PlanWriter(folder), {}
    writer.plan_ops(list(context_of.values()), context_of)
    for name, (space, arch) in chosen.items():
        writer.plan_network("fit", space, arch, merges)
        keys[name] = writer.key_of(space, arch)
    with bar("plan: write files", None) as update:
        writer.write(update)
    return keys


def measure(args: argparse.Namespace, folder: Path) -> LatencyTable:
    """Return the table of a plan."""
    with bar("measure", None) as update:
        results = supervise(
            folder,
            args.engine,
            args.threads,
            stop=StopRule(min_visits=args.visits, max_visits=2 * args.visits, min_s=0.0),
            on_progress=lambda p: update(p.done, p.note, p.total, p.left_s),
            timeout_s=TIMEOUT_S,
        )
    return build_table(folder, results)


def figures(
    chosen: dict[str, tuple[Space, Architecture]], keys: dict[str, str], measured: LatencyTable
) -> list[dict[str, Any]]:
    """Return what is known of each network.

    Raises:
        SystemExit: If one, or an op of it, could not be measured.
    """
    nets = {n.key: n for n in measured.nets}
    out = []
    for name, (space, arch) in chosen.items():
        if keys[name] not in nets:
            sys.exit(f"baselines: {name} or an op of it could not be measured")
        net, counted = nets[keys[name]], complexity(space, arch)
        others = [n for n in measured.nets if n.key != net.key]
        correction = fit([measured.sums(n) for n in others], [n.latency_ms for n in others], [n.calls for n in others])
        out.append(
            {
                "network": name,
                "parameters": counted.params,
                "macs": counted.macs,
                "latency_ms": net.latency_ms,
                "ci_ms": net.ci_ms,
                "repeatability": net.repeatability,
                "status": net.status,
                "plain_ms": sum(measured.sums(net).values()),
                "predicted_ms": correction.total_ms(measured.sums(net), net.calls),
            }
        )
    return out


def show(found: Sequence[dict[str, Any]], title: str) -> None:
    """Print the figures for people."""
    rows = [
        [
            f["network"],
            f"{f['parameters'] / 1e6:.3f}",
            f"{f['macs'] / 1e9:.2f}",
            f"{f['latency_ms']:.1f}{'' if f['status'] == 'ok' else ' ' + f['status']}",
            f"{f['plain_ms']:.1f} ({f['plain_ms'] / f['latency_ms'] - 1:+.1%})",
            f"{f['predicted_ms']:.1f} ({f['predicted_ms'] / f['latency_ms'] - 1:+.1%})",
            f"{f['macs'] / f['latency_ms'] / 1e6:.1f}",
        ]
        for f in found
    ]
    header = ("network", "M parameters", "G multiply-adds", "ms", "sum of ops", "fitted on the others", "GMAC/s")
    table(title, header, rows, numbers=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=alone_names(), default=alone_names(), metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=19, help="%(default)s")
    parser.add_argument("--engine", default="onnxruntime", help="%(default)s")
    parser.add_argument("--threads", type=int, default=1, help="%(default)s")
    parser.add_argument("--visits", type=int, default=10, help="least visits to each entry (%(default)s)")
    args = parser.parse_args()
    chosen = networks(args.networks, (args.size[0], args.size[1]), args.classes)
    with tempfile.TemporaryDirectory() as name:
        keys = make_plan(Path(name), chosen, capabilities(args.engine).merges)
        measured = measure(args, Path(name))
    found, where = figures(chosen, keys, measured), measured.where
    engine = where["engine"]
    about = {
        "size": args.size,
        "classes": args.classes,
        "device": device_name(where),
        "engine": f"{engine['name']} {engine['version']}",
        "threads": engine["threads"],
        "clock": where["clock"],
        "ops": len(measured.rows),
        "plain": errors([f["plain_ms"] for f in found], [f["latency_ms"] for f in found]),
        "fitted": errors([f["predicted_ms"] for f in found], [f["latency_ms"] for f in found]),
    }
    show(found, f"{args.size[0]}x{args.size[1]}, {about['device']}, {about['engine']}, {about['threads']} thread(s)")
    print(json.dumps({**about, "networks": found}, allow_nan=False))


if __name__ == "__main__":
    main()
