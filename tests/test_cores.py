"""How many threads pay: physical cores, within what a container may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stepaudio.cores import core_count


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight hardware threads on four cores, without limits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for cpu in range(8):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_hardware_threads_of_one_core_count_once(machine: Path) -> None:
    assert core_count(machine) == 4


def test_only_cores_that_the_process_may_run_on_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 4, 5})
    assert core_count(machine) == 2


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("9900000 100000", 4)],
)
def test_a_container_has_as_many_as_its_limit_says(machine: Path, limit: str, expected: int) -> None:
    write(machine, "proc/self/cgroup", "0::/\n")
    write(machine, "sys/fs/cgroup/cpu.max", limit + "\n")
    assert core_count(machine) == expected


def test_the_limit_of_a_group_further_out_holds_too(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/kubepods/pod1/box\n")
    write(machine, "sys/fs/cgroup/kubepods/pod1/box/cpu.max", "max 100000\n")
    write(machine, "sys/fs/cgroup/kubepods/pod1/cpu.max", "300000 100000\n")
    assert core_count(machine) == 3


@pytest.mark.parametrize(("tree", "path"), [("cpu", "/"), ("cpu,cpuacct", "/docker/5ca1ab1e"), ("cpu", "/own")])
def test_the_first_version_of_control_groups_is_read_as_well(machine: Path, tree: str, path: str) -> None:
    write(machine, "proc/self/cgroup", f"4:memory:/elsewhere\n3:cpu,cpuacct:{path}\n0::/\n")
    seen = path if path == "/own" else "/"  # within a container the host's path is not to be seen
    write(machine, f"sys/fs/cgroup/{tree}{seen}/cpu.cfs_quota_us", "100000\n")
    write(machine, f"sys/fs/cgroup/{tree}{seen}/cpu.cfs_period_us", "50000\n")
    assert core_count(machine) == 2


def test_no_limit_in_the_first_version_is_a_negative_one(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "3:cpu:/\n")
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert core_count(machine) == 4


def test_where_the_system_tells_nothing_hardware_threads_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert core_count(tmp_path) == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert core_count(tmp_path) == 1


def test_a_group_of_any_name_is_no_obstacle(machine: Path) -> None:
    (machine / "proc/self").mkdir(parents=True)
    (machine / "proc/self/cgroup").write_bytes(b"0::/\xff\xfe/..\n")
    assert core_count(machine) == 4


def test_this_machine_has_some() -> None:
    assert 1 <= core_count() <= (os.cpu_count() or 1)
