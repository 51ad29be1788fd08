"""The verbs of the command line over a run: each reads and writes plain files, resumes, and says what is next."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas.arch import Architecture
from hwnas.data import SegmentationData
from hwnas.errors import HwnasError
from hwnas.export import export
from hwnas.files import canonical_json, read_json, sha256, write_atomic
from hwnas.latency.table import LatencyTable
from hwnas.ops.trace import trace
from hwnas.profile import build_table, make_plan
from hwnas.recipes import Recipe
from hwnas.run import RUNS, Derived, Run
from hwnas.runtime.device import provenance
from hwnas.runtime.engines import open_engine
from hwnas.runtime.plan import load_plan
from hwnas.runtime.supervise import supervise
from hwnas.runtime.work import collect
from hwnas.search.gradient import BilevelSearch, search
from hwnas.search.objective import LatencyTerm
from hwnas.search.widths import Candidate, derive, margins, price, random_latencies_ms
from hwnas.steplog import StepLog
from hwnas.train import Training, train
from hwnas.ui import bar, console, summary, table
from hwnas.validate import measure_network, score, verdict

RANDOM_NETWORKS = 200  # per width, for the default budget
COIN_TOSS = 0.01  # a decision whose best option leads by less than this was not really decided
VALIDATE_PASSES = 5
STAGES = ("profiled", "searched", "trained", "exported", "validated")


def plan_only(recipe: Recipe, folder: Path, engine: str | None) -> None:
    """Write what a recipe needs measured into a folder to carry to another box.

    Without `engine` the plan is for engines that merge identical ops, as all do that optimise graphs.

    Raises:
        HwnasError: If the folder has something in it already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise HwnasError(f"{folder} is not empty; name a new folder")
    entries = _plan(recipe, folder, engine is None or open_engine(engine).merges)
    facts: dict[str, object] = {"plan": folder, "entries": entries}
    summary(facts, f"on the device: python -m hwnas.runtime measure {folder.name}  (numpy and the engine suffice)")


def _plan(recipe: Recipe, folder: Path, merges: bool) -> int:
    """Write a plan unless a whole one is there already; return its number of entries."""
    if (folder / "plan.json").exists():
        return len(load_plan(folder).entries)
    with bar("plan: export ops and networks", None) as update:
        return make_plan(recipe.space, recipe.scales(), folder, recipe.calibration, merges, update)


def profile(run: Run, engine: str | None, threads: int | None, results: Path | None) -> None:
    """Measure the latency table of a run's recipe on this machine, or build it from results measured elsewhere.

    Without `engine` and `threads` those the run was made with, else ONNX Runtime on one thread.
    """
    path, recipe, following = run.folder / "table.json", run.recipe, run.command("search")
    run.ask(engine=engine, threads=threads)
    if path.exists():
        summary({"table": path, "state": "complete, nothing to do"}, following)
        return
    folder = run.folder / "plan"
    if results is None:
        engine, threads = str(run.settings.get("engine", "onnxruntime")), int(run.settings.get("threads", 1))
        opened = open_engine(engine, threads)
        run.ask(engine=engine, threads=threads)
        run.commit()
        entries = _plan(recipe, folder, opened.merges)
        total = entries * recipe.passes
        # Seen: some 0.15 s a measurement, loading included, where ops take milliseconds.
        console.print(f"{entries} entries x {recipe.passes} passes on {engine}, some {total * 0.15 / 60:.1f} minutes")
        results = run.folder / "results.jsonl"
        with bar("measure", total) as update:
            supervise(
                folder,
                engine,
                threads,
                recipe.passes,
                results,
                lambda p: update(p.done, str(p.record["key"])[:60], p.total),
            )
    else:
        where, _ = collect(results)  # a file that cannot be read is refused before anything is written
        run.ask(engine=where["engine"]["name"], threads=where["engine"]["threads"])
        _plan(recipe, folder, bool(where["merges"]))
    made = build_table(folder, results)
    run.commit()
    made.save(path)
    _show_table(made, following)


def _show_table(made: LatencyTable, following: str) -> None:
    bad = [r for r in made.rows.values() if r.status != "ok"]
    facts: dict[str, object] = {"table": made.path, "device": made.name, "ops": len(made.rows)}
    facts["not ok"] = f"{len(bad)} ({', '.join(sorted({r.status for r in bad})) or 'none'})"
    if made.report:
        ours, plain = made.report["ours"], made.report["sum"]
        facts["error"] = (
            f"{ours['mape']:.1%} on {ours['n']} networks it was not fitted on (plain sum {plain['mape']:.1%}); "
            f"passes differ by {made.report['noise']:.1%}"
        )
    summary(facts, following)


