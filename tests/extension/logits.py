"""A logit model: the logits of a decision follow from those of the one before it, through a learned matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwnas.problem import Group
from hwnas.records import stored


@stored("chained")
@dataclass(frozen=True)
class Chained:
    """Adds to each row of a group a share of the row before it, mixed by a matrix of the group.

    Attributes:
        share: How much.
    """

    share: float = 0.5

    def build(self, groups: Sequence[Group], seed: int) -> ChainedLogits:
        """Return the module."""
        return ChainedLogits(groups, self.share, seed)


class ChainedLogits(nn.Module):
    """The module of a `Chained`."""

    def __init__(self, groups: Sequence[Group], share: float, seed: int) -> None:
        super().__init__()
        self.share, random = share, torch.Generator().manual_seed(seed)
        own = {g.name: 1e-3 * torch.randn(g.shape, generator=random) for g in groups}
        self.own = nn.ParameterDict({k: nn.Parameter(v) for k, v in own.items()})
        self.mixing = nn.ParameterDict({g.name: nn.Parameter(torch.eye(g.shape[1])) for g in groups})

    def forward(self) -> dict[str, Tensor]:
        """Return ``{group: (decisions, options)}``."""
        out = {}
        for name, own in self.own.items():
            rows = [own[0]]
            for row in own[1:]:
                rows.append(row + self.share * torch.tanh(self.mixing[name] @ rows[-1]))
            out[name] = torch.stack(rows)
        return out
