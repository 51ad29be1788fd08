"""What derived networks score: by the weights of the search, or by short trainings."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from hwnas import checkpoint
from hwnas.data.base import task_of
from hwnas.errors import HwnasError
from hwnas.problem import Architecture
from hwnas.run import Run
from hwnas.runtime.measuring.journal import Journal
from hwnas.search.rerank import Judgement, Supernet, decide, judge_trained
from hwnas.search.widths import Candidate
from hwnas.ui import Update, bar, table

REPEATS = 2  # trainings of each network, of another seed each: one says nothing about what the seed does

Judged = list[list[Judgement]]


def open_supernet(run: Run) -> Supernet:
    """Open the weights of a search, and the images that they were not learned on.

    Raises:
        HwnasError: If they are not there, do not fit the recipe, or have seen all images; if the data is not there.
    """
    path = run.require("search.pt", "search")
    recipe = run.recipe
    config = replace(recipe.search, seed=int(run.settings.get("search_seed", recipe.search.seed)))
    return Supernet(recipe.space, config, checkpoint.read(path)["net"], run.data("train", config.scale.size))


def gap(run: Run, arch: Architecture, probs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return how much worse the supernet is as one derived network than as the mixture that was searched.

    Both on the same images, which the weights did not learn on, with BatchNorm recalibrated for each.

    Returns:
        ``mixture_loss``, ``derived_loss``, their difference ``gap``, its ``standard_error``, and ``images``; or, where
        the weights of the search or its data are not there, the ``reason``.
    """
    with bar("discretisation gap", 3) as update:
        try:
            supernet = open_supernet(run)
        except HwnasError as e:
            return {"reason": str(e)}
        update(1)
        mixture = supernet.judge(None, {k: torch.from_numpy(np.asarray(p, np.float32)) for k, p in probs.items()})
        update(2)
        derived = supernet.judge(arch)
        update(3)
    lost = derived.losses - mixture.losses
    return {
        "mixture_loss": mixture.loss,
        "derived_loss": derived.loss,
        "gap": float(lost.mean()),
        "standard_error": float(lost.std(ddof=1) / len(lost) ** 0.5) if len(lost) > 1 else None,
        "images": len(lost),
    }


def rerank(
    source: Run,
    target: Run,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    by: Literal["supernet", "train"],
    steps: int | None = None,
) -> tuple[Candidate, dict[str, Any]]:
    """Let what networks score choose among candidates; where scores cannot tell, the choice of utility stays.

    The supernet has one width and one depth, so it compares the candidates of the chosen scale only.

    Args:
        source: The run that was searched.
        target: Keeps the results of trainings, so that an interrupted one goes on.
        candidates: All of them.
        chosen: The one of the highest utility.
        by: The weights of the search, or trainings.
        steps: Of each training; None for the recipe's.

    Returns:
        The candidate to take, and a JSON object that says why.
    """
    every = [c for c in candidates if c.arch is not None and (by == "train" or c.scale == chosen.scale)]
    judged = _by_supernet(source, every) if by == "supernet" else _by_training(source, target, every, steps)
    favourite = every.index(chosen)
    # The weights of a search are good for little but the loss that the alphas learned from.
    verdict = decide(judged, favourite, "loss" if by == "supernet" else "score")
    title, rows, found = judged[0][0].task.title, [], []
    for i, (c, judgements, comparison) in enumerate(zip(every, judged, verdict.comparisons, strict=True)):
        assert c.arch is not None
        score, loss = (float(np.mean([getattr(j, what) for j in judgements])) for what in ("score", "loss"))
        size = {"id": c.arch.id, "channels": c.scale.channels, "cells": c.scale.cells}
        span = [comparison.difference, comparison.low, comparison.high]
        found.append({**size, "score": score, "loss": loss, "utility": c.utility, "difference": span})
        mark = ["choice of utility"] * (i == favourite) + ["<- chosen"] * (i == verdict.index)
        said = "" if i == favourite else "{:+.4f} ({:+.4f} to {:+.4f})".format(*span)
        rows.append(
            [*map(str, size.values()), f"{c.utility:.3f}", f"{score:.4f}", f"{loss:.4f}", said, ", ".join(mark)]
        )
    header = ("network", "channels", "cells", "utility", title, "loss", "better by (interval)", "")
    what = "with the weights of the search, on" if by == "supernet" else f"means of {REPEATS} short trainings, on"
    table(f"{what} {len(judged[0][0].losses)} held-out images", header, rows, numbers=True)
    return every[verdict.index], {"by": by, "reason": verdict.reason, "candidates": found}


def _by_supernet(source: Run, every: Sequence[Candidate]) -> Judged:
    out: Judged = []
    with bar("judge with the weights of the search", 1 + len(every)) as update:
        supernet = open_supernet(source)
        for c in every:
            update(1 + len(out))
            out.append([supernet.judge(c.arch)])
    return out


def _by_training(source: Run, target: Run, every: Sequence[Candidate], steps: int | None) -> Judged:
    """Train each candidate for a while, in each repetition with the same seed and batches."""
    recipe, data = source.recipe, (source.data("train"), source.data("val"))
    base = replace(recipe.train, steps=steps or recipe.rerank_steps)
    settings = {"data": data[0].name, "steps": base.steps, "batch": base.batch, "crop": list(base.crop)}
    folder = target.folder / "rerank"
    out: Judged = [[] for _ in every]
    with (
        Journal(target.folder / "rerank.jsonl", {"plan": "rerank", "where": settings}) as journal,
        bar("short trainings", REPEATS * len(every) * base.steps) as update,
    ):
        known = {r["key"]: r for r in journal.records}
        for repeat in range(REPEATS):
            config = replace(base, seed=base.seed + repeat)
            for i, c in enumerate(every):
                assert c.arch is not None
                key = f"{c.arch.id}-c{c.scale.channels}-d{c.scale.cells}-s{config.seed}"
                before = (repeat * len(every) + i) * base.steps
                if key not in known:
                    space = recipe.space.at(c.scale)
                    found = judge_trained(
                        space, c.arch, config, data, folder / key, settings, _after(before, key, update)
                    )
                    record = {"key": key, **found.to_json()}
                    journal.append(record)
                    shutil.rmtree(folder / key)
                    known[key] = record
                update(before + base.steps, key)
                out[i].append(Judgement.from_json(task_of(data[0]), known[key]))
    shutil.rmtree(folder, ignore_errors=True)
    return out


def _after(before: int, key: str, update: Update) -> Update:
    """Return an update that counts on from `before`."""

    def counted(done: int, note: str = "", total: int | None = None) -> None:
        update(before + done, f"{key} {note}")

    return counted
