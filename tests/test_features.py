"""The features equal the reference implementation's and depend on every number of their configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from stepaudio import audio, features
from stepaudio.features import MelConfig
from stepaudio.types import Waveform
from tests.conftest import voice

MEL = MelConfig()
RATES = (8000, 16000, 22050, 24000, 44100, 48000)


def heard(rate: int) -> slice:
    """Return the bins to compare as logarithms.

    Sound recorded at 8 kHz leaves everything above 4 kHz empty (bins 60 to 79 of both scales): there the
    recorded logarithms are those of float32 rounding noise, which even exact arithmetic does not repeat.
    """
    return slice(0, 60) if rate == 8000 else slice(None)


@pytest.fixture(scope="module")
def frontend(conformance: Path) -> dict[str, np.ndarray]:
    return load_file(conformance / "vocoder/frontend.safetensors")


@pytest.fixture(scope="module")
def vectors(conformance: Path) -> dict[str, np.ndarray]:
    with np.load(conformance / "audio_frontend/vectors.npz") as archive:
        return dict(archive)


def test_the_whisper_log_mel_equals_the_recorded_one(vectors: dict[str, np.ndarray]) -> None:
    names = [key.removesuffix(".pre") for key in vectors if key.endswith(".pre")]
    assert len(names) == 13
    for name in names:
        expected = vectors[f"{name}.logmel128"]
        ours = features.whisper_log_mel(vectors[f"{name}.pre"][0])
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0, err_msg=name)


def test_the_whisper_log_mel_from_the_file_on_equals_the_recorded_one(vectors: dict[str, np.ndarray]) -> None:
    rates = {"8k": 8000, "16k": 16000, "22k": 22050, "24k": 24000, "44k": 44100, "48k": 48000}
    for key in [key for key in vectors if key.endswith(".pcm16")]:
        name = key.removesuffix(".pcm16")
        rate = next(rates[part] for part in name.split("_") if part in rates)
        mono = audio.to_mono(vectors[key].astype(np.float32) / 32768)
        ours = features.whisper_log_mel(audio.prepare_for_codes(audio.limit_peak(Waveform(mono, rate))))
        np.testing.assert_allclose(ours, vectors[f"{name}.logmel128"], atol=3e-3, rtol=0, err_msg=name)


@pytest.mark.parametrize("rate", RATES)
def test_the_vocoder_mel_equals_the_recorded_one(rate: int, frontend: dict[str, np.ndarray]) -> None:
    expected = frontend[f"{rate}.mel"][0]
    mel = features.log_mel(audio.resample(Waveform(frontend[f"{rate}.audio"].reshape(-1), rate), 24000).samples, MEL)
    assert mel.shape == expected.shape
    loudness = np.exp(expected)
    np.testing.assert_allclose(np.exp(mel), loudness, atol=1e-4 * loudness.max(), rtol=0)
    np.testing.assert_allclose(mel[:, heard(rate)], expected[:, heard(rate)], atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", RATES)
def test_the_speaker_features_equal_the_recorded_ones_stage_by_stage(
    rate: int, frontend: dict[str, np.ndarray]
) -> None:
    at_16k, expected = frontend[f"{rate}.audio16"].reshape(-1), frontend[f"{rate}.fbank_cmn"]
    ours = audio.resample(Waveform(frontend[f"{rate}.audio"].reshape(-1), rate), 16000).samples
    np.testing.assert_allclose(ours, at_16k, atol=1e-4 * np.abs(at_16k).max(), rtol=0)
    bank = features.speaker_fbank(at_16k)
    assert bank.shape == expected.shape
    np.testing.assert_allclose(
        bank[:, heard(rate)], expected[:, heard(rate)], atol=1e-4 * np.abs(expected).max(), rtol=0
    )


def test_the_mel_has_one_frame_per_hop_whatever_the_length() -> None:
    config = MelConfig()
    for length in (0, 1, 479, 480, 481, 719, 720, 721, 959, 960, 24001):
        mel = features.log_mel(voice(2.0).samples[:length], config)
        assert mel.shape == (length // 480, 80)
        assert mel.dtype == np.float32
        assert np.isfinite(mel).all()


def test_a_second_configuration_does_not_get_the_filters_of_the_first() -> None:
    sound = voice(0.5).samples
    first = features.log_mel(sound, MelConfig())
    lower = features.log_mel(sound, MelConfig(fmax=4000.0))
    other_rate = features.log_mel(sound, MelConfig(sampling_rate=16000))
    assert np.abs(first - lower).max() > 0.1
    assert np.abs(first - other_rate).max() > 0.1
    np.testing.assert_array_equal(first, features.log_mel(sound, MelConfig()))


def test_each_mel_filter_covers_one_hertz_of_area() -> None:
    filters = features.mel_filters(16000, 8192, 40, 0.0, 8000.0)
    area = filters.sum(dim=1) * (16000 / 8192)
    torch.testing.assert_close(area, torch.ones(40), atol=2e-2, rtol=0)


def test_mels_and_hertz_are_inverse_to_each_other() -> None:
    hz = np.array([0.0, 1.0, 440.0, 999.0, 1000.0, 1001.0, 8000.0])
    np.testing.assert_allclose(features.mel_to_hz(features.hz_to_mel(hz)), hz, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 159, 160, 399, 400])
def test_sound_too_short_for_a_frame_gives_no_frames_and_no_error(length: int) -> None:
    sound = voice(1.0, 16000).samples[:length]
    assert features.whisper_log_mel(sound).shape == (128, length // 160)
    assert features.speaker_fbank(sound).shape == (1 if length == 400 else 0, 80)


def test_the_speaker_features_have_no_mean_over_time() -> None:
    np.testing.assert_allclose(features.speaker_fbank(voice(1.0, 16000).samples).mean(axis=0), 0, atol=1e-4)
