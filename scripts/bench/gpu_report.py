"""One page of what `gpu.py` found, and one file with all of it.

example: python scripts/bench/gpu_report.py gpu-results
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.files import read_json, write_atomic
from hwnas.runtime.measuring.device import cpu_identity

RESULTS, PAGE = "results.json", "results.md"
# Of the report of a table.
OF_TABLE = ("held_out", "span", "noise_floor", "predictors", "derived", "conditions")
PACKAGES = (
    "hwnas", "numpy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings",
    "pycuda", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc", "nvidia-ml-py",
)  # fmt: skip
NONE = "not measured"


def surroundings() -> dict[str, Any]:
    """Return what else decides about figures: the CPU, the system, and versions of packages."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_identity().get("model_name", ""),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def write(folder: Path, host: Mapping[str, Any], settings: Mapping[str, Any], not_tried: Mapping[str, str]) -> Path:
    """Write ``results.json`` and ``results.md`` from the steps in a folder; return the page.

    Args:
        folder: Of `gpu.py`.
        host: Where this was.
        settings: What the results are of.
        not_tried: Steps that were not run, by name, and why.

    Raises:
        HwnasError: If a file of a step is damaged.
    """
    found = [read_json(p, "a step's result") for p in sorted(folder.glob("*.json")) if p.name != RESULTS]
    steps = {s["step"]: s for s in sorted((s for s in found if "step" in s), key=lambda s: str(s["at"]))}
    results = {"host": host, "settings": settings, "steps": steps, "not_tried": not_tried}
    write_atomic(folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / PAGE, page(results))
    return folder / PAGE


