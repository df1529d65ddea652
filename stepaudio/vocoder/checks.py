"""What is asked of values on their way through the vocoder, where a failure is still a sentence."""

from __future__ import annotations

import torch
from torch import Tensor

from stepaudio.errors import GenerationError
from stepaudio.types import IntArray


def check_rows(table: IntArray, entries: int) -> None:
    """Raise GenerationError unless all rows (L, 2) are places in a table of ``entries``.

    Asked before the network looks them up: an index out of range would take a GPU's context down.
    """
    if table.min() < 0 or table.max() >= entries:
        raise GenerationError("The language model produced numbers that stand for no sound; try again.")


def check_finite(values: Tensor, what: str) -> None:
    """Raise GenerationError, naming ``what`` was produced by whom, unless all values are finite."""
    if not torch.isfinite(values).all():
        raise GenerationError(f"{what} that are not finite; trying again may help.")
