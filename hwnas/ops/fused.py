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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.primitives import Moments, Primitives, primitives

_frozen: ContextVar[bool] = ContextVar("frozen", default=False)


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Let fused cells compute without moving the running statistics of their BatchNorms."""
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


Stats = tuple[Tensor, Tensor]  # mean and biased variance, (edges or 1, C)
Memory = tuple[Any, ...]  # what a branch keeps for its backward pass


@dataclass
class Grads:
    """Where the gradients of a fan go.

    Attributes:
        x: Of the state, (N, H, W, C), added to; None if nobody wants it.
        weights: Of the probabilities, (edges, options), filled in by column.
        parameters: Whether those of weights are wanted.
        sums: Of g over rows, (edges, C).
    """

    x: Tensor | None
    weights: Tensor
    parameters: bool
    sums: Tensor


class Branch(Protocol):
    """One option on all edges of a fan."""

    owners: list[list[nn.Module]]  # of the parameters, by kind, one for each edge
    names: list[str]  # of the parameters in their owners, by kind
    norms: list[list[nn.BatchNorm2d]]  # those that share a row of statistics, by edge

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], out: Tensor, bias: Tensor
    ) -> tuple[Memory, list[Stats]]:
        """Add the branch, weighted by p (edges,), to `out` (edges, rows, C) and `bias` (edges, C).

        Args:
            ops: What computes.
            x: The state, (N, H, W, C).
            p: Its probability on each edge.
            packs: One tensor per kind of parameter, (edges, ...).
            out: Of the edges.
            bias: Of the edges, added to all rows by the caller.

        Returns:
            What `backward` needs, and the statistics of each list of `norms`.
        """

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of p and of the packs (none if not wanted), given that of `out`; add that of x."""


