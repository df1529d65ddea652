"""The last runs of this process in numbers, without a word or a sound of theirs: how long they took, and how fast."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepaudio.types import Synthesis

KEPT = 200


@dataclass(frozen=True)
class Run:
    """One finished request. total and first_sound in seconds; first_sound None where nothing was streamed."""

    label: str
    hit: bool
    total: float
    rtf: float
    first_sound: float | None


@dataclass(frozen=True)
class RunSummary:
    """Runs of one label and one kind of cache answer: how many, and median and 95th percentile of their figures."""

    label: str
    hit: bool
    count: int
    total: tuple[float, float]
    rtf: tuple[float, float]
    first_sound: tuple[float, float] | None


class RunHistory:
    """The last KEPT runs. Safe in many threads."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def add(self, label: str, synthesis: Synthesis) -> None:
        """Remember a finished request."""
        run = Run(
            label,
            synthesis.cache_hit,
            synthesis.timings.total,
            synthesis.rtf,
            synthesis.first_sound,
        )
        with self._lock:
            self._runs.append(run)

    def runs(self) -> tuple[Run, ...]:
        """Return the runs that are remembered, oldest first."""
        with self._lock:
            return tuple(self._runs)

    def summaries(self) -> tuple[RunSummary, ...]:
        """Return the summaries of the runs, hits and misses apart, by label."""
        groups: dict[tuple[str, bool], list[Run]] = {}
        for run in self.runs():
            groups.setdefault((run.label, run.hit), []).append(run)
        return tuple(_summary(label, hit, groups[label, hit]) for label, hit in sorted(groups))


def _summary(label: str, hit: bool, runs: Sequence[Run]) -> RunSummary:
    first = [run.first_sound for run in runs if run.first_sound is not None]
    return RunSummary(
        label,
        hit,
        len(runs),
        _median_and_p95([run.total for run in runs]),
        _median_and_p95([run.rtf for run in runs]),
        _median_and_p95(first) if first else None,
    )


def _median_and_p95(values: Sequence[float]) -> tuple[float, float]:
    median, high = np.percentile(values, [50, 95])
    return float(median), float(high)
