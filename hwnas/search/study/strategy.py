"""Search by trials: a sampler asks for architectures, an evaluator says what they are worth, a database keeps it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from hwnas.errors import HwnasError, check_ranges, not_below, positive
from hwnas.files import canonical_json, sha256
from hwnas.latency.resources import RESOURCES
from hwnas.problem import Architecture
from hwnas.records import stored
from hwnas.search.strategy import Findings, Inputs, Search, Strategy, Trial
from hwnas.search.study.choices import Choices, Tried
from hwnas.search.study.evaluators.base import Evaluation, Evaluator, Outcome
from hwnas.search.study.samplers.base import Sampler
from hwnas.search.study.samplers.uniform import Uniform

WAIT_S = 0.05  # between two looks at what others do
DATABASE, FOLDER = "study.db", "trials"


@stored("trials")
@dataclass(frozen=True)
class Trials(Strategy):
    """Tries architectures one after the other, those that are predicted to be within all budgets.

    Attributes:
        evaluator: What an architecture is worth.
        sampler: What is asked for.
        steps: Trials in all; a finished search is continued with more.
        seed: Of everything random.
        limits: Budgets of counts beside those of latency: of ``"macs"`` and ``"params"``.
        asks: Architectures that may be asked for until one is within the budgets.
        grace_s: Seconds without a sign of life after which a trial of a process of another machine is done again.
        checkpoint_every: Trials between checkpoints at most.

    Raises:
        HwnasError: If a setting is out of range.
    """

    concurrent: ClassVar[bool] = True

    evaluator: Evaluator
    sampler: Sampler = field(default_factory=Uniform)
    steps: int = 100
    seed: int = 0
    limits: Mapping[str, float] | None = None
    asks: int = 1000
    grace_s: float = 120.0
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        check_ranges(
            "a search by trials",
            *not_below(self, ("steps", "asks", "checkpoint_every"), 1),
            *positive(self, ("grace_s",)),
            *not_below(self, ("seed",), 0),
            (f"limits above 0 of {' and '.join(RESOURCES)}", self.limits, _are_limits(self.limits or {})),
        )

    @property
    def resources(self) -> tuple[str, ...]:
        """The counts that are limited."""
        return tuple(self.limits or ())

    def begin(self, inputs: Inputs) -> StudySearch:
        """Open the study."""
        return StudySearch(self, inputs)

    def extended(self, steps: int) -> Trials:
        """Return the same with more trials.

        Raises:
            HwnasError: If there would be fewer.
        """
        if steps < self.steps:
            raise HwnasError(f"expected {self.steps} trials or more, which the search has, got {steps}")
        return replace(self, steps=steps)

    def note(self, metrics: Mapping[str, Any]) -> str:
        """Return score, the best so far, and how many were over the budget."""
        diverged = ", diverged" if metrics.get("diverged") else ""
        return (
            f"score {metrics['score']:.4f}{diverged}, best {metrics['best']:.4f} (trial {metrics['best_trial'] + 1}), "
            f"{metrics['all_rejected']} over budget"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the trials share: all settings but how many there are, and how they are kept."""
        kept = super().to_json()
        return {k: v for k, v in kept.items() if k not in ("steps", "grace_s", "checkpoint_every", "asks")}


def _are_limits(limits: Mapping[str, float]) -> bool:
    return all(name in RESOURCES and value > 0 for name, value in limits.items())


