from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepaudio.vocoder.hift import Snake, harmonic_phase
from tests.vocoder_recordings import SOUND, STAGE, Recordings, assert_close, one_noise

FRAME, RATE, COUNT = 480, 24000, 9


@pytest.fixture(scope="module")
def recorded(conformance: Path) -> Recordings:
    return Recordings(conformance)


def phase_as_recorded(f0: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the phase as the reference implementation has it: summed without wrapping, in ``dtype``."""
    multiples = torch.arange(1, COUNT + 1, dtype=dtype)
    turns = (f0.to(dtype)[..., None] * multiples / RATE) % 1
    phase = turns.cumsum(1) * 2 * math.pi * FRAME
    return F.interpolate(phase.transpose(1, 2), scale_factor=FRAME, mode="linear").transpose(1, 2)


def test_f0_agrees_with_the_recording(recorded: Recordings) -> None:
    assert_close(recorded.hift.f0_predictor(recorded["out.mel"]), recorded["out.f0"], STAGE)


def test_the_source_agrees_with_the_recording_where_the_phase_is_summed_alike(recorded: Recordings) -> None:
    """The recording sums the phase in float32; ours is compared with float64 below."""
    f0 = recorded["out.f0"]
    source = recorded.hift.m_source.mix(phase_as_recorded(f0, torch.float32), f0, recorded.source_noise())
    assert_close(source, recorded["out.source"], STAGE)


def test_the_source_with_its_own_phase_follows_the_recording(recorded: Recordings) -> None:
    source = recorded.hift.m_source(recorded["out.f0"], recorded.source_noise())
    # What float32 loses in 1.5 seconds: below a thousandth of the largest value, measured 7e-4.
    assert_close(source, recorded["out.source"], 1e-3)


def test_the_source_spectrum_agrees_with_the_recording(recorded: Recordings) -> None:
    assert_close(recorded.hift.source_spectrum(recorded["out.source"]), recorded["out.s_stft"], STAGE)


def test_the_generator_agrees_with_the_recording_from_the_given_source(recorded: Recordings) -> None:
    hift = recorded.hift
    assert_close(hift.spectrum(recorded["out.mel"], recorded["out.s_stft"]), recorded["out.hift_post"], STAGE)
    assert_close(hift.samples(recorded["out.hift_post"]), recorded["out.wav"], SOUND)
    sound = hift.samples(hift.spectrum(recorded["out.mel"], hift.source_spectrum(recorded["out.source"])))
    assert_close(sound, recorded["out.wav"], SOUND)


def test_without_source_noise_the_sound_agrees_with_the_recording(recorded: Recordings) -> None:
    hift, f0 = recorded.hift, recorded["out.f0"]
    silent = torch.zeros_like(recorded.source_noise())
    source = hift.m_source.mix(phase_as_recorded(f0, torch.float32), f0, silent)
    sound = hift.samples(hift.spectrum(recorded["out.mel"], hift.source_spectrum(source)))
    assert_close(sound, recorded["out.wav_zero_source_noise"], SOUND)


def glide(seconds: float) -> Tensor:
    """Return f0 in Hz (1, T) that glides between 90 and 390 Hz."""
    frame = torch.arange(int(seconds * RATE / FRAME), dtype=torch.float64)
    return (240 + 150 * torch.sin(frame / 37)).float()[None]


def test_the_phase_is_as_exact_after_a_minute_as_at_the_start() -> None:
    """Summed in float32, as the reference has it, the ninth harmonic is off by 0.1 rad by then."""
    f0 = glide(60)
    exact = phase_as_recorded(f0, torch.float64)

    def sine_error(phase: Tensor) -> float:
        return float((torch.sin(phase).double() - torch.sin(exact))[:, -RATE:].abs().max())

    assert sine_error(harmonic_phase(f0, COUNT, RATE, FRAME)) < 2e-4
    assert sine_error(phase_as_recorded(f0, torch.float32)) > 0.02


def test_a_steady_pitch_keeps_its_harmonics_in_step_for_a_minute() -> None:
    f0 = torch.full((1, 3000), 110.7)
    phase = harmonic_phase(f0, COUNT, RATE, FRAME)
    exact = phase_as_recorded(f0, torch.float64)
    assert (torch.sin(phase).double() - torch.sin(exact)).abs().max() < 2e-4


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_the_phase_has_a_frame_of_samples_for_every_frame(frames: int) -> None:
    f0 = glide(1)[:, :frames]
    phase = harmonic_phase(f0, COUNT, RATE, FRAME)
    assert phase.shape == (1, frames * FRAME, COUNT)
    exact = phase_as_recorded(f0, torch.float64)
    assert (torch.sin(phase).double() - torch.sin(exact)).abs().max() < 2e-4


def test_unvoiced_frames_hold_noise_alone(recorded: Recordings) -> None:
    source = recorded.hift.m_source
    noises = torch.randn(1, 2 * FRAME, COUNT, generator=torch.Generator().manual_seed(0))
    noise = one_noise(source, noises)
    mixed = source(torch.tensor([[10.0, 10.0]]), noise)  # the threshold itself is unvoiced
    expected = torch.tanh(source.l_linear(noises * 0.1 / 3)).transpose(1, 2)
    torch.testing.assert_close(mixed, expected)
    quiet = source(torch.tensor([[10.0, 10.0]]), torch.zeros_like(noise))
    torch.testing.assert_close(quiet, torch.tanh(source.l_linear.bias).expand_as(quiet))


def test_one_noise_is_as_loud_as_a_noise_for_every_harmonic(recorded: Recordings) -> None:
    """A second of voiceless frames: the original's way and ours, with noises of their own."""
    source = recorded.hift.m_source
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(1, RATE, COUNT, generator=generator)
    theirs = source.l_linear(noises * 0.1 / 3) - source.l_linear.bias
    ours = torch.atanh(source(torch.zeros(1, RATE // FRAME), torch.randn(1, RATE, 1, generator=generator)))
    assert abs(float((ours - source.l_linear.bias).std() / theirs.std()) - 1) < 0.02
    assert abs(float(one_noise(source, noises).std()) - 1) < 0.02


def test_snake_is_its_formula() -> None:
    snake = Snake(3).requires_grad_(False)
    snake.alpha.copy_(torch.tensor([0.5, 1.0, 2.0]))
    x = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    a = snake.alpha[:, None]
    before = x.clone()
    torch.testing.assert_close(snake(x), x + torch.sin(a * x) ** 2 / (a + 1e-9))
    assert torch.equal(x, before)


def test_a_loud_spectrum_stays_within_the_limit(recorded: Recordings) -> None:
    spectrum = torch.full((1, 18, 121), 50.0)
    sound = recorded.hift.samples(spectrum)
    assert sound.shape == (1, 480)
    assert sound.abs().max() <= 0.99
    assert torch.isfinite(sound).all()
