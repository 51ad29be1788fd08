"""How far plain sums of ops, alone and in context, are off whole networks, by width: which widths an engine likes.

usage: python scripts/bench/width_ratio.py [--widths 8 16 24 32] [--size 360 480] [--cells 8] [--engine onnxruntime]

Measures the ops and some random networks of DARTS cells at each width, prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwnas.latency import LatencyTable
from hwnas.profile import Calibration, build_table, make_plan
from hwnas.runtime.engines import capabilities
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.supervise import supervise
from hwnas.show.console import TERMINAL, bar, console, table
from hwnas.spaces import Scale, darts_space

CLASSES = 11


class Ratios(NamedTuple):
    """Plain sum over measured latency of some networks: of ops measured alone, and of ops in context."""

    alone: list[float]
    context: list[float]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 24, 32])
    parser.add_argument("--size", type=int, nargs=2, default=[360, 480], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--nets", type=int, default=5, help="networks a width, on average")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--spread", type=float, default=30.0, metavar="S", help="seconds the visits are spread over")
    args = parser.parse_args()
    made = measure(args)
    ratios = {w: Ratios([], []) for w in args.widths}
    for net in made.nets:
        of = ratios[int(net.key.rpartition("-c")[2])]
        of.alone.append(sum(n * (made.rows[key].isolated_ms or 0.0) for key, n in net.ops.items()) / net.latency_ms)
        of.context.append(sum(made.sums(net).values()) / net.latency_ms)
    rows = [[str(w), str(len(r.alone)), *(_shown(x) for x in r)] for w, r in ratios.items() if r.alone]
    header = ("channels", "networks", "ops alone (range)", "ops in context (range)")
    table("plain sum / measured network", header, rows, numbers=True)
    medians = {
        name: {str(w): float(np.median(getattr(r, name))) for w, r in ratios.items() if r.alone}
        for name in Ratios._fields
    }
    console.print(json.dumps({"median_ratio": medians, "device": made.name}), markup=False, soft_wrap=True)


def measure(args: argparse.Namespace) -> LatencyTable:
    """Measure the ops and networks of all widths."""
    scales = [Scale(w, args.cells, (args.size[0], args.size[1])) for w in args.widths]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = Calibration(fit=2, test=args.nets * len(scales) - 2)
        merges = capabilities(args.engine).merges
        make_plan(darts_space(scales[0], CLASSES), scales, folder, calibration, merges, TERMINAL)
        with bar("measure", None) as update:
            results = supervise(
                folder,
                args.engine,
                stop=StopRule(min_s=args.spread),
                on_progress=lambda p: update(p.done, p.note, p.total, p.left_s),
            )
        return build_table(folder, results)


def _shown(ratios: list[float]) -> str:
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
