"""The chain of edits of one tab: the original, and every step with the one that it came from. Pure bookkeeping."""

from __future__ import annotations

from dataclasses import dataclass

from stepaudio.errors import InvalidInput
from stepaudio.types import Synthesis, Task

MOST_STEPS = 40


@dataclass(frozen=True, eq=False)
class Step:
    """A sound of the chain. number: 0 is the original. parent: the step that was edited, None for the original.

    wav: a sound file. transcript: its words, as far as they are known. The rest tells how it was made, and is None
    for the original.
    """

    number: int
    parent: int | None
    wav: bytes
    transcript: str
    task: Task | None = None
    passes: int = 1
    synthesis: Synthesis | None = None


class Chain:
    """Steps in the order in which they were made, one of them selected: the next edit starts from it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.selected = 0

    @property
    def current(self) -> Step | None:
        """The selected step; None while the chain is empty."""
        return self.steps[self.selected] if self.steps else None

    def start(self, wav: bytes, transcript: str) -> Step:
        """Forget all steps and begin with this sound as the original."""
        self.steps = [Step(0, None, wav, transcript)]
        self.selected = 0
        return self.steps[0]

    def check_room(self) -> None:
        """Raise InvalidInput where no further step can be kept."""
        if len(self.steps) >= MOST_STEPS:
            raise InvalidInput(f"The history has {len(self.steps)} steps, which is the limit; please clear it.")

    def add(self, parent: int, task: Task, passes: int, wav: bytes, synthesis: Synthesis) -> Step:
        """Add what came of editing the step ``parent``, select it and return it."""
        self.check_room()
        step = Step(len(self.steps), parent, wav, synthesis.transcript, task, passes, synthesis)
        self.steps.append(step)
        self.selected = step.number
        return step

    def select(self, number: int) -> Step:
        """Go to a step and return it; raises InvalidInput for one that is not there."""
        if not 0 <= number < len(self.steps):
            raise InvalidInput(f"There is no step {number} in the history.")
        self.selected = number
        return self.steps[number]

    def clear(self) -> None:
        """Forget all steps."""
        self.steps.clear()
        self.selected = 0

    def line_of(self, number: int) -> tuple[int, ...]:
        """Return the numbers of the steps that lead from the original to this one, both included."""
        line = [number]
        while (parent := self.steps[line[0]].parent) is not None:
            line.insert(0, parent)
        return tuple(line)
