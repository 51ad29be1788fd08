"""What an op costs inside a network: measured in context, between two 1x1 convolutions whose latency is subtracted.

An op measured alone includes costs that it does not have in a network: the overhead of a run, and the conversion of
layouts at its borders. So each op is measured between convolutions (``source -> op -> sink``), and for each shape the
neighbours are measured alone: once (``one``), twice in a row (``two``), one source read by two sinks (``fork``). Let
``pair`` be the latency of a source and a sink, ``enter`` the overhead at an input and ``leave`` that at a result:

    one = enter + pair + leave,    two = enter + 2 pair + leave,    fork = enter + 1.5 pair + 2 leave
    op = T(source -> op -> sink) - enter(input) - leave(output) - pair(input) / 2 - pair(output) / 2

A source costs what a sink of the same shape costs: both are 1x1 convolutions with the same arithmetic.

Engines fuse an op into the convolution before it, unless the result of that convolution has other readers. Where it has
some in networks, a second sink reads the input of the op here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hwnas.ops.layers import ConvBN, GlobalPool
from hwnas.ops.onnx_graph import has_weights
from hwnas.ops.registry import OpSpec, Shape, make_op
from hwnas.ops.trace import INPUT, Call, Trace, trace_calls

NEIGHBOUR_CHANNELS = 16  # enough to fill a vector register, few enough to be cheap
TINY: Shape = (1, NEIGHBOUR_CHANNELS, 1, 1)
COMMON = 0.5  # probability from which on a case counts as the usual one, which is measured

Form = Literal["one", "two", "fork"]
# The three equations above, solved.
_PAIR: Mapping[Form, float] = {"two": 1.0, "one": -1.0}
_ENTER: Mapping[Form, float] = {"one": 2.5, "two": -0.5, "fork": -1.0}
_LEAVE: Mapping[Form, float] = {"fork": 1.0, "one": -0.5, "two": -0.5}


@dataclass(frozen=True)
class Context:
    """The neighbours of an op in its network.

    Attributes:
        spec: The op.
        out_shape: Of its result.
        source: Whether a convolution stands for the op before it; not if it reads the image.
        sink: Whether a convolution stands for the op after it; not if it gives the result of the network.
        shared: Whether an engine cannot fuse it into the op before it, because that is no convolution or its result has
            other readers.
        ending: The op after it that gives the result of the network, in place of a sink: layouts at the end of a
            network are those that the result needs.
    """

    spec: OpSpec
    out_shape: Shape
    source: bool
    sink: bool
    shared: bool = False
    ending: OpSpec | None = None

    @property
    def key(self) -> str:
        """Name of its entry in a plan."""
        return f"context/{self.spec.key}"

    @property
    def sizes(self) -> list[Shape]:
        """(height, width) of each input of the run, if there are sources.

        Sources of one size are chained, with a sink between them, so that only the first reads an input of the run.
        """
        return list(dict.fromkeys(s[2:] for s in self.spec.in_shapes)) if self.source else []

    @property
    def neighbours(self) -> Counter[Shape]:
        """How many sources and sinks there are of each shape."""
        out: Counter[Shape] = Counter()
        if self.source:
            shapes = self.spec.in_shapes
            out.update(shapes)
            out.update(s for i, s in enumerate(shapes) if _again(shapes, i))
        if self.shared:
            out[self.spec.in_shapes[-1]] += 1
        if self.sink:
            out[self.out_shape] += 1
        return out

    @property
    def overheads(self) -> list[tuple[Shape, Mapping[Form, float], float]]:
        """What is to be subtracted for neighbours and run: shape, formula and how many times."""
        out = [(shape, _PAIR, n / 2) for shape, n in self.neighbours.items()]
        results = ([self.out_shape] if self.sink else []) + ([self.spec.in_shapes[-1]] if self.shared else [])
        ends = [(size, _ENTER) for size in self.sizes] + [(shape[2:], _LEAVE) for shape in results]
        for size, formula in ends:
            shapes = [s for s in self.neighbours if s[2:] == size]  # the overhead depends on the size alone
            out += [(shape, formula, 1 / len(shapes)) for shape in shapes]
        # Each `enter` includes the overhead of a run, which occurs once; that of a tiny map is nothing else.
        return out + [(TINY, _ENTER, -1.0)] * (len(self.sizes) - 1)

    def trace(self) -> Trace:
        """Return the op between its neighbours."""
        shapes = self.spec.in_shapes
        with torch.device("meta"):
            op = make_op(self.spec.kind, dict(self.spec.attrs))
            sources = [ConvBN(NEIGHBOUR_CHANNELS, s[1]) for s in shapes] if self.source else []
            between = [ConvBN(s[1], NEIGHBOUR_CHANNELS) for s in shapes] if self.source else []
            after: nn.Module = _sink(self.out_shape) if self.sink else nn.Identity()
            if self.ending is not None:
                after = make_op(self.ending.kind, dict(self.ending.attrs))
            reader = _sink(shapes[-1]) if self.shared else None

        def forward(*xs: Tensor) -> list[Tensor]:
            narrow, inputs = dict(zip(self.sizes, xs, strict=True)) if sources else {}, list(xs)
            for i, source in enumerate(sources):
                size = shapes[i][2:]
                inputs[i:] = [source(narrow[size])]
                if _again(shapes, i):
                    narrow[size] = between[i](inputs[i])
            return [after(op(*inputs))] + ([] if reader is None else [reader(inputs[-1])])

        in_shapes = [(1, NEIGHBOUR_CHANNELS, *size) for size in self.sizes] if self.source else list(shapes)
        return trace_calls(forward, {f"x{i}": s for i, s in enumerate(in_shapes)})


def contexts(traces: Sequence[Trace], chances: Sequence[Sequence[float]]) -> dict[OpSpec, Context]:
    """Return the context of each unique op of some networks, with the neighbours of its first call.

    Only maps (N, C, H, W) have neighbours, for which convolutions stand. Whether its input is shared is decided by the
    majority of its calls, weighted by their probability.

    Args:
        traces: Of the networks.
        chances: For each trace the probability of each of its calls to be in the derived network.
    """
    out: dict[OpSpec, Context] = {}
    votes: dict[OpSpec, float] = {}
    for trace, present in zip(traces, chances, strict=True):
        last = next(c for c in trace.calls if c.output == trace.output)
        producers = {c.output: c for c in trace.calls}
        readers: dict[str, dict[str, float]] = {}
        for call, p in zip(trace.calls, present, strict=True):
            for name in call.inputs:
                readers.setdefault(name, {})[call.output] = p
        for call, p in zip(trace.calls, present, strict=True):
            if call.spec not in out:
                source = INPUT not in call.inputs and all(len(s) == 4 for s in call.spec.in_shapes)
                ending = last.spec if last.inputs == (call.output,) and len(readers[call.output]) == 1 else None
                sink = ending is None and call is not last and len(call.out_shape) == 4
                out[call.spec] = Context(call.spec, call.out_shape, source, sink, ending=ending)
            read = call.inputs[-1]
            none = math.prod(1 - other for name, other in readers[read].items() if name != call.output)
            after_conv = dict(call.spec.attrs).get("after_conv")
            shared = _shared(producers.get(read), 1 - none) if after_conv is None else not after_conv
            votes[call.spec] = votes.get(call.spec, 0.0) + (p if shared else -p)
    for spec, vote in votes.items():
        if vote > 0 and out[spec].source and out[spec].sink:
            out[spec] = replace(out[spec], shared=True)
    return out


def _shared(producer: Call | None, reading: float) -> bool:
    """Tell whether an op cannot be fused into the op that gives its input.

    Args:
        producer: Of the input; None if it is the image, or one of several alternatives.
        reading: Probability that another op reads the input too.
    """
    if producer is None:
        return False
    return reading >= COMMON or not has_weights(producer.module)


def _again(shapes: Sequence[Shape], i: int) -> bool:
    """Tell whether a later input has the size of input i."""
    return any(s[2:] == shapes[i][2:] for s in shapes[i + 1 :])


def _sink(shape: Shape) -> nn.Module:
    # With a whole map as result, most time would go into converting its layout for the caller; with its mean, none.
    return nn.Sequential(ConvBN(shape[1], NEIGHBOUR_CHANNELS), GlobalPool())


@dataclass(frozen=True)
class Boundary:
    """Neighbours alone: a source and a sink, two pairs of them in a row, or one source that two sinks read."""

    shape: Shape
    form: Form

    @property
    def key(self) -> str:
        """Name of its entry in a plan."""
        return f"boundary/{self.form}/" + "x".join(map(str, self.shape))

    def trace(self) -> Trace:
        """Return the neighbours."""
        shape = self.shape
        with torch.device("meta"):
            source, another = (ConvBN(NEIGHBOUR_CHANNELS, shape[1]) for _ in range(2))
            between = ConvBN(shape[1], NEIGHBOUR_CHANNELS)
            sinks = [_sink(shape) for _ in range(1 + (self.form == "fork"))]

        def forward(x: Tensor) -> list[Tensor]:
            x = source(x)
            if self.form == "two":
                x = another(between(x))
            return [sink(x) for sink in sinks]

        return trace_calls(forward, {"x0": (shape[0], NEIGHBOUR_CHANNELS, *shape[2:])})


def parts(context: Context, contexts_of: Mapping[OpSpec, Context]) -> dict[Context | Boundary, float]:
    """Return the entries that the price of an op is a weighted sum of.

    Args:
        context: The op.
        contexts_of: Contexts of all ops, for that of its ending.

    Returns:
        Weights, that of the context first.
    """
    out: dict[Context | Boundary, float] = {context: 1.0}
    for shape, formula, times in context.overheads:
        for form, weight in formula.items():
            boundary = Boundary(shape, form)
            out[boundary] = out.get(boundary, 0.0) - times * weight
    if context.ending is not None:  # less the price of that op, which is measured with a source of its own
        for part, weight in parts(contexts_of[context.ending], contexts_of).items():
            out[part] = out.get(part, 0.0) - weight
    return {part: weight for part, weight in out.items() if abs(weight) > 1e-9}


def price(weights: Mapping[str, float], latencies_ms: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Return what an op costs in a network.

    Args:
        weights: What `parts` returns, by key.
        latencies_ms: Latency and half-width of its interval of each entry, by key.

    Returns:
        Milliseconds, never negative, and the half-width of their interval.
    """
    # `parts` has summed the weights of an entry that is used several times, so its error counts with that sum.
    price_ms = sum(weight * latencies_ms[key][0] for key, weight in weights.items())
    half_ms = math.hypot(*(weight * latencies_ms[key][1] for key, weight in weights.items()))
    return max(0.0, price_ms), half_ms
