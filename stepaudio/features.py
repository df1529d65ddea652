"""Pure spectral features: Whisper's log-mel, the vocoder's mel, the speaker encoder's filterbank.

numpy float32 in and out. Filterbanks are cached under every number they depend on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from stepaudio import torchaudio_compat
from stepaudio.types import FloatArray

WHISPER_RATE = 16000
WHISPER_FFT = 400
WHISPER_HOP = 160
WHISPER_MELS = 128
WHISPER_FLOOR = 1e-10
WHISPER_RANGE = 8.0
"""log10 units below the loudest value of a clip at which its quiet parts are cut off."""

MEL_FLOOR = 1e-5
MAGNITUDE_FLOOR = 1e-9

FULL_SCALE = 32768.0
"""The linguistic encoder's front end hears samples as 16-bit integers."""

FBANK_RATE = 16000
FBANK_BINS = 80
FBANK_FRAME = 400
"""Samples of the shortest sound that gives a frame (25 ms)."""


@dataclass(frozen=True)
class MelConfig:
    """The mel that a vocoder was trained on: the keys of ``mel_conf`` in its cosyvoice.yaml (Hz, samples)."""

    num_mels: int = 80
    n_fft: int = 1920
    hop_size: int = 480
    win_size: int = 1920
    sampling_rate: int = 24000
    fmin: float = 0.0
    fmax: float = 8000.0


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Return mels of Slaney's scale: linear, 3 per 200 Hz, up to 1000 Hz, then logarithmic (27 per factor 6.4)."""
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Return Hz, the inverse of :func:`hz_to_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27))


@lru_cache(maxsize=16)
def mel_filters(sample_rate: int, n_fft: int, num_mels: int, fmin: float, fmax: float) -> torch.Tensor:
    """Return Slaney's triangular filters, float32 (num_mels, n_fft // 2 + 1), each of unit area in Hz."""
    edges = mel_to_hz(np.linspace(hz_to_mel(np.asarray(fmin)), hz_to_mel(np.asarray(fmax)), num_mels + 2))
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clip(min=0)
    return torch.from_numpy((triangles * 2 / (upper - lower)).astype(np.float32))


def _reflect(samples: FloatArray, width: int) -> torch.Tensor:
    """Return (1, N + 2 * width): reflected at both ends, however short the sound is."""
    return torch.from_numpy(np.pad(samples, width, mode="reflect"))[None]


def _spectrum(padded: torch.Tensor, n_fft: int, hop: int, window: int) -> torch.Tensor:
    """Return the complex spectrum (n_fft // 2 + 1, frames) under a periodic Hann window, nothing padded."""
    hann = torch.hann_window(window)
    return torch.stft(padded, n_fft, hop, window, hann, center=False, return_complex=True)[0]


def whisper_log_power(samples: FloatArray, mels: int = WHISPER_MELS) -> FloatArray:
    """Return log10 of the power in ``mels`` Slaney mels up to 8 kHz, float32 (mels, N // 160), of 16 kHz ``samples``.

    Hann window of 400 every 160 samples, reflected ends, at least 1e-10 (openai/whisper, audio.py); not padded to 30 s.
    """
    frames = len(samples) // WHISPER_HOP
    if frames == 0:
        return np.zeros((mels, 0), np.float32)
    with torch.inference_mode():
        spectrum = _spectrum(_reflect(samples, WHISPER_FFT // 2), WHISPER_FFT, WHISPER_HOP, WHISPER_FFT)
        power = spectrum[:, :frames].abs() ** 2  # (201, frames); the frame at the very end is dropped
        filters = mel_filters(WHISPER_RATE, WHISPER_FFT, mels, 0.0, WHISPER_RATE / 2)
        out: FloatArray = (filters @ power).clamp(min=WHISPER_FLOOR).log10().numpy()
    return out


def whisper_log_mel(samples: FloatArray) -> FloatArray:
    """Return Whisper's log-mel, float32 (128, N // 160), of 16 kHz ``samples`` without padding to 30 s.

    max(log10, loudest - 8) of :func:`whisper_log_power`, then (x + 4) / 4 (openai/whisper, audio.py).
    """
    log = whisper_log_power(samples)
    if not log.size:
        return log
    out: FloatArray = (np.maximum(log, log.max() - np.float32(WHISPER_RANGE)) + np.float32(4)) / np.float32(4)
    return out


def log_mel(samples: FloatArray, config: MelConfig) -> FloatArray:
    """Return the natural log-mel of the vocoder, float32 (N // hop_size, num_mels), at ``config.sampling_rate``.

    Reflected by (n_fft - hop_size) / 2 at both ends, magnitude sqrt(re^2 + im^2 + 1e-9), Slaney mels,
    log of at least 1e-5 (HiFi-GAN's mel).
    """
    if len(samples) < config.hop_size:
        return np.zeros((0, config.num_mels), np.float32)
    with torch.inference_mode():
        padded = _reflect(samples, (config.n_fft - config.hop_size) // 2)
        spectrum = torch.view_as_real(_spectrum(padded, config.n_fft, config.hop_size, config.win_size))
        magnitude = (spectrum.square().sum(-1) + MAGNITUDE_FLOOR).sqrt()  # (n_fft // 2 + 1, F)
        filters = mel_filters(config.sampling_rate, config.n_fft, config.num_mels, config.fmin, config.fmax)
        out: FloatArray = (filters @ magnitude).clamp(min=MEL_FLOOR).log().T.contiguous().numpy()
    return out


def speaker_fbank(samples: FloatArray) -> FloatArray:
    """Return Kaldi's log filterbank less its mean over time, float32 (T, 80), of 16 kHz ``samples`` in [-1, 1].

    25 ms Povey windows every 10 ms, no dither; T is 0 below 400 samples.
    """
    if len(samples) < FBANK_FRAME:
        return np.zeros((0, FBANK_BINS), np.float32)
    with torch.inference_mode():
        bank: torch.Tensor = torchaudio_compat.kaldi().fbank(
            torch.from_numpy(samples)[None], num_mel_bins=FBANK_BINS, sample_frequency=FBANK_RATE, dither=0.0
        )
        out: FloatArray = (bank - bank.mean(dim=0, keepdim=True)).numpy()
    return out
