"""Threads that compute beside another one without slowing it down.

torch computes with OpenMP, which keeps for every thread that computes a team of helpers, as many as there are cores. As
soon as all teams together are more threads than cores, GNU's OpenMP no longer lets a helper wait for its next work, but
lays it to sleep after each; waking it takes longer than most of our operations. Measured on two cores: once a second
thread has a team, idle though it is, flow and HiFT take 40 % longer in the first. So one thread at a time has a team,
the one that serves requests; others compute alone.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_making = threading.Lock()


def lone_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of ``count`` threads, already running, in each of which torch computes without helpers.

    torch's number of threads is the calling thread's own and, for threads that compute for the first time, a common
    one. Both are as before when this returns; no other thread should compute for the first time meanwhile.
    """
    ready = threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes on the common number at its first use of torch, and only then
        torch.set_num_threads(1)
        ready.wait()

    with _making:
        common = torch.get_num_threads()
        pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=begin)
        for _ in range(count):
            pool.submit(int)  # a thread begins with the first work that finds none idle
        ready.wait()
        torch.set_num_threads(common)
    return pool
