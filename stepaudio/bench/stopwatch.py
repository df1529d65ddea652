"""How long work takes, by the clock and in processor time, and the medians over runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


class Stopwatch:
    """Collects runs by name.

    seconds: by the clock, until the device has finished.   processor: of all threads of this process, which other
    work on the machine disturbs less; it says nothing of a GPU.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize
        self._seconds: dict[str, list[float]] = {}
        self._processor: dict[str, list[float]] = {}

    def run(self, name: str, work: Callable[[], Result], *, keep: bool = True) -> Result:
        """Return what ``work`` returns; note what it took under ``name``, unless it only warms up."""
        self._synchronize()
        seconds, processor = time.perf_counter(), time.process_time()
        result = work()
        self._synchronize()
        seconds, processor = time.perf_counter() - seconds, time.process_time() - processor
        if keep:
            self.note(name, seconds, processor)
        return result

    def note(self, name: str, seconds: float, processor: float) -> None:
        """Add a run that was measured elsewhere."""
        self._seconds.setdefault(name, []).append(seconds)
        self._processor.setdefault(name, []).append(processor)

    def result(self, name: str) -> dict[str, Any]:
        """Return medians and all runs of ``name``, ready for JSON."""
        seconds, processor = self._seconds[name], self._processor[name]
        return {
            "seconds": statistics.median(seconds),
            "processor": statistics.median(processor),
            "all_seconds": seconds,
            "all_processor": processor,
        }


def spread(values: Sequence[float]) -> float:
    """Return (largest - smallest) / smallest."""
    return (max(values) - min(values)) / min(values)
