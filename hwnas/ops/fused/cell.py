"""The mixture of a whole cell as one computation: the same mathematics as `MixedOp`, in a fraction of time and memory.

What makes it so:

- All edges that leave a state (a *fan*) read the same tensor: pooled and normalised once for all of them, and convolved
  depthwise in one pass.
- Every candidate ends in a 1x1 convolution and a BatchNorm without parameters, whose result is weighted and summed.
  Mean and variance of ``W z`` follow from those of z, so that weight, normalisation and convolution become one matrix:
  ``sum_o p_o BN(W_o z_o) = sum_o (p_o diag(1/std_o) W_o) z_o + const``. The output of a candidate is never stored.
- The backward pass is written by hand along the same lines; a lean evaluation keeps the states of the cell alone and
  computes the rest anew.

There is no second derivative: what needs one uses the plain form.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.ops.fused.branches import (
    Branch,
    Grads,
    Graph,
    Memory,
    Shared,
    Stats,
    branch_of,
    frozen,
    frozen_statistics,
    shared_of,
)
from hwnas.ops.fused.native import library
from hwnas.ops.fused.primitives import Primitives
from hwnas.ops.fused.primitives_native import Native
from hwnas.ops.fused.primitives_synced import SyncedNative, SyncedTorch
from hwnas.ops.fused.primitives_torch import Torch
from hwnas.ops.synced import processes_of


def primitives(x: Tensor, processes: int = 1) -> Primitives:
    """Return what computes on tensors like `x`: C++ for float32 on a CPU where there is a compiler, else torch.

    Args:
        x: Read for its device and type.
        processes: Over how many of them BatchNorms take their statistics.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and library() is not None:
        return Native() if processes == 1 else SyncedNative(processes)
    return Torch() if processes == 1 else SyncedTorch(processes)


@cache
def _index(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Return places as an index, made once for each device: making it waits for the device."""
    return torch.tensor(places, dtype=torch.long, device=device)


class Fan:
    """All edges that leave one state of a cell."""

    def __init__(self, rows: Sequence[int], first: int, options: Sequence[str], edges: Sequence[nn.ModuleDict]) -> None:
        """Sort the candidates of the edges by how they are computed.

        Args:
            rows: Of the edges, in the matrix of probabilities.
            first: The node of the first edge; the others follow.
            options: The columns of that matrix.
            edges: Candidates by option; an option without one contributes nothing.
        """
        self.rows, self.first = tuple(rows), first
        self.branches: list[tuple[int, Branch]] = []
        shared: list[tuple[int, nn.Module, list[nn.BatchNorm2d]]] = []
        for column, option in enumerate(options):
            if option not in edges[0]:
                continue
            modules = [e[option] for e in edges]
            same = shared_of(modules)
            if same is None:
                self.branches.append((column, branch_of(modules)))
            else:
                shared.append((column, *same))
        shared.sort(key=lambda s: isinstance(s[1], nn.Identity))
        self.shared = Shared([s[0] for s in shared], [s[1] for s in shared], [s[2] for s in shared if s[2]])
        self._places = [
            (owner._parameters, name)
            for _, b in self.branches
            for kind, name in zip(b.owners, b.names, strict=True)
            for owner in kind
        ]
        self.size = len(self._places)
        inner = [processes_of(m) for edge in edges for m in edge.modules() if isinstance(m, nn.BatchNorm2d)]
        self.processes = max(inner, default=1)
        self._running = [[Running(norms) for norms in b.norms] for _, b in self.branches]
        self._shared_running = [Running(norms, shared=True) for norms in self.shared.norms]

    def parameters(self) -> list[Tensor]:
        """Return the weights the modules have now: others may have been put in their places."""
        return [places[name] for places, name in self._places]  # type: ignore[misc]

    def probs(self, p: Tensor) -> Tensor:
        """Return the rows of the fan's edges of those of all edges (edges, options)."""
        return p[_index(self.rows, p.device)]

    def columns(self, p: Tensor) -> Tensor:
        """Return the columns of p whose options are shared, as an index on its device."""
        return _index(self.shared.columns, p.device)

    def packs(self, given: Iterable[Tensor]) -> list[list[Tensor]]:
        """Return parameters, in the order of `parameters`, by branch; those of one kind stacked over edges."""
        each = iter(given)
        return [[torch.stack([next(each) for _ in kind]) for kind in b.owners] for _, b in self.branches]

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: list[list[Tensor]], out: Tensor, times: int = 1
    ) -> tuple[Memory, list[Memory]]:
        """Add what the edges contribute to `out` (edges * G, rows, C), and return what `backward` needs.

        Args:
            ops: What computes.
            x: The state, of G groups, (G * N, H, W, C); see `Branch`.
            p: (edges, options).
            packs: See `packs`.
            out: Of the nodes the edges lead to.
            times: How often running statistics move.
        """
        by_option = p.T.contiguous()
        bias = out.new_zeros(len(out), out.shape[2])
        kept: list[Memory] = []
        moved: list[tuple[Running, Stats]] = []
        for (column, branch), pack, running in zip(self.branches, packs, self._running, strict=True):
            memory, stats = branch.forward(ops, x, by_option[column], pack, out, bias)
            kept.append(memory)
            moved += zip(running, stats, strict=True)
        common, stats = self.shared.forward(ops, x, p[:, self.columns(p)].contiguous(), out, bias)
        moved += zip(self._shared_running, stats, strict=True)
        for statistics, (mean, var) in () if frozen.get() else moved:
            for _ in range(times):
                statistics.move(mean, var, out.shape[1] * ops.processes)
        return common, kept

    def backward(
        self,
        ops: Primitives,
        x: Tensor,
        p: Tensor,
        packs: list[list[Tensor]],
        kept: tuple[Memory, list[Memory]],
        g: Tensor,
        grads: Grads,
    ) -> list[Tensor]:
        """Fill in `grads`, given that of `out`, and return those of the parameters, if they are wanted."""
        by_option = p.T.contiguous()
        common, memories = kept
        columns = self.columns(p)
        dp, grads.sums = self.shared.backward(ops, p[:, columns].contiguous(), common, g, grads.x)
        grads.weights[:, columns] = dp
        found: list[Tensor] = []
        for (column, branch), pack, memory in zip(self.branches, packs, memories, strict=True):
            dp, dpacks = branch.backward(ops, x, by_option[column], pack, memory, g, grads)
            grads.weights[:, column] = dp
            found += [d for dpack in dpacks for d in dpack]
        return found


