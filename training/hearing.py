"""What the two code encoders hear of clips in training: parts of them, changed as another voice or room would.

What is to be told of a clip (the mel to be given back, features to be kept) stays as it was, but for its pace.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from stepaudio.tokens import LINGUISTIC_PER_GROUP, ROWS_PER_GROUP
from training.captured import Batch
from training.codes import ROW_FRAMES
from training.data import RATE, frame_count, kaldi_centres, stretched, whisper_centres
from training.linguistic import augmented as other_bank
from training.phones import IGNORED, frame_labels
from training.semantic import augmented as other_mel
from training.semantic import code_count, gathered
from training.shards import ClipRecord
from training.windows import Layout, layout

STEP_GROUPS = 12
"""Lengths are multiples of this, and so of the encoder's windows and of the flow's blocks."""

GROUP_FRAMES, GROUP_MELS = 12, ROW_FRAMES * ROWS_PER_GROUP
"""Frames of the filterbank, and of the log-mel, in one group of codes; those of the mel."""

FRAME_SECONDS = 0.02


@dataclass(frozen=True)
class Changes:
    """How often, and how far, a clip is heard otherwise than it was said.

    stretched, stretch: as from another throat; logarithm of the largest factor on the formants, up and down.
    hurried, hurry: at another speed; logarithm of the largest factor on that.
    disturbed: as through another microphone, by either encoder.
    """

    stretched: float = 0.6
    stretch: float = 0.16
    hurried: float = 0.5
    hurry: float = 0.16
    disturbed: float = 0.5


class Audible(Protocol):
    """A clip that can be heard: filterbank (F, 80), Whisper's log-mel (T, 128), and what is to be told of it.

    told: (6 G, n) for ``groups`` whole groups of codes.   offset: where the codes begin, in samples at 16 kHz.
    """

    @property
    def bank(self) -> np.ndarray: ...
    @property
    def whisper(self) -> np.ndarray: ...
    @property
    def told(self) -> np.ndarray: ...
    @property
    def groups(self) -> int: ...
    @property
    def record(self) -> ClipRecord: ...
    @property
    def offset(self) -> int: ...


Clip = TypeVar("Clip", bound=Audible)


@dataclass(frozen=True, eq=False)
class Heard(Batch):
    """What the encoders hear of a batch, and which rows of it are looked at.

    banks: filterbanks one after the other (N, 80), laid out as ``where`` tells.   mels: log-mels (B, 128, T) with zeros
    after them, and their lengths int32 (B,).   frame, state: int64 (B, L), where linguistic and semantic part of
    each row is found; the linguistic one past the last frame is padding.
    """

    banks: torch.Tensor
    where: Layout
    mels: torch.Tensor
    lengths: torch.Tensor
    frame: torch.Tensor
    state: torch.Tensor


@dataclass(frozen=True, eq=False)
class Cut:
    """A part of a clip: filterbank (12 G - 2, 80), log-mel (12 G, 128), what is told (6 G, n), phonemes (6 G,)."""

    bank: torch.Tensor
    whisper: torch.Tensor
    told: torch.Tensor
    labels: torch.Tensor


def heard_of(banks: Sequence[torch.Tensor], mels: Sequence[torch.Tensor], length: int) -> Heard:
    """Return the features of some clips, of which the first ``length`` rows are to be looked at.

    The last row of a group has no linguistic code (stepaudio.tokens.rows).
    """
    counts = [len(bank) for bank in banks]
    first = np.cumsum([0, *map(frame_count, counts)])[:, None]
    padded, lengths = gathered(list(mels))
    row = np.arange(length)
    group, place = row // ROWS_PER_GROUP, row % ROWS_PER_GROUP
    frame = np.where(place < LINGUISTIC_PER_GROUP, first[:-1] + group * LINGUISTIC_PER_GROUP + place, first[-1])
    state = np.arange(len(mels))[:, None] * code_count(padded.shape[2]) + row
    together = torch.cat(list(banks))
    return Heard(together, layout(counts), padded, lengths, torch.from_numpy(frame), torch.from_numpy(state))


def whole(clip: Audible) -> Heard:
    """Return what is heard of all of one clip, as it was said."""
    count = clip.groups * GROUP_FRAMES
    bank, whisper = (torch.from_numpy(np.asarray(one, np.float32)) for one in (clip.bank, clip.whisper))
    if len(whisper) < count:
        whisper = F.pad(whisper, (0, 0, 0, count - len(whisper)))
    return heard_of([bank], [whisper], clip.groups * ROWS_PER_GROUP)


def labels_of(clip: Audible, start: int, frames: int) -> np.ndarray:
    """Return the phoneme of every frame of 20 ms from ``start`` on, int64 (frames,); IGNORED where nobody knows."""
    record = clip.record
    if not record.bounds:
        return np.full(frames, IGNORED, np.int64)
    centres = (np.arange(start, start + frames) + 0.5) * FRAME_SECONDS * RATE + clip.offset
    return frame_labels(record.phones, np.asarray(record.bounds) * (RATE / record.rate), centres)


def drawn(generator: torch.Generator) -> float:
    """Return a random number from 0 to 1."""
    return float(torch.rand((), generator=generator))


def cut(clip: Audible, groups: int, changes: Changes, generator: torch.Generator) -> Cut:
    """Return ``groups`` groups from a random place of a clip on, as if there were no more of it.

    Where they are said slower or faster, what lies in more or fewer frames is squeezed into as many.
    """
    frames = groups * GROUP_MELS
    hurry = math.exp(changes.hurry * (2 * drawn(generator) - 1)) if drawn(generator) < changes.hurried else 1.0
    taken = min(round(frames * hurry), clip.groups * GROUP_MELS)
    start = int(drawn(generator) * (clip.groups - math.ceil(taken / GROUP_MELS) + 1))
    first, begin_ = start * GROUP_FRAMES, start * GROUP_MELS
    count = taken * GROUP_FRAMES // GROUP_MELS
    bank = np.asarray(clip.bank[first : first + count - 2], np.float32)
    whisper = np.asarray(clip.whisper[first : first + count], np.float32)
    told = np.asarray(clip.told[begin_ : begin_ + taken], np.float32)
    # Codes may be made of a little more than there is: what the product pads with is as good as silence.
    bank = np.pad(bank, ((0, count - 2 - len(bank)), (0, 0)), "edge")
    whisper = np.pad(whisper, ((0, count - len(whisper)), (0, 0)))
    labels = labels_of(clip, begin_, taken)
    return Cut(
        squeezed(bank, groups * GROUP_FRAMES - 2),
        squeezed(whisper, groups * GROUP_FRAMES),
        squeezed(told, frames),
        torch.from_numpy(labels[(np.arange(frames) * taken + taken // 2) // frames]),
    )


def squeezed(rows: np.ndarray, count: int) -> torch.Tensor:
    """Return ``count`` rows in place of as many as there are (T, bins)."""
    found = torch.from_numpy(rows)
    return found if len(rows) == count else F.interpolate(found.T[None], size=count, mode="linear")[0].T.contiguous()


def cuts_of(batch: Sequence[Clip], rows: int, changes: Changes, generator: torch.Generator) -> list[tuple[Clip, Cut]]:
    """Return as much of every clip as the shortest one has, about.

    Of one length there is always the same count of clips (the first ones once more, or not the last ones), so that few
    shapes come, for which a GPU has its plans ready.
    """
    groups = min(clip.groups for clip in batch) // STEP_GROUPS * STEP_GROUPS
    chosen = itertools.islice(itertools.cycle(batch), max(1, rows // (ROWS_PER_GROUP * groups)))
    return [(clip, cut(clip, groups, changes, generator)) for clip in chosen]


def another_throat(
    heard: tuple[torch.Tensor, torch.Tensor], changes: Changes, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return filterbank and log-mel of a clip as if its formants lay elsewhere, as often as ``changes`` say.

    What is to be told stays as it was: so the codes need not tell whose voice it is, which the speaker vector and the
    prompt do (vocal tract length perturbation: Jaitly and Hinton, 2013).
    """
    if drawn(generator) >= changes.stretched:
        return heard
    factor = math.exp(changes.stretch * (2 * drawn(generator) - 1))
    return stretched(heard[0], kaldi_centres(), factor), stretched(heard[1], whisper_centres(), factor)


def changed(cuts: Sequence[Cut], changes: Changes, generator: torch.Generator) -> Heard:
    """Return what the encoders hear of some parts of one length: other throats, other microphones."""
    pairs = [another_throat((one.bank, one.whisper), changes, generator) for one in cuts]
    banks = [other_bank(one, generator) if drawn(generator) < changes.disturbed else one for one, _ in pairs]
    mels = [other_mel(one, generator) if drawn(generator) < changes.disturbed else one for _, one in pairs]
    return heard_of(banks, mels, len(cuts[0].labels) // ROW_FRAMES)
