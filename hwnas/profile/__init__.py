"""Profiling: plan what a space needs measured, and build the latency table from the results."""

from hwnas.profile.build import build_table
from hwnas.profile.context import Boundary, Context, contexts, parts
from hwnas.profile.derived import add_derived
from hwnas.profile.networks import Calibration, choose_networks
from hwnas.profile.plan import PlanWriter, likely, make_plan, trace_entry

__all__ = [
    "Boundary",
    "Calibration",
    "Context",
    "PlanWriter",
    "add_derived",
    "build_table",
    "choose_networks",
    "contexts",
    "likely",
    "make_plan",
    "parts",
    "trace_entry",
]
