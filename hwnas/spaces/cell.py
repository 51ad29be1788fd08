"""The DARTS cell: a small graph whose edges are decisions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import combinations, product
from typing import Literal

import torch
from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.fused import Fan, Layout, fused_cell
from hwnas.ops.mixed import NONE, MixedOp, has_weights
from hwnas.ops.registry import active_tracer
from hwnas.problem import ALWAYS, Answers, Architecture, Decision, Gate, Group, TopK, at_least

INPUTS = 2  # c_{k-2} and c_{k-1}


def cell_edges(nodes: int) -> list[tuple[int, int]]:
    """Return the edges (from state, to state) in the order of alpha rows: node 2 first, then by predecessor."""
    return [(j, i) for i in range(INPUTS, INPUTS + nodes) for j in range(i)]


def edge_name(group: str, edge: tuple[int, int]) -> str:
    """Return the name of an edge's decision, ``"normal/0-2"``."""
    return f"{group}/{edge[0]}-{edge[1]}"


def cell_group(name: str, nodes: int, options: tuple[str, ...]) -> Group:
    """Return the decisions of a cell: an op, or `none`, for each edge (DARTS 2.1)."""
    return Group(name, tuple(Decision(edge_name(name, e), options) for e in cell_edges(nodes)))


def cell_rules(group: Group, nodes: int, keep: int) -> list[TopK]:
    """Return the rule of each node: `keep` of its incoming edges survive (DARTS 2.3)."""
    edges = cell_edges(nodes)
    return [
        TopK(tuple(edge_name(group.name, e) for e in edges if e[1] == i), group.options, keep, NONE)
        for i in range(INPUTS, INPUTS + nodes)
    ]


def cell_twins(group: Group, nodes: int, keep: int, stride: int = 1) -> tuple[Answers, ...]:
    """Return which answers make two nodes of a cell compute the same: ops without weights, of the same states.

    Args:
        group: The decisions of the cell.
        nodes: Number of nodes.
        keep: Incoming edges of a node.
        stride: Of the edges from the inputs.
    """
    found = []
    for i, j in combinations(range(INPUTS, INPUTS + nodes), 2):
        for states in combinations(range(i), keep):
            options = [
                [o for o in group.options if o != NONE and not has_weights(o, stride if s < INPUTS else 1)]
                for s in states
            ]
            for ops in product(*options):
                pairs = [(edge_name(group.name, (s, n)), o) for n in (i, j) for s, o in zip(states, ops, strict=True)]
                found.append(tuple(pairs))
    return tuple(found)


Evaluation = Literal["plain", "fast", "lean"]


def set_evaluation(network: nn.Module, evaluation: Evaluation) -> None:
    """Say how the open cells of a network in training are computed; the result is the same.

    Args:
        network: A supernet.
        evaluation: ``"plain"``: each candidate on its own, differentiable as often as one likes. ``"fast"``: see
            `hwnas.ops.fused`. ``"lean"``: the same, but the backward pass computes each cell anew: less memory.
    """
    for module in network.modules():
        if isinstance(module, Cell):
            module.evaluation = evaluation


