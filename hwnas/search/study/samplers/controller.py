"""A recurrent controller that learns which answers are worth something (Zoph and Le 2017; Nekrasov et al. 2019).

As in the code of the latter (DrSleep/nas-segm-pytorch@src/rl): an LSTM of two layers runs on its own outputs, from a
start that is learned, and a linear layer turns each output into the probabilities of a decision. What was sampled is
not fed back, so the probabilities of an architecture are those of its decisions multiplied.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import HwnasError, check_ranges, not_below, positive
from hwnas.search.study.choices import Answers, Choices, Tried
from hwnas.search.study.samplers.base import Asking, Sampler
from hwnas.seeding import seeded

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

INIT = 0.1  # all parameters begin uniform between its negative and it
_SAMPLE, _LEARN = 0, 1  # tell draws of one seed


@dataclass(frozen=True)
class ControllerSampler(Sampler):
    """Samples from a controller that learns from every trial; the derived classes say how.

    The defaults are those of the published code. It runs 20,000 trials; a study of some hundred needs a higher learning
    rate, see ``scripts/bench/samplers.py``.

    Attributes:
        hidden: Units of the LSTM.
        layers: Of it.
        lead: Steps of it before the first decision: one for each output of the encoder in the published code.
        shared: Names of the groups whose decisions have one linear layer together; None for all groups. Others have one
            for each decision.
        lr: Of Adam.
        baseline: Decay of the running mean of scores, which a score is compared with.
        clip: Norm to which gradients are clipped.

    Raises:
        HwnasError: If a setting is out of range.
    """

    hidden: int = 100
    layers: int = 2
    lead: int = 0
    shared: tuple[str, ...] | None = None
    lr: float = 1e-4
    baseline: float = 0.95
    clip: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(
            "a controller",
            *not_below(self, ("hidden", "layers"), 1),
            *not_below(self, ("lead",), 0),
            *positive(self, ("lr", "clip")),
            ("a baseline from 0 to less than 1", self.baseline, 0 <= self.baseline < 1),
        )

    def asking(self, choices: Choices, seed: int) -> Asking:
        """Start asking, all options about equally probable.

        Raises:
            HwnasError: If a group is shared that there is not.
        """
        return Learner(self, choices, seed)

    @abstractmethod
    def learn(self, learner: Learner, trial: Experience) -> None:
        """Change the controller by one more trial."""


class Controller(nn.Module):
    """The network: logits of all decisions, one after the other."""

    def __init__(self, config: ControllerSampler, choices: Choices) -> None:
        """Build it with parameters of torch's generator."""
        super().__init__()
        own = {g.name: [d.name for d in g.decisions if d.name in choices.options] for g in choices.problem.groups}
        shared = set(own if config.shared is None else config.shared)
        if odd := sorted(shared - own.keys()):
            raise HwnasError(f"a controller shares {odd[0]!r}, which is no group; there are {', '.join(own)}")
        self.options = choices.options
        self.lead, self.layers, self.hidden = config.lead, config.layers, config.hidden
        self.lstm = nn.LSTM(config.hidden, config.hidden, config.layers)
        self.start = nn.Parameter(torch.empty(1, 1, config.hidden))
        self.heads = nn.ModuleList()
        self.head_of: list[int] = []  # by decision, in the order of `options`
        for group, names in own.items():
            # Decisions of one group may have other options open; those share no layer.
            made: dict[tuple[str, ...], int] = {}
            for name in names:
                key = self.options[name]
                if group not in shared or key not in made:
                    made[key] = len(self.heads)
                    self.heads.append(nn.Linear(config.hidden, len(key)))
                self.head_of.append(made[key])
        for p in self.parameters():
            nn.init.uniform_(p, -INIT, INIT)

    def forward(self) -> list[Tensor]:
        """Return the logarithms of the probabilities of each decision's options, (options,)."""
        x = self.start
        state = (x.new_zeros(self.layers, 1, self.hidden), x.new_zeros(self.layers, 1, self.hidden))
        out = []
        for step in range(self.lead + len(self.head_of)):
            x, state = self.lstm(x, state)
            if step >= self.lead:
                out.append(self.heads[self.head_of[step - self.lead]](x.reshape(-1)).log_softmax(0))
        return out


@dataclass(frozen=True)
class Experience:
    """A trial as a controller learns from it.

    Attributes:
        number: Of the trial.
        taken: By decision, the index of the option.
        score: Of the trial.
        log_prob: Of the answers, before the controller learned from the trial.
    """

    number: int
    taken: tuple[int, ...]
    score: float
    log_prob: float


class Learner(Asking):
    """A controller, and all that it has learned.

    Attributes:
        config: Its settings.
        net: The controller.
        optimizer: Of its parameters.
        baseline: Running mean of the scores; None before the first.
        memory: The trials it has learned from, as far as they are kept.
        seen: Their numbers, all of them.
    """

    def __init__(self, config: ControllerSampler, choices: Choices, seed: int) -> None:
        """Build the controller."""
        self.config, self.choices, self.seed = config, choices, seed
        with seeded(seed):
            self.net = Controller(config, choices)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.baseline: float | None = None
        self.memory: list[Experience] = []
        self.seen: set[int] = set()
        self._probs: list[np.ndarray] | None = None  # of the options, since it last learned

    def sampler(self, number: int) -> BaseSampler:
        """Return a sampler that learns first from what it has not seen."""
        from hwnas.search.study.bridge import Proposing

        rng = np.random.default_rng([self.seed, number, _SAMPLE])
        return Proposing(lambda history: self._propose(history, rng))

    def _propose(self, history: Sequence[Tried], rng: np.random.Generator) -> Answers:
        for trial in history:
            if trial.number not in self.seen:
                self._see(trial)
        if self._probs is None:
            with torch.no_grad():
                self._probs = [p.double().exp().cpu().numpy() for p in self.net()]
        drawn = (rng.choice(options, p=p / p.sum()) for options, p in zip(self._options, self._probs, strict=True))
        return dict(zip(self.choices.options, map(str, drawn), strict=True))

    @property
    def _options(self) -> list[tuple[str, ...]]:
        return list(self.choices.options.values())

    def _see(self, trial: Tried) -> None:
        taken = tuple(options.index(trial.answers[d]) for d, options in self.choices.options.items())
        with torch.no_grad():
            log_prob = float(self.log_probs([taken])[0])
        before = self.baseline
        share = 1 - self.config.baseline
        self.baseline = trial.score if before is None else before + share * (trial.score - before)
        self.seen.add(trial.number)
        self.config.learn(self, Experience(trial.number, taken, trial.score, log_prob))
        self._probs = None

    def log_probs(self, taken: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the logarithms of the probabilities of architectures, (n,), differentiable."""
        by_decision = self.net()
        index = torch.tensor(taken)
        return torch.stack([p[index[:, i]] for i, p in enumerate(by_decision)]).sum(0)

    def rng(self, number: int) -> np.random.Generator:
        """Return the generator for what is learned from a trial."""
        return np.random.default_rng([self.seed, number, _LEARN])

    def step(self, loss: Tensor) -> None:
        """Change the parameters by the gradient of a loss ()."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": self.baseline,
            "seen": sorted(self.seen),
            "memory": [[e.number, list(e.taken), e.score, e.log_prob] for e in self.memory],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline, self.seen = state["baseline"], set(state["seen"])
        self.memory = [Experience(n, tuple(taken), score, log) for n, taken, score, log in state["memory"]]
        self._probs = None
