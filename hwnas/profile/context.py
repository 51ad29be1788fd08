"""What an op costs inside a network: measured between two neighbours, less what the neighbours take.

An op alone pays for things it does not pay in a network: the overhead of a run, and the conversion of layouts at its
borders. So each op is measured between convolutions (``source -> op -> sink``), and two neighbours alone
(``source -> sink``), once and twice in a row, for every shape there is. With ``T1`` and ``T2`` of these,
``pair = T2 - T1`` is what a source and a sink cost, ``run = T1 - pair`` what a run costs, and

    op = T(source -> op -> sink) - run - pair(input) / 2 - pair(output) / 2

which is exact where a source costs what a sink of the same shape costs: both are 1x1 convolutions with the same
arithmetic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.ops.layers import ConvBN
from hwnas.ops.registry import Op, OpSpec, Shape, make_op
from hwnas.ops.trace import INPUT, Trace, trace_calls

NEIGHBOUR_CHANNELS = 16  # enough to fill a vector register, few enough to be cheap


@dataclass(frozen=True)
class Context:
    """Where an op stands in its network, as far as its neighbours go.

    Attributes:
        spec: The op.
        out_shape: Of its result.
        source: Whether something comes before it; not so if it reads the network's input.
        sink: Whether something comes after it that a convolution can stand for; not so if it makes the network's
            result.
        ending: The op that comes after it and makes the network's result, in place of a sink: layouts at the end of a
            network are those that the result needs.
    """

    spec: OpSpec
    out_shape: Shape
    source: bool
    sink: bool
    ending: OpSpec | None = None

    @property
    def key(self) -> str:
        """Name of its entry in a plan."""
        return f"context/{self.spec.key}"

    @property
    def borders(self) -> list[tuple[Shape, float]]:
        """Shape of each border to a neighbour, and how many pairs of neighbours stand there: 0.5 is a single one.

        Sources of inputs of one size come one after the other, with a sink between them, so that only the first reads
        an input of the run.
        """
        last = {s[2:]: i for i, s in enumerate(self.spec.in_shapes)}
        inputs = [(s, 0.5 if last[s[2:]] == i else 1.0) for i, s in enumerate(self.spec.in_shapes)]
        return (inputs if self.source else []) + ([(self.out_shape, 0.5)] if self.sink else [])

    def trace(self) -> Trace:
        """Return the op between its neighbours: the last call, or the last but one if a sink or an ending follows."""
        shapes = self.spec.in_shapes
        with torch.device("meta"):
            op = make_op(self.spec.kind, dict(self.spec.attrs))
            sources = [ConvBN(NEIGHBOUR_CHANNELS, s[1]) for s in shapes] if self.source else []
            between = [ConvBN(s[1], NEIGHBOUR_CHANNELS) for s in shapes] if self.source else []
            after: Op | None = ConvBN(self.out_shape[1], NEIGHBOUR_CHANNELS) if self.sink else None
            if self.ending is not None:
                after = make_op(self.ending.kind, dict(self.ending.attrs))
        sizes = list(dict.fromkeys(s[2:] for s in shapes))

        def forward(*xs: Tensor) -> Tensor:
            narrow, inputs = dict(zip(sizes, xs, strict=True)) if sources else {}, list(xs)
            for i, source in enumerate(sources):
                size = shapes[i][2:]
                inputs[i:] = [source(narrow[size])]
                if any(s[2:] == size for s in shapes[i + 1 :]):
                    narrow[size] = between[i](inputs[i])
            y: Tensor = op(*inputs)
            return y if after is None else after(y)

        given = [(1, NEIGHBOUR_CHANNELS, *size) for size in sizes] if self.source else list(shapes)
        return trace_calls(forward, {f"x{i}": s for i, s in enumerate(given)})


def contexts(traces: Sequence[Trace]) -> dict[OpSpec, Context]:
    """Return the context of each unique op of some networks: that of its first call.

    Only maps (N, C, H, W) have neighbours: convolutions stand for what comes before and after.
    """
    out: dict[OpSpec, Context] = {}
    for trace in traces:
        last = next(c for c in trace.calls if c.output == trace.output)
        readers = Counter(name for c in trace.calls for name in c.inputs)
        for call in trace.calls:
            if call.spec not in out:
                source = INPUT not in call.inputs and all(len(s) == 4 for s in call.spec.in_shapes)
                ending = last.spec if last.inputs == (call.output,) and readers[call.output] == 1 else None
                sink = ending is None and call is not last and len(call.out_shape) == 4
                out[call.spec] = Context(call.spec, call.out_shape, source, sink, ending)
    return out


def context_of(calls: Sequence[tuple[OpSpec, Shape]], key: str) -> Context:
    """Return the context that a list of calls is the trace of.

    Args:
        calls: Spec and output shape of each, in order.
        key: Of the context.
    """
    index = len(calls) - 1
    if index > 0 and f"context/{calls[index - 1][0].key}" == key:
        index -= 1
    spec, out_shape = calls[index]
    if index == len(calls) - 1:
        return Context(spec, out_shape, index > 0, sink=False)
    after = calls[-1][0]
    with torch.device("meta"):
        sink = ConvBN(out_shape[1], NEIGHBOUR_CHANNELS) if len(out_shape) == 4 else None
    is_sink = sink is not None and after == sink.spec((out_shape,))
    return Context(spec, out_shape, index > 0, is_sink, None if is_sink else after)


def boundary_key(shape: Shape, pairs: int) -> str:
    """Return the name of the entry of so many pairs of neighbours in a row."""
    return f"boundary/{pairs}/" + "x".join(map(str, shape))


def boundary_trace(shape: Shape, pairs: int) -> Trace:
    """Return so many pairs of a source and a sink of `shape` in a row."""
    with torch.device("meta"):
        steps: list[Op] = []
        for _ in range(pairs):
            steps += [ConvBN(NEIGHBOUR_CHANNELS, shape[1]), ConvBN(shape[1], NEIGHBOUR_CHANNELS)]

    def forward(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return trace_calls(forward, {"x0": _narrow(shape)})


def _narrow(shape: Shape) -> Shape:
    return (shape[0], NEIGHBOUR_CHANNELS, *shape[2:])


def price(context: Context, took_ms: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Return what an op costs in a network.

    Args:
        context: The op.
        took_ms: Latency and half-width of its interval of each entry, by key: that of the context, of its boundaries
            and of its ending.

    Returns:
        Milliseconds, never negative, and the half-width of their interval.
    """
    weights = _weights(context)
    # One entry may stand at several borders: its error counts with the sum of its weights.
    price_ms = sum(weight * took_ms[key][0] for key, weight in weights.items())
    half_ms = math.hypot(*(weight * took_ms[key][1] for key, weight in weights.items()))
    return max(0.0, price_ms), half_ms


def _weights(context: Context) -> dict[str, float]:
    """Return how the price of an op is made up from what entries took."""
    weights = {context.key: 1.0}
    # An op at an end of the network has one neighbour, and only that end of a run is known.
    ends = 1.0 if context.source and context.sink else 0.5
    for shape, pairs in context.borders:
        run = ends / len(context.borders)  # the run is the mean over the borders: 2 T1 - T2 of each
        for key, weight in ((boundary_key(shape, 1), pairs - 2 * run), (boundary_key(shape, 2), run - pairs)):
            weights[key] = weights.get(key, 0.0) + weight
    if context.ending is not None:  # less the price of that op, as it stands at the end with a source of its own
        last = Context(context.ending, (), len(context.out_shape) == 4, sink=False)
        for key, weight in _weights(last).items():
            weights[key] = weights.get(key, 0.0) - weight
    return weights


def needed_entries(context: Context) -> list[str]:
    """Return the keys of all entries that the price of an op is made up from, that of its context first."""
    return list(_weights(context))
