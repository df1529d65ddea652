"""The tiny encoder's files: the same bytes for a seed, real signatures, codes that are spread."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from stepaudio.bench.chunk_loop import chunk_loop
from stepaudio.encoder.paraformer import LinguisticEncoder, load_linguistic
from stepaudio.encoder.s3 import SemanticEncoder
from stepaudio.tiny.encoder import FUNASR_FOLDER, write_campplus, write_encoder
from tests.conftest import voice

CPU = torch.device("cpu")


def write(folder: Path, seed: int) -> Path:
    write_encoder(folder, seed)
    write_campplus(folder / "campplus.onnx", seed)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tiny"), 1)


@pytest.fixture(scope="module")
def linguistic(folder: Path) -> LinguisticEncoder:
    return load_linguistic(folder / FUNASR_FOLDER, folder / "linguistic_tokenizer.npy", device=CPU)


def test_the_folder_has_the_files_of_the_real_one(folder: Path) -> None:
    funasr = {"am.mvn", "config.yaml", "configuration.json", "model.pt", "seg_dict", "tokens.json", "tokens.txt"}
    expected = {f"{FUNASR_FOLDER}/{name}" for name in funasr}
    assert set(digests(folder)) == expected | {"linguistic_tokenizer.npy", "speech_tokenizer_v1.onnx", "campplus.onnx"}


def test_the_same_seed_gives_the_same_bytes_in_another_process_with_other_threads(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from stepaudio.tiny.encoder import write_campplus, write_encoder;"
        "torch.set_num_threads(3); folder = Path(sys.argv[1]); write_encoder(folder, 1);"
        "write_campplus(folder / 'campplus.onnx', 1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert digests(tmp_path) == digests(folder)


def test_another_seed_gives_other_weights(folder: Path, tmp_path: Path) -> None:
    ours, other = digests(folder), digests(write(tmp_path, 2))
    for name in (f"{FUNASR_FOLDER}/model.pt", "linguistic_tokenizer.npy", "speech_tokenizer_v1.onnx", "campplus.onnx"):
        assert ours[name] != other[name]


def test_writing_leaves_the_random_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write(tmp_path, 1)
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_windows_together_equal_the_chunk_loop_on_the_tiny_encoder(linguistic: LinguisticEncoder) -> None:
    assert linguistic.funasr is not None
    sound = voice(2.0, 16000).samples
    for length in (0, 879, 880, 3840, 4720, 9999, 19200, 23039, 32000):
        looped = chunk_loop(linguistic.funasr.model.encoder, linguistic.funasr.frontend, sound[:length])
        np.testing.assert_allclose(linguistic.frames(sound[:length]), looped, atol=1e-4, rtol=0)


def test_the_centroids_are_a_thousand_different_frames(folder: Path) -> None:
    centroids = np.load(folder / "linguistic_tokenizer.npy", allow_pickle=False)
    assert centroids.shape == (1024, 64)
    assert centroids.dtype == np.float32
    assert len(np.unique(centroids, axis=0)) == 1024


def test_the_codes_of_a_voice_are_spread_in_both_streams(folder: Path, linguistic: LinguisticEncoder) -> None:
    semantic = SemanticEncoder(folder / "speech_tokenizer_v1.onnx", device=CPU, threads=1)
    voices = [voice(4.0, 16000, pitch, seed).samples for seed, pitch in enumerate((80.0, 120.0, 180.0, 260.0))]
    assert len(set(np.concatenate([linguistic.encode(samples) for samples in voices]).tolist())) > 60
    assert len(set(np.concatenate([semantic.encode(samples) for samples in voices]).tolist())) > 60


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 99, 100])
def test_the_semantic_model_gives_a_code_for_every_four_frames(frames: int, folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "speech_tokenizer_v1.onnx", providers=["CPUExecutionProvider"])
    features, length = session.get_inputs()
    assert (features.type, features.shape[:2], length.type, length.shape) == (
        "tensor(float)",
        [1, 128],
        "tensor(int32)",
        [1],
    )
    mel = np.random.default_rng(0).standard_normal((1, 128, frames)).astype(np.float32)
    (codes,) = session.run(None, {features.name: mel, length.name: np.array([frames], np.int32)})
    assert codes.shape == (1, -(-frames // 4))
    assert 0 <= codes.min() <= codes.max() < 4096


def test_the_speaker_model_has_the_names_and_shapes_of_the_real_one(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "campplus.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["input"]
    assert session.run(None, {"input": np.ones((1, 7, 80), np.float32)})[0].shape == (1, 192)
