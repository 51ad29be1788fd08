"""Ops, the registry of them, and tracing."""

from hwnas.ops import general, layers, rectangular
from hwnas.ops.mixed import MixedOp
from hwnas.ops.registry import Op, OpSpec, make_op, op, registered_ops
from hwnas.ops.trace import Call, Cost, Term, Trace, trace

__all__ = [
    "Call",
    "Cost",
    "MixedOp",
    "Op",
    "OpSpec",
    "Term",
    "Trace",
    "general",
    "layers",
    "make_op",
    "op",
    "rectangular",
    "registered_ops",
    "trace",
]
