"""A controller that learns by proximal policy optimisation (Schulman et al. 2017; Nekrasov et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hwnas.errors import check_ranges, not_below
from hwnas.records import stored
from hwnas.search.study.samplers.controller import ControllerSampler, Experience, Learner


@stored("ppo")
@dataclass(frozen=True)
class PPO(ControllerSampler):
    """After each trial all that are remembered are learned from, in batches, as far as the policy stays near.

    The published code (DrSleep/nas-segm-pytorch@src/rl/gradient_estimators.py) remembers 100 trials and takes 100
    batches of one after each. It begins with a memory of zeros, which have no gradient; here it begins empty.

    Attributes:
        epsilon: A ratio of probabilities beyond 1 +- this has no gradient.
        memory: Trials that are remembered: the last.
        batch: Trials of a step.
    """

    epsilon: float = 0.1
    memory: int = 100
    batch: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "a controller",
            ("an epsilon between 0 and 1", self.epsilon, 0 < self.epsilon < 1),
            *not_below(self, ("memory", "batch"), 1),
        )

    def learn(self, learner: Learner, trial: Experience) -> None:
        """Visit what is remembered once, in random order."""
        assert learner.baseline is not None, "it has a trial"
        learner.memory = [*learner.memory, trial][-self.memory :]
        order = learner.rng(trial.number).permutation(len(learner.memory)).tolist()
        for first in range(0, len(order), self.batch):
            chosen = [learner.memory[i] for i in order[first : first + self.batch]]
            better = torch.tensor([e.score - learner.baseline for e in chosen])
            ratio = (learner.log_probs([e.taken for e in chosen]) - torch.tensor([e.log_prob for e in chosen])).exp()
            near = ratio.clamp(1 - self.epsilon, 1 + self.epsilon)
            learner.step(-torch.min(ratio * better, near * better).mean())
