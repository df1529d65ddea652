"""Long mels, window by window: the sound of the whole at once, in memory that does not grow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stepaudio.errors import Cancelled
from stepaudio.vocoder.hift import HiFT
from stepaudio.vocoder.noise import SOURCE_NOISE, Noise, draw_noise
from stepaudio.vocoder.vocoder import Vocoder, load_vocoder
from stepaudio.vocoder.windows import WINDOW_FRAMES, hift_sound, windows
from tests.vocoder_recordings import Recordings

ROUNDING = 1e-5
"""Of the largest sample; float32 sums in another order."""


@pytest.fixture(scope="module")
def recorded(conformance: Path) -> Recordings:
    return Recordings(conformance)


@pytest.fixture(scope="module")
def vocoder(tiny_weights: Path) -> Vocoder:
    return load_vocoder(tiny_weights / "Step-Audio-EditX" / "CosyVoice-300M-25Hz", torch.device("cpu"))


def mel_of(frames: int, channels: int = 80) -> Tensor:
    return torch.randn(1, channels, frames, generator=torch.Generator().manual_seed(frames)) - 4


def noise(hift: HiFT, frames: int) -> Tensor:
    return draw_noise(3, SOURCE_NOISE, frames * hift.config.frame_samples, 1)


def in_windows(hift: HiFT, mel: Tensor, **options) -> Tensor:
    return hift_sound(hift, mel, Noise(3, SOURCE_NOISE, 1).take, **options)


def largest_difference(made: Tensor, expected: Tensor) -> float:
    assert made.shape == expected.shape
    return float((made - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 39, 40, 41, 150, 187])
def test_hift_in_windows_makes_the_sound_of_the_whole(recorded: Recordings, frames: int) -> None:
    """With the random weights of the recordings, which spread as far as weights can."""
    mel = mel_of(frames)
    expected = recorded.hift(mel, noise(recorded.hift, frames))
    assert largest_difference(in_windows(recorded.hift, mel, size=40), expected) < ROUNDING


@torch.inference_mode()
def test_without_context_the_sound_would_differ(recorded: Recordings) -> None:
    """So the test above can fail."""
    mel = mel_of(150)
    expected = recorded.hift(mel, noise(recorded.hift, 150))
    assert largest_difference(in_windows(recorded.hift, mel, size=40, context=2), expected) > 100 * ROUNDING


@torch.inference_mode()
def test_what_fits_into_one_window_is_the_same_to_the_last_bit(recorded: Recordings) -> None:
    mel = mel_of(60)
    assert torch.equal(in_windows(recorded.hift, mel), recorded.hift(mel, noise(recorded.hift, 60)))


def test_windows_cover_every_frame_once() -> None:
    for frames in (1, 40, 41, 200):
        found = list(windows(frames, 40, 8))
        assert [f for w in found for f in range(w.first, w.last)] == list(range(frames))
        assert all(w.begin <= w.first < w.last <= w.end <= frames for w in found)


def test_a_stop_is_heeded_within_the_generator_and_progress_rises(vocoder: Vocoder) -> None:
    heard: list[float] = []
    vocoder.sound(mel_of(2 * WINDOW_FRAMES + 1), seed=1, progress=heard.append)
    assert len(heard) == 3
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    stopped: list[float] = []
    with pytest.raises(Cancelled):
        vocoder.sound(
            mel_of(2 * WINDOW_FRAMES + 1), seed=1, progress=stopped.append, should_stop=lambda: len(stopped) == 1
        )
    assert len(stopped) == 1


def test_the_generator_never_sees_more_than_a_window_and_its_context(vocoder: Vocoder, monkeypatch) -> None:
    seen: list[int] = []
    spectrum = vocoder._hift.spectrum
    monkeypatch.setattr(
        vocoder._hift, "spectrum", lambda mel, source: (seen.append(mel.shape[-1]), spectrum(mel, source))[1]
    )
    made = vocoder.sound(mel_of(3 * WINDOW_FRAMES), seed=1)
    assert len(made.samples) == 3 * WINDOW_FRAMES * 480
    assert len(seen) == 3
    assert max(seen) <= WINDOW_FRAMES + 64
