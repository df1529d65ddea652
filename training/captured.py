"""Batches as trees of tensors, and training steps recorded once for every shape of a batch.

A network as small as ours keeps a GPU waiting: a step is thousands of short kernels, and launching them takes longer
than computing them. Where the shapes of batches come again, forward and backward pass of each shape are recorded as a
CUDA graph, which is launched as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

WARM_UPS = 2
"""Passes before a recording, in which libraries choose their kernels."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What a dataclass of tensors, and of other such dataclasses, needs to be moved as one."""

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the same with every tensor replaced by what ``change`` makes of it; other fields stay."""
        made: dict[str, Any] = {}
        for name, part in self._parts():
            made[name] = change(part) if isinstance(part, torch.Tensor) else part.changed(change)
        return dataclasses.replace(self, **made)

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors, in a fixed order."""
        found: list[torch.Tensor] = []
        for _, part in self._parts():
            found += [part] if isinstance(part, torch.Tensor) else part.tensors()
        return found

    def pin_memory(self) -> Self:
        """Return the same in memory from which a GPU may read while the host goes on (torch's DataLoader asks)."""
        return self.changed(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """Return the same on another device."""
        return self.changed(lambda part: part.to(device, non_blocking=True))

    def _parts(self) -> list[tuple[str, torch.Tensor | Batch]]:
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return [(name, part) for name, part in named if isinstance(part, torch.Tensor | Batch)]


@dataclass(frozen=True, eq=False)
class Recording:
    """A graph, the batch that it reads, the loss and the gradients that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    loss: torch.Tensor
    gradients: list[torch.Tensor | None]


class Captured:
    """Loss and gradients of batches, by graphs that are recorded when a shape is first seen.

    ``loss_of`` may neither wait for the device nor read values back, and must leave what it changes in its place. What
    it changes besides gradients (a running mean, an optimizer of its own) changes WARM_UPS times more at a recording.
    """

    def __init__(self, model: nn.Module, loss_of: Callable[[Any], torch.Tensor]) -> None:
        self._weights = list(model.parameters())
        self._loss_of = loss_of
        self._known: dict[tuple[torch.Size, ...], Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch and leave its gradients at the weights."""
        new = batch.tensors()
        key = tuple(part.shape for part in new)
        if key not in self._known:
            self._known[key] = self._record(batch.to(self._weights[0].device))
        known = self._known[key]
        for kept, part in zip(known.inputs, new, strict=True):
            kept.copy_(part, non_blocking=True)
        known.graph.replay()
        for weight, gradient in zip(self._weights, known.gradients, strict=True):
            weight.grad = gradient
        return known.loss.clone()

    def _record(self, batch: Batch) -> Recording:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._learn(batch)
        torch.cuda.current_stream().wait_stream(aside)
        self._clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self._learn(batch)
        return Recording(graph, batch.tensors(), loss, [weight.grad for weight in self._weights])

    def _learn(self, batch: Batch) -> torch.Tensor:
        loss = self._loss_of(batch)
        self._clear()  # after the loss, in which an adversary may have learned
        loss.backward()
        return loss.detach()

    def _clear(self) -> None:
        for weight in self._weights:
            weight.grad = None
