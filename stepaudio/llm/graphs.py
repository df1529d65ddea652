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


class CudaCapture:
    """Captures work on a CUDA device. All its graphs share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            # The pool exists as long as there is a graph in it, and must not be used again after that. So a first
            # graph, of nothing much, stays: all others may go with the work they were captured of.
            self._room = torch.zeros(1, device=device)
            self._first = self._captured(self._room.zero_)

    def __call__(self, work: Work) -> Work:
        """Return what replays ``work``."""
        return self._captured(work).replay

    def _captured(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does is watched: another one may well be speaking the words drawn so far.
        with torch.cuda.device(self._device), torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
            work()
        return graph


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
