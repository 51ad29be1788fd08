"""Multiply-adds and parameters, priced like latency: the same gates, loss and solver in other units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwnas.errors import HwnasError, unknown
from hwnas.latency.calibrate import Correction
from hwnas.ops.registry import OpSpec
from hwnas.ops.trace import Call, Trace

RESOURCES = ("macs", "params")


@dataclass
class Counts:
    """What each op counts of a resource: takes the place of a `LatencyTable` in a `LatencyModel`.

    The milliseconds of that model are then a count, which is exact: it needs no correction and has no error.

    Attributes:
        resource: One of `RESOURCES`: multiply-adds of convolutions and linear layers, as `Trace.cost` counts them
            (FLOPs are twice as many), or trained numbers, as ``sum(p.numel() for p in net.parameters())`` counts them.
        amounts: By spec.
        correction: None is needed.
    """

    resource: str
    amounts: Mapping[OpSpec, float]
    correction: Correction = field(default_factory=Correction)

    @classmethod
    def of(cls, trace: Trace, resource: str) -> Counts:
        """Count all ops of a trace.

        Args:
            trace: Of the deploy form, mixed or of one network. Every parameter lies in an op; ops that are merged with
                others have none.
            resource: One of `RESOURCES`.

        Raises:
            HwnasError: If there is no such resource, or two calls share parameters, which would count twice.
        """
        if resource not in RESOURCES:
            raise unknown("resource", resource, RESOURCES)
        modules = [id(c.module) for c in trace.calls if not c.module.pure]
        if resource == "params" and len(set(modules)) != len(modules):
            raise HwnasError("parameters cannot be counted by op: two calls of this network share theirs")
        return cls(resource, {c.spec: float(_amount(c, resource)) for c in trace.calls})

    def __getitem__(self, spec: OpSpec) -> float:
        """Return the count of one op."""
        return self.amounts[spec]


def _amount(call: Call, resource: str) -> int:
    return call.cost.macs if resource == "macs" else sum(p.numel() for p in call.module.parameters())
