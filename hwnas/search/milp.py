"""Mixed-integer linear programs, solved by HiGHS."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import highspy
import numpy as np
from scipy.sparse import csr_matrix, vstack

# One thread: more gain nothing on programs of this size. Restarts at the root once columns are fixed are meant for
# programs that take minutes; here they took two thirds of the time.
OPTIONS = {"mip_rel_gap": 0.0, "mip_abs_gap": 0.0, "mip_allow_restart": False, "threads": 1}
INFEASIBLE = (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)


@dataclass(frozen=True)
class Rows:
    """Linear constraints: low <= matrix @ x <= high.

    Attributes:
        matrix: (n_rows, n_variables).
        low: (n_rows,), infinite where there is none.
        high: (n_rows,).
    """

    matrix: csr_matrix
    low: np.ndarray
    high: np.ndarray

    def and_also(self, more: Rows) -> Rows:
        """Return these constraints and others."""
        return Rows(
            vstack([self.matrix, more.matrix], format="csr"),
            np.concatenate([self.low, more.low]),
            np.concatenate([self.high, more.high]),
        )


def minimise(cost: np.ndarray, upper: np.ndarray, integer: np.ndarray, rows: Rows) -> np.ndarray | None:
    """Return the variables of the lowest linear cost, (n_variables,); None if nothing meets the rows.

    Args:
        cost: Of each variable, not negative where it has no upper bound, (n_variables,).
        upper: Bounds of the variables; the lower ones are 0.
        integer: Which of them must be integers.
        rows: The constraints.
    """
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(cost), len(rows.low)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.zeros(len(cost)), upper
    lp.row_lower_, lp.row_upper_ = rows.low, rows.high
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = rows.matrix.indptr, rows.matrix.indices
    lp.a_matrix_.value_ = rows.matrix.data
    kind = highspy.HighsVarType
    lp.integrality_ = [kind.kInteger if i else kind.kContinuous for i in integer]
    with _silent():
        solver = highspy.Highs()  # type: ignore[no-untyped-call]  # its __init__ has no annotations
        for name, value in {"output_flag": False, **OPTIONS}.items():
            assert solver.setOptionValue(name, value) == highspy.HighsStatus.kOk, f"HiGHS has no option {name}"
        solver.passModel(lp)
        solver.run()
    status = solver.getModelStatus()
    if status in INFEASIBLE:
        return None
    assert status == highspy.HighsModelStatus.kOptimal, f"the solver stopped without an answer: {status}"
    return np.array(solver.getSolution().col_value)


@contextmanager
def _silent() -> Iterator[None]:
    """Throw away what C code writes to the standard output.

    HiGHS prints its version when it is constructed, before its output can be switched off, and some lines despite
    `output_flag` (ERGO-Code/HiGHS 2734 and 2783). C buffers them, so they would follow our last line, which programs
    read.
    """
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    own, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        libc.fflush(None)
        os.dup2(own, 1)
        os.close(own)
        os.close(nowhere)