def page(results: Mapping[str, Any]) -> str:
    """Return the page of some results, in Markdown."""
    device, steps = results["host"]["device"], results["steps"]
    tables = {name: s for name, s in steps.items() if name.startswith("table-") and s["data"]}
    parts = [
        f"# Measured on {device['name']}",
        _host(results),
        _tests(steps.get("tests")),
        _tables(tables, results["settings"]),
        _kernels(steps.get("kernels")),
        _fps(steps.get("fps")),
        _problems(steps, results["not_tried"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _host(results: Mapping[str, Any]) -> str:
    host = results["host"]
    device, options = host["device"], host["options"]
    facts = {
        "GPU": f"{device['name']}, SM {device['compute_capability']}, {device['multiprocessors']} multiprocessors",
        "memory": f"{device['memory_mib'] / 1024:.0f} GiB; second-level cache {device['l2_kib'] / 1024:.0f} MiB",
        "clock": f"at most {device['max_sm_mhz']} MHz; power limit {options['power_limit_w']} W",
        "driver": f"{options['driver']}, CUDA {options['cuda']}, by {options['binding']}",
        "host": f"{host['cpu']}, {host['os']}, Python {host['python']}",
        "packages": ", ".join(f"{name} {version}" for name, version in host["packages"].items()),
        "recipe": results["settings"]["recipe"],
    }
    return _markdown(("", ""), facts.items())


def _tests(step: Mapping[str, Any] | None) -> str:
    if step is None or not step["data"].get("counts"):
        return ""
    counts = ", ".join(f"{n} {name}" for name, n in step["data"]["counts"].items())
    return f"## Tests that need a GPU\n\n{counts}"


def _tables(steps: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    if not steps:
        return ""
    rows = []
    for step in steps.values():
        data = step["data"]
        engine, found = data["where"]["engine"], data["predictors"] or {}
        ours = found.get("ours")
        figures = [
            *(_share(ours, name) for name in ("mape", "bias", "within_5")),
            NONE if ours is None else f"{ours['tau']:.3f}",
            str(data["held_out"] or 0),
            *(_share(found.get(name), "mape") for name in ("flops", "sum")),
            _share(data["derived"], "mape"),
            NONE if data["noise_floor"] is None else f"{data['noise_floor']:.1%}",
        ]
        rows.append([f"{engine['name']} {engine['version']}", engine["precision"], *figures])
    header = ("engine", "precision", "error (MAPE)", "bias", "within 5 %", "Kendall tau", "networks", "FLOPs, affine")
    head = f"## Latency tables of {settings['recipe']}\n\nOn networks that a table was not fitted on.\n\n"
    return head + _markdown((*header, "plain sum of ops alone", "on derived networks", "noise floor"), rows)


def _kernels(step: Mapping[str, Any] | None) -> str:
    if step is None or "kernels" not in step["data"]:
        return ""
    data = step["data"]
    rows = []
    for k in data["kernels"]:
        theirs = [f"{1000 * k['torch']['latency_ms']:.1f}", f"{k['torch_ratio']:.1f}"] if "torch" in k else ["", ""]
        hot, cold = (f"{1000 * k[name]:.1f}" for name in ("latency_ms", "cold_ms"))
        speeds = [f"{k['gb_s']:.0f}", f"{k['cold_gb_s']:.0f}", f"{k['cold_gb_s'] / data['copy_gb_s']:.0%}"]
        right = f"{k['wrong']} wrong" if k["wrong"] else f"equal, {k['ties']} ties"
        rows.append([k["kernel"], k["case"], hot, cold, *speeds, *theirs, right])
    header = (
        "kernel",
        "size",
        "hot, us",
        "cold, us",
        "hot GB/s",
        "cold GB/s",
        "of copy",
        "PyTorch, us",
        "times",
        "result",
    )
    copies = f"The card copies {data['copy_gb_s']:.0f} GB/s, read and written. PyTorch: {data['torch']}."
    return f"## Kernels\n\n{copies}\n\n" + _markdown(header, rows)


def _fps(step: Mapping[str, Any] | None) -> str:
    if step is None or not any(f.get("rows") for f in step["data"].get("engines", ())):
        return ""
    data = step["data"]
    rows = []
    for found in data["engines"]:
        for r in found.get("rows", ()):
            doubt = ", doubtful" if r["status"] == "doubtful" else ""
            names = ("quiet_ms", "p50_ms", "p90_ms", "p99_ms")
            figures = (
                [f"{r['fps']:.1f}{doubt}", *(f"{r[n]:.3f}" for n in names)] if "fps" in r else [r["status"]] + [""] * 4
            )
            rows.append([found["engine"], found["precision"], r["network"], r["scope"], *figures])
    header = ("engine", "precision", "network", "scope", "fps", "quiet ms", "p50", "p90", "p99")
    title = f"## Frames per second at {data['size']}, {data['classes']} classes, batch 1"
    return f"{title}\n\n" + _markdown(header, rows)


def _problems(steps: Mapping[str, Any], not_tried: Mapping[str, str]) -> str:
    rows = [[name, "failed" if not s["ok"] else "not finished", s["reason"] or s["data"].get("unfinished")]
            for name, s in steps.items() if not s["ok"] or s["data"].get("unfinished")]  # fmt: skip
    fps = steps.get("fps", {"data": {}})["data"].get("engines", ())
    rows += [[f"fps, {f['engine']} {f['precision']}", "failed" if f["ready"] else "not ready", f["reason"]]
             for f in fps if "reason" in f]  # fmt: skip
    rows += [[name, *why.split(": ", 1)] for name, why in not_tried.items()]
    if not rows:
        return "## What failed or was left out\n\nNothing."
    return "## What failed or was left out\n\n" + _markdown(("step", "state", "reason"), rows)


def _share(found: Mapping[str, Any] | None, name: str) -> str:
    if found is None:
        return NONE
    return f"{found[name]:+.1%}" if name == "bias" else f"{found[name]:.{0 if name == 'within_5' else 1}%}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> int:
    """Write the page anew from the folder's files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="that gpu.py wrote")
    folder = parser.parse_args().folder
    try:
        there = read_json(folder / RESULTS, "results")
        print(write(folder, there["host"], there["settings"], there["not_tried"]))
    except HwnasError as e:
        print(f"gpu_report: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
