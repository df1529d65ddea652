"""Where requests decode: the room is made once and lent to one request after another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stepaudio.errors import Cancelled
from stepaudio.llm.graphs import Capture
from stepaudio.llm.layers import LayersMaker, PlainLayers
from stepaudio.llm.sampling import SpeechHead
from stepaudio.llm.step import DecodeState, Step, StepWeights
from stepaudio.types import SamplingParams

_LEAST_CAPACITY = 1024
_STEPS_KEPT = 8
_FREE_KEPT = 2


class Workspace:
    """A DecodeState and the steps that were made for it, the latest used."""

    def __init__(
        self,
        weights: StepWeights,
        head: SpeechHead,
        batch: int,
        capacity: int,
        capture: Capture | None,
        layers: LayersMaker = PlainLayers,
    ) -> None:
        self.state = DecodeState(weights, batch, capacity)
        self._weights, self._head, self._capture, self._layers = weights, head, capture, layers
        self._steps: OrderedDict[tuple[int, SamplingParams], Step] = OrderedDict()

    def step(self, rows: int, params: SamplingParams) -> Step:
        """Return the step of the first ``rows`` sequences."""
        key = (rows, params)
        if key not in self._steps:
            self._steps[key] = Step(self._weights, self._head, self.state, rows, params, self._capture, self._layers)
        self._steps.move_to_end(key)
        if len(self._steps) > _STEPS_KEPT:
            self._steps.popitem(last=False)
        return self._steps[key]


class Workspaces:
    """Lends workspaces; up to two that came back are kept, with their steps. Safe for threads."""

    def __init__(self, make: Callable[[int, int], Workspace]) -> None:
        """make: (batch, capacity) to a new workspace."""
        self._make = make
        self._free: list[Workspace] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, batch: int, capacity: int) -> Iterator[Workspace]:
        """Lend a workspace for at least ``batch`` sequences of at least ``capacity`` positions.

        After an error it is not lent again: what are no numbers in its cache would spread.
        """
        workspace = self._take(batch, capacity)
        try:
            yield workspace
        except Cancelled:
            self._give(workspace)
            raise
        self._give(workspace)

    def clear(self) -> None:
        """Let go of those that came back, with their memory."""
        with self._lock:
            self._free = []

    def _take(self, batch: int, capacity: int) -> Workspace:
        # Powers of two, so that requests of about the same length find each other's room and graphs.
        capacity = max(1 << (capacity - 1).bit_length(), _LEAST_CAPACITY)
        with self._lock:
            for workspace in self._free:
                if workspace.state.batch >= batch and workspace.state.capacity >= capacity:
                    self._free.remove(workspace)
                    return workspace
            # The new one can stand in for these: their memory goes before its is taken.
            self._free = [w for w in self._free if w.state.batch > batch or w.state.capacity > capacity]
        return self._make(batch, capacity)

    def _give(self, workspace: Workspace) -> None:
        with self._lock:
            self._free = [*self._free, workspace][-_FREE_KEPT:]
