"""What a candidate is in a fused cell, on all edges that leave one state at once; see `hwnas.ops.fused`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.fused.primitives import Moments, Primitives

frozen: ContextVar[bool] = ContextVar("frozen", default=False)


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Let fused cells compute without moving the running statistics of their BatchNorms."""
    token = frozen.set(True)
    try:
        yield
    finally:
        frozen.reset(token)


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
    """One option on all edges of a fan.

    A state may stand for several, of G groups that share weights but no statistics: x has the groups one after another
    in its first dimension, and `out`, `bias`, `g` and statistics have G rows for each edge.
    """

    owners: list[list[nn.Module]]  # of the parameters, by kind, one for each edge
    names: list[str]  # of the parameters in their owners, by kind
    norms: list[list[nn.BatchNorm2d]]  # those that share a row of statistics, by edge

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], out: Tensor, bias: Tensor
    ) -> tuple[Memory, list[Stats]]:
        """Add the branch, weighted by p (edges,), to `out` and `bias`.

        Args:
            ops: What computes.
            x: The state, (N, H, W, C).
            p: Its probability on each edge.
            packs: One tensor per kind of parameter, (edges, ...).
            out: Of the edges, (edges * G, rows of one group, C).
            bias: Of the edges, (edges * G, C), added to all rows by the caller.

        Returns:
            What `backward` needs, and the statistics of each list of `norms`.
        """

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of p and of the packs (none if not wanted), given that of `out`; add that of x."""


def _normed(ops: Primitives, y: Tensor, p: Tensor, out: Tensor) -> tuple[Memory, list[Stats]]:
    """Normalise y (edges * G, rows, C) in place, and add it to `out`, weighted by p (edges,).

    Returns:
        What `_normed_data` needs, and the statistics.
    """
    mean, var = ops.batch_norm(y)
    out.addcmul_(p.repeat_interleave(len(out) // len(p))[:, None, None], y)
    return (y, var), [(mean, var)]


def _normed_data(ops: Primitives, p: Tensor, kept: Memory, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of p and of y as it was given, given that of `out`; see `_normed`."""
    y, var = kept
    dp = (g * y).sum((1, 2)).view(len(p), -1).sum(1)
    dy = p.repeat_interleave(len(g) // len(p))[:, None, None] * g
    ops.batch_norm_data(y, var, dy)
    return dp, dy


def _pointwise(
    ops: Primitives, z: Tensor, w: Tensor, p: Tensor, out: Tensor, bias: Tensor
) -> tuple[Memory, list[Stats]]:
    """Add ``p * BN(z w^T)`` to `out` and `bias`.

    Args:
        ops: What computes.
        z: (edges, G * rows, C).
        w: (edges, C, C).
        p: (edges,).
        out: (edges * G, rows, C).
        bias: (edges * G, C).

    Returns:
        What `_pointwise_data` needs, and the statistics.
    """
    (_, rows, c), groups = out.shape, len(out) // len(p)
    if rows < c:  # fewer values than a matrix of covariances has: it is cheaper to store the result
        return _normed(ops, ops.multiply(z, w.transpose(1, 2)).view(out.shape), p, out)
    each = p.repeat_interleave(groups)
    kept = ops.normed_linear(z.view(out.shape), w.repeat_interleave(groups, 0), each, out, bias)
    return kept, [(kept.mean, kept.var)]


def _pointwise_data(
    ops: Primitives, z: Tensor, w: Tensor, p: Tensor, kept: Memory, g: Tensor, grads: Grads
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of p, of w if wanted, and of z, given that of `out`; arguments as in `_pointwise`."""
    (m, rows, c), edges = g.shape, len(p)
    if rows < c:
        dp, dy = _normed_data(ops, p, kept, g)
        dy = dy.view(z.shape)
        return dp, ops.cross(dy, z) if grads.parameters else None, ops.multiply(dy, w)
    each, of_each = p.repeat_interleave(m // edges), w.repeat_interleave(m // edges, 0)
    dp, dw, dz = ops.normed_linear_data(z.view(g.shape), of_each, each, Moments(*kept), g, grads.sums, grads.parameters)
    dw = None if dw is None else dw.view(edges, -1, c, c).sum(1)
    return dp.view(edges, -1).sum(1), dw, dz.view(z.shape)


class Separable:
    """Depthwise-separable convolutions of one kernel: `dil_conv`, or twice, `sep_conv`."""

    def __init__(self, modules: Sequence[layers.SepConv | layers.DilConv]) -> None:
        """Read the candidates of the edges."""
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
        z = ops.depthwise(x[None], packs[0][None], self.dilation, self.stride)[0]  # (m, G * N, H', W', C)
        if not self.twice:
            kept, stats = _pointwise(ops, z.view(m, -1, c), packs[1].view(m, c, c), p, out, bias)
            return (kept, z), stats
        y = ops.multiply(z.view(m, -1, c), packs[1].view(m, c, c).transpose(1, 2))
        first = ops.batch_norm(y.view(len(out), -1, c))
        second = ops.depthwise(y.view(z.shape), packs[2][:, None], 1, 1)[:, 0]
        kept, stats = _pointwise(ops, second.view(m, -1, c), packs[3].view(m, c, c), p, out, bias)
        return (kept, second, z, y, first[1]), [first, *stats]

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Branch`."""
        m, c = len(p), x.shape[-1]
        last, read, *before = kept
        dp, dw, dz = _pointwise_data(ops, read.view(m, -1, c), packs[-1].view(m, c, c), p, last, g, grads)
        found = [] if dw is None else [dw.view(packs[-1].shape)]
        dz = dz.view(read.shape)
        if self.twice:
            dz, inner = self._first_half(ops, packs, before, dz, grads.parameters)
            found = [*inner, *found]
        if grads.parameters:
            dw = ops.depthwise_weight(x[None], packs[0][None], self.dilation, self.stride, dz[None])
            found = [dw[0], *found]
        if grads.x is not None:
            ops.depthwise_data(x[None], packs[0][None], self.dilation, self.stride, dz[None], grads.x[None])
        return dp, found

    def _first_half(
        self, ops: Primitives, packs: Sequence[Tensor], kept: Sequence[Tensor], dz: Tensor, parameters: bool
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
        groups = (len(var), -1, c)
        ops.batch_norm_data(y.view(groups), var, dy.view(groups))
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

    def _columns(self, packs: Sequence[Tensor]) -> tuple[slice, slice]:
        """Return the channels of the result that either sampling gives."""
        half = packs[0].shape[1]
        return slice(None, half), slice(half, None)

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
        assert len(out) == len(p), "where the stride is 2 there is one group"
        kept = [
            ops.normed_linear(z, w.flatten(2), p, out[..., to], bias[:, to])
            for z, w, to in zip(self._samples(x), packs, self._columns(packs), strict=True)
        ]
        stats = (torch.cat([k.mean for k in kept], 1), torch.cat([k.var for k in kept], 1))
        return tuple(tuple(k) for k in kept), [stats]

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Branch`."""
        n, h, w, c = x.shape
        dp, found = torch.zeros_like(p), []
        for i, (z, to) in enumerate(zip(self._samples(x), self._columns(packs), strict=True)):
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


class Atrous:
    """Full convolutions of one kernel and rate: those of all edges are one convolution of as many channels."""

    def __init__(self, modules: Sequence[layers.AtrousConv | layers.ConvBN]) -> None:
        """Read the candidates of the edges."""
        self.dilation = int(modules[0].conv.dilation[0])
        self.owners: list[list[nn.Module]] = [[m.conv for m in modules]]
        self.names = ["weight"]
        self.norms = [[m.bn for m in modules]]

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], out: Tensor, bias: Tensor
    ) -> tuple[Memory, list[Stats]]:
        """See `Branch`."""
        return _normed(ops, ops.convolve(x, packs[0], self.dilation).view(out.shape), p, out)

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Branch`."""
        dp, dy = _normed_data(ops, p, kept, g)
        dw = ops.convolve_data(x, packs[0], self.dilation, dy.view(len(p), *x.shape), grads.x, grads.parameters)
        return dp, [] if dw is None else [dw]


class Graph(NamedTuple):
    """What torch's own autograd needs to go back through plain candidates."""

    image: Tensor
    results: list[Tensor]  # edge by edge, of each its groups
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
            norm.track_running_stats = not frozen.get()
        with torch.enable_grad():
            image = x.permute(0, 3, 1, 2).clone().requires_grad_()  # what x is a part of is yet to be written to
            # Not with the modules' own weights: others may have been in their places when the cell was computed.
            read = [[pack[e].detach().requires_grad_() for pack in packs] for e in range(len(p))]
            results = [
                torch.func.functional_call(module, dict(zip(self._paths, mine, strict=True)), (group,))
                for module, mine in zip(self.modules, read, strict=True)
                for group in image.chunk(len(out) // len(p))
            ]
        for norm in self._inner:
            norm.track_running_stats = True
        for e, y in enumerate(results):
            out[e] += p[e * len(p) // len(out)] * y.detach().permute(0, 2, 3, 1).reshape(out[e].shape)
        return (Graph(image, results, read),), []

    def backward(
        self, ops: Primitives, x: Tensor, p: Tensor, packs: Sequence[Tensor], kept: Memory, g: Tensor, grads: Grads
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Branch`."""
        image, results, read = kept[0]
        dp, by_edge, groups = [], [], len(g) // len(p)
        for e, weight in enumerate(p):
            mine = read[e] if grads.parameters else []
            made = results[e * groups : (e + 1) * groups]
            n, c, h, w = made[0].shape
            dys = [dy.view(n, h, w, c).permute(0, 3, 1, 2) for dy in g[e * groups : (e + 1) * groups]]
            dp.append(sum((dy * y.detach()).sum() for dy, y in zip(dys, made, strict=True)))
            dx, *dws = torch.autograd.grad(made, [image, *mine], [weight * dy for dy in dys])
            by_edge.append(dws)
            if grads.x is not None:
                grads.x += dx.permute(0, 2, 3, 1)
        return torch.stack(dp), [torch.stack(kind) for kind in zip(*by_edge, strict=True)]


class Shared:
    """What is the same on all edges of a fan: poolings with their BatchNorm, and the identity."""

    def __init__(self, columns: Sequence[int], kinds: Sequence[nn.Module], norms: list[list[nn.BatchNorm2d]]) -> None:
        """Take, for each option that is shared, its column, its pool or an identity; poolings come first."""
        self.columns, self.kinds, self.norms = tuple(columns), kinds, norms
        self.pools = sum(not isinstance(k, nn.Identity) for k in kinds)

    def forward(
        self, ops: Primitives, x: Tensor, p: Tensor, out: Tensor, bias: Tensor
    ) -> tuple[tuple[Tensor, ...], list[Stats]]:
        """Add all terms, weighted by p (edges, terms), and the bias (edges * G, C) to `out` (edges * G, rows, C)."""
        (_, rows, c), groups = out.shape, len(out) // len(p)
        terms = x.new_empty(len(self.kinds), groups * rows, c)
        which: list[Tensor] = []
        for kind, term in zip(self.kinds, terms, strict=True):
            if isinstance(kind, nn.Identity):
                term.copy_(x.reshape(term.shape))
                continue
            stride, shaped = _pooled(kind, x, term)
            if isinstance(kind, layers.MaxPool):
                which.append(ops.max_pool(x, stride, shaped))
            else:
                ops.avg_pool(x, stride, shaped)
        mean = var = bias[:0]
        if self.pools:
            mean, var = ops.batch_norm(terms[: self.pools].view(-1, rows, c))
        if groups == 1:
            ops.combine(p, terms, bias, out)
        else:
            ops.combine(p, terms, bias.new_zeros(len(p), c), out.view(len(p), -1, c))
            out += bias[:, None]
        return (terms, var, *which), [
            (mean[i : i + groups], var[i : i + groups]) for i in range(0, groups * self.pools, groups)
        ]

    def backward(
        self, ops: Primitives, p: Tensor, kept: Sequence[Tensor], g: Tensor, into: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of p and the sums of g over rows, and add that of the state to `into`."""
        terms, var, *which = kept
        dterms, dp, sums = ops.combine_data(p, terms, g.view(len(p), -1, g.shape[2]))
        if len(g) > len(p):
            sums = g.sum(1)
        if into is None:
            return dp, sums
        if self.pools:
            of_one = (len(var), -1, g.shape[2])
            ops.batch_norm_data(terms[: self.pools].view(of_one), var, dterms[: self.pools].view(of_one))
        for kind, term in zip(self.kinds, dterms, strict=True):
            if isinstance(kind, nn.Identity):
                into += term.view(into.shape)
                continue
            stride, shaped = _pooled(kind, into, term)
            if isinstance(kind, layers.MaxPool):
                ops.max_pool_data(shaped, which.pop(0), stride, into)
            else:
                ops.avg_pool_data(shaped, stride, into)
        return dp, sums


def _pooled(pool: nn.Module, x: Tensor, term: Tensor) -> tuple[int, Tensor]:
    """Return the stride of a pooling, and its result (rows, C) as a map (N, H', W', C)."""
    assert isinstance(pool, layers.MaxPool | layers.AvgPool)
    n, h, w, c = x.shape
    return pool.stride, term.view(n, -(-h // pool.stride), -(-w // pool.stride), c)


def branch_of(modules: Sequence[nn.Module]) -> Branch:
    """Return the fused form of a candidate on all edges of a fan."""
    first = modules[0]
    if isinstance(first, nn.Sequential) and len(first) == 2 and isinstance(first[0], layers.ReLU):
        second = [m[1] for m in modules]  # type: ignore[index]
        if isinstance(second[0], layers.SepConv | layers.DilConv) and second[0].attrs["kernel"] in (3, 5):
            return Separable(second)
        if isinstance(second[0], layers.AtrousConv | layers.ConvBN) and not second[0].relu:
            return Atrous(second) if second[0].conv.stride == (1, 1) else Plain(modules)
        if isinstance(second[0], layers.FactorizedReduce):
            return Reduced([m.reduce for m in second])
    return Plain(modules)


def shared_of(modules: Sequence[nn.Module]) -> tuple[nn.Module, list[nn.BatchNorm2d]] | None:
    """Return the pool, or identity, of a candidate that is the same on all edges, and its normalisations."""
    first = modules[0]
    if isinstance(first, nn.Identity):
        return first, []
    pools = isinstance(first, nn.Sequential) and isinstance(first[0], layers.MaxPool | layers.AvgPool)
    if not pools or len(first) != 2 or not isinstance(first[1], layers.BatchNorm):  # type: ignore[arg-type, index]
        return None
    return first[0], [m[1].bn for m in modules]  # type: ignore[index]
