"""How far a plain sum of isolated ops is off whole networks, by width: which widths an engine likes.

usage: python scripts/bench/width_ratio.py [--widths 8 16 24 32] [--size 360 480] [--cells 8] [--engine onnxruntime]

Measures the ops and some random networks of DARTS cells at each width, prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from hwnas.profile import Calibration, build_table, make_plan
from hwnas.runtime.supervise import supervise
from hwnas.spaces import ChainSpace, Scale
from hwnas.ui import bar, console, table

CLASSES = 11


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 24, 32])
    parser.add_argument("--size", type=int, nargs=2, default=[360, 480], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--nets", type=int, default=5, help="networks a width, on average")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    scales = [Scale(w, args.cells, (args.size[0], args.size[1])) for w in args.widths]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = Calibration(fit=2, test=args.nets * len(scales) - 2)
        entries = make_plan(ChainSpace(scales[0], CLASSES), scales, folder, calibration)
        with bar("measure", entries * args.passes) as update:
            results = supervise(
                folder, args.engine, passes=args.passes, on_progress=lambda p: update(p.done, total=p.total)
            )
        made = build_table(folder, results)
    ratios: dict[int, list[float]] = {w: [] for w in args.widths}
    for net in made.nets:
        plain_ms = sum(n * made.rows[key].latency_ms for key, n in net.ops.items())
        ratios[int(net.key.rpartition("-c")[2])].append(plain_ms / net.latency_ms)
    rows = [
        [str(w), str(len(r)), f"{np.median(r):.2f}", f"{min(r):.2f} to {max(r):.2f}"] for w, r in ratios.items() if r
    ]
    table("plain sum / measured network", ("channels", "networks", "median", "range"), rows, numbers=True)
    medians = {str(w): float(np.median(r)) for w, r in ratios.items() if r}
    console.print(json.dumps({"median_ratio": medians, "device": made.name}), markup=False)


if __name__ == "__main__":
    main()
