"""Numbers too small for a full mantissa, taken for zero by the thread that computes, and only while it does.

A CPU may compute with them many times more slowly, so that what a network takes would depend on its weights. Engines
have options for their own threads; for the thread that calls them, some set the mode for good, which would be the mode
of whatever else this process computes. Here it is set and put back by the C library's environment of floating point.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, section 10.2.3 (MXCSR: flush-to-zero is
bit 15, denormals-are-zeros bit 6); Arm Architecture Reference Manual, FPCR (FZ is bit 24); ``bits/fenv.h`` of glibc for
where they are in ``fenv_t``.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SIZE = 64  # bytes; more than `fenv_t` has anywhere
# Of Linux, by machine: where the control register is in `fenv_t`, in words of 32 bits, and the bits to set.
REGISTERS = {"x86_64": (7, 1 << 15 | 1 << 6), "aarch64": (0, 1 << 24)}


@contextmanager
def flushed() -> Iterator[bool]:
    """Take denormal numbers for zero in this thread; yields whether this machine is known to be able to."""
    library, place = _library(), REGISTERS.get(platform.machine())
    if library is None or place is None:
        yield False
        return
    before = (ctypes.c_uint32 * (SIZE // 4))()
    library.fegetenv(before)
    during = type(before)(*before)
    during[place[0]] |= place[1]
    library.fesetenv(during)
    try:
        yield True
    finally:
        library.fesetenv(before)


def can_flush() -> bool:
    """Return whether `flushed` does something here."""
    with flushed() as can:
        return can


@cache
def _library() -> Any:
    """Return the C library's mathematics; None where it has no such functions."""
    if sys.platform != "linux":
        return None
    for name in ("libm.so.6", None):
        try:
            library = ctypes.CDLL(name)
            _ = library.fegetenv, library.fesetenv
        except (OSError, AttributeError):
            continue
        return library
    return None