class Separable:
    """Depthwise-separable convolutions of one kernel: `dil_conv`, or twice, `sep_conv`."""

    def __init__(self, modules: Sequence[layers.SepConv | layers.DilConv]) -> None:
        """Read the candidates of the edges."""
        self.modules = modules
        first = modules[0]
        names, norms = ["depthwise", "pointwise"], ["bn"]
        if isinstance(first, layers.SepConv):
            names, norms = ["depthwise1", "pointwise1", "depthwise2", "pointwise2"], ["bn1", "bn2"]
        self.twice = len(norms) == 2
        conv = getattr(first, names[0])
        self.stride, self.dilation = int(conv.stride[0]), int(conv.dilation[0])
        self.owners = [[getattr(m, name) for m in modules] for name in names]
        self.names = ["weight"] * len(names)
        self.norms = [[getattr(m, name) for m in modules] for name in norms]

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], out: Tensor, bias: Tensor
    ) -> tuple[Memory, list[Stats]]:
        """See `Branch`."""
        m, c = len(p), x.shape[-1]
        z = ops.depthwise(x[None], packs[0][None], self.dilation, self.stride)[0]  # (m, N, H', W', C)
        if not self.twice:
            kept = ops.normed_linear(z.view(m, -1, c), packs[1].view(m, c, c), p, out, bias)
            return (z, *kept), [(kept.mean, kept.var)]
        y = ops.multiply(z.view(m, -1, c), packs[1].view(m, c, c).transpose(1, 2))
        first = ops.batch_norm(y)
        second = ops.depthwise(y.view(z.shape), packs[2][:, None], 1, 1)[:, 0]
        kept = ops.normed_linear(second.view(m, -1, c), packs[3].view(m, c, c), p, out, bias)
        return (second, *kept, z, y, first[1]), [first, (kept.mean, kept.var)]

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Branch`."""
        m, c = len(p), x.shape[-1]
        read, *moments = kept[:5]
        dp, dw, dz = ops.normed_linear_data(
            read.view(m, -1, c), packs[-1].view(m, c, c), p, Moments(*moments), g, grads.sums, grads.parameters
        )
        found = [] if dw is None else [dw.view(packs[-1].shape)]
        dz = dz.view(read.shape)
        if self.twice:
            dz, inner = self._first_half(ops, packs, kept[5:], dz, grads.parameters)
            found = [*inner, *found]
        if grads.parameters:
            dw = ops.depthwise_weight(x[None], packs[0][None], self.dilation, self.stride, dz[None])
            found = [dw[0], *found]
        if grads.x is not None:
            ops.depthwise_data(x[None], packs[0][None], self.dilation, self.stride, dz[None], grads.x[None])
        return dp, found

    def _first_half(
        self, ops: Primitives, packs: Sequence[Tensor], kept: Memory, dz: Tensor, parameters: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Go back through the second depthwise convolution, the BatchNorm in the middle and the first 1x1."""
        z, y, var = kept
        m, c = len(y), y.shape[-1]
        planes = y.view(z.shape)
        found = []
        if parameters:
            found.append(ops.depthwise_weight(planes, packs[2][:, None], 1, 1, dz[:, None])[:, 0])
        dy = torch.zeros_like(y)
        ops.depthwise_data(planes, packs[2][:, None], 1, 1, dz[:, None], dy.view(z.shape))
        ops.batch_norm_data(y, var, dy)
        if parameters:
            found.insert(0, ops.cross(dy, z.view(m, -1, c)).view(packs[1].shape))
        return ops.multiply(dy, packs[1].view(m, c, c)).view(z.shape), found


class Reduced:
    """Factorized reductions: what `skip_connect` is where the stride is 2."""

    def __init__(self, modules: Sequence[layers.ReduceBoth]) -> None:
        """Read the candidates of the edges."""
        self.owners: list[list[nn.Module]] = [[m.conv1 for m in modules], [m.conv2 for m in modules]]
        self.names = ["weight", "weight"]
        self.norms = [[m.bn for m in modules]]

    def _samples(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both samplings of the ReLU, (1, rows, C): even rows and columns, and odd ones."""
        _, h, w, c = x.shape
        even = x[:, ::2, ::2].relu()
        odd = torch.zeros_like(even)  # the last sample of an odd size is shifted out
        odd[:, : h // 2, : w // 2] = x[:, 1::2, 1::2].relu()
        return even.reshape(1, -1, c), odd.reshape(1, -1, c)

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], out: Tensor, bias: Tensor
    ) -> tuple[Memory, list[Stats]]:
        """See `Branch`."""
        half = packs[0].shape[1]
        columns = (slice(None, half), slice(half, None))
        kept = [
            ops.normed_linear(z, w.flatten(2), p, out[..., to], bias[:, to])
            for z, w, to in zip(self._samples(x), packs, columns, strict=True)
        ]
        stats = (torch.cat([k.mean for k in kept], 1), torch.cat([k.var for k in kept], 1))
        return tuple(tuple(k) for k in kept), [stats]

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Branch`."""
        n, h, w, c = x.shape
        half = packs[0].shape[1]
        dp, found = torch.zeros_like(p), []
        for i, (z, to) in enumerate(zip(self._samples(x), (slice(None, half), slice(half, None)), strict=True)):
            dpart, dw, dz = ops.normed_linear_data(
                z, packs[i].flatten(2), p, Moments(*kept[i]), g[..., to], grads.sums[:, to], grads.parameters
            )
            dp += dpart
            found += [] if dw is None else [dw.view(packs[i].shape)]
            if grads.x is not None:
                here = (slice(None), slice(i, None, 2), slice(i, None, 2))
                rows, columns = (h, w) if i else (h + 1, w + 1)
                d = dz.sum(0).view(n, -(-h // 2), -(-w // 2), c)[:, : rows // 2, : columns // 2]
                grads.x[here] += d * (x[here] > 0)
        return dp, found


class _Graph(NamedTuple):
    """What torch's own autograd needs to go back through plain candidates."""

    image: Tensor
    results: list[Tensor]
    read: list[list[Tensor]]


