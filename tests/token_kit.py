"""What the tests know of speech tokens beside the product: the way back, the official code's filler, the cycle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepaudio.tokens import AUDIO_NUMBERS, GROUP, LINGUISTIC_CODES, LINGUISTIC_PER_GROUP
from stepaudio.types import IntArray, SpeechTokens

_UPSTREAM_PADDING = (0, 0, 0, LINGUISTIC_CODES, LINGUISTIC_CODES, LINGUISTIC_CODES)


def deinterleave(tokens: SpeechTokens) -> tuple[IntArray, IntArray]:
    """Return (linguistic (2 * groups,), semantic (3 * groups,)) int64: the inverse of interleave."""
    table = tokens.numbers.reshape(-1, GROUP)
    linguistic = table[:, :LINGUISTIC_PER_GROUP].reshape(-1).copy()
    semantic = table[:, LINGUISTIC_PER_GROUP:].reshape(-1) - LINGUISTIC_CODES
    return linguistic, semantic


def pad_to_groups_as_upstream(numbers: npt.ArrayLike) -> IntArray:
    """Return ``numbers`` with its ragged end completed by the official code's filler.

    For comparing rows() with recordings of the official code. The product cuts instead: the filler sounds as up to
    120 ms of junk.
    """
    array = np.asarray(numbers, dtype=np.int64).reshape(-1)
    remainder = len(array) % GROUP
    if remainder == 0:
        return array.copy()
    filler = np.asarray(_UPSTREAM_PADDING[-(GROUP - remainder) :], dtype=np.int64)
    return np.concatenate([array, filler])


def obeys_cycle(numbers: npt.ArrayLike) -> bool:
    """Return whether every number is legal at its place of the cycle, the first one standing at phase 0."""
    array = np.asarray(numbers, dtype=np.int64).reshape(-1)
    linguistic = np.arange(len(array)) % GROUP < LINGUISTIC_PER_GROUP
    low = np.where(linguistic, 0, LINGUISTIC_CODES)
    high = np.where(linguistic, LINGUISTIC_CODES, AUDIO_NUMBERS)
    return bool(np.all((low <= array) & (array < high)))
