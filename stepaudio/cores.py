"""How many cores this process may keep busy, which is how many threads pay.

Two hardware threads of one core share what computes, so the second one is left idle. A container whose time is limited
(``docker run --cpus``, the limits of Kubernetes) sees all cores of its host: with a thread on each of them it would
spend its share early in every tenth of a second and stand still for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stepaudio.cgroups import control_groups, read


def core_count(root: Path = Path("/")) -> int:
    """Return the number of physical cores that this process may run on, within its container's limit; at least 1.

    Where the system does not tell of cores and limits (it is Linux that does), hardware threads count as cores.
    root: the folder in which proc and sys lie.
    """
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in own}
    limits = [int(limit) for group in control_groups("cpu", root) for limit in _limit(group)]
    return max(1, min([len(cores), *limits]))


def _limit(group: Path) -> Iterator[float]:
    """Yield the limit of one control group, if it has one."""
    told = read(group / "cpu.max") or f"{read(group / 'cpu.cfs_quota_us')} {read(group / 'cpu.cfs_period_us')}"
    quota, _, period = told.partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        yield int(quota) / int(period)
