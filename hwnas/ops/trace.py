"""Traces: the op calls of a network with their shapes and gates, recorded on meta tensors without computing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hwnas.ops.registry import Op, OpSpec, Shape, active_tracer
from hwnas.problem import ALWAYS, Gate

INPUT = "image"

# Shapes and arithmetic follow from the spec alone, and a plan traces the same op in hundreds of places.
_SHAPES: dict[tuple[type[Op], OpSpec], tuple[Shape, torch.dtype, Cost]] = {}


@dataclass(frozen=True)
class Term:
    """One op call of a network: what it is and when the derived network has it."""

    spec: OpSpec
    gate: Gate


@dataclass(frozen=True)
class Cost:
    """Arithmetic of one op call: multiply-adds of convolutions and linear layers, and bytes read and written."""

    macs: int
    bytes: int


@dataclass
class Call:
    """One op call in the order of computation.

    Attributes:
        spec: What is computed.
        gate: When; widened in place when an identical call is merged into this one.
        inputs: Names of the values read.
        output: Name of the value made.
        out_shape: Its shape.
        cost: Its arithmetic.
        name: Dotted path of the module in the network.
        module: The op itself, for its weights.
    """

    spec: OpSpec
    gate: Gate
    inputs: tuple[str, ...]
    output: str
    out_shape: Shape
    cost: Cost
    name: str
    module: Op = field(repr=False)


@dataclass(frozen=True)
class Trace:
    """All op calls of one network.

    Attributes:
        calls: In the order of computation; a graph in single-assignment form if nothing is mixed.
        inputs: Shape of each input by name, (N, C, H, W); a network has one, ``"image"``.
        outputs: Names of the results; a network has one.
        mixed: Whether some decision is open, so that `calls` lists alternatives.
    """

    calls: tuple[Call, ...]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    mixed: bool

    @property
    def output(self) -> str:
        """Name of a network's result."""
        (name,) = self.outputs
        return name

    @property
    def input_shape(self) -> Shape:
        """(N, C, H, W) of a network's image."""
        return self.inputs[INPUT]

    def before_last(self) -> Trace:
        """Return the same network without its last call; its result is what that call read."""
        *calls, last = self.calls
        assert (last.output,) == self.outputs, "the last call makes the one result"
        return replace(self, calls=tuple(calls), outputs=last.inputs)

    def terms(self) -> list[Term]:
        """Return what `hwnas.latency` prices."""
        return [Term(c.spec, c.gate) for c in self.calls]

    def cost(self) -> Cost:
        """Return the arithmetic of all calls."""
        return Cost(sum(c.cost.macs for c in self.calls), sum(c.cost.bytes for c in self.calls))


class Tracer:
    """Records op calls while a network runs on meta tensors."""

    def __init__(self, names: Mapping[nn.Module, str], merge: bool) -> None:
        """Start an empty trace; `names` gives the module paths, `merge` whether identical pure calls are one."""
        self.calls: list[Call] = []
        self.mixed = False
        self._names = names
        self._merge = merge
        self._gate = ALWAYS
        self._values: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept so that its id stays its own
        self._pure: dict[tuple[OpSpec, tuple[str, ...]], tuple[Call, Tensor]] = {}

    def value(self, shape: Shape, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Make a tensor that stands for the value `name`."""
        t = torch.empty(shape, device="meta", dtype=dtype)
        self._values[id(t)] = (name, t)
        return t

    def name_of(self, t: Tensor) -> str:
        """Return the name of a value; every value comes from the input or from an op."""
        assert id(t) in self._values, "a tensor was made outside of any Op; wrap that computation in one"
        return self._values[id(t)][0]

    def record(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        """Record one call and return its output value."""
        names = tuple(self.name_of(t) for t in inputs)
        spec = op.spec(tuple(tuple(t.shape) for t in inputs))
        if self._merge and op.pure and (spec, names) in self._pure:
            call, out = self._pure[spec, names]
            call.gate = call.gate | self._gate
            return out
        if (type(op), spec) not in _SHAPES:
            _SHAPES[type(op), spec] = _measure_shape(op, inputs)
        shape, dtype, cost = _SHAPES[type(op), spec]
        output = f"v{len(self.calls)}"
        call = Call(spec, self._gate, names, output, shape, cost, self._names.get(op, op.kind), op)
        self.calls.append(call)
        out = self.value(shape, output, dtype)
        if op.pure:
            self._pure[spec, names] = (call, out)
        return out

    @contextmanager
    def gated(self, gate: Gate) -> Iterator[None]:
        """Record calls as present only where `gate` holds too."""
        outer, self._gate = self._gate, self._gate & gate
        self.mixed = True
        try:
            yield
        finally:
            self._gate = outer

    def join(self, like: Tensor) -> Tensor:
        """Return a value that stands for whichever alternative was chosen; all have the shape of `like`."""
        return self.value(tuple(like.shape), f"join{len(self._values)}")


def trace(network: nn.Module, input_shape: Shape, merge: bool = True) -> Trace:
    """List the op calls of a network's real forward pass.

    Args:
        network: Built by a space, on any device; its parameters are not read. ``network(image)`` is run with ops that
            record their calls, so the real forward pass is traced.
        input_shape: (N, C, H, W).
        merge: Whether identical calls of ops without parameters count once, as engines with graph optimisation do;
            False for eager PyTorch.
    """
    return trace_calls(network, {INPUT: input_shape}, merge, {m: n for n, m in network.named_modules()})


def trace_calls(
    forward: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Mapping[str, Shape],
    merge: bool = True,
    names: Mapping[nn.Module, str] = {},
) -> Trace:
    """List the op calls that `forward` makes on tensors of these shapes.

    Args:
        forward: Takes one tensor per input, in their order, computes with ops alone, and returns one or several.
        inputs: Shapes by name.
        merge: See `trace`.
        names: Of the modules; ops without one are called by their kind.
    """
    tracer = Tracer(names, merge)
    token = active_tracer.set(tracer)
    try:
        result = forward(*(tracer.value(shape, name) for name, shape in inputs.items()))
    finally:
        active_tracer.reset(token)
    results = (result,) if isinstance(result, Tensor) else result
    return Trace(tuple(tracer.calls), dict(inputs), tuple(tracer.name_of(t) for t in results), tracer.mixed)


def _measure_shape(op: Op, inputs: Sequence[Tensor]) -> tuple[Shape, torch.dtype, Cost]:
    """Run one op on meta tensors for its output shape, and count its arithmetic on the way."""
    macs = 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Every weight is used once per output position; a linear layer has one position.
        macs += weight.numel() * out.shape[0] * (out[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    token = active_tracer.set(None)
    leaves = [m for m in op.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(count) for m in leaves]
    training = op.training
    try:
        op.eval()  # BatchNorm of a 1x1 map has no batch statistics, and a trace must not update running ones
        state = {k: torch.empty_like(v, device="meta") for k, v in op.state_dict().items()}
        with torch.no_grad():
            out = torch.func.functional_call(op, state, tuple(torch.empty_like(t, device="meta") for t in inputs))
    finally:
        op.train(training)
        active_tracer.reset(token)
        for h in hooks:
            h.remove()
    moved = sum(t.numel() * t.element_size() for t in (*inputs, out))
    weights = sum(p.numel() * p.element_size() for p in op.parameters())
    return tuple(out.shape), out.dtype, Cost(macs, moved + weights)
