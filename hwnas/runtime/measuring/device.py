"""Which device this is, precisely enough that two tables of different devices are never mixed."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hwnas
from hwnas.files import sha256
from hwnas.runtime.measuring import limits

if TYPE_CHECKING:
    from hwnas.runtime.engines.base import Engine

# what decides which kernels an engine picks; smep of x86 is a protection, sme of Arm a matrix unit
_ISA = re.compile(r"(sse4_2|avx|fma|f16c|amx|asimd|neon|sve|sme(?!p)|i8mm|bf16)")
_ISA_LEVELS = (("avx512", "avx512f"), ("avx2",) * 2, ("avx",) * 2, ("sse4_2",) * 2, ("sve",) * 2, ("neon", "asimd"))
_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd", "0x41": "arm", "0x61": "apple", "0x4e": "nvidia"}
UNPINNED = "not_pinned"  # in a provenance: why the measuring process was not kept on one CPU for each thread
# An option of engines: numbers too small for a full mantissa count as zero. A CPU may compute with them many times more
# slowly, and trained weights may be such, while those that are made up to be measured are not. So what was measured
# before there was the option holds with it.
DENORMALS = "denormals_as_zero"
SINCE = (f"where.engine.options.{DENORMALS}", "where.cpus")  # what older results lack and are gone on with all the same
ARCHITECTURES = ("", "arm", "i386", "x86_64", "aarch64", "arm64", "AMD64")  # no names of models
_SHARED = ("vendor_id", "CPU implementer")
HUGE_PAGES = ":".join(
    f"glibc.malloc.{name}"
    for name in ("hugetlb=1", "mmap_threshold=1073741824", "trim_threshold=1073741824")  # all memory from one heap
)


def cpu_identity(root: Path = Path("/")) -> dict[str, Any]:
    """Return what tells this CPU from others: a virtual machine may call itself just "Intel Xeon Processor".

    On Linux from ``/proc/cpuinfo`` and ``/sys``: vendor, model name, family, model, stepping, the instruction sets
    that decide about speed, caches. Elsewhere only what Python's ``platform`` knows: the model's name and nothing
    about instruction sets and caches.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    base: dict[str, Any] = {"kind": "cpu", "architecture": platform.machine(), "logical_cpus": os.cpu_count()}
    try:
        blocks = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").strip().split("\n\n")
    except OSError:
        name = platform.processor()
        known = {} if name not in ARCHITECTURES else {"machine": _machine(root) or platform.node()}
        return {**base, "vendor": "", "model_name": name, **known}
    cpus = [dict(_pair(line) for line in block.splitlines() if ":" in line) for block in blocks]
    first = next((cpu for cpu in cpus if any(name in cpu for name in _SHARED)), cpus[0])
    flags = first.get("flags", first.get("Features", "")).split()
    found: dict[str, Any] = {
        **base,
        "vendor": first.get("vendor_id", first.get("CPU implementer", "")),
        "model_name": first.get("model name", ""),
        "family": first.get("cpu family", first.get("CPU architecture", "")),
        "model": first.get("model", "+".join(sorted({c["CPU part"] for c in cpus if "CPU part" in c}))),  # big.LITTLE
        "stepping": first.get("stepping", first.get("CPU revision", "")),
        "instruction_sets": sorted(flag for flag in flags if _ISA.match(flag)),
        "caches": _caches(root / "sys/devices/system/cpu/cpu0/cache"),
    }
    return found if is_known(found) else {**found, "machine": _machine(root)}


def is_known(device: Mapping[str, Any]) -> bool:
    """Return whether the identity of a CPU names a model of it: virtual machines of Arm may say part 0x000."""
    parts = str(device.get("model", "")).split("+")
    return (
        device.get("kind") != "cpu"
        or any(_number(part) for part in parts)
        or (device.get("model_name", "") not in ARCHITECTURES)
    )


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _machine(root: Path) -> str:
    """Return what tells a machine from others where its CPU does not say what it is; empty if nothing does."""
    for name in ("sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name", "etc/machine-id"):
        with suppress(OSError):
            if text := (root / name).read_text(encoding="utf-8", errors="replace").strip(" \0\n"):
                return text if name != "etc/machine-id" else sha256(text)[:16]
    return ""


def provenance(engine: Engine) -> dict[str, Any]:
    """Return under which conditions `engine` measures on this machine, as JSON values.

    The device is this machine's CPU unless the engine names another.
    """
    about = dict(engine.provenance())
    device = about.pop("device", None)
    memory = {} if device is not None else {"malloc": malloc_tunables() or os.environ.get("GLIBC_TUNABLES", "default")}
    return {
        "device": cpu_identity() if device is None else device,
        **memory,
        "engine": about,
        "clock": engine.clock,
        "batch": 1,
        "merges": engine.capabilities.merges,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "hwnas": hwnas.__version__,
    }


def with_cpus(where: Mapping[str, Any], cpus: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a provenance with what limits this process's CPUs, where these compute.

    Args:
        where: As of `provenance`.
        cpus: What `limits.conditions` said before this process kept to some of them.
    """
    on_host = where["device"].get("kind") == "cpu"
    return {**where, **({"cpus": dict(cpus or limits.conditions())} if on_host else {})}


def malloc_tunables(root: Path = Path("/"), libc: tuple[str, str] | None = None) -> str | None:
    """Return the value of ``GLIBC_TUNABLES`` that a process should measure with; None for the system's own way.

    With small pages, where the memory of a network happens to lie may decide about some percent of what it takes, for
    as long as it stays loaded; with huge ones the layout is the same each time. glibc can ask for them since 2.35,
    where the kernel gives them on request; what a user has set is left alone. Source:
    https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html.

    Args:
        root: Where ``sys`` is.
        libc: Name and version of the C library; asked from the system if None.
    """
    if os.environ.get("GLIBC_TUNABLES", HUGE_PAGES) != HUGE_PAGES:
        return None
    name, version = platform.libc_ver() if libc is None else libc
    known = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    try:
        mode = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return None
    return HUGE_PAGES if name == "glibc" and known >= [2, 35] and "[never]" not in mode else None


def same_device(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two provenances name the same model of device.

    The number of logical CPUs may differ: it is what a virtual machine was given, not what a core is. Two that do not
    say what they are need not be alike.
    """
    if not all(is_known(where["device"]) or where["device"].get("machine") for where in (a, b)):
        return False
    left, right = ({k: v for k, v in where["device"].items() if k != "logical_cpus"} for where in (a, b))
    return left == right


def device_name(where: Mapping[str, Any]) -> str:
    """Return a short name of the device of a provenance, fit for a file: ``intel-6-207-2-avx512``."""
    device = where["device"]
    if "name" in device:
        return _slug(str(device["name"]))
    vendor = str(device.get("vendor", ""))
    parts = [_VENDORS.get(vendor, vendor), *(str(device.get(part, "")) for part in ("family", "model", "stepping"))]
    if not any(parts):
        parts = [str(device.get("model_name", "")), str(device.get("architecture", ""))]
    sets = device.get("instruction_sets", [])
    parts.append(next((level for level, flag in _ISA_LEVELS if flag in sets), ""))
    return _slug("-".join(part for part in parts if part)) or "unknown-cpu"


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _caches(folder: Path) -> dict[str, str]:
    """Return sizes by level and type, e.g. ``{"L1-data": "48K"}``; empty where the system does not tell."""
    out = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        out[f"L{level}-{kind.lower()}"] = size
    return out


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
