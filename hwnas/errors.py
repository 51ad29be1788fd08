"""The one family of errors a user can cause. The command line prints them in one line and exits with code 2."""

from __future__ import annotations

import difflib
import math
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


class RecipeFileError(HwnasError):
    """A file that a recipe or its parts are from is missing, or cannot be imported."""


def not_below(settings: object, names: Iterable[str], least: int) -> list[tuple[str, object, bool]]:
    """Return that numbers of these names are finite, and not less than one number, for `check_ranges`."""
    values = {name: getattr(settings, name) for name in names}
    return [(f"{name} of {least} or more", v, least <= v < math.inf) for name, v in values.items()]


def positive(settings: object, names: Iterable[str]) -> list[tuple[str, object, bool]]:
    """Return that numbers of these names are finite, and more than 0, for `check_ranges`."""
    values = {name: getattr(settings, name) for name in names}
    return [(f"{name} of more than 0", v, 0 < v < math.inf) for name, v in values.items()]


def check_ranges(what: str, *expected: tuple[str, object, bool]) -> None:
    """Refuse the first setting that is out of range.

    Args:
        what: Whose settings they are: ``"a search"``.
        expected: What is expected of each, what came, and whether that will do.

    Raises:
        HwnasError: If one will not do.
    """
    for said, came, good in expected:
        if not good:
            raise HwnasError(f"{what} needs {said}, got {came}")


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
