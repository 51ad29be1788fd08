"""What the system lets this process have: CPUs, a share of their time, memory; often less than the machine has.

Limits of groups are those of the process's own group and of all groups above it, the least of all; in a container the
group's path may be one of the host, and then the container's own root counts. Sources: Linux,
Documentation/admin-guide/cgroup-v2.rst (``cpu.max``, ``memory.max``, ``memory.current``, ``memory.stat``),
Documentation/scheduler/sched-bwc.rst and cgroup-v1/memory.rst (``cpu.cfs_quota_us``, ``memory.limit_in_bytes``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError

ROOT = Path("/")
MOUNT = "sys/fs/cgroup"
NONE = "none"
HYBRID = ("cpu_core", "cpu_atom")  # Intel's two kinds, the faster first


def allowed_cpus() -> list[int]:
    """Return the CPUs that this process may run on."""
    try:
        return sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not everywhere, and not always allowed
        return list(range(os.cpu_count() or 1))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return how many CPUs' time the process may have in the long run; None without a limit."""
    found = [_number(group / "cpu.max", _share_v2) for group in _groups(root, "")]
    found += [_share_v1(group) for name in ("cpu", "cpuacct") for group in _groups(root, name)]
    return min((share for share in found if share is not None), default=None)


def free_group_bytes(root: Path = ROOT) -> float | None:
    """Return how much memory the process's groups still let it have; None without a limit.

    What a group has of files that were read and not changed is given back when it is needed.
    """
    free = []
    names = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    for controller, (limit, usage, cached) in names.items():
        for group in _groups(root, controller):
            most, used = _number(group / limit, float), _number(group / usage, float)
            if most is not None and most < 2**60:  # version 1 says no limit by a huge one
                free.append(most - (used or 0.0) + _stat(group / "memory.stat", cached))
    return max(0.0, min(free)) if free else None


def usable_cpus(root: Path = ROOT) -> int:
    """Return how many threads can compute at once: no more than there are CPUs, nor than the quota gives time to."""
    quota, allowed = cpu_quota(root), len(allowed_cpus())
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def check_threads(threads: int) -> None:
    """Refuse to measure more threads than can run at once: they would take turns.

    Raises:
        HwnasError: If this process may use fewer CPUs.
    """
    n = len(allowed_cpus())
    if threads > n:
        raise HwnasError(
            f"{threads} threads, {n} CPU{'s' if n > 1 else ''} allowed: they would take turns; ask for at most "
            f"--threads {n}, or allow this process more CPUs (taskset, container)"
        )


def conditions(root: Path = ROOT) -> dict[str, Any]:
    """Return as JSON values what limits this process's CPUs, and what sets their speed."""
    allowed, quota = allowed_cpus(), cpu_quota(root)
    kinds = [kind_of(cpu, root) for cpu in allowed]
    governors = {_text(root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in allowed}
    out: dict[str, Any] = {"allowed": len(allowed), "quota": NONE if quota is None else round(quota, 3)}
    if any(name for _, name in kinds):
        out["kind"] = max(kinds)[1]
    if governor := "+".join(sorted(governors - {""})):
        out["governor"] = governor
    return out


def fastest(cpus: list[int], root: Path = ROOT) -> list[int]:
    """Return CPUs in their order, those of the fastest kind first: hybrid ones have cores for little work too."""
    return sorted(cpus, key=lambda cpu: -kind_of(cpu, root)[0])


def kind_of(cpu: int, root: Path = ROOT) -> tuple[float, str]:
    """Return how fast a CPU is by its kind, larger is faster, and the name of that; empty where all are of one."""
    capacity = _text(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity")  # of Arm, 1024 for the fastest
    if capacity.isdecimal():
        return float(capacity), f"capacity {capacity}"
    for rank, name in enumerate(HYBRID):
        if cpu in _listed(_text(root / f"sys/devices/{name}/cpus")):
            return 1024.0 - rank, name
    return 1024.0, ""


def quota_of(where: Mapping[str, Any]) -> float | None:
    """Return the quota that a provenance says; None if it says of none."""
    quota = where.get("cpus", {}).get("quota")
    return float(quota) if isinstance(quota, int | float) else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the process's group and of those above it; `controller` is empty for version 2."""
    paths = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if (number == "0" and not names) if not controller else controller in names.split(","):
            paths.append((names, path))
    mounts = ("", "unified") if not controller else (controller, *(names for names, _ in paths))
    for mount in dict.fromkeys(mounts):
        top = root / MOUNT / mount
        for _, path in paths or [("", "/")]:
            parts = [part for part in path.split("/") if part not in ("", "..")]
            yield from (top.joinpath(*parts[:n]) for n in range(len(parts), -1, -1))


def _number(path: Path, read: Callable[[str], float | None]) -> float | None:
    try:
        return read(_text(path))
    except ValueError:  # "max", or nothing
        return None


def _share_v2(text: str) -> float | None:
    quota, _, period = text.partition(" ")
    return float(quota) / float(period or 100_000)


def _share_v1(group: Path) -> float | None:
    quota, period = (_number(group / f"cpu.cfs_{what}_us", float) for what in ("quota", "period"))
    return quota / period if quota is not None and period and quota > 0 else None


def _stat(path: Path, name: str) -> float:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return float(value)
    return 0.0


def _listed(text: str) -> set[int]:
    """Return the CPUs of a list such as ``0-3,8``."""
    out: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            out |= set(range(int(first), int(last or first) + 1))
    return out


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
