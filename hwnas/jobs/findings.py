"""What the stages of a search found, as a run keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hwnas.errors import HwnasError
from hwnas.latency.table import LatencyTable
from hwnas.problem import Architecture, Probabilities
from hwnas.records import File, stored
from hwnas.run import Run
from hwnas.search.relax import open_logits
from hwnas.search.strategy import Findings, Stage, Trial

Matrix = tuple[tuple[float, ...], ...]


@stored("alphas", version=2)
@dataclass(frozen=True)
class Alphas:
    """What `alphas.json` holds, or `alphas-<stage>.json` of one stage of several.

    Attributes:
        groups: Logits by group, (decisions, options); empty for a strategy that has none.
        table: Latency table of the search.
        probabilities: By group, (decisions, options); None in files that have logits alone.
        trials: Scored architectures, where a strategy finds such and no probabilities.
        decided: What is decided after this stage, for later ones to keep; None for the last.
    """

    groups: Mapping[str, Matrix]
    table: str
    probabilities: Mapping[str, Matrix] | None = None
    trials: tuple[Trial, ...] = ()
    decided: Architecture | None = None


FILE = File("the alphas of a search", "search again", lambda data: data)


@dataclass(frozen=True)
class Found:
    """What all stages of a search found together.

    Attributes:
        probs: Of all groups: equal for those that trials decided.
        trials: Of the last stage; empty if it found probabilities.
        decided: The answers of all stages but the last.
    """

    probs: Probabilities
    trials: tuple[Trial, ...]
    decided: Architecture


def stored_findings(findings: Findings, table: LatencyTable, decided: Architecture | None) -> Alphas:
    """Return what a run keeps of the findings of a stage."""
    logits, probs = (_tuples(m) for m in (findings.logits, findings.probabilities))
    return Alphas(logits, str(table.path), probs, findings.trials, decided)


def read_stage(run: Run, stage: Stage) -> Alphas:
    """Read what a stage found.

    Raises:
        HwnasError: If it is not there, or of another space.
    """
    path = run.require(stage.file("alphas.json"), "search")
    there, problem = FILE.load(path, Alphas), run.recipe.space.problem
    shapes = {g.name: g.shape for g in problem.groups}
    for name, matrix in {**there.groups, **(there.probabilities or {})}.items():
        if np.shape(matrix) != shapes.get(name):
            raise HwnasError(
                f"{path} does not hold what {run.recipe.name} searches, but of another space; search again"
            )
    for trial in there.trials:
        problem.check(trial.architecture, partial=True)
    return there


def read_findings(run: Run) -> Found:
    """Read what all stages of a search found.

    Raises:
        HwnasError: If a stage has not been searched, or is of another space.
    """
    recipe = run.recipe
    problem = recipe.space.problem
    decided, matrices = Architecture.of(problem.name, {}), dict(problem.uniform())
    trials: tuple[Trial, ...] = ()
    for stage in recipe.searched:
        there = read_stage(run, stage)
        probabilities = there.probabilities
        if probabilities is None:  # written before these were stored
            logits = {k: torch.tensor(v, dtype=torch.float32) for k, v in there.groups.items()}
            matrices |= recipe.search.relaxation.probs(open_logits(logits, problem.groups))
        else:
            matrices |= {k: torch.tensor(v, dtype=torch.float32) for k, v in probabilities.items()}
        decided, trials = there.decided or decided, there.trials
    return Found(problem.probabilities(matrices), trials, decided)


def _tuples(matrices: Mapping[str, np.ndarray]) -> dict[str, Matrix]:
    return {k: tuple(map(tuple, v.tolist())) for k, v in matrices.items()}