def open_table(run: Run, path: Path | None, foreign: bool) -> LatencyTable:
    """Open a table for a run and refuse one of another device unless asked for.

    Raises:
        ProvenanceError: If it is of another device.
    """
    made = LatencyTable.load(path or run.require("table.json", "profile"))
    engine = made.where["engine"]
    if not foreign:
        made.require_device(provenance(open_engine(str(engine["name"]), int(engine["threads"]))))
    return made


def run_search(run: Run, table_path: Path | None, fps: float | None, foreign: bool) -> None:
    """Search under a budget and derive a network."""
    recipe = run.recipe
    space, scales = recipe.space, recipe.scales()
    if fps is not None:
        run.ask(budget_ms=_budget_ms(fps))
    config = replace(recipe.search, seed=int(run.settings.get("seed", recipe.search.seed)))
    run.ask(search_seed=config.seed, data=run.settings.get("data", recipe.data))
    if (run.folder / "arch.json").exists():
        summary({"arch": run.folder / "arch.json", "state": "complete, nothing to do"}, f"hwnas train {run.name}")
        return
    run.data("train")  # whether it is there at all; reading it comes after the budget
    latency = open_table(run, table_path, foreign)
    models = price(space, scales, latency)
    typical = random_latencies_ms(space, models, RANDOM_NETWORKS, seed=0)
    default_ms = float(np.percentile(typical, recipe.budget_percentile))
    budget_ms = float(run.settings.get("budget_ms", default_ms))
    # An impossible budget is refused before the search, whatever it would find: any probabilities tell.
    uniform = {g.name: np.full(g.shape, 1 / g.shape[1]) for g in space.groups}
    derive(space, scales, models, uniform, budget_ms, recipe.width_utility)
    data = _read(run, "train")
    run.ask(budget_ms=budget_ms)
    run.commit()
    if not (run.folder / "table.json").exists():
        latency.save(run.folder / "table.json")  # what the later verbs measure by
    console.print(
        f"budget {budget_ms:.4g} ms ({1000 / budget_ms:.1f} fps); random networks take "
        f"{typical.min():.4g} to {typical.max():.4g} ms"
    )
    # The width whose typical network is nearest to the budget is the one most likely to be derived.
    nearest = int(np.abs(np.log(np.median(typical, axis=1) / budget_ms)).argmin())
    bilevel = BilevelSearch(space, config, data, LatencyTerm(models[nearest], budget_ms, config.latency_weight))
    settings = {"budget_ms": budget_ms, "table": latency.where, "data": data.name}
    with bar("search", config.steps) as update:
        logits = search(bilevel, run.folder / "search.pt", settings, StepLog(run.folder / "search.jsonl"), update)
    content = {"groups": {k: v.tolist() for k, v in logits.items()}, "table": str(latency.path)}
    write_atomic(run.folder / "alphas.json", canonical_json(content) + "\n")
    run_derive(run, run, latency, budget_ms)


def run_derive(source: Run, target: Run, latency: LatencyTable, budget_ms: float) -> None:
    """Derive a network from what `source` found, under a budget, into the run `target`."""
    recipe = source.recipe
    space, scales = recipe.space, recipe.scales()
    probs = {k: torch.softmax(v, dim=-1).numpy() for k, v in _alphas(source).items()}
    models = price(space, scales, latency)
    chosen, candidates = derive(space, scales, models, probs, budget_ms, recipe.width_utility)
    assert chosen.arch is not None
    sure = margins(space, probs)
    tosses = sorted(d for d, m in sure.items() if m < COIN_TOSS)
    more: dict[str, Any] = {
        "table": str(latency.path),
        "candidates": [_candidate(c) for c in candidates],
        "coin_tosses": tosses,
        "by_kind_ms": models[candidates.index(chosen)].by_kind(chosen.arch),
    }
    if target is not source:
        latency.save(target.folder / "table.json")  # what the later verbs measure by
        target.commit()
    target.write_derived(Derived(chosen.arch, chosen.scale, budget_ms, chosen.latency_ms), more)
    write_atomic(target.folder / "arch.dot", space.dot(chosen.arch))
    _show_candidates(candidates, chosen)
    for line in str(space.genotype(chosen.arch)).split("\n"):
        console.print(line, markup=False)
    facts: dict[str, object] = {
        "arch": target.folder / "arch.json",
        "predicted": f"{chosen.latency_ms:.4g} ms ({1000 / chosen.latency_ms:.1f} fps), budget {budget_ms:.4g} ms",
        "coin tosses": f"{len(tosses)} of {len(sure)} decisions led by less than {COIN_TOSS}",
    }
    summary(facts, f"hwnas train {target.name}")


