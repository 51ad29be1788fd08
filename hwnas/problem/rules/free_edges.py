"""Any edges of a cell survive; a node without one is dropped, and what it would lead to with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.problem.arch import Architecture
from hwnas.problem.linear import Row
from hwnas.problem.probabilities import Literal, Literals, Probabilities
from hwnas.problem.rules.base import Fixed, Rule

Edge = tuple[str, int, int]  # decision, from a state, to a state
Alive = frozenset[int]  # nodes that have an incoming edge


@dataclass(frozen=True)
class FreeEdges(Rule):
    """Every edge of a cell may be dropped; edges from a node without incoming ones are, and not all nodes are.

    So a cell has one to all of its nodes, each connected to an input. Where each edge takes its most probable option,
    zero among them, as SNAS and GAS derive, a cell may be empty or have an edge from nowhere; this rule is the least
    that makes it a network.

    `none` is an answer like any other here: its probability counts in the score, so that without a budget the answers
    are the most probable ones, and the rule changes them only where they break it.

    Attributes:
        edges: The decisions, and the states they connect. Inputs are states below `inputs`, nodes come after them;
            an edge leads to a later state.
        options: Their options.
        inputs: Number of inputs.
        none: The option that means a dropped edge; it costs 0.
        fixed: Answers that are not up for decision.
    """

    edges: tuple[Edge, ...]
    options: tuple[str, ...]
    inputs: int
    none: str = "none"
    fixed: tuple[Literal, ...] = ()
    _fixed: Mapping[str, str] = field(init=False, repr=False, compare=False, hash=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._fixed.update(self.fixed)  # type: ignore[attr-defined]  # a mapping to those who read it

    def __str__(self) -> str:
        """Return it as messages have it."""
        names = ", ".join(d for d, _, _ in self.edges)
        return f"edges lead from inputs and nodes that have some, and there is one, of {names}"

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

    def _sets(self) -> Iterator[Alive]:
        """Yield all sets of nodes that may be those alive: the largest first, the empty one left out."""
        nodes = list(self._incoming)
        for n in range(len(nodes), 0, -1):
            yield from (frozenset(chosen) for chosen in combinations(nodes, n))

    def _reads(self, alive: Alive, node: int) -> list[str]:
        """Return the incoming edges that a node may keep if these nodes are alive: none if it is not one of them."""
        return [d for d, j in self._incoming[node] if node in alive and (j < self.inputs or j in alive)]

    def _must(self, decision: str) -> bool:
        """Tell whether an edge is fixed to an op."""
        return self._fixed.get(decision, self.none) != self.none

    def _ways(self, alive: Alive) -> int:
        """Return how many choices of kept edges make exactly these nodes alive, given what is fixed."""
        ways = 1
        for node, incoming in self._incoming.items():
            may = self._reads(alive, node)
            must = [d for d, _ in incoming if self._must(d)]
            if not set(must) <= set(may):
                return 0
            if node in alive:
                ways *= 2 ** sum(d not in self._fixed for d in may) - (not must)
        return ways

    @cached_property
    def _every(self) -> tuple[tuple[Alive, int], ...]:
        """The sets of nodes that may be those alive, each with the number of ways to make it so."""
        return tuple((alive, ways) for alive in self._sets() if (ways := self._ways(alive)))

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Drop edges: each valid choice of those that are kept is drawn equally often."""
        weights = np.array([ways for _, ways in self._every], float)
        alive, _ = self._every[int(rng.choice(len(weights), p=weights / weights.sum()))]
        kept: set[str] = set()
        for node, incoming in self._incoming.items():
            must = any(self._must(d) for d, _ in incoming)
            open_ = [d for d in self._reads(alive, node) if d not in self._fixed]
            if node in alive and open_:
                pattern = int(rng.integers(0 if must else 1, 2 ** len(open_)))
                kept |= {d for bit, d in enumerate(open_) if pattern >> bit & 1}
        return {d: self.none for d in self.decisions if d not in kept}

    def strongest(self, probs: Probabilities) -> dict[str, str]:
        """Return of each edge the most probable answer, where these make a cell; else those of the largest sum.

        Of equals an op comes before `none`, and the first op first.
        """
        of = probs.by_decision
        best, chosen = -math.inf, dict[str, str]()
        for alive, _ in self._every:
            answers: dict[str, str] = {}
            for node in self._incoming:
                answers |= self._answers(self._reads(alive, node), node, of)
            total = sum(of[d][o] for d, o in answers.items())
            if total > best:
                best, chosen = total, answers
        return {d: chosen[d] for d in self.decisions}

    def _answers(self, may: Sequence[str], node: int, of: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        """Return the best answers of a node's incoming edges: of those it may keep one or more are kept."""
        out = {d: self._fixed.get(d, self.none) for d, _ in self._incoming[node]}
        open_ = [d for d in may if d not in self._fixed]
        ops = {d: max(self.kept, key=of[d].__getitem__) for d in open_}
        out |= {d: ops[d] for d in open_ if of[d][ops[d]] >= of[d][self.none]}
        if open_ and all(out[d] == self.none for d in may):
            least = max(open_, key=lambda d: of[d][ops[d]] - of[d][self.none])
            out[least] = ops[least]
        return out

    def score(self, probs: Probabilities) -> dict[Literal, float]:
        """Return the probabilities, that of `none` too."""
        return {(d, o): probs.by_decision[d][o] for d in self.decisions for o in self.options}

    def relax(self, q: Tensor, literals: Literals) -> Tensor:
        """Return the marginals of independent edges, given that they obey; exact.

        It adds over the sets of nodes that may be alive. Given such a set, the incoming edges of different nodes are
        independent: those from dropped nodes are dropped, and of the others of a node that is alive one is kept.
        """
        index = torch.tensor([[literals.index[d, o] for o in self.kept] for d, _, _ in self.edges], device=q.device)
        dropped = torch.tensor([literals.index[d, self.none] for d, _, _ in self.edges], device=q.device)
        none, one = q[dropped], q.new_ones(())
        reads, into = (torch.tensor(mask, device=q.device) for mask in self._masks)
        of_node = into[None] & ~reads  # (sets, nodes, edges): those that have to be dropped
        closed = torch.where(of_node, none, one).prod(-1)  # (sets, nodes): they are
        kept = torch.where(reads, q[index].sum(1), torch.zeros_like(one))
        some = torch.zeros_like(closed)  # one of the others is kept; not 1 - P(none is), which rounds to 0
        for each in kept.unbind(-1):
            some = some + (1 - some) * each
        factor = torch.where(reads.any(-1), closed * some, closed)  # (sets, nodes)
        n = len(into)
        others = torch.where(torch.eye(n, dtype=torch.bool, device=q.device), one, factor[:, None]).prod(-1)
        total = factor.prod(-1).sum().clamp_min(torch.finfo(q.dtype).tiny)
        rest = torch.where(reads, (closed * others)[..., None], torch.zeros_like(one)).sum((0, 1))  # (edges,)
        p = q[index] * (rest / total)[:, None]  # (edges, ops)
        return q.index_put((index,), p).index_put((dropped,), 1 - p.sum(1))

    @cached_property
    def _masks(self) -> tuple[list[list[list[bool]]], list[list[bool]]]:
        """Which edges a node may keep, (sets, nodes, edges), and which lead to it, (nodes, edges)."""
        may = [[self._reads(alive, i) for i in self._incoming] for alive in self._sets()]
        reads = [[[d in of_node for d, _, _ in self.edges] for of_node in of_set] for of_set in may]
        return reads, [[to == i for _, _, to in self.edges] for i in self._incoming]

    def given(self, fixed: Fixed) -> FreeEdges:
        """Return the same with some answers fixed."""
        own = tuple((d, fixed[d]) for d in self.decisions if d in fixed)
        out = replace(self, fixed=(*self.fixed, *own)) if own else self
        if not out._every:
            raise HwnasError(f"the fixed answers break the rule: {self}")
        return out

    def rows(self) -> list[Row]:
        """Return that an edge from a node needs one into it, and that an input is read: then the first node is."""
        rows = [Row({(d, o): 1.0 for d, j, _ in self.edges if j < self.inputs for o in self.kept}, 1.0, math.inf)]
        for d, j, _ in self.edges:
            if j >= self.inputs:
                into = {(e, o): -1.0 for e, _ in self._incoming[j] for o in self.kept}
                rows.append(Row(into | {(d, o): 1.0 for o in self.kept}, -math.inf, 0.0))
        return rows

    def holds(self, arch: Architecture) -> bool:
        """Tell whether there is a kept edge, and each comes from an input or a node that has one."""
        kept = [(j, i) for d, j, i in self.edges if arch.get(d) not in (self.none, None)]
        alive = {i for _, i in kept}
        return bool(kept) and all(j < self.inputs or j in alive for j, _ in kept)
