"""The trials of a study in a database: each is claimed by one process, and done by another where that one died.

A trial is claimed by creating it, with who works on it; Optuna's storages number trials in one transaction, so no two
processes have the same. While it is worked on it has a pulse. One whose process has ended, or whose pulse has stopped,
is failed, and its number claimed again: by a new trial of Optuna's that says whose number it has, with the answers
of the first try where these had been asked. Of two that do the same again at once the one that was created first goes
on.
"""

from __future__ import annotations

import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError
from hwnas.lock import has_ended, mark_of_process
from hwnas.optional import require
from hwnas.search.study.bridge import NUMBER, Admitted, distributions, finished, numbers, plain, tried
from hwnas.search.study.choices import Choices, Tried

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState
else:
    optuna = require("optuna", "trials")
    TrialState = optuna.trial.TrialState

OWNER, LEDGER, PULSE = "owner", "ledger", "pulse"  # attributes of a trial that is worked on
REJECTED = "rejected"  # how many networks were refused before its own; written when it was asked
WAIT_S = 60.0  # for a lock of SQLite
PULSE_S = 10.0
_OPEN: set[str] = set()  # ledgers of this process


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on.

    Attributes:
        number: Of the trial, from 0.
        answers: That were asked.
        handle: Of the trial in the database.
    """

    number: int
    answers: Mapping[str, str]
    handle: int


class Ledger:
    """A study that is open."""

    def __init__(self, url: str | None, name: str, made_with: str, choices: Choices, grace_s: float) -> None:
        """Open a study, or make it.

        Args:
            url: Of the database; None for one in memory.
            name: Of the study.
            made_with: What all trials of a study must share.
            choices: What is decided.
            grace_s: How long a trial may have no pulse before it counts as left.

        Raises:
            HwnasError: If there is a study of this name that was made with something else, or no database there.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self.choices, self.grace_s, self.id = name, choices, grace_s, uuid.uuid4().hex
        self._mark = mark_of_process()
        self._pulses: dict[int, tuple[Any, float]] = {}  # by trial: the last one seen, and when
        self._engine: Any = None
        try:
            self.storage = optuna.storages.InMemoryStorage() if url is None else self._open(url)
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, direction="maximize", load_if_exists=True
            )
            self._keep(made_with)
        except _database_errors() as e:
            raise HwnasError(f"cannot open the study {name!r} in {_hidden(str(url))}: {_first(e)}") from e
        # Of the study's own storage, which caches.
        self.storage = self.study._storage
        self._study_id = self.storage.get_study_id_from_name(name)
        _OPEN.add(self.id)

    def _open(self, url: str) -> optuna.storages.BaseStorage:
        how = {"connect_args": {"timeout": WAIT_S}} if url.startswith("sqlite") else {}
        out = optuna.storages.RDBStorage(url, engine_kwargs=how)
        self._engine = out.engine
        if url.startswith("sqlite"):
            require("sqlalchemy", "trials").event.listen(out.engine, "connect", _log_ahead)
            out.engine.dispose()  # connections from before do not
        return out

    def _keep(self, made_with: str) -> None:
        """Keep what the trials share, or compare it with what is there."""
        there = self.study.user_attrs.get("made_with")
        if there is None:
            self.study.set_user_attr("made_with", made_with)
        elif there != made_with:
            raise HwnasError(
                f"the study {self.study.study_name!r} was made with other settings, data or budgets; use another run "
                "name or another --storage"
            )

    def finished(self) -> dict[int, FrozenTrial]:
        """Return the trials that have a score, by number."""
        return finished(self.study)

    def history(self) -> list[Tried]:
        """Return the trials that have a score, in the order of their numbers."""
        return [tried(n, t) for n, t in self.finished().items()]

    def abandon(self) -> None:
        """Fail all trials that are worked on, whoever does: to be called where nobody else can."""
        for trial in self._running():
            self._fail(trial._trial_id)

    def claim(self, trials: int, sampler: Callable[[int], BaseSampler], asks: int) -> Claim | None:
        """Take the next trial that nobody does or has done; ask for its architecture.

        Args:
            trials: How many there are to be.
            sampler: Makes the sampler of a trial.
            asks: For one architecture at most.

        Returns:
            The claim; None where there is none left, though others may still be at work.

        Raises:
            BudgetError: If none of the architectures asked for is within the budgets.
        """
        self._fail_left()
        while True:
            by_number = self._by_number()
            left = [n for n, ts in sorted(by_number.items()) if n < trials and not any(map(_lives, ts))]
            if not left and len(by_number) >= trials:
                return None
            again = left[0] if left else None
            attributes: dict[str, Any] = {OWNER: self._mark, LEDGER: self.id, PULSE: 0}
            attributes |= {} if again is None else {NUMBER: again}
            template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
            handle = self.storage.create_new_trial(self._study_id, template_trial=template)
            claimed = self._ours(handle, trials)
            if claimed is not None:
                return self._ask(handle, *claimed, sampler, asks)
            self._fail(handle)

    def _ours(self, handle: int, trials: int) -> tuple[int, FrozenTrial | None] | None:
        """Return number and first try, if that was asked, of a trial just created; None if others have it."""
        for number, own in self._by_number().items():
            place = next((i for i, t in enumerate(own) if t._trial_id == handle), None)
            if place is None:
                continue
            if number >= trials or any(map(_lives, own[:place])):
                return None
            names = self.choices.options.keys()
            asked = [t for t in own[:place] if t.params.keys() == names and REJECTED in t.user_attrs]
            return number, (asked[0] if asked else None)
        raise AssertionError("a trial that was created is there")

    def _ask(
        self,
        handle: int,
        number: int,
        before: FrozenTrial | None,
        sampler: Callable[[int], BaseSampler],
        asks: int,
    ) -> Claim:
        admitted = Admitted(sampler(number), self.choices, asks, None if before is None else dict(before.params))
        # Anew: a study keeps the trials that its sampler has read, until its own `ask`, which is not used here.
        self.study = optuna.load_study(study_name=self.name, storage=self.storage, sampler=admitted)
        try:
            with _quiet():
                trial = optuna.trial.Trial(self.study, handle)
                answers = {k: str(trial._suggest(k, d)) for k, d in distributions(self.choices).items()}
        except HwnasError as e:
            self._fail(handle)
            raise type(e)(f"trial {number + 1}: {e}") from e
        rejected = admitted.rejected if before is None else int(before.user_attrs[REJECTED])
        self.storage.set_trial_user_attr(handle, REJECTED, rejected)
        return Claim(number, answers, handle)

    @contextmanager
    def pulse(self, claim: Claim) -> Iterator[None]:
        """Show others that a trial is worked on, as long as the context is open."""
        if self._engine is None:
            yield
            return
        stop = threading.Event()

        def beat() -> None:
            beats = 0
            while not stop.wait(min(PULSE_S, self.grace_s / 4)):
                beats += 1
                try:
                    self.storage.set_trial_user_attr(claim.handle, PULSE, beats)
                except optuna.exceptions.UpdateFinishedTrialError:
                    return  # it was taken for left

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def tell(self, claim: Claim, score: float, facts: Mapping[str, Any]) -> bool:
        """Keep what a trial scored.

        Args:
            claim: The trial.
            score: What it is worth.
            facts: What else is kept: JSON values.

        Returns:
            Whether it was kept: not where this process was taken for dead, and another one does the trial.
        """
        try:
            for key, value in plain(facts).items():
                self.storage.set_trial_user_attr(claim.handle, key, value)
            with _quiet():
                trial = self.storage.get_trial(claim.handle)
                self.study.sampler.after_trial(self.study, trial, TrialState.COMPLETE, [score])
                return self.storage.set_trial_state_values(claim.handle, TrialState.COMPLETE, [score])
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def close(self) -> None:
        """Let go of the database; what this process has not finished counts as left from now on."""
        _OPEN.discard(self.id)
        if self._engine is not None:
            self._engine.dispose()

    def _running(self) -> list[FrozenTrial]:
        return [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]

    def _by_number(self) -> dict[int, list[FrozenTrial]]:
        trials = self.study.get_trials(deepcopy=False)
        out: dict[int, list[FrozenTrial]] = {}
        for number, t in zip(numbers(trials), trials, strict=True):
            out.setdefault(number, []).append(t)
        return out

    def _fail_left(self) -> None:
        """Fail trials whose process has ended, or whose pulse has stopped."""
        now_s = time.monotonic()
        for trial in self._running():
            owner, ledger = trial.user_attrs.get(OWNER), trial.user_attrs.get(LEDGER)
            seen = trial.user_attrs.get(PULSE)
            before, since_s = self._pulses.get(trial._trial_id, (None, now_s))
            if before != seen:
                since_s = now_s
            self._pulses[trial._trial_id] = seen, since_s
            left = ledger not in _OPEN if owner == self._mark else has_ended(owner) or now_s - since_s > self.grace_s
            if left:
                self._fail(trial._trial_id)

    def _fail(self, handle: int) -> None:
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was faster
            self.storage.set_trial_state_values(handle, TrialState.FAIL)


def file_url(path: Path) -> str:
    """Return the URL of a database of SQLite in a file."""
    return f"sqlite:///{path.resolve()}"


def _log_ahead(connection: Any, record: object) -> None:
    """Let SQLite append to a log where it can: each decision of a trial is a transaction, and waits for the disk else.

    What a kill leaves is whole in any case; a loss of power may cost the last trials.
    """
    del record
    if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
        connection.execute("PRAGMA synchronous=NORMAL")


def _lives(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL


def _database_errors() -> tuple[type[Exception], ...]:
    sqlalchemy = require("sqlalchemy.exc", "trials")
    return sqlalchemy.SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ImportError


def _hidden(url: str) -> str:
    """Return a URL without its password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from warning that parts of it are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
