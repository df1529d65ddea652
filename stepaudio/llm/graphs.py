"""CUDA graphs of the decode step: the launches of hundreds of small kernels become one.

A graph is captured for every number of sequences, bucket of cached positions and kind of place in the cycle, because
shapes and addresses in it are fixed; what changes from step to step lies in the tensors of the DecodeState.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Makes of some work a replay, which does the same with the same tensors. The work is not done by capturing it."""


def cuda_capture(device: torch.device) -> Capture:
    """Return what captures work on a CUDA ``device``. All its graphs share one pool of memory."""
    with torch.cuda.device(device):
        pool = torch.cuda.graph_pool_handle()

    def capture(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does is watched: another one may well be speaking the words drawn so far.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        return graph.replay

    return capture


class Captured:
    """Does ``work`` as it is the first time, which loads kernels and libraries; captures it the second time."""

    def __init__(self, work: Work, capture: Capture) -> None:
        self._work = work
        self._capture: Capture | None = capture
        self._warm = False

    def __call__(self) -> None:
        if self._warm and self._capture is not None:
            self._work, self._capture = self._capture(self._work), None
        self._warm = True
        self._work()
