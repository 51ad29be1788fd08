"""`hwnas derive`: from the probabilities of a search to a network under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hwnas.errors import HwnasError
from hwnas.files import read_json, write_atomic
from hwnas.latency.table import LatencyTable
from hwnas.run import Derived, Run
from hwnas.search.widths import Candidate, derive, margins, price
from hwnas.ui import console, summary, table
from hwnas.verbs.common import budget_ms_of, check_table, keep_table, open_table

COIN_TOSS = 0.01  # a decision whose best option leads by less than this was not really decided


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
        "genotype": str(space.genotype(chosen.arch)),
        "by_kind_ms": models[candidates.index(chosen)].by_kind(chosen.arch),
    }
    if target is not source:
        keep_table(target, latency)
        target.commit()
    target.write_derived(Derived(chosen.arch, chosen.scale, budget_ms, chosen.latency_ms), more)
    write_atomic(target.folder / "arch.dot", space.dot(chosen.arch))
    _show_candidates(candidates, chosen)
    console.print(more["genotype"], markup=False)
    facts: dict[str, object] = {
        "arch": target.folder / "arch.json",
        "predicted": f"{chosen.latency_ms:.4g} ms ({1000 / chosen.latency_ms:.1f} fps), budget {budget_ms:.4g} ms",
        "coin tosses": f"{len(tosses)} of {len(sure)} decisions led by less than {COIN_TOSS}",
    }
    summary(facts, f"hwnas train {target.name}")


def derive_into(source: Run, name: str | None, table_path: Path | None, fps: float | None, foreign: bool) -> None:
    """Derive another network of a finished search into a run of its own."""
    settings = source.settings
    if "budget_ms" not in settings:
        raise HwnasError(f"the run {source.name!r} has not been searched; run: {source.command('search')}")
    budget_ms = float(settings["budget_ms"]) if fps is None else budget_ms_of(fps)
    target = Run(name or f"{source.name}-{1000 / budget_ms:.0f}fps")
    latency = open_table(source, table_path, foreign)
    target.ask(**{k: v for k, v in settings.items() if k not in ("schema", "budget_ms")}, budget_ms=budget_ms)
    with target.locked():
        check_table(target, latency)
        arch = target.folder / "arch.json"
        if arch.exists():
            summary({"arch": arch, "state": "complete, nothing to do"}, target.command("train"))
            return
        run_derive(source, target, latency, budget_ms)


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
