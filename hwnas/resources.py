"""Where the files that ship with the package are: latency tables and CUDA kernels."""

from __future__ import annotations

from pathlib import Path

from hwnas.errors import HwnasError


def profiles_dir() -> Path:
    """Return the folder of the latency tables that ship with hwnas, ``<device>/<engine>-<precision>-b1.json`` in it.

    Raises:
        HwnasError: If this installation lacks them.
    """
    return _shared("profiles")


def kernels_dir() -> Path:
    """Return the folder of the CUDA kernel sources, ``*.cu`` in it.

    Raises:
        HwnasError: If this installation lacks them.
    """
    return _shared("kernels")


def _shared(name: str) -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "_share" / name
    if installed.is_dir():
        return installed
    # A checkout or an editable install. Without setup.py beside it, the folder above is somebody's site-packages.
    checkout = package.parent / name
    if (package.parent / "setup.py").is_file() and checkout.is_dir():
        return checkout
    raise HwnasError(
        f"expected the folder {name}/ of hwnas at {installed} or {checkout}, found neither; reinstall hwnas"
    )
