"""How a search is organised: stages in a row, each with the groups it decides and the strategy that decides them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from hwnas.data.base import SegmentationData
from hwnas.errors import HwnasError
from hwnas.learn import loop
from hwnas.learn.device import CPU
from hwnas.learn.distributed import ALONE, World
from hwnas.problem import Architecture, Group, Problem
from hwnas.progress import Reporter, Update, ignore
from hwnas.records import encode
from hwnas.search.costs import Bound
from hwnas.search.pretrain import Pretraining
from hwnas.spaces import Space
from hwnas.steplog import StepLog

if TYPE_CHECKING:
    from hwnas.search.rerank import Supernet

SEARCH = "search"  # the stage of a recipe that has one


@dataclass(frozen=True)
class Inputs:
    """What a strategy searches with.

    Attributes:
        space: At any scale.
        data: The training set, of the size that the strategy reads it at.
        bounds: What networks are held to, priced at a deployment scale.
        open_groups: Names of the groups that are decided; none for all. Others that are not fixed are left to a later
            stage, which decides them with what this one found.
        fixed: Answers of earlier stages; None for none.
        weights: Of an earlier stage's supernet, to start from; None to start from random ones.
        device: Where networks compute.
        workers: Processes that make batches ahead; None for as many as help.
        world: The processes that search together.
        folder: Where a strategy may keep files that a resumed search goes on with; None for nowhere.
        storage: URL of a database that several processes share, for strategies that use one; None for a file in
            `folder`.
        processes: Processes that try architectures at once, for strategies that do.
        name: Of the search, where a database holds several: the same in all processes that work on it.
    """

    space: Space
    data: SegmentationData
    bounds: Sequence[Bound] = ()
    open_groups: tuple[str, ...] = ()
    fixed: Architecture | None = None
    weights: Mapping[str, Tensor] | None = None
    device: torch.device = CPU
    workers: int | None = 0
    world: World = ALONE
    folder: Path | None = None
    storage: str | None = None
    processes: int = 1
    name: str = SEARCH

    @property
    def problem(self) -> Problem:
        """What is decided, the fixed answers included.

        Raises:
            HwnasError: If the fixed answers break a rule.
        """
        return self.space.problem if self.fixed is None else self.space.problem.fix(self.fixed)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that are decided and have a decision that is not fixed.

        Raises:
            HwnasError: If there are none.
        """
        problem = self.problem
        named = [g for g in problem.groups if not self.open_groups or g.name in self.open_groups]
        out = tuple(g for g in named if any(d.name not in problem.answers for d in g.decisions))
        if not out:
            raise HwnasError(f"the space {self.space.name!r} has no open decision: there is nothing to search")
        return out


@dataclass(frozen=True)
class Trial:
    """An architecture that was tried.

    Attributes:
        architecture: Answers to the open groups at least.
        score: What it is worth, above 0; larger is better.
    """

    architecture: Architecture
    score: float


@dataclass(frozen=True)
class Findings:
    """What a strategy found: probabilities of the groups it decides, or architectures with scores.

    Attributes:
        probabilities: By group, (decisions, options), in float32; empty where there are trials.
        logits: What they were computed from, where a strategy has such.
        trials: Empty where there are probabilities.
    """

    probabilities: Mapping[str, np.ndarray]
    logits: Mapping[str, np.ndarray]
    trials: tuple[Trial, ...] = ()


