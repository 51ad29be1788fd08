"""The one family of errors a user can cause. The command line prints them in one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwnasError(ValueError):
    """Bad input or an impossible request: says what was expected, what came, and what to do."""


class MissingExtra(HwnasError):
    """A package of an optional extra is not installed."""


class MissingOp(HwnasError):
    """A latency table has no row for an op."""


class ProvenanceError(HwnasError):
    """Measurements made under different conditions would be mixed or compared."""


class BudgetError(HwnasError):
    """No architecture of the space meets the budget."""


class BuildError(HwnasError):
    """An engine's builder refused a model, crashed, hung or took too much memory."""


class DeviceLost(HwnasError):
    """A GPU's context is of no more use to this process: every call would fail, whatever it is for."""


class DataError(HwnasError):
    """A dataset folder, image or label that cannot be used."""


def unknown(what: str, name: str, known: Iterable[str]) -> HwnasError:
    """Return the error for a name that does not exist, with the nearest one that does.

    Args:
        what: The kind of thing, e.g. ``"recipe"``.
        name: What came.
        known: What there is.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return HwnasError(f"unknown {what} {name!r}; {hint}known: {', '.join(names) or 'none'}")
