"""Phonemes as classes: the teachers' alphabet without stress, spaces and punctuation, and labels for frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

SILENCE = 0
"""The class of silence, which is also CTC's blank."""

PHONES = "AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹʃʊʌʒʤʧθᵊᵻ"
CLASSES = 1 + len(PHONES)
IGNORED = -100
"""The label of a frame of which nobody can say what it is."""

_STRESS = "ˈˌː"
_PAUSES = ';:,.!?—…"()“”'
_CLASS = {phone: number for number, phone in enumerate(PHONES, 1)}


def classes(phones: str) -> list[int]:
    """Return the classes of a string of phonemes; what is no phoneme is passed over."""
    return [_CLASS[phone] for phone in phones if phone in _CLASS]


def frame_labels(phones: str, bounds: Sequence[float], centres: np.ndarray) -> np.ndarray:
    """Return the class, int64 (n,), at each time of ``centres``.

    bounds: where the first phoneme begins and where each ends, in the unit of ``centres``. A stress mark's time is
    that of the phoneme after it. Punctuation and what lies outside are silence; a space between two words has no
    sound of its own, so its time is IGNORED.
    """
    if not phones:
        return np.full(len(centres), IGNORED, np.int64)
    labels = np.full(len(phones) + 2, SILENCE, np.int64)
    following = SILENCE
    for place in range(len(phones) - 1, -1, -1):
        phone = phones[place]
        if phone in _CLASS:
            following = _CLASS[phone]
            labels[place + 1] = following
        elif phone in _STRESS:
            labels[place + 1] = following
        else:
            beside = phones[max(0, place - 1)] + phones[min(len(phones) - 1, place + 1)]
            pause = phone in _PAUSES or any(other in _PAUSES for other in beside)
            labels[place + 1] = SILENCE if pause else IGNORED
            following = SILENCE
    return labels[np.searchsorted(np.asarray(bounds), centres, side="right")]


def frame_words(phones: str, bounds: Sequence[float], centres: np.ndarray) -> np.ndarray:
    """Return the number of the word, int64 (n,), that is spoken at each time of ``centres``; -1 outside of all.

    Words are what spaces divide; a space belongs to the word after it. bounds as in frame_labels.
    """
    if not phones:
        return np.full(len(centres), -1, np.int64)
    numbers = np.cumsum([phone == " " for phone in phones])
    return np.concatenate(([-1], numbers, [-1]))[np.searchsorted(np.asarray(bounds), centres, side="right")]


def misread(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return how badly phonemes are read: the cross-entropy of logits (B, T, CLASSES) where labels (B, T) are known."""
    labels = labels.flatten()
    wrong = F.cross_entropy(logits.float().flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
    return wrong / (labels != IGNORED).sum().clamp(min=1)


def collapsed(best: Sequence[int]) -> list[int]:
    """Return the classes that a row of frame decisions stands for: repetitions merged, silence dropped (CTC)."""
    return [int(one) for place, one in enumerate(best) if one != SILENCE and (place == 0 or one != best[place - 1])]
