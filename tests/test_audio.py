"""The signal steps before the encoders: exact lengths and samples of the reference implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stepaudio import audio
from stepaudio.types import Waveform
from tests.conftest import voice

NAMES = [
    "speech_16k_mono",
    "speech_8k_mono",
    "speech_22k_mono",
    "speech_24k_mono",
    "speech_44k_stereo",
    "speech_48k_mono",
    "speech_48k_stereo_antiphase",
    "burst_16k",
    "burst_24k_start",
    "quiet_24k",
    "zeros_16k",
    "short_16k_100",
    "short_48k_701",
]


@pytest.fixture(scope="module")
def cases(conformance: Path) -> dict[str, dict]:
    return {case["name"]: case for case in json.loads((conformance / "audio_frontend/cases.json").read_text())}


@pytest.fixture(scope="module")
def vectors(conformance: Path) -> dict[str, np.ndarray]:
    with np.load(conformance / "audio_frontend/vectors.npz") as archive:
        return dict(archive)


def mono_of(case: dict, vectors: dict[str, np.ndarray]) -> Waveform:
    channels = vectors[f"{case['name']}.pcm16"].astype(np.float32) / 32768
    return audio.limit_peak(Waveform(audio.to_mono(channels), case["sr"]))


def test_every_recorded_case_is_tested(cases: dict[str, dict]) -> None:
    assert sorted(cases) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_step_equals_the_reference_implementation(
    name: str, cases: dict[str, dict], vectors: dict[str, np.ndarray]
) -> None:
    case = cases[name]
    mono = mono_of(case, vectors)
    np.testing.assert_allclose(mono.samples, vectors[f"{name}.mono"][0], atol=1e-6, rtol=0)
    at_16k = audio.resample(mono, audio.CODE_RATE)
    assert len(at_16k.samples) == case["len_16k"]
    np.testing.assert_allclose(at_16k.samples, vectors[f"{name}.res16k"][0], atol=2e-5, rtol=0)
    assert audio.loud_range(audio.normalize_peak(at_16k.samples)) == (case["trim_start"], case["trim_end"])
    prepared = audio.prepare_for_codes(mono)
    assert len(prepared) == case["out_len"]
    np.testing.assert_allclose(prepared, vectors[f"{name}.pre"][0], atol=5e-5, rtol=0)
    assert prepared.dtype == np.float32


@pytest.mark.parametrize(
    ("old", "new"), [(44100, 16000), (48000, 16000), (8000, 24000), (22050, 24000), (11025, 16000)]
)
def test_resampling_without_a_table_equals_torchaudio(old: int, new: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = voice(0.7, old)
    tabled = audio.resample(sound, new)
    monkeypatch.setattr(audio, "LARGEST_KERNEL", 0)
    direct = audio.resample(sound, new)
    assert len(direct.samples) == len(tabled.samples)
    # torchaudio's table places the phases in float32: it is the less exact of the two.
    np.testing.assert_allclose(direct.samples, tabled.samples, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [4001, 44101, 191999, 384001])
def test_a_rate_without_common_divisor_is_resampled_in_bounded_memory(rate: int) -> None:
    t = np.arange(rate) / rate
    sound = Waveform((0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), rate)
    out = audio.resample(sound, 16000)
    assert len(out.samples) == 16000
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(out.samples[200:-200], expected[200:-200], atol=2e-3)


def test_resampling_to_the_same_rate_changes_nothing() -> None:
    sound = voice(0.2, 16000)
    assert audio.resample(sound, 16000).samples is sound.samples


def test_a_limited_peak_is_0_6_and_quiet_sound_is_left_alone() -> None:
    loud = Waveform(np.array([0.1, -1.2], np.float32), 16000)
    assert audio.peak(audio.limit_peak(loud).samples) == pytest.approx(0.6, abs=1e-7)
    quiet = Waveform(np.array([0.1, -0.6 + 1e-3], np.float32), 16000)
    assert audio.limit_peak(quiet) is quiet


@pytest.mark.parametrize("length", [0, 1, 63, 1000])
def test_silence_of_any_length_is_prepared_without_an_error(length: int) -> None:
    prepared = audio.prepare_for_codes(Waveform(np.zeros(length, np.float32), 24000))
    loud = -(-length * 2 // 3)
    assert len(prepared) == -(-loud // 240) * 240 + 4320
    assert not prepared.any()


def test_preparing_leaves_the_given_samples_as_they_were() -> None:
    sound = voice(0.5, 16000)
    before = sound.samples.copy()
    audio.prepare_for_codes(audio.limit_peak(sound, 0.1))
    np.testing.assert_array_equal(sound.samples, before)


def test_stereo_becomes_the_mean_of_its_channels() -> None:
    channels = np.array([[0.2, 0.4], [0.4, -0.4]], np.float32)
    np.testing.assert_allclose(audio.to_mono(channels), [0.3, 0.0], atol=1e-7)
