"""Threads that compute alone: no helpers of torch's come into being, and nobody else loses theirs."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stepaudio.threads import lone_threads

pytestmark = pytest.mark.usefixtures("three_threads")


def work(barrier: threading.Barrier) -> int:
    """Compute, at the same time as the others, what torch parts among threads; return how many it may take."""
    barrier.wait(10)
    matrix = torch.ones(600, 600)
    assert float((matrix @ matrix).mul(2.0).sum()) == 600.0 * 600 * 600 * 2
    return torch.get_num_threads()


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_each_of_them_computes_alone_and_everybody_else_as_before() -> None:
    with lone_threads(2, "lone") as pool:
        barrier = threading.Barrier(2)
        assert list(pool.map(work, [barrier] * 4)) == [1] * 4
        assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as later:
        assert later.submit(work, threading.Barrier(1)).result() == 3


def test_they_run_already_under_the_name_given() -> None:
    with lone_threads(3, "ready-made"):
        assert sum(thread.name.startswith("ready-made") for thread in threading.enumerate()) == 3
    assert not any(thread.name.startswith("ready-made") for thread in threading.enumerate())


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux tells of native threads")
def test_their_work_starts_no_further_threads_where_that_of_others_does() -> None:
    with lone_threads(2, "lone") as pool:
        before = native_threads()
        barrier = threading.Barrier(2)
        list(pool.map(work, [barrier] * 2))
        assert native_threads() == before
    with ThreadPoolExecutor(1) as helped:
        helped.submit(int).result()
        before = native_threads()
        helped.submit(work, threading.Barrier(1)).result()
        assert native_threads() == before + 2
