"""Any edges of a cell survive; a node without one is dropped, and the edges that leave it with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.problem.arch import Architecture
from hwnas.problem.linear import Row
from hwnas.problem.probabilities import Literal, Literals, Probabilities
from hwnas.problem.rules.base import Fixed, Rule

Edge = tuple[str, int, int]  # decision, from a state, to a state


class Case(NamedTuple):
    """Nodes that may be those with an incoming edge, and the first of them that reads the input that is needed.

    The valid choices of kept edges are those of all cases; no choice is one of two. In a case, the choices of the
    incoming edges of different nodes do not depend on each other.
    """

    alive: frozenset[int]
    reader: int | None


@dataclass(frozen=True)
class FreeEdges(Rule):
    """Every edge of a cell may be dropped; edges from a node without incoming ones are, and not all nodes are.

    So a cell has one to all of its nodes, each connected to an input. One input may be needed: in a chain the cell
    before, which else nothing might read. Such a cell, and all that it alone reads, is no part of the network: engines
    leave it out, and no price that is a sum over cells could know.

    Where each edge takes its most probable option, zero among them, as SNAS and GAS derive, a cell may be empty or have
    an edge from nowhere; this rule is the least that makes it a network.

    `none` is an answer like any other here: its probability counts in the score, so that without a budget the answers
    are the most probable ones, and the rule changes them only where they break it.

    Attributes:
        edges: The decisions, and the states they connect. Inputs are states below `inputs`, nodes come after them;
            an edge leads to a later state.
        options: Their options.
        inputs: Number of inputs.
        needed: The input that an edge has to come from; None if any will do.
        none: The option that means a dropped edge; it costs 0.
        fixed: Answers that are not up for decision.
    """

    edges: tuple[Edge, ...]
    options: tuple[str, ...]
    inputs: int
    needed: int | None = None
    none: str = "none"
    fixed: tuple[Literal, ...] = ()
    _fixed: Mapping[str, str] = field(init=False, repr=False, compare=False, hash=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._fixed.update(self.fixed)  # type: ignore[attr-defined]  # a mapping to those who read it

    def __str__(self) -> str:
        """Return it as messages have it."""
        names = ", ".join(d for d, _, _ in self.edges)
        first = "an input" if self.needed is None else f"input {self.needed}"
        return f"an edge comes from {first}, and others from inputs and from nodes that have one, of {names}"

    @property
    def decisions(self) -> tuple[str, ...]:
        """Those that are open."""
        return tuple(d for d, _, _ in self.edges if d not in self._fixed)

    @property
    def kept(self) -> tuple[str, ...]:
        """The options but `none`."""
        return tuple(o for o in self.options if o != self.none)

    @cached_property
    def _incoming(self) -> dict[int, list[tuple[str, int]]]:
        """By node its edges, as pairs (decision, from)."""
        out: dict[int, list[tuple[str, int]]] = {}
        for d, j, i in self.edges:
            out.setdefault(i, []).append((d, j))
        return dict(sorted(out.items()))

    def _cases(self) -> Iterator[Case]:
        """Yield all cases, those of most nodes first; not all are possible if answers are fixed."""
        nodes = list(self._incoming)
        for n in range(len(nodes), 0, -1):
            for alive in map(frozenset, combinations(nodes, n)):
                if self.needed is None:
                    yield Case(alive, None)
                else:
                    yield from (
                        Case(alive, i) for i in sorted(alive) if any(j == self.needed for _, j in self._incoming[i])
                    )

    def _may(self, case: Case, node: int) -> list[str]:
        """Return the incoming edges that a node may keep: none if it is not alive."""
        early = case.reader is not None and node < case.reader  # it does not read what is needed
        return [
            d
            for d, j in self._incoming[node]
            if node in case.alive and (j < self.inputs or j in case.alive) and not (early and j == self.needed)
        ]

    def _must(self, case: Case, node: int) -> list[str]:
        """Return the incoming edges that a node has to keep."""
        fixed = [d for d, _ in self._incoming[node] if self._fixed.get(d, self.none) != self.none]
        return fixed + [
            d for d, j in self._incoming[node] if node == case.reader and j == self.needed and d not in fixed
        ]

    def _ways(self, case: Case) -> int:
        """Return how many choices of kept edges a case has, given what is fixed."""
        ways = 1
        for node in self._incoming:
            may, must = set(self._may(case, node)), set(self._must(case, node))
            if not must <= may or any(self._fixed.get(d) == self.none for d in must):
                return 0
            if node in case.alive:
                ways *= 2 ** len(may - must - self._fixed.keys()) - (not must)
        return ways

    @cached_property
    def _every(self) -> tuple[tuple[Case, int], ...]:
        """The cases that are possible, each with its number of choices."""
        return tuple((case, ways) for case in self._cases() if (ways := self._ways(case)))

    @property
    def possible(self) -> bool:
        """Whether the fixed answers leave a choice."""
        return bool(self._every)

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Drop edges: each valid choice of those that are kept is drawn equally often."""
        weights = np.array([ways for _, ways in self._every], float)
        case, _ = self._every[int(rng.choice(len(weights), p=weights / weights.sum()))]
        kept: set[str] = set()
        for node in case.alive:
            must = self._must(case, node)
            free = [d for d in self._may(case, node) if d not in must and d not in self._fixed]
            pattern = int(rng.integers(0 if must else 1, 2 ** len(free)))
            kept |= {*must, *(d for bit, d in enumerate(free) if pattern >> bit & 1)}
        return {d: self.none for d in self.decisions if d not in kept}

    def strongest(self, probs: Probabilities) -> dict[str, str]:
        """Return of each edge the most probable answer, where these make a cell; else those of the largest sum.

        Of equals an op comes before `none`, and the first op first.
        """
        of = probs.by_decision
        best, chosen = -math.inf, dict[str, str]()
        for case, _ in self._every:
            answers: dict[str, str] = {}
            for node in self._incoming:
                answers |= self._answers(case, node, of)
            total = sum(of[d][o] for d, o in answers.items())
            if total > best:
                best, chosen = total, answers
        return {d: chosen[d] for d in self.decisions}

    def _answers(self, case: Case, node: int, of: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """Return the best answers of a node's incoming edges in a case."""
        out = {d: self._fixed.get(d, self.none) for d, _ in self._incoming[node]}
        must, free = self._must(case, node), [d for d in self._may(case, node) if d not in self._fixed]
        ops = {d: max(self.kept, key=of[d].__getitem__) for d in free}
        out |= {d: ops[d] for d in free if d in must or of[d][ops[d]] >= of[d][self.none]}
        if free and all(o == self.none for o in out.values()):
            least = max(free, key=lambda d: of[d][ops[d]] - of[d][self.none])
            out[least] = ops[least]
        return out

    def score(self, probs: Probabilities) -> dict[Literal, float]:
        """Return the probabilities, that of `none` too."""
        return {(d, o): probs.by_decision[d][o] for d in self.decisions for o in self.options}

    def relax(self, q: Tensor, literals: Literals) -> Tensor:
        """Return the marginals of independent edges, given that they obey; exact.

        It adds over the cases. In one, a node has some edges dropped, perhaps one kept, and of the others one or more.
        """
        index = torch.tensor([[literals.index[d, o] for o in self.kept] for d, _, _ in self.edges], device=q.device)
        dropped = torch.tensor([literals.index[d, self.none] for d, _, _ in self.edges], device=q.device)
        # (cases, nodes, edges): those that are dropped, that are kept, and that are free
        closed, must, free = (torch.tensor(mask, device=q.device) for mask in self._masks)
        one, zero = q.new_ones(()), q.new_zeros(())
        kept = q[index].sum(1)
        of_closed = torch.where(closed, q[dropped], one).prod(-1)  # (cases, nodes): that these are dropped
        of_must = torch.where(must, kept, one).prod(-1)
        some = torch.zeros_like(of_closed)  # one of the free is kept; not 1 - P(none is), which rounds to 0
        for each in torch.where(free, kept, zero).unbind(-1):
            some = some + (1 - some) * each
        some = torch.where(must.any(-1) | ~free.any(-1), one, some)
        factor = of_closed * of_must * some
        eye = torch.eye(factor.shape[1], dtype=torch.bool, device=q.device)
        others = torch.where(eye, one, factor[:, None]).prod(-1) * of_closed  # (cases, nodes)
        total = factor.prod(-1).sum().clamp_min(torch.finfo(q.dtype).tiny)
        rest = torch.where(must, others[..., None], zero) + torch.where(free, (others * of_must)[..., None], zero)
        p = q[index] * (rest.sum((0, 1)) / total)[:, None]  # (edges, ops)
        return q.index_put((index,), p).index_put((dropped,), 1 - p.sum(1))

    @cached_property
    def _masks(self) -> tuple[list[list[list[bool]]], ...]:
        """Which incoming edges of each node are dropped, kept and free, whatever is fixed: (cases, nodes, edges)."""
        names = [d for d, _, _ in self.edges]
        closed, must, free = [], [], []
        for case in self._cases():
            may = [self._may(case, i) for i in self._incoming]
            has = [[d for d, j in self._incoming[i] if i == case.reader and j == self.needed] for i in self._incoming]
            into = [[d for d, _ in incoming] for incoming in self._incoming.values()]
            closed.append([[d in into[i] and d not in may[i] for d in names] for i in range(len(may))])
            must.append([[d in has[i] for d in names] for i in range(len(may))])
            free.append([[d in may[i] and d not in has[i] for d in names] for i in range(len(may))])
        return closed, must, free

    def given(self, fixed: Fixed) -> FreeEdges:
        """Return the same with some answers fixed."""
        own = tuple((d, fixed[d]) for d in self.decisions if d in fixed)
        out = replace(self, fixed=(*self.fixed, *own)) if own else self
        if not out.possible:
            raise HwnasError(f"the fixed answers break the rule: {self}")
        return out

    def rows(self) -> list[Row]:
        """Return that an edge from a node needs one into it, and that an input is read: then the first node is."""
        first = [d for d, j, _ in self.edges if (j < self.inputs if self.needed is None else j == self.needed)]
        rows = [Row({(d, o): 1.0 for d in first for o in self.kept}, 1.0, math.inf)]
        for d, j, _ in self.edges:
            if j >= self.inputs:
                into = {(e, o): -1.0 for e, _ in self._incoming[j] for o in self.kept}
                rows.append(Row(into | {(d, o): 1.0 for o in self.kept}, -math.inf, 0.0))
        return rows

    def holds(self, arch: Architecture) -> bool:
        """Tell whether there is an edge from what is needed, and each comes from an input or a node that has one."""
        kept = [(j, i) for d, j, i in self.edges if arch.get(d) not in (self.none, None)]
        alive = {i for _, i in kept}
        read = any(self.needed in (j, None) for j, _ in kept)
        return read and all(j < self.inputs or j in alive for j, _ in kept)
