"""What derived networks score: by the weights of the search, or by short trainings."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from hwnas import checkpoint
from hwnas.data import SegmentationData
from hwnas.data.base import task_of
from hwnas.derived import Gap, Judged, Rerank, Reranking
from hwnas.errors import HwnasError
from hwnas.jobs.findings import read_findings
from hwnas.learn.device import CPU, title
from hwnas.problem import Architecture, Probabilities
from hwnas.progress import Reporter, Update
from hwnas.run import Run
from hwnas.runtime.measuring.journal import Journal
from hwnas.search.rerank import Judgement, Supernet, decide, judge_trained
from hwnas.search.strategy import Inputs
from hwnas.search.widths import Candidate

REPEATS = 2  # trainings of each network, of another seed each: one says nothing about what the seed does


def open_supernet(run: Run, data: SegmentationData | None = None, device: torch.device = CPU) -> Supernet:
    """Open the weights of a search, and the images that they were not learned on.

    Args:
        run: That was searched.
        data: Its training set at the size of the search, where that is open already.
        device: Where networks compute.

    Raises:
        HwnasError: If they are not there, do not fit the recipe, or have seen all images; if the data is not there.
    """
    recipe = run.recipe.seeded(run.settings.search_seed)
    if not recipe.searched:
        raise HwnasError(f"the recipe {recipe.name} has nothing to search, so there is no supernet")
    stage = recipe.searched[-1]
    path = run.require(stage.file("search.pt"), "search")
    images = data or run.data("train", stage.strategy.size)
    decided = read_findings(run).decided
    inputs = Inputs(
        recipe.space, images, open_groups=stage.groups, fixed=decided if decided.answers else None, device=device
    )
    return stage.strategy.supernet(inputs, checkpoint.read(path))


class Judge:
    """Judges networks of a search; its weights and images are loaded once, when they are first needed."""

    def __init__(
        self, run: Run, data: SegmentationData | None = None, device: torch.device = CPU, workers: int | None = None
    ) -> None:
        """Name the run that was searched; see `open_supernet`. Workers make the batches of trainings."""
        self.run, self.device, self.workers = run, device, workers
        self._data = data
        self._supernet: Supernet | None = None

    @property
    def supernet(self) -> Supernet:
        """The weights of the search.

        Raises:
            HwnasError: See `open_supernet`.
        """
        if self._supernet is None:
            self._supernet = open_supernet(self.run, self._data, self.device)
        return self._supernet

    def gap(self, arch: Architecture, probs: Probabilities, report: Reporter) -> Gap:
        """Return how much worse the supernet is as one derived network than as the mixture that was searched."""
        with report.bar("discretisation gap", 3) as update:
            try:
                supernet = self.supernet
            except HwnasError as e:
                return Gap(reason=str(e))
            update(1)
            mixture = supernet.judge(None, probs.float())
            update(2)
            derived = supernet.judge(arch)
            update(3)
        lost = derived.losses - mixture.losses
        return Gap(
            gap=float(lost.mean()),
            mixture_loss=mixture.loss,
            derived_loss=derived.loss,
            standard_error=float(lost.std(ddof=1) / len(lost) ** 0.5) if len(lost) > 1 else None,
            images=len(lost),
            device=title(self.device),
        )

    def rerank(
        self,
        target: Run,
        candidates: Sequence[Candidate],
        chosen: Candidate,
        by: Rerank,
        steps: int | None,
        report: Reporter,
    ) -> tuple[Candidate, Reranking]:
        """Let what networks score choose among candidates; where scores cannot tell, the choice of utility stays.

        The supernet has one width and one depth, so it compares the candidates of the chosen scale only.

        Args:
            target: Keeps the results of trainings, so that an interrupted one goes on.
            candidates: All of them.
            chosen: The one of the highest utility.
            by: The weights of the search, or trainings.
            steps: Of each training; None for the recipe's.
            report: Told how far it is.

        Returns:
            The candidate to take, and why.
        """
        every = [c for c in candidates if c.arch is not None and (by == "train" or c.scale == chosen.scale)]
        judged = (
            self._by_supernet(every, report) if by == "supernet" else _by_training(self, target, every, steps, report)
        )
        favourite = every.index(chosen)
        # The weights of a search are good for little but the loss that the alphas learned from.
        verdict = decide(judged, favourite, "loss" if by == "supernet" else "score")
        rows = []
        for c, judgements, comparison in zip(every, judged, verdict.comparisons, strict=True):
            assert c.arch is not None
            score, loss = (float(np.mean([getattr(j, what) for j in judgements])) for what in ("score", "loss"))
            span = (comparison.difference, comparison.low, comparison.high)
            rows.append(Judged(c.arch.id, c.scale.channels, c.scale.cells, score, loss, c.utility, span))
        first = judged[0][0]
        why = Reranking(by, verdict.reason, tuple(rows), favourite, verdict.index, len(first.losses), first.task.title)
        return every[verdict.index], why

    def _by_supernet(self, every: Sequence[Candidate], report: Reporter) -> list[list[Judgement]]:
        out: list[list[Judgement]] = []
        with report.bar("judge with the weights of the search", 1 + len(every)) as update:
            supernet = self.supernet
            for c in every:
                update(1 + len(out))
                out.append([supernet.judge(c.arch)])
        return out


def _by_training(
    judge: Judge, target: Run, every: Sequence[Candidate], steps: int | None, report: Reporter
) -> list[list[Judgement]]:
    """Train each candidate for a while, in each repetition with the same seed and batches."""
    recipe, data = judge.run.recipe, (judge.run.data("train"), judge.run.data("val"))
    base = replace(recipe.train, steps=steps or recipe.rerank_steps)
    settings = {"data": judge.run.name_of(data[0]), "steps": base.steps, "batch": base.batch, "crop": list(base.crop)}
    folder = target.folder / "rerank"
    out: list[list[Judgement]] = [[] for _ in every]
    with (
        Journal(target.folder / "rerank.jsonl", {"plan": "rerank", "where": settings}) as journal,
        report.bar("short trainings", REPEATS * len(every) * base.steps) as update,
    ):
        done = {r["key"]: r for r in journal.records}
        for repeat in range(REPEATS):
            config = replace(base, seed=base.seed + repeat)
            for i, c in enumerate(every):
                assert c.arch is not None
                key = f"{c.arch.id}-c{c.scale.channels}-d{c.scale.cells}-s{config.seed}"
                before = (repeat * len(every) + i) * base.steps
                if key not in done:
                    space, counted = recipe.space.at(c.scale), _after(before, key, update)
                    where = (judge.device, judge.workers)
                    judgement = judge_trained(space, c.arch, config, data, folder / key, settings, counted, *where)
                    done[key] = {"key": key, **judgement.to_json()}
                    journal.append(done[key])
                    shutil.rmtree(folder / key)
                update(before + base.steps, key)
                out[i].append(Judgement.from_json(task_of(data[0]), done[key]))
    shutil.rmtree(folder, ignore_errors=True)
    return out


def _after(before: int, key: str, update: Update) -> Update:
    """Return an update that counts on from `before`."""

    def counted(done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
        update(before + done, f"{key} {note}")

    return counted
