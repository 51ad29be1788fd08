"""Latency: tables of measured ops, and the expected latency of a network whose decisions are open."""

from hwnas.latency.calibrate import Correction, conformal, errors, fit, select
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable, NetRow, OpRow
from hwnas.latency.validation import calibrate, predict_ms, predictors

__all__ = [
    "Correction",
    "LatencyModel",
    "LatencyTable",
    "NetRow",
    "OpRow",
    "calibrate",
    "conformal",
    "errors",
    "fit",
    "predict_ms",
    "predictors",
    "select",
]
