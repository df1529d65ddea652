"""How many cores this process may keep busy, which is how many threads pay.

Two hardware threads of one core share what computes, so the second one is left idle. A container whose time is limited
(``docker run --cpus``, the limits of Kubernetes) sees all cores of its host: with a thread on each of them it would
spend its share early in every tenth of a second and stand still for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = "sys/fs/cgroup"


def core_count(root: Path = Path("/")) -> int:
    """Return the number of physical cores that this process may run on, within its container's limit; at least 1.

    Where the system does not tell of cores and limits (it is Linux that does), hardware threads count as cores.
    root: the folder in which proc and sys lie.
    """
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in own}
    return max(1, min([len(cores), *(int(limit) for limit in _limits(root))]))


def _limits(root: Path) -> Iterator[float]:
    """Yield the limits that hold for this process, in cores: of its control group and of those around it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # The second version has one tree, the first one for each controller, under either name. Within a container
        # the path may be the host's, of which only the last part, the root, is to be seen.
        if controllers and "cpu" not in controllers.split(","):
            continue
        trees = [f"{CGROUPS}/cpu", f"{CGROUPS}/cpu,cpuacct"] if controllers else [CGROUPS]
        for tree in trees:
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield from _limit(root / tree / str(group).lstrip("/"))


def _limit(group: Path) -> Iterator[float]:
    """Yield the limit of one control group, if it has one."""
    told = _read(group / "cpu.max") or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
    quota, _, period = told.partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    """Return what stands in a file, "" where there is none that may be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
