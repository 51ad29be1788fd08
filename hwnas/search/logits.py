"""Where the logits of a gradient search come from: a table of parameters, or any module over the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.problem import Group
from hwnas.records import stored


class LogitModel(Protocol):
    """How logits are made of parameters: a frozen dataclass with a stored name, whose fields are settings.

    The optimiser of the alphas trains the parameters of what `build` returns, checkpoints keep its state, and no
    derived network has a part of it.
    """

    def build(self, groups: Sequence[Group], seed: int) -> nn.Module:
        """Return a module ``() -> {group: (decisions, options)}``, finite and differentiable, for these groups.

        A module that is `Drawable` is drawn at the end of a search.
        """


@dataclass(frozen=True)
class HeatMap:
    """A matrix to look at, of numbers from 0 to 1.

    Attributes:
        title: What it is.
        rows: Their names.
        columns: Their names.
        values: Row by row.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@runtime_checkable
class Drawable(Protocol):
    """A module of logits that has more to show than its logits."""

    def drawings(self) -> Sequence[HeatMap]:
        """Return what there is to see now, in the order in which it is to be drawn."""


class Alphas(nn.Module):
    """Logits that are parameters, one matrix per group."""

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        """Initialise with 1e-3 * N(0, 1), as DARTS does."""
        super().__init__()
        rng = np.random.default_rng(seed)
        self.logits = nn.ParameterDict(
            {g.name: nn.Parameter(torch.from_numpy(1e-3 * rng.standard_normal(g.shape)).float()) for g in groups}
        )

    def forward(self) -> dict[str, Tensor]:
        """Return ``{group: (decisions, options)}``."""
        return dict(self.logits.items())


@stored("table")
@dataclass(frozen=True)
class Table:
    """Independent parameters (DARTS, section 2.2)."""

    def build(self, groups: Sequence[Group], seed: int) -> nn.Module:
        """Return `Alphas`."""
        return Alphas(groups, seed)