class Search(Protocol):
    """A search under way, step by step, which `hwnas.learn.loop` runs; all its state is in `state`.

    Attributes:
        step: Steps that are done.
        stopped: Why it ended before its last step; None if it did not.
        title: What it is called in messages.
        remedy: What helps where a loss is no longer finite.
        world: The processes that do its steps.
    """

    step: int
    world: World = ALONE
    stopped: str | None = None
    title: ClassVar[str] = "search"
    remedy: ClassVar[str] = "change the settings of its strategy"

    @property
    def strategy(self) -> Strategy:
        """What it is a search by."""

    @property
    def finished(self) -> bool:
        """Whether there is no step left to do."""
        return self.stopped is not None or self.step >= self.strategy.steps

    def advance(self) -> dict[str, Any]:
        """Do one step and return what is logged of it: numbers, text, and losses as tensors ()."""

    def state(self) -> dict[str, Any]:
        """Return all there is to resume from, as `hwnas.checkpoint` stores it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""

    def findings(self) -> Findings:
        """Return what was found by now."""

    def close(self) -> None:
        """End what works for it."""


def search(
    under_way: Search,
    path: Path,
    settings: object,
    log: StepLog,
    update: Update = ignore,
    also: Mapping[str, Any] | None = None,
) -> Findings:
    """Run a search to its end, from its checkpoint if there is one, and return what it found.

    Args:
        under_way: The search.
        path: Of the checkpoint, see `hwnas.learn.loop.run`.
        settings: What a checkpoint must have been made with, beside the settings of the strategy.
        log: Gets the metrics of each step.
        update: Told after each step.
        also: What is logged beside the metrics of each step.

    Raises:
        HwnasError: If the checkpoint is damaged or of other settings, or the search diverges.
    """
    strategy = under_way.strategy
    made_with = {"config": strategy.to_json(), "settings": settings}
    every, note = strategy.checkpoint_every, strategy.note
    world = under_way.world
    if world.shared:
        also = {**(also or {}), "processes": world.size}
    loop.run(under_way, path, made_with, log, update, every=every, note=note, also=also, world=world)
    return under_way.findings()


class Strategy(Protocol):
    """How the open decisions of a stage are searched: a frozen dataclass with a stored name, its fields the settings.

    A strategy is one file, and what is derived from this class; `begin` starts a search.

    Attributes:
        steps: Of the search, at most.
        seed: Of everything random; a field.
        checkpoint_every: Steps between checkpoints at most; they are more frequent where they cost little time.
        shareable: Whether its searches take the processes of `Inputs.world`; else that of rank 0 searches alone.
        concurrent: Whether several processes can do different steps of one search at once, and a finished one more of
            them: see `Inputs.processes` and `extended`.
    """

    shareable: ClassVar[bool] = False
    concurrent: ClassVar[bool] = False

    # Not properties at run time: a dataclass would take them for the defaults of its fields.
    if TYPE_CHECKING:

        @property
        def steps(self) -> int:
            """Steps of the search."""

        @property
        def seed(self) -> int:
            """Of everything random."""

        @property
        def checkpoint_every(self) -> int:
            """Steps between checkpoints at most."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) at which images are read; None for that of the deployment scale."""
        return None

    @property
    def resources(self) -> tuple[str, ...]:
        """Counts that are to be priced beside the budgets: of `hwnas.latency.resources.RESOURCES`."""
        return ()

    def extended(self, steps: int) -> Self:
        """Return the same with more steps, so that a finished search goes on.

        Raises:
            HwnasError: If it cannot, or there would be fewer.
        """
        raise HwnasError(f"a search by {type(self).__name__} cannot be continued once it is done; search by trials can")

    def with_seed(self, seed: int) -> Self:
        """Return the same with another seed."""
        return replace(self, seed=seed)  # type: ignore[type-var]

    def begin(self, inputs: Inputs) -> Search:
        """Start a search at its first step."""
        raise NotImplementedError

    def prepare(self, inputs: Inputs, fresh: bool, report: Reporter) -> None:
        """Build what the search needs, and report what it will take where it is `fresh`: not resumed."""
        del inputs, fresh, report

    def note(self, metrics: Mapping[str, Any]) -> str:
        """Return the few figures of a step that are shown while the search runs."""
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return all settings, as a recipe stores them."""
        out: dict[str, Any] = encode(self, type(self))
        return out

    def supernet(self, inputs: Inputs, state: Mapping[str, Any]) -> Supernet:
        """Return the trained supernet, to judge networks with, from the state of a search.

        Raises:
            HwnasError: If the strategy has none.
        """
        raise HwnasError(f"a {type(self).__name__} trains no supernet that could judge networks")


@dataclass(frozen=True)
class Stage:
    """One part of a search: which groups it decides, and how.

    Attributes:
        name: Unique in a recipe; of a recipe with one stage ``"search"``.
        strategy: How.
        groups: Names of the groups it decides; none for all that no earlier stage has decided. Groups that a later
            stage decides are open meanwhile: a supernet mixes their options evenly.
        weights_from: Name of the earlier stage whose supernet's weights it starts from; None for random ones.
        before: The pre-training of the encoder that precedes it; its weights take the place of others. None for none.

    Raises:
        HwnasError: If the name is no word.
    """

    name: str
    strategy: Strategy
    groups: tuple[str, ...] = ()
    weights_from: str | None = None
    before: Pretraining | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise HwnasError(f"a stage's name is made of a-z, 0-9 and '_', got {self.name!r}")

    def with_seed(self, seed: int) -> Stage:
        """Return the same with another seed of all that is random."""
        before = None if self.before is None else self.before.with_seed(seed)
        return replace(self, strategy=self.strategy.with_seed(seed), before=before)

    def file(self, name: str) -> str:
        """Return what a file of this stage is called in a run, where that of an only stage is called `name`."""
        stem, dot, ending = name.partition(".")
        return name if self.name == SEARCH else f"{stem}-{self.name}{dot}{ending}"


def check_stages(stages: Sequence[Stage], groups: Sequence[Group], encoder: Sequence[Group] = ()) -> None:
    """Hold the stages of a recipe against the groups of its space: each is decided by one of them.

    Args:
        stages: Of the recipe.
        groups: Of the space.
        encoder: Those of its encoder, which are decided before that is pre-trained.

    Raises:
        HwnasError: If a group is unknown, is decided twice or never, weights come from no earlier stage, or an encoder
            is pre-trained before it is decided. A space without groups has nothing to search, and needs no stage.
    """
    names = [g.name for g in groups]
    if not names and not stages:
        return
    if not stages or len({s.name for s in stages}) != len(stages):
        raise HwnasError(f"a search needs stages of different names, at least one; got {[s.name for s in stages]}")
    decided: list[str] = []
    for i, stage in enumerate(stages):
        own = list(stage.groups) or [n for n in names if n not in decided]
        if unknown := [n for n in own if n not in names]:
            raise HwnasError(f"the stage {stage.name!r} decides {unknown[0]!r}; the space has {', '.join(names)}")
        if again := [n for n in own if n in decided]:
            raise HwnasError(f"the stage {stage.name!r} decides {again[0]!r}, which an earlier stage has decided")
        if names and not own:
            raise HwnasError(f"the stage {stage.name!r} decides nothing: earlier ones decide all of {', '.join(names)}")
        if stage.weights_from is not None and stage.weights_from not in [s.name for s in stages[:i]]:
            raise HwnasError(f"the stage {stage.name!r} takes weights from {stage.weights_from!r}, no earlier stage")
        if stage.before is not None and (open_ := [g.name for g in encoder if g.name not in decided]):
            raise HwnasError(
                f"the stage {stage.name!r} is preceded by a pre-training of the encoder, of which {open_[0]!r} is open "
                "then; decide it in an earlier stage"
            )
        decided += own
    if missing := [n for n in names if n not in decided]:
        raise HwnasError(f"no stage decides the group {missing[0]!r}; add it to one")
