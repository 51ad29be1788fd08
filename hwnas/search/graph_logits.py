"""Logits of one cell that learn from those of the cell before it, through a graph over edges (Lin et al. 2020, 3.2).

GAS searches each cell for itself, and lets neighbouring cells pass on what they decide: its graph-convolution-guided
module (GGM) adds to the logits of a cell what a graph convolution makes of those of the cell before it. The nodes of
that graph are the edges of a cell, their features are the logits of the ops. The module exists in the search alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.problem import Group
from hwnas.records import stored
from hwnas.search.logits import Alphas, HeatMap
from hwnas.seeding import seeded


@stored("graph")
@dataclass(frozen=True)
class GraphLogits:
    """Adds to the logits of each group what the graph makes of those of the group before it, in the order of groups.

    The paper names neither gamma nor the width of its layers, and does not say whether all cells share the module; here
    they do.

    Attributes:
        gamma: How much of it is added.
        hidden: Width of the layers.
    """

    gamma: float = 0.5
    hidden: int = 16

    def build(self, groups: Sequence[Group], seed: int) -> GraphModule:
        """Return the module.

        Raises:
            HwnasError: If the groups differ in their shapes: then edges and ops of one are not those of the next.
        """
        first = groups[0]
        for g in groups:
            if (g.shape, g.options) != (first.shape, first.options):
                raise HwnasError(
                    f"graph logits pass from cell to cell, which have the same edges and ops: {first.name} has "
                    f"{first.shape[0]} edges of {first.shape[1]} ops, {g.name} {g.shape[0]} of {g.shape[1]}, or others"
                )
        return GraphModule(groups, self, seed)


class GraphModule(nn.Module):
    """The module of `GraphLogits`, of p edges and q ops.

    alpha'_k = alpha_k + gamma * Phi2(G(Phi1(alpha'_{k-1}), Adj)), with G(X, Adj) = Adj X W and
    Adj = softmax(phi(alpha_k) psi(alpha'_{k-1})^T) over rows, (p, p). Phi1 and Phi2 are small fully connected
    transforms. The last layer of Phi2 is zero at the start, so that the search begins as an independent one.
    """

    def __init__(self, groups: Sequence[Group], own: GraphLogits, seed: int) -> None:
        """Initialise the alphas as those of a table with this seed are."""
        super().__init__()
        self.groups, self.gamma = tuple(groups), own.gamma
        self.alphas = Alphas(groups, seed)
        q = groups[0].shape[1]
        with seeded(seed):
            self.query = nn.Linear(q, own.hidden)  # phi
            self.key = nn.Linear(q, own.hidden)  # psi
            self.before = nn.Sequential(nn.Linear(q, own.hidden), nn.ReLU())  # Phi1
            self.graph = nn.Linear(own.hidden, own.hidden, bias=False)  # W
            self.after = nn.Sequential(nn.ReLU(), nn.Linear(own.hidden, q))  # Phi2
        for parameter in self.after[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self) -> dict[str, Tensor]:
        """Return ``{group: (decisions, options)}``."""
        return {name: logits for name, logits, _ in self._chain()}

    def adjacency(self) -> dict[str, Tensor]:
        """Return by group, but for the first, how much each of its edges reads of each edge before it, (p, p)."""
        return {name: adjacency for name, _, adjacency in self._chain() if adjacency is not None}

    def drawings(self) -> list[HeatMap]:
        """Return the adjacencies: rows are the edges of a cell, columns those of the cell before it that they read."""
        with torch.no_grad():
            adjacency = self.adjacency()
        names = {g.name: tuple(d.name.removeprefix(f"{g.name}/") for d in g.decisions) for g in self.groups}
        return [
            HeatMap(
                f"{g.name} reads {before.name}",
                names[g.name],
                names[before.name],
                tuple(tuple(row) for row in adjacency[g.name].tolist()),
            )
            for before, g in pairwise(self.groups)
        ]

    def _chain(self) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        last: Tensor | None = None
        for name, alpha in self.alphas().items():
            adjacency = None
            if last is None:
                last = alpha
            else:
                adjacency = torch.softmax(self.query(alpha) @ self.key(last).T, dim=1)
                last = alpha + self.gamma * self.after(adjacency @ self.graph(self.before(last)))
            yield name, last, adjacency
