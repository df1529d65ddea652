"""The linguistic encoder gives the reference implementation's frames and codes, whatever the length of the sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio import audio
from stepaudio.bench.chunk_loop import chunk_loop
from stepaudio.encoder.paraformer import LinguisticEncoder, load_centroids, load_linguistic, window_encoder
from stepaudio.encoder.sanm import attention_mask, positions
from stepaudio.errors import WeightsError
from stepaudio.types import FloatArray, Waveform

CPU = torch.device("cpu")
STRIDE = 3840
CASES = [f"{number:02d}" for number in range(30)]


@pytest.fixture(scope="module")
def folder(conformance: Path) -> Path:
    return conformance / "paraformer"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> LinguisticEncoder:
    return load_linguistic(folder / "model", folder / "centroids.npy", device=CPU)


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, dict]:
    return {case["name"]: case for case in json.loads((folder / "cases.json").read_text())["cases"]}


@pytest.fixture(scope="module")
def waves(folder: Path) -> dict[str, FloatArray]:
    gain = np.float32(json.loads((folder / "cases.json").read_text())["gain"])
    with np.load(folder / "waves.npz") as archive:
        return {key.removesuffix("_pcm16"): archive[key].astype(np.float32) / 32768 * gain for key in archive}


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "expected.npz") as archive:
        return dict(archive)


def loop(encoder: LinguisticEncoder, samples: FloatArray) -> FloatArray:
    assert encoder.funasr is not None
    return chunk_loop(encoder.funasr.model.encoder, encoder.funasr.frontend, samples)


def test_every_recorded_case_is_tested(cases: dict[str, dict]) -> None:
    assert sorted(cases) == CASES


@pytest.mark.parametrize("name", CASES)
def test_frames_and_codes_equal_the_recorded_ones(
    name: str,
    encoder: LinguisticEncoder,
    cases: dict[str, dict],
    waves: dict[str, FloatArray],
    expected: dict[str, np.ndarray],
) -> None:
    case = cases[name]
    samples = waves[case["wave"]][case["offset"] : case["offset"] + case["length"]]
    frames = encoder.frames(samples)
    assert frames.shape == expected[f"{name}.enc"].shape == (case["frames"], 64)
    np.testing.assert_allclose(frames, expected[f"{name}.enc"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(loop(encoder, samples), expected[f"{name}.enc"], atol=1e-4, rtol=0)
    codes = encoder.encode(samples)
    assert codes.dtype == np.int64
    assert (expected[f"{name}.margin"] > 1e-4).all()
    np.testing.assert_array_equal(codes, expected[f"{name}.vq02"])


def test_sound_that_went_through_16_bits_gives_the_codes_recorded_for_it(
    folder: Path, encoder: LinguisticEncoder, cases: dict[str, dict], waves: dict[str, FloatArray]
) -> None:
    with np.load(folder / "expected_pcm16.npz") as archive:
        for name, case in cases.items():
            samples = waves[case["wave"]][case["offset"] : case["offset"] + case["length"]]
            rounded = (np.clip(np.floor(samples * 32768), -32768, 32767) / 32768).astype(np.float32)
            certain = archive[f"{name}.margin"] > 1e-4
            np.testing.assert_array_equal(encoder.encode(rounded)[certain], archive[f"{name}.vq02"][certain])


SWEEP = [
    *(whole * STRIDE + tail for whole in range(5) for tail in (0, 1, 399, 400, 640, 879, 880, 1500, 2320, 3839)),
    *range(0, 9000, 173),
    7 * STRIDE + 2000,
]


def test_windows_together_equal_the_chunk_loop_at_every_length(
    encoder: LinguisticEncoder, waves: dict[str, FloatArray]
) -> None:
    for length in SWEEP:
        together, one_by_one = encoder.frames(waves["speech"][:length]), loop(encoder, waves["speech"][:length])
        assert together.shape == one_by_one.shape, length
        np.testing.assert_allclose(together, one_by_one, atol=1e-4, rtol=0, err_msg=str(length))


def test_the_number_of_codes_follows_the_tail_rule(encoder: LinguisticEncoder, waves: dict[str, FloatArray]) -> None:
    for length in SWEEP:
        tail = length % STRIDE
        if length < STRIDE:
            rule = 0 if length < 880 else -(-((length - 400) // 160 + 1) // 6)
        else:
            rule = 4 * (length // STRIDE) + (0 if tail < 880 else -(-((tail + 80) // 160 - 2) // 6))
        assert len(encoder.encode(waves["speech"][:length])) == rule, length


def test_the_same_sound_always_gives_the_same_bits(encoder: LinguisticEncoder, waves: dict[str, FloatArray]) -> None:
    first = encoder.frames(waves["speech"][:50000])
    np.testing.assert_array_equal(first, encoder.frames(waves["speech"][:50000].copy()))


def test_a_window_does_not_hear_what_comes_after_it(encoder: LinguisticEncoder, waves: dict[str, FloatArray]) -> None:
    whole = encoder.frames(waves["speech"][: 12 * STRIDE])
    start = encoder.frames(waves["speech"][: 6 * STRIDE])
    np.testing.assert_allclose(whole[: len(start)], start, atol=1e-5, rtol=0)


def test_half_precision_stays_near_the_full_one(folder: Path, waves: dict[str, FloatArray]) -> None:
    full = load_linguistic(folder / "model", folder / "centroids.npy", device=CPU)
    half = load_linguistic(folder / "model", folder / "centroids.npy", device=CPU, dtype=torch.bfloat16)
    a, b = full.frames(waves["speech"][:40000]), half.frames(waves["speech"][:40000])
    assert 0 < np.abs(a - b).mean() < 0.05 * np.abs(a).mean()
    assert half.funasr is not None
    assert next(half.funasr.model.parameters()).dtype == torch.float32


def test_the_network_shares_its_tensors_with_the_model_that_transcribes(encoder: LinguisticEncoder) -> None:
    assert encoder.funasr is not None
    theirs = encoder.funasr.model.encoder
    ours = window_encoder(theirs, encoder.funasr.folder)
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].data_ptr() == tensor.data_ptr(), name


def test_positions_start_at_one_with_all_sines_before_all_cosines() -> None:
    table = positions(3, 560)
    assert table.shape == (3, 560)
    assert table[0, 0] == pytest.approx(np.sin(1.0), abs=1e-6)
    assert table[2, 279] == pytest.approx(np.sin(3e-4), abs=1e-8)
    assert table[1, 280] == pytest.approx(np.cos(2.0), abs=1e-6)


def test_the_mask_lets_a_window_see_itself_and_the_four_windows_before_it() -> None:
    mask = attention_mask(6, 7, CPU)[:, 0, 0]
    assert mask.sum(dim=1).tolist() == [9, 13, 17, 21, 25, 23]
    assert mask[1].tolist() == [False] * 12 + [True] * 13


@pytest.mark.parametrize("name", ["float_wav"])
@pytest.mark.parametrize("trimmed", [True, False])
def test_whole_files_give_the_recorded_linguistic_codes(
    name: str, trimmed: bool, conformance: Path, encoder: LinguisticEncoder
) -> None:
    rates = {c["name"]: c["sr"] for c in json.loads((conformance / "audio_frontend/cases.json").read_text())}
    records = json.loads((conformance / "e2e_tokenizer/expected.json").read_text())[name]
    assert len(records) == 12
    with np.load(conformance / "audio_frontend/vectors.npz") as archive:
        for record in records:
            mono = Waveform(archive[f"{record['name']}.mono"][0], rates[record["name"]])
            plain = audio.normalize_peak(audio.resample(mono, audio.CODE_RATE).samples)
            samples = audio.prepare_for_codes(mono) if trimmed else plain
            np.testing.assert_array_equal(
                encoder.encode(samples), record["vq02" if trimmed else "vq02_no_trim"], err_msg=record["name"]
            )


def test_centroids_that_are_missing_or_damaged_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "linguistic_tokenizer.npy"
    with pytest.raises(WeightsError, match=r"linguistic_tokenizer\.npy is missing in "):
        load_centroids(path, 64)
    path.write_bytes((folder / "centroids.npy").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"linguistic_tokenizer\.npy in .* is damaged"):
        load_centroids(path, 64)
    shutil.copy(folder / "centroids.npy", path)
    with pytest.raises(WeightsError, match=r"holds float32 \(1024, 64\) where 1024 centroids of 512"):
        load_centroids(path, 512)
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match=r"linguistic_tokenizer\.npy in .* is damaged"):
        load_centroids(path, 64)