def _alphas(run: Run) -> dict[str, torch.Tensor]:
    """Read what a search found: the logits of each group."""
    path = run.require("alphas.json", "search")
    data = read_json(path, "the alphas of a search")
    try:
        logits = {str(k): torch.tensor(v, dtype=torch.float32) for k, v in data["groups"].items()}
        shapes = {k: tuple(v.shape) for k, v in logits.items()}
        if shapes != {g.name: g.shape for g in run.recipe.space.groups}:
            raise ValueError("its shapes are those of another space")
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise HwnasError(f"{path} does not hold the alphas of {run.recipe.name} ({e}); search again") from e
    return logits


def _export_facts(path: Path) -> dict[str, Any]:
    """Read what an export said about itself."""
    facts = read_json(path, "the facts of an export")
    if not isinstance(facts, dict) or not {"sha256", "weights_sha256", "labels"} <= facts.keys():
        raise HwnasError(f"{path} is not the facts of an export; remove the folder {path.parent} and export again")
    return facts


def _read(run: Run, split: str) -> SegmentationData:
    """Open a split and read all of it once, so that a file that cannot be used is found before anything is written.

    The samples stay in the dataset's cache, as far as they fit.
    """
    data = run.data(split)
    with bar(f"read {data.name}", len(data)) as update:
        for i in range(len(data)):
            _ = data[i]
            update(i + 1)
    return data


def _candidate(c: Candidate) -> dict[str, Any]:
    """Return a JSON object of a candidate."""
    arch = None if c.arch is None else c.arch.to_json()
    out = {"scale": c.scale.to_json(), "latency_ms": c.latency_ms, "architecture": arch}
    return out if c.arch is None else out | {"score": c.score, "utility": c.utility}


def _show_candidates(candidates: list[Candidate], chosen: Candidate) -> None:
    rows = []
    for c in candidates:
        fps = f"{1000 / c.latency_ms:.1f}"
        if c.arch is None:
            rows.append([str(c.scale.channels), "", "", f"over budget, at best {c.latency_ms:.4g}", fps, ""])
        else:
            mark = "<- chosen" if c is chosen else ""
            rows.append([str(c.scale.channels), f"{c.score:.3f}", f"{c.utility:.3f}", f"{c.latency_ms:.4g}", fps, mark])
    table("candidates", ("channels", "score", "utility", "predicted ms", "fps", ""), rows, numbers=True)


def run_train(run: Run) -> None:
    """Train the derived network."""
    model = run.folder / "train" / "model.safetensors"
    derived = run.derived()
    if model.exists():
        summary({"weights": model, "state": "complete, nothing to do"}, f"hwnas export {run.name}")
        return
    config = run.recipe.train
    config = replace(config, seed=int(run.settings.get("seed", config.seed)))
    data, val = _read(run, "train"), _read(run, "val")
    training = Training(run.space(derived), derived.arch, config, data)
    settings = {"arch": derived.arch.id, "scale": derived.scale.to_json(), "data": data.name}
    with bar("train", config.steps) as update:
        best = train(training, val, model.parent, settings, StepLog(run.folder / "train.jsonl"), update)
    summary({"weights": model, "best val mIoU": f"{best:.2%}"}, f"hwnas export {run.name}")


def run_export(run: Run, logits: bool) -> None:
    """Export the trained network to ONNX."""
    path = run.folder / "deploy" / "model.onnx"
    derived = run.derived()
    weights = run.require("train/model.safetensors", "train")
    facts_path = run.folder / "deploy" / "export.json"
    digest = sha256(weights.read_bytes())
    if path.exists() and facts_path.exists():
        known = _export_facts(facts_path)
        if known["weights_sha256"] == digest and known["labels"] == (not logits):
            summary({"onnx": path, "state": "complete, nothing to do"}, f"hwnas validate {run.name}")
            return
        raise HwnasError(f"{path} is another export of this run; remove the folder {path.parent} to write it anew")
    _, facts = export(run.space(derived), derived.arch, weights, run.data("val"), path, labels=not logits)
    write_atomic(facts_path, canonical_json(facts | {"weights_sha256": digest}) + "\n")
    shown: dict[str, object] = {
        "onnx": path,
        "output": "logits" if logits else "labels",
        "size": f"{facts['bytes'] / 1e6:.2f} MB, opset {facts['opset']}",
        "parity": f"scores within {facts['score_error']:.1e} of the largest, in ONNX Runtime",
    }
    summary(shown, f"hwnas validate {run.name}")


