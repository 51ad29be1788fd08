"""The cell: a small graph whose edges are decisions (DARTS 2.1), with any number of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Literal

import torch
from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.fused import Fan, Layout, fused_cell
from hwnas.ops.mixed import NONE, MixedOp, On, has_weights, is_identity
from hwnas.ops.registry import active_tracer
from hwnas.problem import ALWAYS, Answers, Architecture, Decision, FreeEdges, Gate, Group, Rule, TopK, at_least, exactly

Edge = tuple[int, int]  # from a state, to a state; inputs are the first states, then come the nodes
Block = tuple[tuple[str, int], ...]  # of a node: ops, and the states they read
FUSED_INPUTS = 2  # of cells that `hwnas.ops.fused` computes as one


@dataclass(frozen=True)
class CellSpec:
    """A cell as data: its decisions, the rules on them, and what of it can be the same.

    Attributes:
        name: Of the group of its decisions.
        ops: Options of every edge; `none` is a dropped edge.
        nodes: Number of nodes.
        keep: Incoming edges that survive at each node: all of them, where a node has fewer. None for any number: a
            node without one is left out, and the result has the channels of the others.
        inputs: Number of inputs.
        stride: Of the edges from the inputs.
    """

    name: str
    ops: tuple[str, ...]
    nodes: int
    keep: int | None
    inputs: int = 2
    stride: int = 1

    def __post_init__(self) -> None:
        numbers = ("nodes",) if self.keep is None else ("nodes", "keep")
        check_ranges("a cell", ("ops", self.ops, len(self.ops) > 0), *not_below(self, numbers, 1))

    @property
    def states(self) -> range:
        """The states that are nodes."""
        return range(self.inputs, self.inputs + self.nodes)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The edges in the order of the rows of alpha: the first node first, then by where they come from."""
        return tuple((j, i) for i in self.states for j in range(i))

    def edge_name(self, edge: Edge) -> str:
        """Return the name of an edge's decision, ``"normal/0-2"``."""
        return f"{self.name}/{edge[0]}-{edge[1]}"

    @cached_property
    def group(self) -> Group:
        """The decisions: an op, or `none`, for each edge (DARTS 2.1)."""
        return Group(self.name, tuple(Decision(self.edge_name(e), self.ops) for e in self.edges))

    def kept_at(self, node: int) -> int:
        """Return how many incoming edges of a node survive, or may."""
        return node if self.keep is None else min(self.keep, node)

    def into(self, node: int) -> tuple[str, ...]:
        """Return the names of the incoming edges of a node."""
        return tuple(self.edge_name((j, node)) for j in range(node))

    def rules(self) -> list[Rule]:
        """Return the rules: `keep` incoming edges of each node survive (DARTS 2.3), or any that make a cell (SNAS)."""
        if self.keep is None:
            return [self._free()]
        return [TopK(self.into(i), self.ops, self.kept_at(i), NONE) for i in self.states]

    def _free(self, fixed: Answers = ()) -> FreeEdges:
        """Return the rule of free edges: the last input is needed, the cell before, which else nothing might read."""
        edges = tuple((self.edge_name((j, i)), j, i) for j, i in self.edges)
        return FreeEdges(edges, self.ops, self.inputs, self.inputs - 1, NONE, fixed)

    @property
    def counts(self) -> range:
        """How many nodes a cell may have."""
        return range(1 if self.keep is None else self.nodes, self.nodes + 1)

    def alive(self, arch: Architecture) -> int:
        """Return how many nodes a complete architecture has in this cell."""
        return len({i for _, i, _ in self.kept(arch)})

    def counted(self, count: int) -> Gate:
        """Return the gate of so many nodes, one of `counts`."""
        ops = [o for o in self.ops if o != NONE]
        there = [frozenset((d, o) for d in self.into(i) for o in ops) for i in self.states]
        return exactly(count, there, least=self.counts[0])

    def reads(self, state: int) -> Gate:
        """Return the gate of an edge from a state being kept."""
        ops = [o for o in self.ops if o != NONE]
        return at_least(1, [frozenset((self.edge_name((state, i)), o) for i in self.states if i > state for o in ops)])

    def twins(self) -> tuple[Answers, ...]:
        """Return which answers make two states the same: ops without weights of the same states in two nodes.

        A node of one edge that hands on what it reads is the same as that.
        """
        if self.keep is None:
            return tuple(answers for answers in self._alike() if self._free(answers).possible)
        out: list[Answers] = []
        for i in (i for i in self.states if self.kept_at(i) == 1):
            edges = [(self.edge_name((j, i)), self.stride if j < self.inputs else 1) for j in range(i)]
            out += [((name, o),) for name, stride in edges for o in self.ops if o != NONE and is_identity(o, stride)]
        for i, j in combinations(self.states, 2):
            if self.kept_at(i) != self.kept_at(j):
                continue
            for states in combinations(range(i), self.kept_at(i)):
                for ops in product(*map(self._weightless, states)):
                    pairs = [(self.edge_name((s, n)), o) for n in (i, j) for s, o in zip(states, ops, strict=True)]
                    out.append(tuple(pairs))
        return tuple(out)

    def _weightless(self, state: int) -> list[str]:
        """Return the ops without weights on edges from a state."""
        stride = self.stride if state < self.inputs else 1
        return [o for o in self.ops if o != NONE and not has_weights(o, stride)]

    def _alike(self) -> Iterator[Answers]:
        """Yield which answers make an engine compute something once where any number of edges is kept.

        There a node may have a single edge. If that is a skip, it is the state it reads: that again, if that is a node,
        and another name of it for the edges that leave the node. Two nodes may have the same single op; and two sums
        that begin with the same two ops have a part in common, whatever they add to it.
        """

        def first(node: int, *edges: tuple[int, str]) -> Answers:
            last = node - 1 if len(edges) == 1 else edges[-1][0]
            ops = dict(edges)
            return tuple((self.edge_name((j, node)), ops.get(j, NONE)) for j in range(last + 1))

        for i in self.states:
            for s in range(i):
                for skip in (o for o in self._weightless(s) if s >= self.inputs or self.stride == 1):
                    if not is_identity(skip, 1):
                        continue
                    if s >= self.inputs:
                        yield first(i, (s, skip))
                        continue
                    later = [self.edge_name((i, j)) for j in self.states if j > i]
                    yield from ((*first(i, (s, skip)), (d, o)) for d in later for o in self.ops if o != NONE)
            for j in self.states:
                for states in (*((s,) for s in range(i)), *combinations(range(i), 2)) if j > i else ():
                    for ops in product(*map(self._weightless, states)):
                        edges = tuple(zip(states, ops, strict=True))
                        yield first(i, *edges) + first(j, *edges)

    def kept(self, arch: Architecture) -> list[tuple[int, int, str]]:
        """Return the edges that an architecture keeps, in their order, each with its op."""
        ops = ((edge, arch.get(self.edge_name(edge))) for edge in self.edges)
        return [(j, i, op) for (j, i), op in ops if op is not None and op != NONE]

    def blocks(self, arch: Architecture) -> tuple[Block, ...]:
        """Return the kept edges of each node, as pairs (op, state) in the order of the states."""
        kept = self.kept(arch)
        return tuple(tuple((op, j) for j, i, op in kept if i == node) for node in self.states)

    def dot(self, arch: Architecture) -> list[str]:
        """Return the lines of a drawing for Graphviz: a cluster with an arrow per kept edge."""
        lines = [f'  subgraph "cluster_{self.name}" {{', f'    label="{self.name}";']
        lines += [f'    "{self.name} {j}" -> "{self.name} {i}" [label="{op}"];' for j, i, op in self.kept(arch)]
        return [*lines, "  }"]


