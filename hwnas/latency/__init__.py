"""Latency: tables of measured ops, and the expected latency of a network whose decisions are open."""

from hwnas.latency.calibrate import Correction, fit, select
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable, NetRow, OpRow

__all__ = ["Correction", "LatencyModel", "LatencyTable", "NetRow", "OpRow", "fit", "select"]
