"""Profiling: plan what a space needs measured, and build the latency table from the results."""

from hwnas.profile.again import plan_again
from hwnas.profile.build import build_table, ops_of
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
    "ops_of",
    "parts",
    "plan_again",
    "trace_entry",
]