class Plain:
    """A candidate without a fused form: computed as it is, edge by edge, and kept for the backward pass."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Take the candidates of the edges."""
        self.modules = modules
        self._paths = [name for name, _ in modules[0].named_parameters()]
        named = [
            (path, name) for path, m in modules[0].named_modules() for name, w in m._parameters.items() if w is not None
        ]
        self.owners = [[m.get_submodule(path) for m in modules] for path, _ in named]
        self.names = [name for _, name in named]
        self.norms: list[list[nn.BatchNorm2d]] = []  # they see to themselves
        self._inner = [m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm2d)]

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], out: Tensor, bias: Tensor
    ) -> tuple[Memory, list[Stats]]:
        """See `Branch`."""
        for norm in self._inner:
            norm.track_running_stats = not _frozen.get()
        with torch.enable_grad():
            image = x.permute(0, 3, 1, 2).clone().requires_grad_()  # what x is a part of is yet to be written to
            # Not with the modules' own weights: others may have been in their places when the cell was computed.
            read = [[pack[e].detach().requires_grad_() for pack in packs] for e in range(len(p))]
            results = [
                torch.func.functional_call(module, dict(zip(self._paths, mine, strict=True)), (image,))
                for module, mine in zip(self.modules, read, strict=True)
            ]
        for norm in self._inner:
            norm.track_running_stats = True
        for e, y in enumerate(results):
            out[e] += p[e] * y.detach().permute(0, 2, 3, 1).reshape(out[e].shape)
        return (_Graph(image, results, read),), []

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Branch`."""
        image, results, read = kept[0]
        dp, by_edge = [], []
        for e, (y, weight) in enumerate(zip(results, p, strict=True)):
            n, c, h, w = y.shape
            dy = g[e].view(n, h, w, c).permute(0, 3, 1, 2)
            dp.append((dy * y.detach()).sum())
            mine = read[e] if grads.parameters else []
            dx, *dws = torch.autograd.grad(y, [image, *mine], weight * dy)
            by_edge.append(dws)
            if grads.x is not None:
                grads.x += dx.permute(0, 2, 3, 1)
        return torch.stack(dp), [torch.stack(kind) for kind in zip(*by_edge, strict=True)]


class Shared:
    """What is the same on all edges of a fan: poolings with their BatchNorm, and the identity."""

    def __init__(self, columns: Sequence[int], kinds: Sequence[nn.Module], norms: list[list[nn.BatchNorm2d]]) -> None:
        """Take, for each option that is shared, its column, its pool or an identity; poolings come first."""
        self.columns, self.kinds, self.norms = list(columns), kinds, norms
        self.pools = sum(not isinstance(k, nn.Identity) for k in kinds)

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, out: Tensor, bias: Tensor
    ) -> tuple[tuple[Tensor, ...], list[Stats]]:
        """Add all terms, weighted by p (edges, terms), and the bias (edges, C) to `out` (edges, rows, C)."""
        _, rows, c = out.shape
        terms = x.new_empty(len(self.kinds), rows, c)
        which: list[Tensor] = []
        for kind, term in zip(self.kinds, terms, strict=True):
            if isinstance(kind, nn.Identity):
                term.copy_(x.reshape(term.shape))
                continue
            stride = int(kind.stride)  # type: ignore[arg-type]
            shaped = term.view(len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), c)
            if isinstance(kind, layers.MaxPool):
                which.append(ops.max_pool(x, stride, shaped))
            else:
                ops.avg_pool(x, stride, shaped)
        mean = var = bias[:0]
        if self.pools:
            mean, var = ops.batch_norm(terms[: self.pools])
        ops.combine(p, terms, bias, out)
        return (terms, var, *which), [(mean[i : i + 1], var[i : i + 1]) for i in range(self.pools)]

    def backward(
        self, ops: Primitives, p: Tensor, kept: Sequence[Tensor], g: Tensor, into: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of p and the sums of g over rows, and add that of the state to `into`."""
        terms, var, *which = kept
        dterms, dp, sums = ops.combine_data(p, terms, g)
        if into is None:
            return dp, sums
        if self.pools:
            ops.batch_norm_data(terms[: self.pools], var, dterms[: self.pools])
        for kind, term in zip(self.kinds, dterms, strict=True):
            if isinstance(kind, nn.Identity):
                into += term.view(into.shape)
                continue
            stride = int(kind.stride)  # type: ignore[arg-type]
            shaped = term.view(len(into), -(-into.shape[1] // stride), -(-into.shape[2] // stride), into.shape[3])
            if isinstance(kind, layers.MaxPool):
                ops.max_pool_data(shaped, which.pop(0), stride, into)
            else:
                ops.avg_pool_data(shaped, stride, into)
        return dp, sums


def _branch(modules: Sequence[nn.Module]) -> Branch:
    """Return the fused form of a candidate on all edges of a fan."""
    first = modules[0]
    if isinstance(first, nn.Sequential) and len(first) == 2 and isinstance(first[0], layers.ReLU):
        second = [m[1] for m in modules]  # type: ignore[index]
        if isinstance(second[0], layers.SepConv | layers.DilConv) and second[0].attrs["kernel"] in (3, 5):
            return Separable(second)
        if isinstance(second[0], layers.FactorizedReduce):
            return Reduced([m.reduce for m in second])
    return Plain(modules)


def _shared(modules: Sequence[nn.Module]) -> tuple[nn.Module, list[nn.BatchNorm2d]] | None:
    """Return the pool, or identity, of a candidate that is the same on all edges, and its normalisations."""
    first = modules[0]
    if isinstance(first, nn.Identity):
        return first, []
    pools = isinstance(first, nn.Sequential) and isinstance(first[0], layers.MaxPool | layers.AvgPool)
    if not pools or len(first) != 2 or not isinstance(first[1], layers.BatchNorm):  # type: ignore[arg-type, index]
        return None
    return first[0], [m[1].bn for m in modules]  # type: ignore[index]


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
        self.rows, self.first = list(rows), first
        self.branches: list[tuple[int, Branch]] = []
        shared: list[tuple[int, nn.Module, list[nn.BatchNorm2d]]] = []
        for column, option in enumerate(options):
            if option not in edges[0]:
                continue
            modules = [e[option] for e in edges]
            same = _shared(modules)
            if same is None:
                self.branches.append((column, _branch(modules)))
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
        self._running = [[Running(norms) for norms in b.norms] for _, b in self.branches]
        self._shared_running = [Running(norms) for norms in self.shared.norms]

    def parameters(self) -> list[Tensor]:
        """Return the weights the modules have now: others may have been put in their places."""
        return [places[name] for places, name in self._places]  # type: ignore[misc]

    def packs(self, given: Iterator[Tensor]) -> list[list[Tensor]]:
        """Take the parameters of each branch, and return those of one kind stacked over edges."""
        return [[torch.stack([next(given) for _ in kind]) for kind in b.owners] for _, b in self.branches]

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: list[list[Tensor]], out: Tensor
    ) -> tuple[Memory, list[Memory]]:
        """Add what the edges contribute to `out` (edges, rows, C), and return what `backward` needs.

        Args:
            ops: What computes.
            x: The state, (N, H, W, C).
            p: (edges, options).
            packs: See `packs`.
            out: Of the nodes the edges lead to.
        """
        by_option = p.T.contiguous()
        bias = out.new_zeros(len(out), out.shape[2])
        kept: list[Memory] = []
        moved: list[tuple[Running, Stats]] = []
        for (column, branch), pack, running in zip(self.branches, packs, self._running, strict=True):
            memory, stats = branch.forward(ops, x, by_option[column], pack, out, bias)
            kept.append(memory)
            moved += zip(running, stats, strict=True)
        common, stats = self.shared.forward(ops, x, p[:, self.shared.columns].contiguous(), out, bias)
        moved += zip(self._shared_running, stats, strict=True)
        for statistics, (mean, var) in () if _frozen.get() else moved:
            statistics.move(mean, var, out.shape[1])
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
        columns = self.shared.columns
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

    def __init__(self, norms: Sequence[nn.BatchNorm2d]) -> None:
        """Take the BatchNorms in the order of rows; nothing is packed yet."""
        self.norms = norms
        self._views: list[Tensor | None] = [None, None, None]

    def move(self, mean: Tensor, var: Tensor, rows: int) -> None:
        """Move them as torch does: by the momentum, variances unbiased.

        Args:
            mean: (edges or 1, C).
            var: The same, biased.
            rows: How many values each is the mean of.
        """
        first = self.norms[0]
        now = (first.running_mean, first.running_var, first.num_batches_tracked)
        if any(a is not b for a, b in zip(now, self._views, strict=True)):
            self._pack()
        assert first.momentum is not None
        self._mean.lerp_(mean.expand_as(self._mean), first.momentum)
        self._var.lerp_((var * (rows / max(rows - 1, 1))).expand_as(self._var), first.momentum)
        self._count += 1

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


def _flatten(kept: Any, tensors: list[Tensor]) -> Any:
    """Return a structure with indices for tensors, which go to a list."""
    if isinstance(kept, Tensor):
        tensors.append(kept)
        return len(tensors) - 1
    if isinstance(kept, tuple | list) and not isinstance(kept, _Graph):
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
    def forward(ctx: Any, s0: Tensor, s1: Tensor, p: Tensor, layout: Layout, *parameters: Tensor) -> Tensor:
        ops = primitives(s0)
        states = [s.permute(0, 2, 3, 1).contiguous() for s in (s0, s1)]
        n, h, w, c = states[0].shape
        h, w = -(-h // layout.stride), -(-w // layout.stride)
        nodes = s0.new_zeros(layout.nodes, n, h, w, c)
        flat = nodes.view(layout.nodes, -1, c)
        states += nodes.unbind()
        structures: list[Any] = []
        tensors: list[Tensor] = []
        given = iter(parameters)
        for state, fan in zip(states, layout.fans, strict=False):
            packs = fan.packs(given)
            out = flat[fan.first : fan.first + len(fan.rows)]
            kept = fan.forward(ops, state, p[fan.rows], packs, out)
            structures.append(_flatten((packs, None if layout.lean else kept), tensors))
        ctx.layout, ctx.structures, ctx.count = layout, structures, len(parameters)
        ctx.save_for_backward(*states[:2], nodes, p, *tensors)
        return nodes.permute(1, 2, 3, 0, 4).reshape(n, h, w, -1).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        s0, s1, nodes, p, *tensors = ctx.saved_tensors
        ops = primitives(s0)
        wanted = ctx.needs_input_grad
        n, h, w, c = nodes.shape[1:]
        dnodes = grad.permute(0, 2, 3, 1).reshape(n, h, w, layout.nodes, c).permute(3, 0, 1, 2, 4)
        dnodes = dnodes.clone(memory_format=torch.contiguous_format)  # it is added to
        flat = dnodes.view(layout.nodes, -1, c)
        dinputs = [torch.zeros_like(s) if need else None for s, need in zip((s0, s1), wanted[:2], strict=True)]
        dstates = [*dinputs, *dnodes.unbind()]
        states = [s0, s1, *nodes.unbind()]
        dp = torch.zeros_like(p)
        found: list[list[Tensor]] = []
        for j in reversed(range(len(layout.fans))):
            fan = layout.fans[j]
            packs, kept = _unflatten(ctx.structures[j], tensors)
            g = flat[fan.first : fan.first + len(fan.rows)]
            probs = p[fan.rows]
            if layout.lean:
                with frozen_statistics():  # they have moved in the forward pass
                    kept = fan.forward(ops, states[j], probs, packs, torch.zeros_like(g))
            grads = Grads(dstates[j], torch.zeros_like(probs), any(wanted[4:]), flat.new_empty(0))
            found.insert(0, fan.backward(ops, states[j], probs, packs, kept, g, grads))
            dp[fan.rows] = grads.weights
        dws: list[Tensor | None] = [d for some in found for d in some]
        d0, d1 = (None if d is None else d.permute(0, 3, 1, 2) for d in dinputs)
        return (d0, d1, dp if wanted[2] else None, None, *(dws or [None] * ctx.count))


def fused_cell(s0: Tensor, s1: Tensor, p: Tensor, layout: Layout) -> Tensor:
    """Compute a cell of open decisions in training: the sum of all candidates of all edges, nodes concatenated.

    Args:
        s0: First input after its preprocessing, (N, C, H, W).
        s1: Second input, the same shape.
        p: (edges, options).
        layout: Of the cell.

    Returns:
        (N, nodes * C, H', W'), channels last; differentiable once.
    """
    parameters = [weight for fan in layout.fans for weight in fan.parameters()]
    # In float32 under autocast too: covariances lose too much in bfloat16.
    with torch.autocast(s0.device.type, enabled=False):
        s0, s1, p = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in (s0, s1, p))
        out: Tensor = _FusedCell.apply(s0, s1, p, layout, *parameters)  # type: ignore[no-untyped-call]
    return out