def run_validate(run: Run, table_path: Path | None, foreign: bool, again: bool) -> bool:
    """Measure speed and accuracy of the exported file; return whether the budget was met.

    A report that is there is shown again; `again` measures anew and keeps the earlier one under a number.
    """
    derived = run.derived()
    path = run.folder / "report.json"
    model = run.require("deploy/model.onnx", "export")
    facts = _export_facts(run.require("deploy/export.json", "export"))
    if sha256(model.read_bytes()) != facts["sha256"]:
        raise HwnasError(f"{model} is not what was exported; remove the folder {model.parent} and export again")
    if path.exists() and not again:
        report = read_json(path, "a report")
        if report.get("model_sha256") == facts["sha256"]:
            console.print("measured before, nothing to do; --again measures anew")
            _show_verdict(run, report, derived.arch)
            return bool(report["met"])
    latency = open_table(run, table_path, foreign)
    test = _read(run, "test")
    space = run.space(derived)
    network = space.build(derived.arch, form="deploy", labels=facts["labels"])
    traced = trace(network.eval(), (1, 3, *derived.scale.size))
    output = "labels" if facts["labels"] else "logits"
    with bar("measure", VALIDATE_PASSES) as update:
        where, row = measure_network(model, traced, output, latency.where["engine"], VALIDATE_PASSES, update)
    with bar("test", len(test)) as update:
        confusion = score(model, test, run.folder / "predictions.png", update)
    report = verdict(row, where, derived.predicted_ms, derived.budget_ms)
    ious = dict(zip(test.classes.names, (None if np.isnan(v) else float(v) for v in confusion.iou()), strict=True))
    report |= {"test_miou": confusion.miou(), "pixel_accuracy": confusion.pixel_accuracy(), "iou": ious, "where": where}
    report["model_sha256"] = facts["sha256"]
    if path.exists():
        path.rename(next(p for n in itertools.count(1) if not (p := path.with_name(f"report-{n}.json")).exists()))
    write_atomic(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    _show_verdict(run, report, derived.arch)
    return bool(report["met"])


def _show_verdict(run: Run, report: Mapping[str, Any], arch: Architecture) -> None:
    met = "met" if report["met"] else "missed"
    facts: dict[str, object] = {
        "network": arch.id,
        "latency": f"p50 {report['p50_ms']:.4g}, p90 {report['p90_ms']:.4g}, p99 {report['p99_ms']:.4g} ms by "
        f"{report['clock']}, wall {report['wall_ms']:.4g} ms; {report['threads']} thread(s), batch {report['batch']}, "
        f"{report['scope']}{'; doubtful: the machine was busy' if report['doubtful'] else ''}",
        "test mIoU": f"{report['test_miou']:.2%} (pixels {report['pixel_accuracy']:.2%})",
        "pictures": run.folder / "predictions.png",
        "report": run.folder / "report.json",
    }
    summary(facts, None)
    console.print(
        f"predicted {report['predicted_ms']:.4g} ms, measured {report['measured_ms']:.4g} ms, fps {report['fps']:.1f}, "
        f"budget {report['budget_ms']:.4g} ms ({report['budget_fps']:.1f} fps): {met}",
        markup=False,
    )


def derive_into(source: Run, name: str | None, table_path: Path | None, fps: float | None, foreign: bool) -> None:
    """Derive another network of a finished search into a run of its own."""
    settings = source.settings
    if "budget_ms" not in settings:
        raise HwnasError(f"the run {source.name!r} has not been searched; run: {source.command('search')}")
    budget_ms = float(settings["budget_ms"]) if fps is None else _budget_ms(fps)
    target = Run(name or f"{source.name}-{1000 / budget_ms:.0f}fps")
    latency = open_table(source, table_path, foreign)
    target.ask(**{k: v for k, v in settings.items() if k not in ("schema", "budget_ms")}, budget_ms=budget_ms)
    with target.locked():
        arch, own = target.folder / "arch.json", target.folder / "table.json"
        if own.exists() and LatencyTable.load(own) != replace(latency, path=own):
            raise HwnasError(f"the run {target.name!r} has another latency table; give another name with --to")
        if arch.exists():
            summary({"arch": arch, "state": "complete, nothing to do"}, target.command("train"))
            return
        run_derive(source, target, latency, budget_ms)


def _budget_ms(fps: float) -> float:
    """Return the budget in milliseconds of a budget in frames per second."""
    if not (math.isfinite(fps) and fps > 0):
        raise HwnasError(f"--fps must be a positive number of frames per second, got {fps}")
    return 1000 / fps


def show_runs() -> None:
    """List the runs here and how far each is."""
    rows = []
    for run in (Run(p.parent.name) for p in sorted(RUNS.glob("*/run.json"))):
        stages = ("table.json", "arch.json", "train/model.safetensors", "deploy/model.onnx", "report.json")
        done = [verb for stage, verb in zip(stages, STAGES, strict=True) if (run.folder / stage).exists()]
        made = run.folder / "table.json"
        device = LatencyTable.load(made).name if made.exists() else ""
        rows.append([run.name, str(run.settings["recipe"]), ", ".join(done) or "nothing yet", device])
    table("runs", ("name", "recipe", "done", "table"), rows)
