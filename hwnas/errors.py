"""The one family of errors a user can cause. The command line prints them in one line and exits with code 2."""

from __future__ import annotations

import difflib
import errno
import math
import os
from collections.abc import Iterable, Iterator
from types import FrameType


class HwnasError(ValueError):
    """Bad input or an impossible request: says what was expected, what came, and what to do."""


class MissingExtra(HwnasError):
    """A package of an optional extra is not installed."""


class BrokenPackage(HwnasError):
    """A package is installed and cannot be imported."""


class SystemRefusal(HwnasError):
    """The system refused what nothing is wrong with: there is no room, no permission, no descriptor left."""


class MissingOp(HwnasError):
    """A latency table has no row for an op."""


class ProvenanceError(HwnasError):
    """Measurements made under different conditions would be mixed or compared."""


class BudgetError(HwnasError):
    """No architecture of the space meets the budget."""


class BuildError(HwnasError):
    """An engine's builder refused a model, crashed, hung or took too much memory."""


class Diverged(HwnasError):
    """A loss is no longer finite."""


class DeviceLost(HwnasError):
    """A GPU's context is of no more use to this process: every call would fail, whatever it is for."""


class ProcessLost(HwnasError):
    """Another of several processes that compute together has ended, so that this one cannot go on."""


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


MOST_SEED = 2**32 - 1  # what every generator of random numbers takes, also with a stage or a step added


def seeds(settings: object, names: Iterable[str]) -> list[tuple[str, object, bool]]:
    """Return that numbers of these names are seeds, or None, for `check_ranges`."""
    values = {name: getattr(settings, name) for name in names}
    return [(f"a {n} of 0 or more, up to {MOST_SEED}", v, v is None or 0 <= v <= MOST_SEED) for n, v in values.items()]


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


# What to do about what the system says, by the names of its errors: not every system has all of them.
_REMEDIES = {
    "ENOSPC": "make room there",
    "EDQUOT": "make room there: the quota is used up",
    "EFBIG": "files may not become so large there: raise the limit (ulimit -f), or use another file system",
    "EROFS": "it is mounted read-only: work in a folder that can be written",
    "EACCES": "get the permission, or work in a folder of your own",
    "EPERM": "get the permission, or work in a folder of your own",
    "ENAMETOOLONG": "use a shorter name",
    "EMFILE": "raise the limit of open files (ulimit -n)",
    "ENFILE": "close files of other programs, or raise the limit of the system",
    "EAGAIN": "end other processes, or raise their limit (ulimit -u)",
    "ENOMEM": "end other programs, or take a machine with more memory",
    "EIO": "look whether the device is sound",
    "ESTALE": "mount the file system again",
    "ENOENT": "it is not there, or its folder is not: make that, or give another path",
    "ENOTDIR": "a part of the path is a file: give another path",
    "EISDIR": "it is a folder: give another path",
    "EEXIST": "it is in the way: move it, or give another path",
    "ENOTEMPTY": "it is in the way: move it, or give another path",
    "ELOOP": "its links lead in a circle: mend them",
    "ETXTBSY": "it is being executed: try again later",
    "EBUSY": "it is in use: try again later",
}
REMEDIES = {getattr(errno, name): remedy for name, remedy in _REMEDIES.items() if hasattr(errno, name)}
NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


def refusal(e: OSError, path: str | os.PathLike[str] | None = None) -> SystemRefusal:
    """Return what the system refused as an error for people: the path, the reason and the remedy in one line.

    Args:
        e: What was raised.
        path: What it is about, where `e` does not say.
    """
    about = e.filename if isinstance(e.filename, str | bytes | os.PathLike) else path
    where = "" if about is None else f"{os.fsdecode(about)}: "
    reason = e.strerror or str(e) or type(e).__name__
    remedy = REMEDIES.get(e.errno or 0, "see what the system says of it, and run the same command again")
    if "temporary directory" in reason:  # of `tempfile`, which says no more than that
        remedy = "make room in one of them, or set TMPDIR to a folder that can be written"
    return SystemRefusal(f"{where}{reason}; {remedy}")


def unimportable(e: BaseException) -> BrokenPackage | None:
    """Return what to say if an error is that a package of others failed while it was imported; None if it is not.

    An import is seen by the frames of modules: not all that fails in one is an ImportError.
    """
    modules = [str(f.f_globals.get("__name__")) for f in frames(e) if f.f_code.co_name == "<module>"]
    modules += [e.name] if isinstance(e, ImportError) and e.name else []
    tops = [name.partition(".")[0] for name in modules]
    package = next((t for t in tops if t not in ("__main__", "hwnas")), None)
    if package is None or isinstance(e, MemoryError):  # nothing is wrong with the package then
        return None
    if isinstance(e, ModuleNotFoundError) and e.name and e.name.partition(".")[0] == package:
        return BrokenPackage(f"{package} is not installed; run: pip install {package}")
    return broken(package, e)


def broken(package: str, e: BaseException) -> BrokenPackage:
    """Return the error for a package that is installed and cannot be imported."""
    said = " ".join(str(e).split())
    reason = said if isinstance(e, ImportError) and said else f"{type(e).__name__}: {said}".removesuffix(": ")
    return BrokenPackage(f"{package} is installed and cannot be imported: {reason}; install it anew, or what it needs")


def frames(e: BaseException) -> Iterator[FrameType]:
    """Yield the frames that an error went through, outermost first: that which raised it is last."""
    trace = e.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
