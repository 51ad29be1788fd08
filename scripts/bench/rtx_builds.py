"""Which networks TensorRT-RTX builds for which GPUs, in which precision; on a machine without any GPU.

For each space a random network (or a published one) is stitched as it is for export, turned into float16 where asked,
and built ahead of time for each kind of GPU. What cannot be built is printed with the reason. Prints a table and, as
its last line, one JSON object.

example: python scripts/bench/rtx_builds.py --scale paper
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from hwnas.errors import BuildError
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.precision import to_half
from hwnas.runtime.engines.trt_build import Builder, BuildOptions
from hwnas.show.console import bar, console, table
from hwnas.spaces import DARTS_V2, Scale, darts_space, sample, trace_space

TARGETS = ((7, 5), (8, 6), (8, 9), (12, 0))
PUBLISHED = {"cifar", "imagenet"}  # built as DARTS_V2, the others as a random network
SPACES = {
    "small": {
        "segmentation": darts_space(Scale(16, 6, (192, 256)), 11),
        "cifar": darts_space(Scale(16, 8, (32, 32)), 10, "cifar", "classification"),
        "imagenet": darts_space(Scale(16, 6, (64, 64)), 20, "imagenet", "classification"),
    },
    "paper": {  # of DARTS: 20 cells of 36 channels, 14 cells of 48; for segmentation the size of Cityscapes
        "segmentation": darts_space(Scale(32, 8, (1024, 2048)), 19),
        "cifar": darts_space(Scale(36, 20, (32, 32)), 10, "cifar", "classification"),
        "imagenet": darts_space(Scale(48, 14, (224, 224)), 1000, "imagenet", "classification"),
    },
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=sorted(SPACES), default="small")
    parser.add_argument("--seed", type=int, default=0, help="of the random networks (%(default)s)")
    args = parser.parse_args()
    found: list[dict[str, object]] = []
    spaces = SPACES[args.scale]
    total = len(spaces) * 2 * len(TARGETS)
    with tempfile.TemporaryDirectory() as folder, Builder() as builder, bar("build", total) as update:
        for name, space in spaces.items():
            arch = (
                DARTS_V2.architecture(space) if name in PUBLISHED else sample(space, np.random.default_rng(args.seed))
            )
            model = OpExporter().network(trace_space(space, arch))
            for precision in ("fp32", "fp16"):
                path, out = Path(folder) / f"{name}-{precision}.onnx", Path(folder) / "engine"
                path.write_bytes((model if precision == "fp32" else to_half(model)).SerializeToString())
                for major, minor in TARGETS:
                    start_s, reason = time.perf_counter(), ""
                    try:
                        builder.build(path, out, BuildOptions(targets=((major, minor),)))
                    except BuildError as e:
                        reason = str(e).replace(f"{folder}/", "")
                    row = {"space": name, "arch": arch.id, "precision": precision, "sm": 10 * major + minor}
                    row |= {"seconds": time.perf_counter() - start_s, "onnx_bytes": path.stat().st_size}
                    found.append({**row, "engine_bytes": 0 if reason else out.stat().st_size, "reason": reason})
                    update(len(found), f"{name} {precision} SM{major}{minor}")
    rows = [
        [
            str(r["space"]),
            str(r["precision"]),
            f"SM{r['sm']}",
            f"{r['seconds']:.1f}",
            f"{int(str(r['onnx_bytes'])) / 2**20:.1f}",
            f"{int(str(r['engine_bytes'])) / 2**20:.1f}" if not r["reason"] else "not built",
        ]
        for r in found
    ]
    header = ("space", "precision", "GPU", "s", "ONNX MiB", "engine MiB")
    table(f"TensorRT-RTX, {args.scale} scale", header, rows, numbers=True)
    for r in found:
        if r["reason"]:
            console.print(f"{r['space']} {r['precision']} SM{r['sm']}: {r['reason']}", markup=False)
    built = sum(not r["reason"] for r in found)
    print(json.dumps({"scale": args.scale, "built": built, "of": len(found), "builds": found}, allow_nan=False))


if __name__ == "__main__":
    main()
