"""Processes of this machine that do the trials of one study."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import torch

from hwnas.errors import BudgetError, HwnasError
from hwnas.runtime.measuring.child import die_with_parent
from hwnas.search.strategy import Inputs

if TYPE_CHECKING:
    from hwnas.search.study.strategy import Trials

IDLE_S = 0.1


class Crew:
    """Processes that work on a study until its trials are done.

    They are started anew rather than forked: torch's threads and a GPU's context do not survive a fork. When this
    process dies they do too; when one of them dies, the others do its trial again.
    """

    def __init__(self, config: Trials, inputs: Inputs) -> None:
        """Start them.

        Args:
            config: Of the search.
            inputs: Of the stage, with the URL of the study and the number of processes.

        Raises:
            HwnasError: If the study is in memory, which processes do not share.
        """
        if inputs.storage is None:
            raise HwnasError("several processes need a study in a database: give the search a folder or a storage")
        context = multiprocessing.get_context("spawn")
        self.processes, self._ends = [], []
        for _ in range(inputs.processes):
            end, other = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(config, inputs, other, os.getpid()), daemon=True)
            process.start()
            other.close()
            self.processes.append(process)
            self._ends.append(end)

    def check(self) -> None:
        """See that somebody works.

        Raises:
            BudgetError: If one found no architecture within the budgets.
            HwnasError: If one failed, or all have ended.
        """
        for end in self._ends:
            try:
                if end.poll():
                    kind, text = end.recv()
                    raise (BudgetError if kind == BudgetError.__name__ else HwnasError)(text)
            except EOFError:
                pass  # it has ended, and had nothing to say
        if all(not p.is_alive() for p in self.processes) and any(p.exitcode for p in self.processes):
            codes = ", ".join(str(p.exitcode) for p in self.processes)
            raise HwnasError(
                f"all {len(self.processes)} processes that try architectures have ended, with exit codes {codes}; run "
                "the same command to go on, with fewer --processes if they ran out of memory"
            )

    def close(self) -> None:
        """End those that have not ended."""
        for process in self.processes:
            if process.is_alive():
                process.terminate()
        for process in self.processes:
            process.join()
        for end in self._ends:
            end.close()


def _work(config: Trials, inputs: Inputs, told: Connection, parent: int) -> None:
    """Do trials until there are none left to do; what a process of a crew runs."""
    from hwnas.search.study.strategy import StudySearch

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(max(1, torch.get_num_threads() // inputs.processes))
    try:
        search = StudySearch(config, replace(inputs, processes=1, workers=0), leads=False)
        try:
            while os.getppid() == parent and len(search.ledger.finished()) < config.steps:
                if not search.work():
                    time.sleep(IDLE_S)
        finally:
            search.close()
    except HwnasError as e:
        told.send((type(e).__name__, str(e)))
        raise SystemExit(1) from e