class Cell(nn.Module):
    """One cell: two preprocessed inputs, nodes that sum their incoming edges, the nodes concatenated.

    In a reduction cell the edges from the two inputs have stride 2.
    """

    def __init__(
        self,
        group: Group,
        arch: Architecture,
        nodes: int,
        keep: int,
        channels: tuple[int, int, int],
        reduction: tuple[bool, bool],
        search: bool,
    ) -> None:
        """Build the cell.

        Args:
            group: Its decisions.
            arch: Answers to some or all of them.
            nodes: Number of nodes.
            keep: Incoming edges that survive at each node.
            channels: Of c_{k-2}, of c_{k-1}, and of each node.
            reduction: Whether the previous cell was a reduction cell, and whether this one is.
            search: Whether for a supernet.
        """
        super().__init__()
        before, last, c = channels
        self.keep = keep
        self.states = range(INPUTS, INPUTS + nodes)
        reduce: nn.Module = layers.ConvBN(before, c, affine=not search)
        if reduction[0]:
            reduce = layers.FactorizedReduce(before, c, affine=not search)
        self.preprocess0 = nn.Sequential(layers.ReLU(), reduce)
        self.preprocess1 = nn.Sequential(layers.ReLU(), layers.ConvBN(last, c, affine=not search))
        self.edges = nn.ModuleDict()
        self.rows: dict[str, int] = {}
        for row, (edge, decision) in enumerate(zip(cell_edges(nodes), group.decisions, strict=True)):
            if arch.get(decision.name) != NONE:  # a dropped edge is not built
                stride = 2 if reduction[1] and edge[0] < INPUTS else 1
                key = f"{edge[0]}-{edge[1]}"
                self.edges[key] = MixedOp(decision, arch, c, stride, search)
                self.rows[key] = row
        self.adds = nn.ModuleList(layers.Add(after_conv=merged) for merged in (False, True))
        self.concat = layers.Concat()
        self.open = all(isinstance(e, MixedOp) and e.answer is None for e in self.edges.values())
        self.stride = 2 if reduction[1] else 1
        self.options = group.options
        self.evaluation: Evaluation = "plain"
        self._layout: Layout | None = None

    def fused(self) -> Layout:
        """Return how the open edges are computed together; made when it is first used."""
        if self._layout is None:
            fans = []
            for j in range(INPUTS + len(self.states) - 1):
                out = [i for i in self.states if i > j]
                edges = [self.edges[f"{j}-{i}"].ops for i in out]
                rows = [self.rows[f"{j}-{i}"] for i in out]
                fans.append(Fan(rows, out[0] - INPUTS, self.options, edges))  # type: ignore[arg-type]
            self._layout = Layout(fans, len(self.states), self.stride)
        self._layout.lean = self.evaluation == "lean"
        return self._layout

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor | None, sampled: bool = False) -> Tensor:
        """Compute the cell.

        Args:
            s0: Output of cell k-2.
            s1: Output of cell k-1.
            weights: (n_edges, n_options), or None if every edge is answered.
            sampled: Whether options of weight 0 are not to be computed.

        Returns:
            (N, nodes * C, H, W).
        """
        return self.join(self.preprocess0(s0), self.preprocess1(s1), weights, sampled)

    def join(self, s0: Tensor | None, s1: Tensor, weights: Tensor | None, sampled: bool = False) -> Tensor:
        """Compute the cell from its inputs after their preprocessing; what is None adds nothing. See `forward`."""
        return self.join_each(s0, [s1], weights, sampled)[0]

    def join_each(
        self, s0: Tensor | None, s1: Sequence[Tensor], weights: Tensor | None, sampled: bool = False
    ) -> Sequence[Tensor]:
        """Compute the cell for each of several second inputs, all with the same weights; see `join`."""
        together = self.open and self.training and self.evaluation != "plain" and not sampled
        if together and weights is not None and active_tracer.get() is None:
            groups = len(s1)
            every = s1[0] if groups == 1 else torch.cat(list(s1))
            return fused_cell(s0, every, weights, self.fused(), groups).chunk(groups)
        return [self._one_by_one([s0, s], weights, sampled) for s in s1]

    def _one_by_one(self, states: list[Tensor | None], weights: Tensor | None, sampled: bool) -> Tensor:
        """Compute every candidate on its own, from both inputs."""
        for i in self.states:
            terms: list[Tensor] = []
            edges: list[MixedOp] = []
            for j in range(i):
                key = f"{j}-{i}"
                state = states[j]
                if key in self.edges and state is not None:
                    edge = self.edges[key]
                    assert isinstance(edge, MixedOp)
                    edges.append(edge)
                    terms.append(edge(state, None if weights is None else weights[self.rows[key]], sampled))
            states.append(self._sum(terms, edges))
        out: Tensor = self.concat(*(s for s in states[INPUTS:] if s is not None))
        return out

    def _sum(self, terms: Sequence[Tensor], edges: Sequence[MixedOp]) -> Tensor:
        tracer = active_tracer.get()
        if tracer is None:
            return sum(terms[1:], terms[0])
        total = terms[0]
        for n, t in enumerate(terms[1 : self.keep], start=1):  # whichever edges survive, there are that many
            before = total
            for merged, gate in _summed(n, edges).items():
                if gate is not None:  # the last stands for both
                    with tracer.gated(gate) if gate != ALWAYS else nullcontext():
                        total = self.adds[merged](before, t)
        return total


def _summed(n: int, edges: Sequence[MixedOp]) -> dict[bool, Gate | None]:
    """Return when the n-th addition of a node is merged into a convolution, and when it is not; None for never.

    It is merged if n or more of the edges end in a convolution.
    """
    by_edge = [(e.decision.name, e.ends_in_conv()) for e in edges]
    sure = sum(all(ends.values()) for _, ends in by_edge)
    open_ = [(d, ends) for d, ends in by_edge if len(set(ends.values())) > 1]
    merged, alone = (
        [frozenset((d, o) for o, conv in ends.items() if conv is wanted) for d, ends in open_]
        for wanted in (True, False)
    )
    if n <= sure:
        return {True: ALWAYS, False: None}
    if n > sure + len(open_):
        return {True: None, False: ALWAYS}
    return {True: at_least(n - sure, merged), False: at_least(len(open_) - (n - sure) + 1, alone)}
