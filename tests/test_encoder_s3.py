"""The semantic encoder cuts, drops and feeds as the reference implementation does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio import audio
from stepaudio.encoder.s3 import SemanticEncoder
from stepaudio.errors import WeightsError
from stepaudio.features import whisper_log_mel
from stepaudio.tiny.encoder import write_campplus
from stepaudio.types import FloatArray, Waveform

CPU = torch.device("cpu")
CASES = [f"{number:02d}" for number in range(18)]


@pytest.fixture(scope="module")
def encoder(conformance: Path) -> SemanticEncoder:
    return SemanticEncoder(conformance / "s3_onnx/speech_tokenizer_v1.onnx", device=CPU, threads=1)


@pytest.fixture(scope="module")
def cases(conformance: Path) -> dict[str, dict]:
    return {case["case"]: case for case in json.loads((conformance / "s3_onnx/cases.json").read_text())["cases"]}


@pytest.fixture(scope="module")
def vectors(conformance: Path) -> dict[str, np.ndarray]:
    with np.load(conformance / "s3_onnx/vectors.npz") as archive:
        return dict(archive)


def wave(conformance: Path, case: dict) -> FloatArray:
    with np.load(conformance / "s3_onnx/wave_base.npz") as archive:
        base, gains = archive["pcm16"].astype(np.float32) / 32768, archive["gains"]
    index = case["offset"] + np.arange(case["length"])
    return base[index % len(base)] * gains[(index // len(base)) % len(gains)]


def test_every_recorded_case_is_tested(cases: dict[str, dict]) -> None:
    assert sorted(cases) == CASES


@pytest.mark.parametrize("name", CASES)
def test_codes_from_the_wave_equal_the_recorded_ones(
    name: str, conformance: Path, encoder: SemanticEncoder, cases: dict[str, dict], vectors: dict[str, np.ndarray]
) -> None:
    codes = encoder.encode(wave(conformance, cases[name]))
    assert codes.dtype == np.int64
    assert len(codes) == cases[name]["n_codes"]
    certain = vectors[f"{name}.margin"] > 1e-3
    assert certain.all() or certain.mean() > 0.9
    np.testing.assert_array_equal(codes[certain], vectors[f"{name}.codes"][certain])


def test_codes_from_the_recorded_mels_are_exact(encoder: SemanticEncoder, vectors: dict[str, np.ndarray]) -> None:
    names = [key.removesuffix(".in") for key in vectors if key.endswith(".in")]
    assert len(names) >= 4
    for name in names:
        np.testing.assert_array_equal(encoder.encode_features(vectors[f"{name}.in"][0]), vectors[f"{name}.codes"])


def test_the_recorded_log_mel_of_a_wave_is_ours(
    conformance: Path, cases: dict[str, dict], vectors: dict[str, np.ndarray]
) -> None:
    (name,) = [key.removesuffix(".mel") for key in vectors if key.endswith(".mel")]
    mel = whisper_log_mel(wave(conformance, cases[name]))
    np.testing.assert_allclose(mel, vectors[f"{name}.mel"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("trimmed", [True, False])
def test_whole_files_give_the_recorded_semantic_codes(
    trimmed: bool, conformance: Path, encoder: SemanticEncoder
) -> None:
    rates = {c["name"]: c["sr"] for c in json.loads((conformance / "audio_frontend/cases.json").read_text())}
    with np.load(conformance / "audio_frontend/vectors.npz") as archive:
        for record in json.loads((conformance / "e2e_tokenizer/expected.json").read_text())["float_wav"]:
            mono = Waveform(archive[f"{record['name']}.mono"][0], rates[record["name"]])
            plain = audio.normalize_peak(audio.resample(mono, audio.CODE_RATE).samples)
            samples = audio.prepare_for_codes(mono) if trimmed else plain
            np.testing.assert_array_equal(
                encoder.encode(samples), record["vq06" if trimmed else "vq06_no_trim"], err_msg=record["name"]
            )


def test_the_provider_is_said(encoder: SemanticEncoder) -> None:
    assert encoder.provider == "CPUExecutionProvider"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"speech_tokenizer_v1\.onnx is missing in {tmp_path}"):
        SemanticEncoder(tmp_path / "speech_tokenizer_v1.onnx", device=CPU, threads=1)


def test_another_model_under_the_name_is_refused(tmp_path: Path) -> None:
    write_campplus(tmp_path / "speech_tokenizer_v1.onnx", 1)
    with pytest.raises(WeightsError, match=r"is not a 25 Hz speech tokenizer: its inputs are"):
        SemanticEncoder(tmp_path / "speech_tokenizer_v1.onnx", device=CPU, threads=1)


def test_a_tokenizer_of_another_rate_is_refused_when_it_encodes(
    conformance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speech_tokenizer_v1.onnx"
    shutil.copyfile(conformance / "s3_onnx/speech_tokenizer_v1.onnx", path)
    encoder = SemanticEncoder(path, device=CPU, threads=1)
    monkeypatch.setattr("stepaudio.encoder.s3.CODE_RATE", 50)
    with pytest.raises(WeightsError, match=r"gives 25 codes where 50 were expected"):
        encoder.encode(np.zeros(16000, np.float32))