class Running:
    """The running statistics of BatchNorms that get theirs from one matrix (edges, C): views into one tensor.

    So one call moves all of them; a cell has hundreds. Whatever replaces a module's buffers, as moving it to another
    device does, is noticed, and they are packed anew.
    """

    def __init__(self, norms: Sequence[nn.BatchNorm2d], shared: bool = False) -> None:
        """Take the BatchNorms in the order of rows, all of one row if `shared`; nothing is packed yet."""
        self.norms, self.edges = norms, 1 if shared else len(norms)
        self._views: list[Tensor | None] = [None, None, None]

    def move(self, mean: Tensor, var: Tensor, rows: int) -> None:
        """Move them as torch does: by the momentum, variances unbiased.

        Args:
            mean: (edges or 1, C), or G times as many: once for each group, in their order.
            var: The same, biased.
            rows: How many values each is the mean of.
        """
        first = self.norms[0]
        now = (first.running_mean, first.running_var, first.num_batches_tracked)
        if any(a is not b for a, b in zip(now, self._views, strict=True)):
            self._pack()
        assert first.momentum is not None
        edges = self.edges
        unbiased = (var * (rows / max(rows - 1, 1))).view(edges, -1, var.shape[1])
        for m, v in zip(mean.view(unbiased.shape).unbind(1), unbiased.unbind(1), strict=True):
            self._mean.lerp_(m.expand_as(self._mean), first.momentum)
            self._var.lerp_(v.expand_as(self._var), first.momentum)
        self._count += unbiased.shape[1]

    def _pack(self) -> None:
        self._mean, self._var, self._count = (
            torch.stack([norm.get_buffer(name) for norm in self.norms])
            for name in ("running_mean", "running_var", "num_batches_tracked")
        )
        for i, norm in enumerate(self.norms):
            norm.running_mean, norm.running_var = self._mean[i], self._var[i]
            norm.num_batches_tracked = self._count[i]
        first = self.norms[0]
        self._views = [first.running_mean, first.running_var, first.num_batches_tracked]


