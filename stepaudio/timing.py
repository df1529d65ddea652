"""StageTimer: where each second of a request went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stepaudio.types import PartTime, Stage, Timings

OTHER = "other"


class OpenStage:
    """A stage while it runs; ``note`` and ``tokens`` may be set until it ends."""

    def __init__(self, name: str, start: float) -> None:
        self.name = name
        self.start = start
        self.note = ""
        self.tokens = 0
        self.children: list[Stage] = []

    def close(self, end: float) -> Stage:
        """Return the finished stage; where it has children, what they leave unattributed becomes ``other``."""
        seconds = end - self.start
        children = list(self.children)
        if children:
            rest = seconds - sum(child.seconds for child in children)
            children.append(Stage(OTHER, max(rest, 0.0)))
        return Stage(self.name, seconds, note=self.note, children=tuple(children), tokens=self.tokens)


class StageTimer:
    """Times the stages of one request; nested ``with timer.stage(name)`` make a tree.

    ``synchronize`` waits for the device at each edge, so that a stage is not charged with work that an
    earlier one had only queued. A stage is recorded also when its body raises.
    """

    def __init__(
        self, synchronize: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._synchronize = synchronize
        self._clock = clock
        self._root = OpenStage("", clock())
        self._open = [self._root]

    @contextmanager
    def stage(self, name: str) -> Iterator[OpenStage]:
        """Time the body as a child of the stage that is open now."""
        self._synchronize()
        stage = OpenStage(name, self._clock())
        self._open.append(stage)
        try:
            yield stage
        finally:
            self._synchronize()
            self._open.pop()
            self._open[-1].children.append(stage.close(self._clock()))

    def add(self, name: str, seconds: float, busy: float | None = None, note: str = "", tokens: int = 0) -> None:
        """Record a stage that something else has measured, as a child of the stage that is open now."""
        self._open[-1].children.append(Stage(name, seconds, busy=busy, note=note, tokens=tokens))

    def seconds_at(self, instant: float) -> float:
        """Return how many seconds after the timer was made an instant of its clock was."""
        return instant - self._root.start

    def so_far(self) -> Timings:
        """Return the stages that have ended, those within stages that are still open too, and the seconds so far."""
        ended = tuple(stage for opened in self._open for stage in opened.children)
        return Timings(self._clock() - self._root.start, ended)

    def synchronize_with(self, synchronize: Callable[[], None]) -> None:
        """Wait for this device from now on; for a timer that was started before the device was known."""
        self._synchronize = synchronize

    def finish(self) -> Timings:
        """Return the stages so far and the seconds since the timer was made."""
        return Timings(self._clock() - self._root.start, tuple(self._root.children))


def critical_path(parts: Sequence[PartTime], start: float) -> tuple[Stage, ...]:
    """Return stages whose wall seconds sum to the span of parts that ran side by side from ``start`` on.

    In the order in which they ended, each part is charged the time by which it ended later than the one before;
    ``busy`` is what it took itself. So the slowest part carries the wait, and the sum is the wall time.
    """
    stages = []
    reached = start
    for part in sorted(parts, key=lambda part: part.end):
        stages.append(Stage(part.name, max(part.end - reached, 0.0), busy=part.end - part.start))
        reached = max(reached, part.end)
    return tuple(stages)
