"""The chain of edits of one tab: the original, and every step with the one that it came from. Pure bookkeeping."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from stepaudio.errors import InvalidInput
from stepaudio.types import Synthesis, Task

MOST_STEPS = 40
OVERTAKEN = "The history was cleared or begun anew meanwhile; the result was not added."


@dataclass(frozen=True, eq=False)
class Step:
    """A sound of the chain. number: 0 is the original. parent: the step that was edited, None for the original.

    wav: a sound file. transcript: its words, as far as they are known. The rest tells how it was made, and is None
    for the original.
    """

    number: int
    parent: Step | None
    wav: bytes
    transcript: str
    task: Task | None = None
    passes: int = 1
    synthesis: Synthesis | None = None

    @property
    def line(self) -> tuple[Step, ...]:
        """The steps that lead from the original to this one, both included."""
        line = [self]
        while (parent := line[0].parent) is not None:
            line.insert(0, parent)
        return tuple(line)


def original(wav: bytes, transcript: str) -> Step:
    """Return a sound as the step that a chain can begin with."""
    return Step(0, None, wav, transcript)


class Chain:
    """Steps in the order in which they were made, one of them selected: the next edit starts from it.

    Safe in many threads: an edit takes long, and meanwhile its tab may clear the chain or begin another one.
    """

    def __init__(self) -> None:
        self.steps: tuple[Step, ...] = ()
        self._current: Step | None = None
        self._lock = threading.Lock()

    @property
    def current(self) -> Step | None:
        """The selected step; None while the chain is empty."""
        return self._current

    @property
    def selected(self) -> int:
        """The number of the selected step; 0 while the chain is empty."""
        current = self._current
        return current.number if current is not None else 0

    def start(self, wav: bytes, transcript: str) -> Step:
        """Forget all steps and begin with this sound as the original; returns that."""
        first = original(wav, transcript)
        with self._lock:
            self.steps, self._current = (first,), first
        return first

    def begin(self, first: Step) -> None:
        """Begin with this original; raises InvalidInput where the chain has steps."""
        with self._lock:
            if self.steps:
                raise InvalidInput(OVERTAKEN)
            self.steps, self._current = (first,), first

    def check_room(self) -> None:
        """Raise InvalidInput where no further step can be kept."""
        if len(self.steps) >= MOST_STEPS:
            raise InvalidInput(f"The history has {len(self.steps)} steps, which is the limit; please clear it.")

    def add(self, parent: Step, task: Task, passes: int, wav: bytes, synthesis: Synthesis) -> Step:
        """Add what came of editing ``parent``, select it and return it.

        Raises InvalidInput where that very step is not in the chain any more: another one may have its number.
        """
        with self._lock:
            self.check_room()
            if parent not in self.steps:
                raise InvalidInput(OVERTAKEN)
            step = Step(len(self.steps), parent, wav, synthesis.transcript, task, passes, synthesis)
            self.steps, self._current = (*self.steps, step), step
        return step

    def select(self, number: int) -> Step:
        """Go to a step and return it; raises InvalidInput for one that is not there."""
        with self._lock:
            if not 0 <= number < len(self.steps):
                raise InvalidInput(f"There is no step {number} in the history.")
            self._current = self.steps[number]
            return self._current

    def clear(self) -> None:
        """Forget all steps."""
        with self._lock:
            self.steps, self._current = (), None
