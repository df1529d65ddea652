"""Speech as numbers: the 2:3 cycle of linguistic and semantic codes, and the rows that the vocoder reads.

Two code streams describe the same sound: linguistic codes (1024 of them, 16.67 a second) and semantic codes
(4096, 25 a second). The language model reads and writes them interleaved in groups of five,

    [linguistic, linguistic, semantic, semantic, semantic]   = 120 ms of sound,

as the pieces ``<audio_N>``: linguistic code c is N = c, semantic code c is N = 1024 + c. Here "number" always
means N; which id a tokenizer gives to ``<audio_0>`` is the affair of its SpeechVocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepaudio.errors import WeightsError
from stepaudio.types import IntArray, SpeechTokens

LINGUISTIC_CODES = 1024
SEMANTIC_CODES = 4096
AUDIO_NUMBERS = LINGUISTIC_CODES + SEMANTIC_CODES
"""How many ``<audio_N>`` are in use: N = 0 .. 5119."""

LINGUISTIC_PER_GROUP = 2
SEMANTIC_PER_GROUP = 3
GROUP = LINGUISTIC_PER_GROUP + SEMANTIC_PER_GROUP
"""Ids of one group; also the length of the cycle of phases."""

ROWS_PER_GROUP = SEMANTIC_PER_GROUP
ROWS_PER_SECOND = 25
GROUP_SECONDS = ROWS_PER_GROUP / ROWS_PER_SECOND
IDS_PER_SECOND = GROUP / GROUP_SECONDS

PAD_LINGUISTIC = LINGUISTIC_CODES
"""The linguistic value of a row that has none (the third row of every group)."""
SEMANTIC_ROW_OFFSET = 1
"""The vocoder's semantic table begins one entry after the numbers: row value = N + 1."""


@dataclass(frozen=True)
class SpeechVocabulary:
    """Where a tokenizer keeps speech: the ids of the linguistic codes, of the semantic codes, and the id that ends.

    In the real tokenizer the ids are 65536..66559 and 66560..70655; a small one may hold fewer of either.
    """

    linguistic: range
    semantic: range
    end: int

    def legal_ids(self, phase: int) -> range:
        """Return the ids that may stand at place ``phase`` (0..4) of a group; the end id is not among them."""
        return self.linguistic if _is_linguistic(phase) else self.semantic

    def ids(self, numbers: npt.ArrayLike) -> IntArray:
        """Return the ids int64 (n,) of ``numbers`` (n,); raises WeightsError for one that has none."""
        array = np.asarray(numbers, dtype=np.int64).reshape(-1)
        linguistic = array < LINGUISTIC_CODES
        codes = np.where(linguistic, array, array - LINGUISTIC_CODES)
        known = (codes >= 0) & (codes < np.where(linguistic, len(self.linguistic), len(self.semantic)))
        if not np.all(known):
            stray = array[~known][0]
            raise WeightsError(
                f"The speech number {stray} is unknown to the tokenizer: encoder and language model do not fit."
            )
        return codes + np.where(linguistic, self.linguistic.start, self.semantic.start)

    def numbers(self, ids: npt.ArrayLike) -> IntArray:
        """Return the numbers int64 (n,) of speech ``ids`` (n,): the inverse of ids()."""
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        linguistic = (array >= self.linguistic.start) & (array < self.linguistic.stop)
        return np.where(linguistic, array - self.linguistic.start, array - self.semantic.start + LINGUISTIC_CODES)


def interleave(linguistic: npt.ArrayLike, semantic: npt.ArrayLike) -> SpeechTokens:
    """Return the whole groups of two code streams; what does not fill a group is dropped.

    linguistic (L,) in 0..1023 and semantic (S,) in 0..4095 give min(L // 2, S // 3) groups.
    Raises ValueError for codes outside their range: they would name sounds of the other stream.
    """
    first = _codes(linguistic, LINGUISTIC_CODES, "linguistic")
    second = _codes(semantic, SEMANTIC_CODES, "semantic")
    groups = min(len(first) // LINGUISTIC_PER_GROUP, len(second) // SEMANTIC_PER_GROUP)
    numbers = np.empty((groups, GROUP), dtype=np.int64)
    numbers[:, :LINGUISTIC_PER_GROUP] = first[: groups * LINGUISTIC_PER_GROUP].reshape(-1, LINGUISTIC_PER_GROUP)
    numbers[:, LINGUISTIC_PER_GROUP:] = second[: groups * SEMANTIC_PER_GROUP].reshape(-1, SEMANTIC_PER_GROUP)
    numbers[:, LINGUISTIC_PER_GROUP:] += LINGUISTIC_CODES
    return SpeechTokens(numbers.reshape(-1))  # (5 * groups,)


def rows(numbers: npt.ArrayLike) -> IntArray:
    """Return the vocoder's rows int64 (3 * groups, 2) of whole groups (5 * groups,).

    A group (a, b, c, d, e) becomes (a, c + 1), (b, d + 1), (1024, e + 1). Plain arithmetic, as upstream has it:
    no range is checked. Raises ValueError when a group is incomplete (see cut_to_groups).
    """
    table = _groups(numbers)
    result = np.full((len(table), ROWS_PER_GROUP, 2), PAD_LINGUISTIC, dtype=np.int64)
    result[:, :LINGUISTIC_PER_GROUP, 0] = table[:, :LINGUISTIC_PER_GROUP]
    result[:, :, 1] = table[:, LINGUISTIC_PER_GROUP:] + SEMANTIC_ROW_OFFSET
    return result.reshape(-1, 2)  # (3 * groups, 2)


def cut_to_groups(numbers: npt.ArrayLike) -> IntArray:
    """Return the whole groups int64 (5 * groups,) at the beginning of ``numbers``; a ragged end is dropped."""
    array = np.asarray(numbers, dtype=np.int64).reshape(-1)
    return array[: len(array) // GROUP * GROUP].copy()


def _is_linguistic(phase: int) -> bool:
    if not 0 <= phase < GROUP:
        raise ValueError(f"A phase is 0..{GROUP - 1}, not {phase}.")
    return phase < LINGUISTIC_PER_GROUP


def _codes(values: npt.ArrayLike, limit: int, name: str) -> IntArray:
    array = np.asarray(values, dtype=np.int64).reshape(-1)
    if len(array) and not 0 <= array.min() <= array.max() < limit:
        raise ValueError(f"The {name} codes run from {array.min()} to {array.max()}; legal are 0..{limit - 1}.")
    return array


def _groups(numbers: npt.ArrayLike) -> IntArray:
    array = np.asarray(numbers, dtype=np.int64).reshape(-1)
    if len(array) % GROUP:
        raise ValueError(f"{len(array)} numbers are not whole groups of {GROUP}.")
    return array.reshape(-1, GROUP)  # (groups, 5)
