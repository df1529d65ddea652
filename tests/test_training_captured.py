"""Batches as trees of tensors, and batches whose shapes come again (the recording itself needs a GPU)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training.captured import Batch


@dataclass(frozen=True, eq=False)
class Inner(Batch):
    numbers: torch.Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class Outer(Batch):
    first: torch.Tensor
    inner: Inner
    last: torch.Tensor


def outer() -> Outer:
    return Outer(torch.ones(2), Inner(torch.arange(3), 7), torch.zeros(1))


def test_every_tensor_of_a_tree_is_changed_and_the_rest_stays() -> None:
    changed = outer().changed(lambda part: part + 1)
    assert isinstance(changed, Outer)
    assert changed.first.tolist() == [2, 2]
    assert changed.inner.numbers.tolist() == [1, 2, 3]
    assert changed.inner.longest == 7
    assert changed.last.tolist() == [1]


def test_tensors_come_in_the_order_of_the_fields() -> None:
    assert [len(part) for part in outer().tensors()] == [2, 3, 1]
    assert all(part.device.type == "meta" for part in outer().to(torch.device("meta")).tensors())
