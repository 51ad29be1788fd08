"""Guards against how gradient searches fail: skips that crowd out the rest, and probabilities that decide nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.problem import Architecture, Group

SKIP = "skip_connect"


@dataclass(frozen=True)
class Guards:
    """Settings of the guards; all are off by default.

    Attributes:
        auxiliary_skip: A second skip beside every mixture, in the network and in no probability, with this weight at
            the first step and 0 at the last, linearly (DARTS-). A skip then need not win to help training. At stride
            1 it is the identity, so it is added to the weight of the candidate. At stride 2 it shares the factorized
            reduction of the candidate, where DARTS- has one of its own.
        stable_checks: End the search when so many checks in a row would derive the same network (DARTS+); 0: never.
        check_every: Steps between checks.
        most_skips: End the search at the first check that would derive so many skips in one group, 2 in DARTS+; 0:
            never.
    """

    auxiliary_skip: float = 0.0
    stable_checks: int = 0
    check_every: int = 10
    most_skips: int = 0

    def __post_init__(self) -> None:
        off_at_0 = not_below(self, ("auxiliary_skip", "stable_checks", "most_skips"), 0)
        check_ranges("a guard", *off_at_0, *not_below(self, ("check_every",), 1))

    def check(self, groups: Sequence[Group]) -> None:
        """Refuse what a space cannot have.

        Raises:
            HwnasError: If there is to be an auxiliary skip, and a group has no skip to add it to.
        """
        without = [g.name for g in groups if SKIP not in g.options]
        if self.auxiliary_skip and without:
            raise HwnasError(f"an auxiliary skip needs {SKIP!r} among the options, and {without[0]!r} has none")

    def assist(self, weights: Mapping[str, Tensor], groups: Sequence[Group], progress: float) -> dict[str, Tensor]:
        """Return the weights of candidates with the auxiliary skip added; `progress` goes from 0 to 1."""
        b = self.auxiliary_skip * (1 - progress)
        if b == 0:
            return dict(weights)
        return {
            g.name: weights[g.name] + b * weights[g.name].new_tensor([o == SKIP for o in g.options]) for g in groups
        }

    def reason(self, arch: Architecture, unchanged: int, groups: Sequence[Group]) -> str | None:
        """Return why a search is to end, None if it is not.

        Args:
            arch: What would be derived now.
            unchanged: Checks in a row, this one too, that would have derived it.
            groups: Of the space.
        """
        if self.stable_checks and unchanged >= self.stable_checks:
            return f"the same network for {unchanged} checks"
        skips = skips_of(arch, groups)
        worst = max(skips, key=lambda g: skips[g])
        if self.most_skips and skips[worst] >= self.most_skips:
            return f"{skips[worst]} skips in {worst}"
        return None


def skips_of(arch: Architecture, groups: Sequence[Group]) -> dict[str, int]:
    """Return how many decisions of each group an architecture answers with a skip."""
    return {g.name: Counter(arch.get(d.name) for d in g.decisions)[SKIP] for g in groups}


def decidedness(probs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return how far probabilities are from a decision, means over all decisions.

    Returns:
        ``entropy``: 1 where all options are equally probable, but for those of probability 0, and 0 where one is
        certain. ``margin``: the best probability less the second. Rows that do not sum to 1, as of sigmoids, are
        scaled first.
    """
    entropies, margins = [], []
    for matrix in probs.values():
        p = matrix.detach().double()
        p = p / p.sum(dim=-1, keepdim=True)
        options = (p > 0).sum(dim=-1).clamp_min(2)
        entropies.append(torch.special.entr(p).sum(dim=-1) / options.log())
        top = torch.nn.functional.pad(p, (0, 1)).topk(2, dim=-1).values  # an only option leads by all there is
        margins.append(top[:, 0] - top[:, 1])
    return {"entropy": float(torch.cat(entropies).mean()), "margin": float(torch.cat(margins).mean())}
