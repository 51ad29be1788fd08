"""Ops: the unit that is profiled, priced, searched, trained and exported, defined once and imported everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from hwnas.errors import unknown

if TYPE_CHECKING:
    from hwnas.ops.trace import Tracer

Scalar = int | float | bool | str
Shape = tuple[int, ...]

active_tracer: ContextVar[Tracer | None] = ContextVar("active_tracer", default=None)


@dataclass(frozen=True)
class OpSpec:
    """What is measured: a kind of op, its attributes and the shapes it reads.

    Attributes:
        kind: Name in the registry: ``"sep_conv"``.
        attrs: Constructor arguments as sorted pairs.
        in_shapes: Of each input, (N, C, H, W).
    """

    kind: str
    attrs: tuple[tuple[str, Scalar], ...]
    in_shapes: tuple[Shape, ...]

    @property
    def key(self) -> str:
        """The one text that names the spec, e.g. ``relu()@1x16x45x60``."""
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs)
        return f"{self.kind}({attrs})@" + ";".join("x".join(map(str, s)) for s in self.in_shapes)


class Op(nn.Module):
    """Base of all ops. A subclass passes its constructor arguments to this constructor, by name.

    Class attributes:
        kind: Name in the registry, set by `op`.
        pure: Whether it has no parameters and no state, so that two on one input are the same computation.
        convolves: Whether the last thing it does is a convolution, if it has no ``relu``.
    """

    kind: ClassVar[str]
    pure: ClassVar[bool] = False
    convolves: ClassVar[bool] = False

    def __init__(self, **attrs: Scalar) -> None:
        """Keep the attributes that, with the kind and the input shapes, say what this op is."""
        super().__init__()
        self.attrs = attrs

    def spec(self, in_shapes: tuple[Shape, ...]) -> OpSpec:
        """Return what would be measured for inputs of these shapes."""
        return OpSpec(self.kind, tuple(sorted(self.attrs.items())), in_shapes)

    @property
    def ends_in_conv(self) -> bool:
        """Whether a convolution makes its result: engines merge a sum with something else into that."""
        return self.convolves and not self.attrs.get("relu", False)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Compute, or be recorded where a trace is active."""
        # torch.compile cannot read a context variable, and nothing is traced while it compiles.
        tracer = None if torch.compiler.is_compiling() else active_tracer.get()
        out: Tensor = super().__call__(*inputs) if tracer is None else tracer.record(self, inputs)
        return out


OpClass = TypeVar("OpClass", bound=type[Op])
_OPS: dict[str, type[Op]] = {}


def op(kind: str, pure: bool = False, convolves: bool = False) -> Callable[[OpClass], OpClass]:
    """Register an `Op` class under a name; tests are parametrised over the registry."""

    def register(cls: OpClass) -> OpClass:
        assert kind not in _OPS, f"two ops are called {kind}"
        cls.kind, cls.pure, cls.convolves = kind, pure, convolves
        _OPS[kind] = cls
        return cls

    return register


def registered_ops() -> Mapping[str, type[Op]]:
    """Return all ops by name."""
    return dict(_OPS)


def make_op(kind: str, attrs: Mapping[str, Any]) -> Op:
    """Build an op from a spec's kind and attributes.

    Raises:
        HwnasError: If the kind is unknown.
    """
    if kind not in _OPS:
        raise unknown("op", kind, _OPS)
    return _OPS[kind](**attrs)
