"""What the trainers read: filterbanks of every clip, made once, as the product's front end makes them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stepaudio import audio, features, torchaudio_compat
from stepaudio.encoder.paraformer import FULL_SCALE
from stepaudio.types import Waveform
from training.shards import ClipRecord, read_samples, read_shard_records, save_array, shard_numbers, shard_paths

log = logging.getLogger(__name__)

RATE = 16000
WINDOW = 3840
"""Samples of one window of the linguistic encoder: clips are padded to whole windows."""

BINS, STACK, STRIDE = 80, 7, 6
HIBARI_EVERY = 4
"""Of the one-voice teacher's clips, a pass shows one in so many; recordings and mixtures it shows twice."""


@dataclass(frozen=True, eq=False)
class Example:
    """A clip ready for training.

    bank: float16 (F, 80), Kaldi's log filterbank, F = 6 * frames - 2 for ``frames`` stacked ones, a multiple of 4;
    or Whisper's log-mel (T, 128).
    offset: where it begins in the clip, in samples at 16 kHz (the silence that was cut off; may be negative).
    """

    record: ClipRecord
    bank: np.ndarray
    offset: int

    @property
    def frames(self) -> int:
        """Stacked frames, 16.67 a second."""
        return frame_count(len(self.bank))


def heard(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Return what the code encoders hear of a clip, padded with zeros to whole windows, and where it begins.

    These are the product's own steps (stepaudio.audio); the beginning is in samples at 16 kHz of the clip.
    """
    limited = audio.limit_peak(Waveform(samples, rate))
    loud = audio.normalize_peak(audio.resample(limited, RATE).samples)
    kept = audio.trim_silence(loud)
    padded = np.pad(kept, (0, -len(kept) % WINDOW)).astype(np.float32)
    return padded, audio.loud_range(loud)[0] - audio.KEEP_BEFORE


def filterbank(samples: np.ndarray) -> torch.Tensor:
    """Return Kaldi's log filterbank, float32 (F, 80), as the front end of stepaudio.encoder.paraformer computes it."""
    bank: torch.Tensor = torchaudio_compat.kaldi().fbank(
        torch.from_numpy(samples)[None] * FULL_SCALE,
        num_mel_bins=BINS,
        frame_length=25,
        frame_shift=10,
        dither=0.0,
        energy_floor=0.0,
        window_type="hamming",
        sample_frequency=RATE,
    )
    return bank


def frame_count(rows: int) -> int:
    """Return how many stacked frames ``rows`` rows of a filterbank give."""
    return (rows + 2) // STRIDE


@functools.cache
def whisper_centres() -> np.ndarray:
    """Return the middle of every bin of Whisper's log-mel in Hz, (128,)."""
    top = float(features.hz_to_mel(np.asarray([RATE / 2]))[0])
    return features.mel_to_hz(np.linspace(0.0, top, features.WHISPER_MELS + 2)[1:-1])


def stretched(rows: torch.Tensor, centres: np.ndarray, factor: float) -> torch.Tensor:
    """Return log spectra (T, bins) with what lay at ``factor`` times a bin's frequency in that bin."""
    place = np.interp(centres * factor, centres, np.arange(len(centres)))
    left = np.minimum(place.astype(np.int64), len(centres) - 2)
    share = torch.from_numpy((place - left).astype(np.float32))
    return torch.lerp(rows[:, left], rows[:, left + 1], share)


def bank_of(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Return the filterbank of a clip, float16 (F, 80), over whole windows, and where it begins."""
    padded, offset = heard(samples, rate)
    return filterbank(padded).clamp(min=-15).half().numpy(), offset


def mel_of(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Return Whisper's log-mel of what the code encoders hear of a clip, float16 (T, 128), and where it begins."""
    limited = audio.limit_peak(Waveform(samples, rate))
    loud = audio.normalize_peak(audio.resample(limited, RATE).samples)
    mel = features.whisper_log_mel(audio.trim_silence(loud))
    return mel.T.astype(np.float16), audio.loud_range(loud)[0] - audio.KEEP_BEFORE


def cache_features(
    shards: Path, cache: Path, make: Callable[[np.ndarray, int], tuple[np.ndarray, int]], most: int | None = None
) -> int:
    """Write the features of every whole shard that has none yet; return how many were made. Survives a kill.

    make: (samples, rate) -> (features of a clip, where they begin); see bank_of and mel_of.
    most: of so many shards at most, the first ones.
    """
    cache.mkdir(parents=True, exist_ok=True)
    made = 0
    for number in shard_numbers(shards, "jsonl")[:most]:
        path = shard_paths(cache, number)[0]
        if path.is_file():
            continue
        found, places = [], []
        for record in read_shard_records(shards, number):
            rows, offset = make(read_samples(shards, number, record), record.rate)
            found.append(rows)
            places.append((len(rows), offset))
        save_array(path.with_suffix(".places.npy"), np.asarray(places, np.int64))
        save_array(path, np.concatenate(found))
        made += 1
        if made % 10 == 0:
            log.info("%s: %d shards made", cache, made)
    return made


def read_examples(shards: Path, cache: Path) -> Iterator[Example]:
    """Yield the examples of a set, as far as its filterbanks were made; they are read when used (memory-mapped)."""
    for number in shard_numbers(cache, "npy"):
        path = shard_paths(cache, number)[0]
        flat = np.load(path, mmap_mode="r", allow_pickle=False)
        place = 0
        records = read_shard_records(shards, number)
        places = np.load(path.with_suffix(".places.npy"), allow_pickle=False)
        for record, (count, offset) in zip(records, places, strict=True):
            yield Example(record, flat[place : place + count], int(offset))
            place += int(count)


def times_shown(example: Example, number: int) -> int:
    """Return how often a pass shows clip ``number``: unknown voices are learned from many voices, not from one."""
    if example.record.speaker == "hibari":
        return int(number % HIBARI_EVERY == 0)
    return 1 if example.record.speaker.startswith("disguised") else 2


def batches(lengths: Sequence[int], most: int, seed: int, epoch: int, mixed: float = 0.1) -> list[list[int]]:
    """Return the clips of every batch of an epoch: of like length, ``most`` frames together, in random order.

    mixed: by what share lengths are taken for others, so that a clip meets new ones in every epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    rough = np.asarray(lengths) * rng.uniform(1 - mixed, 1 + mixed, len(lengths))
    found: list[list[int]] = [[]]
    filled = 0
    for clip in np.argsort(rough, kind="stable"):
        if found[-1] and filled + lengths[clip] > most:
            found.append([])
            filled = 0
        found[-1].append(int(clip))
        filled += lengths[clip]
    return [found[place] for place in rng.permutation(len(found))]
