"""How many cores a model may use: never more threads than physical cores, whatever the container says about the
rest."""

import os
from pathlib import Path


def usable_cores(requested: int = 0) -> int:
    """Return the number of threads for a model: `requested`, or all physical cores that this process may use."""
    if requested > 0:
        return requested
    allowed = _affinity()
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    cores = len(allowed) if quota is None else min(len(allowed), max(1, int(quota)))
    return max(1, min(cores, _physical_cores(allowed, Path("/sys/devices/system/cpu"))))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cgroup_quota(root: Path) -> float | None:
    """Return the CPUs' worth of time that a container may use, None if unlimited or unknown."""
    try:  # version 2: "200000 100000" or "max 100000"
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        us = int((root / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text(encoding="ascii"))
        return us / period_us if us > 0 and period_us > 0 else None
    except (OSError, ValueError):
        return None


def _physical_cores(cpus: set[int], root: Path) -> int:
    """Count hyperthreads of one core as one, where the system tells; Apple and ARM machines have none."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((root / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii"))
        except OSError:
            cores.add(str(cpu))
    return len(cores)
