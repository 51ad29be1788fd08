"""A controller that learns by the policy gradient (Williams 1992; Zoph and Le 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.records import stored
from hwnas.search.study.samplers.controller import ControllerSampler, Experience, Learner


@stored("reinforce")
@dataclass(frozen=True)
class Reinforce(ControllerSampler):
    """One step for each trial, by how much its score is above the running mean.

    The mean includes the score, as in DrSleep/nas-segm-pytorch@src/rl/gradient_estimators.py, so that the first trial
    changes nothing.
    """

    def learn(self, learner: Learner, trial: Experience) -> None:
        """Make what scored above the mean more probable."""
        assert learner.baseline is not None, "it has a trial"
        learner.step(-(learner.log_probs([trial.taken]) * (trial.score - learner.baseline)).sum())
