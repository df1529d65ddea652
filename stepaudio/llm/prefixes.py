"""Beginnings of prompts that have been read before: their keys and values, least recently used ones gone first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor


class PrefixStore:
    """Keeps the KeyValueCache.first() of some ids, in at most ``limit`` bytes; 0 keeps nothing.

    What is kept depends on the ids alone, so a hit is never wrong, whoever asked before. Safe for threads.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ids: Sequence[int]) -> Tensor | None:
        """Return the cells of exactly these ids, or None."""
        key = tuple(ids)
        with self._lock:
            cells = self._kept.get(key)
            if cells is not None:
                self._kept.move_to_end(key)
            return cells

    def put(self, ids: Sequence[int], cells: Tensor) -> None:
        """Keep a copy of the cells of these ids; older ones make room."""
        if cells.nbytes > self._limit:
            return
        copy = cells.clone()
        with self._lock:
            self._kept[tuple(ids)] = copy
            while self._bytes() > self._limit:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            self._kept.clear()

    def _bytes(self) -> int:
        return sum(cells.nbytes for cells in self._kept.values())
