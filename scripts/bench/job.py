"""The whole job of a recipe by the command line, and every figure of it, good or bad.

Profiles, searches, trains, exports and validates in ``runs/NAME/`` of the folder it is called in, goes on where an
earlier call stopped, prints the figures as a table and, as its last line, as one JSON object.

example: python scripts/bench/job.py --recipe darts-quick --run bench
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.files import read_json
from hwnas.latency import LatencyTable
from hwnas.runtime.measuring.device import device_name
from hwnas.show.console import table

# What a verb leaves behind, also unfinished: where one of these is there, its seconds are not those of all its work.
LEAVES = {
    "profile": ("plan", "results.jsonl", "table.json"),
    "search": ("search.pt", "arch.json"),
    "train": ("train",),
    "export": ("deploy/model.onnx",),
    "validate": ("deploy/validate.jsonl", "report.json"),
}


def commands(args: argparse.Namespace, run: str) -> dict[str, list[str]]:
    """Return the arguments of each verb, in the order they run."""
    data = ["--data", str(args.data)] if args.data else []
    seed = ["--seed", str(args.seed)] if args.seed is not None else []
    named = [args.recipe, "--run", run, *data]
    return {
        "profile": ["profile", *named],
        "search": ["search", *named, *seed, *(["--measure"] if args.measure else [])],
        **{verb: [verb, run] for verb in ("train", "export", "validate")},
    }


def run_job(verbs: dict[str, list[str]], folder: Path) -> tuple[dict[str, float], list[str]]:
    """Run the verbs.

    Returns:
        Seconds of each, and those that were done, in part or whole, before.

    Raises:
        SystemExit: If one fails; names it.
    """
    seconds: dict[str, float] = {}
    resumed = [verb for verb in verbs if any((folder / name).exists() for name in LEAVES[verb])]
    for verb, arguments in verbs.items():
        line = f"hwnas {' '.join(arguments)}"
        print(f"\n$ {line}", flush=True)
        start_s = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", "hwnas", *arguments], check=False).returncode
        seconds[verb] = round(time.perf_counter() - start_s, 1)
        if code:
            sys.exit(f"job: {line} failed with exit code {code} (its message is above); mend that and run this again")
    return seconds, resumed


def figures(folder: Path) -> dict[str, Any]:
    """Read every figure of a finished run.

    Raises:
        HwnasError: If a file of the run is damaged.
    """
    report = read_json(folder / "report.json", "a report")
    arch = read_json(folder / "arch.json", "a derived architecture")
    made = LatencyTable.load(folder / "table.json")
    steps = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    speed = ("predicted_ms", "measured_ms", "error", "fps", "budget_ms", "budget_fps", "met", "doubtful")
    errors, derived = made.report.get("predictors", {}), made.report.get("derived", {})
    ours = errors.get("ours", {})
    return {
        **{name: report[name] for name in speed},
        "wall_ms": report["wall_ms"],
        "p99_ms": report["p99_ms"],
        "slowdown": report["slowdown"],
        "channels": arch["scale"]["channels"],
        "coin_tosses": len(arch["coin_tosses"]),
        "decisions": len(arch["architecture"]["answers"]),
        "table_error": ours.get("mape"),
        "table_bias": ours.get("bias"),
        "table_interval": made.correction.interval,
        "plain_sum_error": errors.get("sum", {}).get("mape"),
        "uncorrected_error": errors.get("uncorrected", {}).get("mape"),
        "flops_error": errors.get("flops", {}).get("mape"),
        "held_out_networks": ours.get("n", 0),
        "derived_error": derived.get("mape"),
        "derived_bias": derived.get("bias"),
        "derived_networks": derived.get("n", 0),
        "noise_floor": made.report.get("noise_floor"),
        "slow_share": made.report["conditions"]["slow_share"],
        "ops": len(made.rows),
        "ops_not_ok": sum(row.status != "ok" for row in made.rows.values()),
        "val_miou": max(step["val_miou"] for step in steps if "val_miou" in step),
        "test_miou": report["test_miou"],
        "pixel_accuracy": report["pixel_accuracy"],
        "device": device_name(report["where"]),
        "engine": f"{report['where']['engine']['name']} {report['where']['engine']['version']}",
        "threads": report["threads"],
        "clock": report["clock"],
    }


def show(found: dict[str, Any], seconds: dict[str, float], resumed: list[str]) -> None:
    """Print the figures for people."""

    def share(name: str) -> str:
        return "not measured" if found[name] is None else f"{found[name]:.1%}"

    verdict = "met" if found["met"] else "MISSED"
    rows = [[f"seconds, {v}", f"{s:.1f}{' (resumed)' if v in resumed else ''}"] for v, s in seconds.items()]
    rows += [
        ["predicted", f"{found['predicted_ms']:.4g} ms"],
        ["measured", f"{found['measured_ms']:.4g} ms{' (doubtful)' if found['doubtful'] else ''}"],
        ["wall", f"{found['wall_ms']:.4g} ms"],
        ["error of the prediction", f"{found['error']:+.1%}"],
        ["fps", f"{found['fps']:.1f}"],
        ["budget", f"{found['budget_ms']:.4g} ms ({found['budget_fps']:.1f} fps): {verdict}"],
        [f"table error on {found['held_out_networks']} held-out networks", share("table_error")],
        ["the same of ops in context, not corrected", share("uncorrected_error")],
        ["the same of a plain sum of ops alone", share("plain_sum_error")],
        ["the same of FLOPs", share("flops_error")],
        [f"table error on {found['derived_networks']} derived networks", share("derived_error")],
        ["noise floor", share("noise_floor")],
        ["the machine was slow", share("slow_share")],
        ["ops not ok", f"{found['ops_not_ok']} of {found['ops']}"],
        ["undecided", f"{found['coin_tosses']} of {found['decisions']} decisions"],
        ["best val mIoU", share("val_miou")],
        ["test mIoU", share("test_miou")],
        ["measured on", f"{found['device']}, {found['engine']}, {found['threads']} thread(s), {found['clock']}"],
    ]
    table(f"{found['recipe']}, run {found['run']}", ("figure", "value"), rows)


def main() -> None:
    """Run the job and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="darts-quick", help="see hwnas ls (%(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="dataset folder, see hwnas data (the recipe's)")
    parser.add_argument("--run", metavar="NAME", help="everything goes to runs/NAME/ (the recipe's name)")
    parser.add_argument("--seed", type=int, help="of the search and the training (the recipe's)")
    parser.add_argument("--measure", action="store_true", help="land on the budget by measuring")
    args = parser.parse_args()
    run = args.run or args.recipe
    folder = Path("runs") / run
    seconds, resumed = run_job(commands(args, run), folder)
    try:
        found = {"recipe": args.recipe, "run": run, "seed": args.seed, **figures(folder)}
    except (HwnasError, KeyError, OSError, ValueError) as e:
        sys.exit(f"job: {folder} has no whole set of figures: {e!r}; use another --run")
    print()
    show(found, seconds, resumed)
    print(json.dumps({**found, "seconds": seconds, "resumed": resumed}, allow_nan=False))


if __name__ == "__main__":
    main()
