"""What an op costs inside a network: measured between neighbours, less what the neighbours take.

An op alone pays for things it does not pay in a network: the overhead of a run, and the conversion of layouts at its
borders. So each op is measured between convolutions (``source -> op -> sink``), and so are its neighbours alone, for
every shape there is: once (``one``), twice in a row (``two``), and one source read by two sinks (``fork``). Let
``pair`` be what a source and a sink cost, ``enter`` what a run pays at an input and ``leave`` at a result:

    one = enter + pair + leave,    two = enter + 2 pair + leave,    fork = enter + 1.5 pair + 2 leave
    op = T(source -> op -> sink) - enter(input) - leave(output) - pair(input) / 2 - pair(output) / 2

A source costs what a sink of the same shape costs: both are 1x1 convolutions with the same arithmetic.

Engines merge an op into the convolution before it, unless others read what that convolution makes: where this is so in
networks, a second sink reads the input of the op here.
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
COMMON = 0.5  # how likely something must be to be the case that is measured

Form = Literal["one", "two", "fork"]
# The three equations above, solved.
_PAIR: Mapping[Form, float] = {"two": 1.0, "one": -1.0}
_ENTER: Mapping[Form, float] = {"one": 2.5, "two": -0.5, "fork": -1.0}
_LEAVE: Mapping[Form, float] = {"fork": 1.0, "one": -0.5, "two": -0.5}


@dataclass(frozen=True)
class Context:
    """Where an op stands in its network, as far as its neighbours go.

    Attributes:
        spec: The op.
        out_shape: Of its result.
        source: Whether something comes before it; not so if it reads the network's input.
        sink: Whether something comes after it that a convolution can stand for; not so if it makes the network's
            result.
        shared: Whether an engine cannot merge it into what comes before it, because that is no convolution or others
            read its result too.
        ending: The op that comes after it and makes the network's result, in place of a sink: layouts at the end of a
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

        Sources of inputs of one size come one after the other, with a sink between them, so that only the first reads
        an input of the run.
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
    def taken(self) -> list[tuple[Shape, Mapping[Form, float], float]]:
        """What the neighbours and a run around the op cost: shape, formula and how many times."""
        out = [(shape, _PAIR, n / 2) for shape, n in self.neighbours.items()]
        results = ([self.out_shape] if self.sink else []) + ([self.spec.in_shapes[-1]] if self.shared else [])
        ends = [(size, _ENTER) for size in self.sizes] + [(shape[2:], _LEAVE) for shape in results]
        for size, formula in ends:
            shapes = [s for s in self.neighbours if s[2:] == size]  # what a run pays depends on the size alone
            out += [(shape, formula, 1 / len(shapes)) for shape in shapes]
        # Each enter has the overhead of a run, which is there once: that of a map too small to cost anything else.
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

        given = [(1, NEIGHBOUR_CHANNELS, *size) for size in self.sizes] if self.source else list(shapes)
        return trace_calls(forward, {f"x{i}": s for i, s in enumerate(given)})


def contexts(traces: Sequence[Trace], chances: Sequence[Sequence[float]]) -> dict[OpSpec, Context]:
    """Return the context of each unique op of some networks: neighbours as at its first call.

    Only maps (N, C, H, W) have neighbours: convolutions stand for what comes before and after. Whether an input is
    shared is what most calls have.

    Args:
        traces: Of the networks.
        chances: For each trace and each of its calls, how likely it is that the derived network has it.
    """
    out: dict[OpSpec, Context] = {}
    votes: dict[OpSpec, float] = {}
    for trace, present in zip(traces, chances, strict=True):
        last = next(c for c in trace.calls if c.output == trace.output)
        made = {c.output: c for c in trace.calls}
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
            shared = _shared(made.get(read), 1 - none) if after_conv is None else not after_conv
            votes[call.spec] = votes.get(call.spec, 0.0) + (p if shared else -p)
    for spec, vote in votes.items():
        if vote > 0 and out[spec].source and out[spec].sink:
            out[spec] = replace(out[spec], shared=True)
    return out


def _shared(maker: Call | None, others: float) -> bool:
    """Tell whether an op cannot be merged into what makes its input.

    Args:
        maker: Of the input; None if it is the image, or one of several alternatives.
        others: How likely it is that others read the input too.
    """
    if maker is None:
        return False
    return others >= COMMON or not has_weights(maker.module)


def _again(shapes: Sequence[Shape], i: int) -> bool:
    """Tell whether a later input has the size of input i."""
    return any(s[2:] == shapes[i][2:] for s in shapes[i + 1 :])


def _sink(shape: Shape) -> nn.Module:
    # Of a whole map most time would go into converting its layout for the caller; of its mean, none.
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


def parts(context: Context, known: Mapping[OpSpec, Context]) -> dict[Context | Boundary, float]:
    """Return what the price of an op is made up from: it is the sum of weight times latency over these.

    Args:
        context: The op.
        known: Contexts of all ops, for that of its ending.

    Returns:
        Weights, that of the context first.
    """
    out: dict[Context | Boundary, float] = {context: 1.0}
    for shape, formula, times in context.taken:
        for form, weight in formula.items():
            boundary = Boundary(shape, form)
            out[boundary] = out.get(boundary, 0.0) - times * weight
    if context.ending is not None:  # less the price of that op, as it stands at the end with a source of its own
        for part, weight in parts(known[context.ending], known).items():
            out[part] = out.get(part, 0.0) - weight
    return {part: weight for part, weight in out.items() if abs(weight) > 1e-9}


def price(weights: Mapping[str, float], took_ms: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Return what an op costs in a network.

    Args:
        weights: See `parts`, by key.
        took_ms: Latency and half-width of its interval of each entry, by key.

    Returns:
        Milliseconds, never negative, and the half-width of their interval.
    """
    # One entry may stand at several borders: its error counts with the sum of its weights.
    price_ms = sum(weight * took_ms[key][0] for key, weight in weights.items())
    half_ms = math.hypot(*(weight * took_ms[key][1] for key, weight in weights.items()))
    return max(0.0, price_ms), half_ms
