"""What the semantic tokenizer hears of clips in training: parts of them, changed as another voice or room would.

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

from stepaudio.tokens import ROWS_PER_GROUP
from training.captured import Batch
from training.codes import ROW_FRAMES
from training.data import RATE, stretched, whisper_centres
from training.phones import IGNORED, frame_labels
from training.semantic import augmented as other_mel
from training.semantic import gathered
from training.shards import ClipRecord

STEP_GROUPS = 12
"""Lengths are multiples of this, and so of the flow's blocks."""

GROUP_FRAMES, GROUP_MELS = 12, ROW_FRAMES * ROWS_PER_GROUP
"""Frames of the log-mel, and of the vocoder's mel, in one group of codes."""

FRAME_SECONDS = 0.02


@dataclass(frozen=True)
class Changes:
    """How often, and how far, a clip is heard otherwise than it was said.

    stretched, stretch: as from another throat; logarithm of the largest factor on the formants, up and down.
    hurried, hurry: at another speed; logarithm of the largest factor on that.
    disturbed: as through another microphone.
    """

    stretched: float = 0.6
    stretch: float = 0.16
    hurried: float = 0.5
    hurry: float = 0.16
    disturbed: float = 0.5


class Audible(Protocol):
    """A clip that can be heard: Whisper's log-mel (T, 128), and what is to be told of it.

    told: (6 G, n) for ``groups`` whole groups of codes.   offset: where the codes begin, in samples at 16 kHz.
    """

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
    """What the tokenizer hears of a batch: log-mels (B, 128, T) with zeros after them, and their lengths int32 (B,)."""

    mels: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, eq=False)
class Cut:
    """A part of a clip: log-mel (12 G, 128), what is told (6 G, n), phonemes (6 G,)."""

    whisper: torch.Tensor
    told: torch.Tensor
    labels: torch.Tensor


def whole(clip: Audible) -> Heard:
    """Return what is heard of all of one clip, as it was said: as much as its whole groups of codes are made of."""
    count = clip.groups * GROUP_FRAMES
    whisper = torch.from_numpy(np.asarray(clip.whisper[:count], np.float32))
    return Heard(*gathered([F.pad(whisper, (0, 0, 0, count - len(whisper)))]))


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
    whisper = np.asarray(clip.whisper[first : first + count], np.float32)
    told = np.asarray(clip.told[begin_ : begin_ + taken], np.float32)
    # Codes may be made of a little more than there is: what the product pads with is as good as silence.
    whisper = np.pad(whisper, ((0, count - len(whisper)), (0, 0)))
    labels = labels_of(clip, begin_, taken)
    return Cut(
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


def another_throat(whisper: torch.Tensor, changes: Changes, generator: torch.Generator) -> torch.Tensor:
    """Return the log-mel of a clip as if its formants lay elsewhere, as often as ``changes`` say.

    What is to be told stays as it was: so the codes need not tell whose voice it is, which the speaker vector and the
    prompt do (vocal tract length perturbation: Jaitly and Hinton, 2013).
    """
    if drawn(generator) >= changes.stretched:
        return whisper
    return stretched(whisper, whisper_centres(), math.exp(changes.stretch * (2 * drawn(generator) - 1)))


def changed(cuts: Sequence[Cut], changes: Changes, generator: torch.Generator) -> Heard:
    """Return what is heard of some parts of one length: other throats, other microphones."""
    mels = [another_throat(one.whisper, changes, generator) for one in cuts]
    return Heard(
        *gathered([other_mel(one, generator) if drawn(generator) < changes.disturbed else one for one in mels])
    )