class StudySearch(Search):
    """A study that is open. Its trials are the state; the checkpoint holds what a sampler has learned from them."""

    title = "search by trials"

    def __init__(self, config: Trials, inputs: Inputs, leads: bool = True) -> None:
        """Open the study.

        Args:
            config: Its settings.
            inputs: Of the stage.
            leads: Whether this is the process that runs the search, not one that works for it.
        """
        from hwnas.search.study.ledger import Ledger, file_url

        self.config, self.inputs, self.step = config, inputs, 0
        self._temporary = tempfile.TemporaryDirectory(prefix="hwnas-trials-") if inputs.folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary is not None else inputs.folder or Path()
        self.choices = Choices.of(inputs, config.limits or {})
        own_file = inputs.storage is None and inputs.folder is not None
        self.url = file_url(self.folder / DATABASE) if own_file else inputs.storage
        if own_file:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.url, inputs.name, self._made_with(), self.choices, config.grace_s)
        if own_file and leads:
            self.ledger.abandon()  # the run is locked, so whoever worked on a trial is gone
        self.asking = config.sampler.asking(self.choices, config.seed)
        self._evaluation: Evaluation | None = None
        self._crew: Any = None
        self._found: Findings | None = None
        self._all_rejected = 0
        self._best: tuple[float, int] | None = None

    def _made_with(self) -> str:
        """Return what tells the trials of this study from those of others."""
        bounds = [[b.name, round(b.budget, 9)] for b in self.choices.bounds]
        data = self.inputs.data
        made_with = {
            "strategy": self.config.to_json(),
            "bounds": bounds,
            "decisions": {k: list(v) for k, v in self.choices.options.items()},
            "fixed": dict(self.choices.problem.fixed),
            "space": repr(self.inputs.space),
            "data": [data.name, len(data)],
        }
        return sha256(canonical_json(made_with))

    @property
    def strategy(self) -> Trials:
        """Its settings."""
        return self.config

    def advance(self) -> dict[str, Any]:
        """Return the next trial: done before, or now, or by another process.

        Raises:
            BudgetError: If no architecture that is asked for is within the budgets.
        """
        number = self.step
        while (done := self.ledger.finished().get(number)) is None:
            if self.inputs.processes > 1:
                self._wait()
            elif not self.work():
                time.sleep(WAIT_S)  # another process does it, or is dead and not yet known to be
        assert done.value is not None, "a trial that is done has a score"
        self.step += 1
        self._count(number, done.value, done.user_attrs)
        assert self._best is not None
        best, best_trial = self._best
        facts = {k: done.user_attrs[k] for k in _LOGGED if k in done.user_attrs}
        out = {"step": number, "score": done.value, "best": best, "best_trial": best_trial, **facts}
        return out | {"all_rejected": self._all_rejected}

    def _count(self, number: int, score: float, facts: Mapping[str, Any]) -> None:
        self._all_rejected += int(facts.get("rejected", 0))
        if self._best is None or score > self._best[0]:
            self._best = score, number

    def work(self) -> bool:
        """Do one trial; return whether there was one to do."""
        claim = self.ledger.claim(self.config.steps, self.asking.sampler, self.config.asks)
        if claim is None:
            return False
        arch = self.choices.network(claim.answers)
        own = self.folder / FOLDER / f"{claim.number}-{arch.id}"
        with self.ledger.pulse(claim):
            history = self.ledger.history()
            before = next((t for t in history if t.facts.get("architecture") == arch.id), None)
            outcome = _again(before) if before is not None else self._evaluate(arch, claim.number, own, history)
        self.ledger.tell(claim, outcome.score, {**outcome.facts, "architecture": arch.id})
        shutil.rmtree(own, ignore_errors=True)
        return True

    def _evaluate(self, arch: Architecture, number: int, folder: Path, history: list[Tried]) -> Outcome:
        if self._evaluation is None:
            shared = self.folder / "features"
            self._evaluation = self.config.evaluator.evaluation(self.inputs, shared, self.config.seed)
        return self._evaluation.evaluate(arch, number, folder, history)

    def _wait(self) -> None:
        """Let other processes do trials, and see that there are some."""
        if self._crew is None:
            from hwnas.search.study.crew import Crew

            self._crew = Crew(self.config, replace(self.inputs, storage=self.url))
        self._crew.check()
        time.sleep(WAIT_S)

    def state(self) -> dict[str, Any]:
        """Return how many trials are done, and what the sampler has learned."""
        return {"step": self.step, "sampler": self.asking.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from it.

        Raises:
            HwnasError: If the study has fewer trials than that.
        """
        step, done = int(state["step"]), {t.number: t for t in self.ledger.history()}
        if lost := [n for n in range(step) if n not in done]:
            raise HwnasError(
                f"trial {lost[0] + 1} of {step} is not in the study any more; give back its database, or remove the "
                "checkpoint search.pt to do it again"
            )
        self.step = step
        for number in range(step):
            self._count(number, done[number].score, done[number].facts)
        self.asking.restore(state["sampler"])

    def findings(self) -> Findings:
        """Return all trials up to the step, in the order of their numbers."""
        if self._found is not None:
            return self._found
        done = {t.number: t for t in self.ledger.history()}
        first = [done[n] for n in range(self.step)]
        return Findings({}, {}, tuple(Trial(self.choices.network(t.answers), t.score) for t in first))

    def close(self) -> None:
        """End other processes, and let go of the database."""
        if self._crew is not None:
            self._crew.close()
        if self._evaluation is not None:
            self._evaluation.close()
        if self._found is None:
            self._found = self.findings()  # read for the last time
        self.ledger.close()
        if self._temporary is not None:
            self._temporary.cleanup()


_LOGGED = ("architecture", "rejected", "first", "stopped", "diverged", "same_as")


def _again(before: Tried) -> Outcome:
    """Return what an architecture scored before: the same would come of it, for its seed is that of the search."""
    facts = {k: v for k, v in before.facts.items() if k in ("first", "stopped", "diverged", "steps")}
    return Outcome(before.score, {**facts, "same_as": before.number})
