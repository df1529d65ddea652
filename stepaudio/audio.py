"""Pure signal steps from a decoded file to what the encoders hear: numpy float32 in, numpy float32 out.

The order, the constants and the exact lengths are the reference implementation's (its ``preprocess_wav`` and
``preprocess_prompt_wav``): codes only mean the same when the samples are the same.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from stepaudio import torchaudio_compat
from stepaudio.types import FloatArray, Waveform

CODE_RATE = 16000
"""The rate, in Hz, that both code encoders and the speaker encoder work at."""

PEAK_LIMIT = 0.6
CODE_PEAK = 0.999
QUIET_PEAK = 0.01
"""A clip quieter than this is not amplified further when its peak is normalised."""

GATE_DB = 20.0
GATE_FRAME = 512
GATE_HOP = 128
GATE_FLOOR = 1e-10
KEEP_BEFORE = 800
"""Samples kept before the first loud frame (0.05 s at 16 kHz)."""

KEEP_AFTER = 3520
"""Samples kept after the last loud frame (0.22 s at 16 kHz)."""

LENGTH_STEP = 240
"""The trimmed part is rounded up to a multiple of this many samples."""

SINC_WIDTH = 6
SINC_ROLLOFF = 0.99
LARGEST_KERNEL = 4_000_000
"""Elements of a polyphase kernel above which resampling computes its weights output by output."""

_DIRECT_BLOCK = 2_000_000


def to_mono(channels: FloatArray) -> FloatArray:
    """Return the mean over channels, float32 (N,), of ``channels`` (C, N); (N,) comes back as it is."""
    if channels.ndim == 1:
        return channels.astype(np.float32, copy=False)
    mean: FloatArray = channels.mean(axis=0, dtype=np.float32)
    return mean


def peak(samples: FloatArray) -> float:
    """Return the largest absolute value of ``samples``, 0.0 where there are none."""
    return float(np.abs(samples).max()) if samples.size else 0.0


def limit_peak(waveform: Waveform, limit: float = PEAK_LIMIT) -> Waveform:
    """Return ``waveform`` scaled down to the peak ``limit`` where it is louder, else the same object."""
    loudest = peak(waveform.samples)
    if loudest <= limit:
        return waveform
    return Waveform(waveform.samples / np.float32(loudest) * np.float32(limit), waveform.sample_rate)


def normalize_peak(samples: FloatArray) -> FloatArray:
    """Return ``samples`` brought to the peak 0.999; what peaks below 0.01 is treated as if it peaked there."""
    return samples / np.float32(max(peak(samples), QUIET_PEAK)) * np.float32(CODE_PEAK)


def resample(waveform: Waveform, rate: int) -> Waveform:
    """Return ``waveform`` at ``rate`` Hz, ceil(N * rate / old rate) samples.

    Band-limited interpolation with a Hann-windowed sinc, 6 zero crossings wide, roll-off 0.99 (torchaudio's
    default). torchaudio tabulates the filter for every phase of the ratio, which for rates without a common
    divisor (44101 to 16000) would be gigabytes; beyond LARGEST_KERNEL the same formula is evaluated
    output by output in blocks.
    """
    if rate == waveform.sample_rate or not waveform.samples.size:
        return Waveform(waveform.samples, rate)
    divisor = math.gcd(waveform.sample_rate, rate)
    old, new = waveform.sample_rate // divisor, rate // divisor
    if new * (old + 2 * _sinc_reach(old, new)) > LARGEST_KERNEL:
        return Waveform(_resample_directly(waveform.samples, old, new), rate)
    with torch.inference_mode():
        out: FloatArray = _resampler(old, new)(torch.from_numpy(waveform.samples)).numpy()
    return Waveform(out, rate)


@lru_cache(maxsize=8)
def _resampler(old: int, new: int) -> nn.Module:
    """Return torchaudio's resampler with its table, computed in float64 and stored in float32."""
    module: nn.Module = torchaudio_compat.transforms().Resample(
        old, new, lowpass_filter_width=SINC_WIDTH, rolloff=SINC_ROLLOFF
    )
    return module


def _sinc_reach(old: int, new: int) -> int:
    """Return how many input samples the filter reaches to each side."""
    return math.ceil(SINC_WIDTH * old / (min(old, new) * SINC_ROLLOFF))


def _resample_directly(samples: FloatArray, old: int, new: int) -> FloatArray:
    """Return ``samples`` resampled by new / old, computing every output's own filter weights."""
    reach = _sinc_reach(old, new)
    cutoff = min(old, new) * SINC_ROLLOFF / old
    padded = np.pad(samples.astype(np.float64), (reach, reach + 1))
    out = np.empty(math.ceil(len(samples) * new / old), np.float32)
    taps = np.arange(-reach, reach + 1)
    block = max(1, _DIRECT_BLOCK // len(taps))
    for start in range(0, len(out), block):
        numerator = np.arange(start, min(start + block, len(out)), dtype=np.int64) * old
        whole, part = numerator // new, (numerator % new) / new  # the output's place among the inputs
        t = np.clip((taps[None, :] - part[:, None]) * cutoff, -SINC_WIDTH, SINC_WIDTH)
        weights = np.sinc(t) * np.cos(t * math.pi / SINC_WIDTH / 2) ** 2 * cutoff  # (block, taps)
        heard = padded[whole[:, None] + taps[None, :] + reach]
        out[start : start + len(whole)] = np.einsum("bt,bt->b", weights, heard)
    return out


def loud_range(samples: FloatArray) -> tuple[int, int]:
    """Return (start, end), the sample range from the first to the last frame above -20 dB.

    Frames of 512 samples are centred on every 128th sample, with zeros beyond the ends; their mean power
    is compared with that of the loudest frame (librosa.effects.trim). Digital silence counts as loud
    throughout, having no louder frame; no samples at all give (0, 0).
    """
    if not samples.size:
        return 0, 0
    half = GATE_FRAME // 2
    energy = np.cumsum(np.pad(samples.astype(np.float64) ** 2, (half + 1, half)))
    starts = np.arange(0, len(samples) + 1, GATE_HOP)
    power = np.maximum((energy[starts + GATE_FRAME] - energy[starts]) / GATE_FRAME, GATE_FLOOR)
    loud = np.flatnonzero(10 * np.log10(power / power.max()) > -GATE_DB)
    return int(loud[0]) * GATE_HOP, min(len(samples), (int(loud[-1]) + 1) * GATE_HOP)


def trim_silence(samples: FloatArray) -> FloatArray:
    """Return the loud range of 16 kHz ``samples`` with 0.05 s before it and at least 0.22 s after it.

    The length is ceil(range / 240) * 240 + 4320 samples, with zeros where the source has no more.
    """
    start, end = loud_range(samples)
    out = np.zeros(-(-(end - start) // LENGTH_STEP) * LENGTH_STEP + KEEP_BEFORE + KEEP_AFTER, np.float32)
    first = max(0, start - KEEP_BEFORE)
    into = first - (start - KEEP_BEFORE)
    kept = samples[first : first + len(out) - into]
    out[into : into + len(kept)] = kept
    return out


def prepare_for_codes(waveform: Waveform) -> FloatArray:
    """Return what the two code encoders hear of a peak-limited ``waveform``: float32 (M,) at 16 kHz."""
    return trim_silence(normalize_peak(resample(waveform, CODE_RATE).samples))
