"""How well a table predicts networks it was not fitted on, beside simpler predictors on the same networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwnas.latency.calibrate import Correction, conformal, errors, fit
from hwnas.latency.table import LatencyTable, NetRow

Predictor = Callable[[NetRow], float]


def predict_ms(table: LatencyTable, net: NetRow, correction: Correction | None = None) -> float:
    """Return the predicted latency of a measured network; by the table's own correction if none is given."""
    c = table.correction if correction is None else correction
    return c.total_ms(table.sums(net), net.calls)


def affine(feature: Callable[[NetRow], float], nets: Sequence[NetRow]) -> Predictor:
    """Fit ``a + b feature(net)`` to the latencies of `nets` by least squares of relative errors.

    Returns:
        The predictor, in milliseconds.
    """
    y = np.array([n.latency_ms for n in nets])
    x = np.array([[1.0, feature(n)] for n in nets])
    (a, b), *_ = np.linalg.lstsq(x / y[:, None], np.ones(len(y)), rcond=None)
    return lambda net: float(a + b * feature(net))


def predictors(table: LatencyTable) -> dict[str, Predictor]:
    """Return what a table's own prediction is compared with, all fitted on the same networks.

    ``flops`` (affine in multiply-adds), ``sum`` (of ops measured alone, the usual table), ``sum_affine``,
    ``uncorrected`` (sum of ops measured in context) and ``ours``. The two of ops measured alone are left out where
    these were not measured.
    """
    fitted = [n for n in table.nets if n.use == "fit"]

    def macs(net: NetRow) -> float:
        return sum(n * table.rows[key].macs for key, n in net.ops.items())

    def plain(net: NetRow) -> float:
        return sum(n * (table.rows[key].isolated_ms or 0.0) for key, n in net.ops.items())

    out: dict[str, Predictor] = {"flops": affine(macs, fitted)} if len(fitted) > 1 else {}
    alone = all(table.rows[key].isolated_ms is not None for n in table.nets for key in n.ops)
    if alone:
        out["sum"] = plain
        if len(fitted) > 1:
            out["sum_affine"] = affine(plain, fitted)
    out["uncorrected"] = lambda net: predict_ms(table, net, Correction())
    out["ours"] = lambda net: predict_ms(table, net)
    return out


def calibrate(table: LatencyTable) -> None:
    """Fit a table's correction on its networks marked ``fit`` and report its error on the others, apart."""
    fitted = [n for n in table.nets if n.use == "fit"]
    tested = [n for n in table.nets if n.use == "test"]
    table.correction = fit([table.sums(n) for n in fitted], [n.latency_ms for n in fitted], [n.calls for n in fitted])
    report: dict[str, Any] = {k: v for k, v in table.report.items() if k in ("conditions", "left_out")}
    if tested:
        measured = [n.latency_ms for n in tested]
        relative = [predict_ms(table, n) / n.latency_ms - 1 for n in tested]
        rms = float(np.sqrt(np.mean(np.square(relative))))
        table.correction = replace(table.correction, relative_error=rms, interval=conformal(relative))
        report |= {
            "held_out": len(tested),
            "span": max(measured) / min(measured),
            "noise_floor": float(np.mean([n.repeatability for n in tested])),
            "predictors": {
                name: errors([predictor(n) for n in tested], measured) for name, predictor in predictors(table).items()
            },
        }
    again = table.report.get("derived", {}).get("again", ())
    table.report = report
    report_derived(table, again)


def level_of(again: Sequence[float]) -> float:
    """Return the slowdown of the machine: the median of new over old latencies of anchors; 1 without any."""
    return float(np.median(again)) if again else 1.0


def report_derived(table: LatencyTable, again: Sequence[float]) -> None:
    """Report the error on networks that were derived with the table: these were chosen for being predicted fast.

    Args:
        table: Has them among its networks, if there are any.
        again: New over old latencies of the anchors, which were measured beside them; latencies of the derived networks
            are divided by the median.
    """
    derived = [n for n in table.nets if n.use == "derived"]
    if derived:
        measured = [n.latency_ms for n in derived]
        error: Mapping[str, Any] = errors([predict_ms(table, n) for n in derived], measured)
        table.report = {**table.report, "derived": {**error, "level": level_of(again), "again": list(again)}}