Evaluation = Literal["plain", "fast", "lean"]


def set_evaluation(network: nn.Module, evaluation: Evaluation) -> None:
    """Say how the open cells of a network in training are computed; the result is the same.

    Args:
        network: A supernet.
        evaluation: ``"plain"``: each candidate on its own, differentiable as often as one likes. ``"fast"``: see
            `hwnas.ops.fused`. ``"lean"``: the same, but the backward pass computes each cell anew: less memory. Cells
            whose number of inputs is not two are always computed plainly.
    """
    for module in network.modules():
        if isinstance(module, Cell):
            module.evaluation = evaluation


def preprocessing(c_in: int, c_out: int, search: bool, halve: bool = False) -> nn.Module:
    """Return what brings an input to the channels of a cell's ops, and to half its size if `halve` (DARTS)."""
    reduce: nn.Module = layers.ConvBN(c_in, c_out, affine=not search)
    if halve:  # the convolution above is drawn all the same: initial weights follow from a seed and this order
        reduce = layers.FactorizedReduce(c_in, c_out, affine=not search)
    return nn.Sequential(layers.ReLU(), reduce)


class Cell(nn.Module):
    """One cell: preprocessed inputs, nodes that sum their incoming edges, the nodes concatenated."""

    def __init__(
        self, spec: CellSpec, arch: Architecture, preprocess: Sequence[nn.Module], channels: int, search: bool
    ) -> None:
        """Build the cell.

        Args:
            spec: What it is.
            arch: Answers to some or all of its decisions.
            preprocess: What brings each input to `channels`.
            channels: Of each node.
            search: Whether for a supernet.
        """
        super().__init__()
        assert len(preprocess) == spec.inputs, f"{spec.inputs} inputs, preprocessing for {len(preprocess)}"
        self.spec = spec
        for n, module in enumerate(preprocess):
            self.add_module(f"preprocess{n}", module)
        self.edges = nn.ModuleDict()
        self.rows: dict[str, int] = {}
        for row, (edge, decision) in enumerate(zip(spec.edges, spec.group.decisions, strict=True)):
            if arch.get(decision.name) != NONE:  # a dropped edge is not built
                stride = spec.stride if edge[0] < spec.inputs else 1
                key = f"{edge[0]}-{edge[1]}"
                self.edges[key] = MixedOp(decision, arch, channels, stride, search)
                self.rows[key] = row
        self.adds = nn.ModuleList(layers.Add(after_conv=merged) for merged in (False, True))
        self.concat = layers.Concat()
        # What ships leaves out nodes without edges. In a supernet they are zeros, so that weights fit whatever is kept.
        self.shrinks = spec.keep is None and not search
        self.answered = all(arch.get(d.name) is not None for d in spec.group.decisions)
        complete = len(self.edges) == len(spec.edges)
        self.open = complete and all(isinstance(e, MixedOp) and e.answer is None for e in self.edges.values())
        self.evaluation: Evaluation = "plain"
        self._layout: Layout | None = None

    def fused(self) -> Layout:
        """Return how the open edges are computed together; made when it is first used."""
        if self._layout is None:
            inputs, states = self.spec.inputs, self.spec.states
            fans = []
            for j in range(inputs + len(states) - 1):
                out = [i for i in states if i > j]
                edges = [self.edges[f"{j}-{i}"].ops for i in out]
                rows = [self.rows[f"{j}-{i}"] for i in out]
                fans.append(Fan(rows, out[0] - inputs, self.spec.ops, edges))  # type: ignore[arg-type]
            self._layout = Layout(fans, len(states), self.spec.stride)
        self._layout.lean = self.evaluation == "lean"
        return self._layout

    def forward(self, inputs: Sequence[Tensor], weights: Tensor | None, sampled: On | None = None) -> Tensor:
        """Compute the cell.

        Args:
            inputs: Of one size.
            weights: (n_edges, n_options), or None if every edge is answered.
            sampled: (n_edges, n_options), which options are computed; None for all.

        Returns:
            (N, nodes * channels, ceil(H/stride), ceil(W/stride)).
        """
        states = [self._preprocessed(n, x) for n, x in enumerate(inputs)]
        return self.join(states, weights, sampled)

    def _preprocessed(self, n: int, x: Tensor) -> Tensor:
        with self.reading(n):
            out: Tensor = self.get_submodule(f"preprocess{n}")(x)
        return out

    def reading(self, n: int, gate: Gate = ALWAYS) -> AbstractContextManager[None]:
        """Write down, in a trace, what is computed as present where an input is read, and where a gate is open."""
        tracer = active_tracer.get()
        if tracer is not None and self.shrinks and not self.answered:
            gate = gate & self.spec.reads(n)
        return nullcontext() if tracer is None or gate == ALWAYS else tracer.gated(gate)

    def join(self, inputs: Sequence[Tensor | None], weights: Tensor | None, sampled: On | None = None) -> Tensor:
        """Compute the cell from its inputs after their preprocessing; what is None adds nothing. See `forward`."""
        *others, last = inputs
        assert last is not None, "the last input is always there"
        return self.join_each(others, [last], weights, sampled)[0]

    def join_each(
        self, others: Sequence[Tensor | None], last: Sequence[Tensor], weights: Tensor | None, sampled: On | None = None
    ) -> Sequence[Tensor]:
        """Compute the cell for each of several last inputs, all with the same others and weights; see `join`."""
        together = self.open and self.training and self.evaluation != "plain" and sampled is None
        tracing = active_tracer.get() is not None
        if together and weights is not None and not tracing and self.spec.inputs == FUSED_INPUTS:
            groups = len(last)
            every = last[0] if groups == 1 else torch.cat(list(last))
            return fused_cell(others[0], every, weights, self.fused(), groups).chunk(groups)
        return [self._one_by_one([*others, x], weights, sampled) for x in last]

    def _one_by_one(self, states: list[Tensor | None], weights: Tensor | None, sampled: On | None) -> Tensor:
        """Compute every candidate on its own, from all inputs."""
        nodes = self._nodes(states, weights, sampled)
        out: Tensor = nodes[0] if self.shrinks and len(nodes) == 1 else self.concat(*nodes)
        return out

    def alternatives(self, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """Write down the cell in a trace, and its result for each number of nodes that it may have, under its gate.

        Args:
            inputs: After their preprocessing.

        Returns:
            By number of nodes, what stands for the result.
        """
        tracer = active_tracer.get()
        assert tracer is not None and self.shrinks, "a cell whose nodes are not known is for tracing"
        node = self._nodes(list(inputs), None, None)[0]
        out: dict[int, Tensor] = {}
        for count in self.spec.counts:
            with tracer.gated(self.spec.counted(count)):
                out[count] = self.concat(*[node] * count) if count > 1 else tracer.join(node)
        return out

    def _nodes(self, states: list[Tensor | None], weights: Tensor | None, sampled: On | None) -> list[Tensor]:
        """Return the nodes that are there, all of one shape."""
        for i in self.spec.states:
            terms: list[Tensor] = []
            edges: list[MixedOp] = []
            for j in range(i):
                key = f"{j}-{i}"
                state = states[j]
                if key in self.edges and state is not None:
                    edge = self.edges[key]
                    assert isinstance(edge, MixedOp)
                    edges.append(edge)
                    row, on = self.rows[key], None if sampled is None else sampled[self.rows[key]]
                    terms.append(edge(state, None if weights is None else weights[row], on))
            states.append(self._sum(terms, edges) if terms else None if self.shrinks else self._zero(states))
        return [s for s in states[self.spec.inputs :] if s is not None]

    def _zero(self, states: Sequence[Tensor | None]) -> Tensor:
        """Return what a node is of which all inputs add nothing: in the first layers of a trellis."""
        last = states[self.spec.inputs - 1]
        assert last is not None
        return torch.zeros_like(last[:, :, :: self.spec.stride, :: self.spec.stride])

    def _sum(self, terms: Sequence[Tensor], edges: Sequence[MixedOp]) -> Tensor:
        tracer = active_tracer.get()
        if tracer is None:
            return sum(terms[1:], terms[0])
        total = terms[0]
        for n, t in enumerate(terms[1 : self.spec.keep], start=1):  # whichever edges survive, there are that many
            before = total
            for merged, gate in _summed(n, edges, free=self.spec.keep is None).items():
                if gate is not None:  # the last stands for both
                    with tracer.gated(gate) if gate != ALWAYS else nullcontext():
                        total = self.adds[merged](before, t)
        return total


def _summed(n: int, edges: Sequence[MixedOp], free: bool) -> dict[bool, Gate | None]:
    """Return when the n-th addition of a node is merged into a convolution, and when it is not; None for never.

    It is merged if n or more of the edges end in a convolution. Where edges are `free`, there is an n-th addition if
    more than n of them are kept.
    """
    by_edge = [(e.decision.name, e.ends_in_conv()) for e in edges]
    there = ALWAYS
    if free:
        kept = [frozenset((d, o) for o in ends if o != NONE) for d, ends in by_edge if NONE in ends]
        there = at_least(n + 1 - (len(edges) - len(kept)), kept)
    sure = sum(all(ends.values()) for _, ends in by_edge)
    open_ = [(d, ends) for d, ends in by_edge if len(set(ends.values())) > 1]
    merged, alone = (
        [frozenset((d, o) for o, conv in ends.items() if conv is wanted) for d, ends in open_]
        for wanted in (True, False)
    )
    if n <= sure:
        return {True: there, False: None}
    if n > sure + len(open_):
        return {True: None, False: there}
    few = at_least(len(open_) - (n - sure) + 1, alone)
    return {True: there.except_where(few) if free else at_least(n - sure, merged), False: there & few}
