"""What the vocoder learns from: ``python -m training.acoustic --work W`` makes its mel and the pitch of every clip.

The rows begin where the codes of the clip begin, so that row pair 2 j, 2 j + 1 belongs to semantic code j.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from stepaudio import audio, features
from stepaudio.types import Waveform
from training.command import begin
from training.data import RATE, cache_features

log = logging.getLogger(__name__)

MEL = features.MelConfig()
MELS, HOP = MEL.num_mels, MEL.hop_size
SOUND_RATE = MEL.sampling_rate
MEL_MEAN, MEL_SPREAD = -6.0, 2.5
"""About those of the mels: where training begins."""

LOWEST, HIGHEST = 60.0, 500.0
"""Hz between which a pitch is looked for."""

SETS = ("recordings", "kokoro", "presets", "heldout", "hibari")
MOST_SHARDS = {"hibari": 20}
"""Of one voice a few hours are enough to learn sound from."""


def sound_of(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Return a clip as the vocoder is to give it back, float32 at 24 kHz, from where its codes begin on.

    With it comes that place, in samples at 16 kHz of the clip (may be negative: zeros were put before it).
    """
    limited = audio.limit_peak(Waveform(samples, rate))
    start, end = audio.loud_range(audio.normalize_peak(audio.resample(limited, RATE).samples))
    offset = start - audio.KEEP_BEFORE
    whole = audio.resample(limited, SOUND_RATE).samples
    first, last = offset * SOUND_RATE // RATE, (end + audio.KEEP_AFTER) * SOUND_RATE // RATE
    out = np.zeros(last - first, np.float32)
    kept = whole[max(0, first) : last]
    into = max(0, -first)
    out[into : into + len(kept)] = kept
    return out, offset


def pitch(sound: np.ndarray, frames: int) -> np.ndarray:
    """Return the pitch in Hz in the middle of every mel frame, float32 (frames,), 0 where there is none.

    DIO and StoneMask of the WORLD vocoder (Morise et al., IEICE Trans. E99-D, 2016).
    """
    import pyworld

    samples = sound.astype(np.float64)
    found, times = pyworld.dio(samples, SOUND_RATE, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=10.0)
    found = pyworld.stonemask(samples, found, times, SOUND_RATE)
    out = np.zeros(frames, np.float32)
    middles = found[1 : 2 * frames : 2]  # every second value lies in the middle of a frame of 20 ms
    out[: len(middles)] = middles
    return out


def rows_of(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """Return mel and pitch of a clip, float16 (F, 81), and where they begin (see sound_of)."""
    sound, offset = sound_of(samples, rate)
    mel = features.log_mel(sound, MEL)
    return np.column_stack((mel, pitch(sound, len(mel)))).astype(np.float16), offset


def main() -> None:
    """Make the rows of every set that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    options = parser.parse_args()
    begin(options.work, "acoustic", 1)
    for name in options.sets:
        shards = options.work / name
        made = cache_features(shards, options.work / "acoustic" / name, rows_of, MOST_SHARDS.get(name))
        log.info("%s: %d shards", name, made)


if __name__ == "__main__":
    main()
