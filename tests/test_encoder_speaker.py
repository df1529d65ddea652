"""The speaker encoder gives one vector of 192 numbers for a sound of any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.encoder.speaker import SpeakerEncoder
from stepaudio.errors import WeightsError
from stepaudio.tiny.encoder import write_campplus
from tests.conftest import voice

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SpeakerEncoder:
    path = tmp_path_factory.mktemp("speaker") / "campplus.onnx"
    write_campplus(path, 1)
    return SpeakerEncoder(path, device=CPU, threads=1)


def test_another_voice_gives_another_vector_and_the_same_voice_the_same(encoder: SpeakerEncoder) -> None:
    low, high = voice(2.0, 16000, 100.0).samples, voice(2.0, 16000, 240.0).samples
    first, second = encoder.encode(low), encoder.encode(high)
    assert first.shape == second.shape == (192,)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, encoder.encode(low))
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert cosine < 0.95


@pytest.mark.parametrize("length", [0, 1, 399])
def test_sound_shorter_than_a_frame_gives_zeros_and_no_error(length: int, encoder: SpeakerEncoder) -> None:
    vector = encoder.encode(np.ones(length, np.float32))
    assert vector.shape == (192,)
    assert not vector.any()


def test_silence_gives_a_finite_vector(encoder: SpeakerEncoder) -> None:
    assert np.isfinite(encoder.encode(np.zeros(8000, np.float32))).all()


def test_the_provider_is_said(encoder: SpeakerEncoder) -> None:
    assert encoder.provider == "CPUExecutionProvider"


def test_another_model_under_the_name_is_refused(conformance: Path) -> None:
    with pytest.raises(WeightsError, match=r"speech_tokenizer_v1\.onnx in .* is not a CAM\+\+ speaker encoder"):
        SpeakerEncoder(conformance / "s3_onnx/speech_tokenizer_v1.onnx", device=CPU, threads=1)


def test_a_model_with_another_output_is_refused_when_it_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepaudio.tiny.encoder.SPEAKER_SIZE", 512)
    write_campplus(tmp_path / "campplus.onnx", 1)
    encoder = SpeakerEncoder(tmp_path / "campplus.onnx", device=CPU, threads=1)
    with pytest.raises(WeightsError, match=r"gives \(1, 512\), not \(1, 192\)"):
        encoder.encode(np.ones(800, np.float32))
