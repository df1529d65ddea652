"""Passages of speech that were made apart become one sound: even loudness, natural pauses, no clicks (pure).

A passage's own silence at an inner edge is cut, whatever the model left there, and the pause that the text asks for
stands in its place. Sound may come in any portions, so that a stream can be joined while it is being made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from stepaudio.types import FloatArray, Waveform

FRAMES_PER_SECOND = 100
QUIET = 0.03
"""A frame is silent below this share of the loudest frame so far (-30 dB)."""
MOST_QUIET_SECONDS = 0.3
"""How much silence is cut at an edge, and how much a stream holds back."""
EDGE_SECONDS = 0.02
"""Silence that stays at a cut edge; at the end of a passage it counts as part of the pause."""
FADE_SECONDS = 0.005

SPOKEN = 0.1
"""Frames below this share of the loudest one (-20 dB) do not count for the loudness of a passage."""
MOST_GAIN = 2.0
PEAK = 0.99


class Joiner:
    """Joins passages that come one after another, in portions of any length.

    Until the first join it gives back what it gets, but for silence and 5 ms at the end, which come later. The first
    sample and the last one of the whole stay where they are: only inner edges are cut.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._frame = sample_rate // FRAMES_PER_SECOND
        self._joins: deque[tuple[int, float]] = deque()
        self._seen = 0  # samples that have come in, of all passages
        self._partial = np.zeros(0, np.float32)  # less than a frame
        self._held = np.zeros(0, np.float32)  # whole frames that may turn out to be silence at an edge
        self._quiet = 0  # silent samples at the end of what came in of this passage
        self._dropped = 0  # silent samples cut off the beginning of this passage
        self._beginning = False  # whether nothing of this passage but silence has come in, and it is to be cut
        self._loudest = 0.0

    def join_at(self, sample: int, pause: float) -> None:
        """Say that a passage ends before this sample of what comes in, to be followed by ``pause`` seconds.

        Joins come in order, each before the samples after it.
        """
        self._joins.append((sample, pause))

    def push(self, samples: FloatArray) -> FloatArray:
        """Return what is ready after the next samples float32 (N,)."""
        ready = []
        while self._joins and self._joins[0][0] <= self._seen + len(samples):
            sample, pause = self._joins.popleft()
            count = sample - self._seen
            ready += [self._take(samples[:count]), self._end(pause)]
            samples = samples[count:]
        ready.append(self._take(samples))
        return np.concatenate(ready)

    def finish(self) -> FloatArray:
        """Return what is left."""
        rest = np.concatenate((self._held, self._partial))
        self._held = self._partial = np.zeros(0, np.float32)
        return rest

    def _take(self, samples: FloatArray) -> FloatArray:
        """Return what is ready after more of the same passage."""
        self._seen += len(samples)
        samples = np.concatenate((self._partial, samples))
        whole = len(samples) // self._frame * self._frame
        self._partial = samples[whole:]
        ready = [self._add(frame) for frame in samples[:whole].reshape(-1, self._frame)]
        return np.concatenate(ready) if ready else np.zeros(0, np.float32)

    def _add(self, frame: FloatArray) -> FloatArray:
        """Return what is ready after one more frame."""
        level = _rms(frame)
        self._loudest = max(self._loudest, level)
        silent = level <= QUIET * self._loudest
        self._quiet = self._quiet + len(frame) if silent else 0
        self._held = np.concatenate((self._held, frame))
        if self._beginning:
            return self._add_to_beginning(silent)
        kept = min(max(self._quiet, self._samples(FADE_SECONDS)), self._samples(MOST_QUIET_SECONDS))
        return self._release(max(len(self._held) - kept, 0))

    def _add_to_beginning(self, silent: bool) -> FloatArray:
        """Cut the silence at the beginning of a passage, up to a limit; nothing is ready before its sound."""
        over = len(self._held) - self._frame - self._samples(EDGE_SECONDS)
        if over > 0 and self._dropped + over <= self._samples(MOST_QUIET_SECONDS):
            self._held = self._held[over:]
            self._dropped += over
        elif over > 0:
            silent = False
        if not silent:
            self._beginning = False
            self._held = _faded(self._held, self._samples(FADE_SECONDS), coming=True)
        return self._release(0)

    def _end(self, pause: float) -> FloatArray:
        """Return the end of a passage and the pause after it."""
        held = min(self._quiet, len(self._held))  # of the silence; the rest was too long to be held back
        kept = min(held, self._samples(EDGE_SECONDS))
        tail = np.concatenate((self._held, self._partial))
        tail = _faded(tail[: len(tail) - held + kept], self._samples(FADE_SECONDS), coming=False)
        silence = max(self._samples(pause) - (self._quiet - held) - kept, 0)
        self._held = self._partial = np.zeros(0, np.float32)
        self._quiet = self._dropped = 0
        self._beginning = True
        return np.concatenate((tail, np.zeros(silence, np.float32)))

    def _release(self, count: int) -> FloatArray:
        ready, self._held = self._held[:count], self._held[count:]
        return ready

    def _samples(self, seconds: float) -> int:
        """Return how many samples that are."""
        return round(seconds * self._rate)


def joined(passages: Sequence[Waveform], pauses: Sequence[float]) -> Waveform:
    """Return the passages as one sound, made equally loud; ``pauses``: the seconds after each (the last is not heard).

    One passage alone is returned as it is. All have the same rate.
    """
    if len(passages) == 1:
        return passages[0]
    rate = passages[0].sample_rate
    joiner = Joiner(rate)
    ready, seen = [], 0
    for samples, pause in zip(levelled([passage.samples for passage in passages]), pauses, strict=True):
        ready.append(joiner.push(samples))
        seen += len(samples)
        if len(ready) < len(passages):
            joiner.join_at(seen, pause)
    return Waveform(np.concatenate([*ready, joiner.finish()]), rate)


def levelled(passages: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the passages at the loudness of their median; none changes by more than 6 dB or grows beyond its peak."""
    levels = [loudness(samples) for samples in passages]
    heard = [level for level in levels if level > 0]
    if not heard:
        return list(passages)
    target = float(np.median(heard))
    gains = [_gain(samples, level, target) for samples, level in zip(passages, levels, strict=True)]
    return [samples * np.float32(gain) for samples, gain in zip(passages, gains, strict=True)]


def loudness(samples: FloatArray, frame: int = 240) -> float:
    """Return the root mean square of the frames in which something is said; 0 for silence."""
    whole = len(samples) // frame * frame
    energies = np.square(samples[:whole].astype(np.float64)).reshape(-1, frame).mean(axis=1)
    if not len(energies) or not energies.max():
        return 0.0
    return float(np.sqrt(energies[energies >= SPOKEN**2 * energies.max()].mean()))


def _gain(samples: FloatArray, level: float, target: float) -> float:
    """Return the factor that brings a passage to the target, within its limits."""
    if level == 0:
        return 1.0
    wish = min(max(target / level, 1 / MOST_GAIN), MOST_GAIN)
    # A passage that is at its peak already may stay as it is, but not grow.
    return min(wish, max(PEAK / float(np.abs(samples).max()), 1.0))


def _rms(frame: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(frame, dtype=np.float64))))


def _faded(samples: FloatArray, count: int, *, coming: bool) -> FloatArray:
    """Return the samples with the first (coming) or the last ``count`` faded."""
    count = min(count, len(samples))
    ramp = ((np.arange(count) + 0.5) / max(count, 1)).astype(np.float32)
    faded = samples.copy()
    if coming:
        faded[:count] *= ramp
    elif count:
        faded[-count:] *= ramp[::-1]
    return faded