@dataclass
class Layout:
    """What a fused cell is made of.

    Attributes:
        fans: One for each state that has outgoing edges, in the order of states.
        nodes: Number of nodes.
        stride: Of the edges from the two inputs.
        lean: Whether the backward pass computes the cell anew.
    """

    fans: list[Fan]
    nodes: int
    stride: int
    lean: bool = False

    @property
    def processes(self) -> int:
        """Over how many of them its BatchNorms take their statistics."""
        return max((fan.processes for fan in self.fans), default=1)

    def shares(self, parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Return the parameters of each fan, given those of all."""
        ends = list(itertools.accumulate(fan.size for fan in self.fans))
        return [parameters[end - fan.size : end] for fan, end in zip(self.fans, ends, strict=True)]


def _flatten(kept: Any, tensors: list[Tensor]) -> Any:
    """Return a structure with indices for tensors, which go to a list."""
    if isinstance(kept, Tensor):
        tensors.append(kept)
        return len(tensors) - 1
    if isinstance(kept, tuple | list) and not isinstance(kept, Graph):
        return tuple(_flatten(k, tensors) for k in kept)
    return [kept]  # None, and what has a graph of its own


def _unflatten(structure: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(structure, int):
        return tensors[structure]
    if isinstance(structure, tuple):
        return tuple(_unflatten(s, tensors) for s in structure)
    return structure[0]


class _FusedCell(torch.autograd.Function):
    """See `fused_cell`."""

    @staticmethod
    def forward(
        ctx: Any, s0: Tensor | None, s1: Tensor, p: Tensor, groups: int, layout: Layout, *parameters: Tensor
    ) -> Tensor:
        ops = primitives(s1, layout.processes)
        inputs = [None if s is None else s.permute(0, 2, 3, 1).contiguous() for s in (s0, s1)]
        n, c, h, w = s1.shape
        h, w = -(-h // layout.stride), -(-w // layout.stride)
        nodes = s1.new_zeros(layout.nodes, n, h, w, c)
        flat = nodes.view(layout.nodes, groups, -1, c)
        states = [*inputs, *nodes.unbind()]
        structures: list[Any] = []
        tensors: list[Tensor] = []
        for j, (fan, mine) in enumerate(zip(layout.fans, layout.shares(parameters), strict=True)):
            state, out = states[j], flat[fan.first : fan.first + len(fan.rows)]
            if state is None:  # it adds nothing
                structures.append(None)
                continue
            packs = fan.packs(mine)
            once = j == 0 and groups > 1  # all groups read the same state
            into = torch.zeros_like(out[:, 0]) if once else out.flatten(0, 1)
            kept = fan.forward(ops, state, fan.probs(p), packs, into, groups if once else 1)
            if once:
                out += into[:, None]
            structures.append(_flatten(None if layout.lean else kept, tensors))
        ctx.groups = groups
        ctx.layout, ctx.structures, ctx.count = layout, structures, len(parameters)
        ctx.save_for_backward(*inputs, nodes, p, *parameters, *tensors)
        return nodes.permute(1, 2, 3, 0, 4).reshape(n, h, w, -1).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        s0, s1, nodes, p, *tensors = ctx.saved_tensors
        given, tensors = tensors[: ctx.count], tensors[ctx.count :]
        shares = layout.shares(given)
        ops = primitives(s1, layout.processes)
        wanted = ctx.needs_input_grad
        n, h, w, c = nodes.shape[1:]
        dnodes = grad.permute(0, 2, 3, 1).reshape(n, h, w, layout.nodes, c).permute(3, 0, 1, 2, 4)
        dnodes = dnodes.clone(memory_format=torch.contiguous_format)  # it is added to
        flat = dnodes.view(layout.nodes, ctx.groups, -1, c)
        dinputs = [torch.zeros_like(s) if need else None for s, need in zip((s0, s1), wanted[:2], strict=True)]
        dstates = [*dinputs, *dnodes.unbind()]
        states = [s0, s1, *nodes.unbind()]
        dp = torch.zeros_like(p)
        parameters = any(wanted[5:])
        found: list[list[Tensor | None]] = []
        for j in reversed(range(len(layout.fans))):
            fan = layout.fans[j]
            if ctx.structures[j] is None:
                found.insert(0, [None] * len(shares[j]))
                continue
            packs, kept = fan.packs(shares[j]), _unflatten(ctx.structures[j], tensors)  # copies, so not all at once
            g = flat[fan.first : fan.first + len(fan.rows)]
            g = g.sum(1) if j == 0 and ctx.groups > 1 else g.flatten(0, 1)
            probs = fan.probs(p)
            if layout.lean:
                with frozen_statistics():  # they have moved in the forward pass
                    kept = fan.forward(ops, states[j], probs, packs, torch.zeros_like(g))
            grads = Grads(dstates[j], torch.zeros_like(probs), parameters, flat.new_empty(0))
            found.insert(0, list(fan.backward(ops, states[j], probs, packs, kept, g, grads)))
            dp[_index(fan.rows, p.device)] = grads.weights
        dws = [d for some in found for d in some] if parameters else [None] * ctx.count
        d0, d1 = (None if d is None else d.permute(0, 3, 1, 2) for d in dinputs)
        return (d0, d1, dp if wanted[2] else None, None, None, *dws)


def fused_cell(s0: Tensor | None, s1: Tensor, p: Tensor, layout: Layout, groups: int = 1) -> Tensor:
    """Compute a cell of open decisions in training: the sum of all candidates of all edges, nodes concatenated.

    Args:
        s0: First input after its preprocessing, (N, C, H, W); None adds nothing.
        s1: Second input, the same shape; with several groups (groups * N, C, H, W).
        p: (edges, options).
        layout: Of the cell.
        groups: How often the cell is computed: with the same first input and others for the second, with statistics
            of their own.

    Returns:
        (groups * N, nodes * C, H', W'), channels last; differentiable once.
    """
    parameters = [weight for fan in layout.fans for weight in fan.parameters()]
    # In float32 under autocast too: covariances lose too much in bfloat16.
    kind = s1.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        low = (torch.bfloat16, torch.float16)
        s0, s1, p = (t.float() if t is not None and t.dtype in low else t for t in (s0, s1, p))  # type: ignore[assignment]
        out: Tensor = _FusedCell.apply(s0, s1, p, groups, layout, *parameters)  # type: ignore[no-untyped-call]
    return out
