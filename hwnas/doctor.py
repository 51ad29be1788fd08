"""What this machine can measure, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from hwnas.errors import HwnasError
from hwnas.runtime.device import device_name, provenance
from hwnas.runtime.engines import ENGINES, open_engine
from hwnas.ui import console, table

PACKAGES = ("numpy", "torch", "onnx", "scipy", "safetensors", "fvcore", "pillow", "rich", "tyro")
BUSY = 0.5  # load per CPU above which measurements suffer


def show() -> None:
    """Print Python and packages, engines with what each lacks, and what would disturb a measurement."""
    rows = [["python", platform.python_version(), ""]]
    for name in PACKAGES:
        version = _version(name)
        rows.append([name, version or "missing", "" if version else "pip install 'hwnas[search]'"])
    table("packages", ("name", "version", ""), rows)
    engines = []
    for name in ENGINES:
        try:
            engine = open_engine(name)
        except HwnasError as e:
            engines.append([name, "no", str(e)])
            continue
        where = provenance(engine)
        engines.append([name, "yes", f"{device_name(where)}, clock {engine.clock}, {where['engine']['precision']}"])
    table("engines", ("name", "ready", "device, or what is missing"), engines)
    for warning in warnings():
        console.print(f"warning: {warning}", style="yellow", markup=False)


def warnings() -> list[str]:
    """Return what would disturb or break a measurement here."""
    out = []
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        out.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install the one you need"
        )
    cpus = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY * cpus:
        out.append(f"the load is {os.getloadavg()[0]:.1f} on {cpus} CPUs: measurements will take longer and be noisier")
    return out


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
