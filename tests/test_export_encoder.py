"""``python -m stepaudio export-encoder`` writes, compares and tells; the setting makes the product use the export."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.audiofile import encode_wav
from stepaudio.bench.engines import compare
from stepaudio.cli import main
from stepaudio.encoder.paraformer import load_linguistic
from stepaudio.encoder.sanm import RoundedLinear
from stepaudio.errors import WeightsError
from stepaudio.loading import fingerprint, linguistic_choice, mel_config
from stepaudio.settings import Settings
from stepaudio.tiny.encoder import FUNASR_FOLDER
from stepaudio.weights import choose_weights
from tests.conftest import voice

ENGINES = ["torch", "torch-bf16", "onnx", "onnx-int8"]


@pytest.fixture
def kept_threads():
    """The command sets torch's threads for its process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny weights with both exports beside the FunASR files."""
    folder = shutil.copytree(tiny_weights, tmp_path_factory.mktemp("exported") / "tiny")
    before = torch.get_num_threads()
    assert main(["export-encoder", "--int8", "--weights", str(folder), "--device", "cpu", "--runs", "1"]) == 0
    torch.set_num_threads(before)
    return folder


@pytest.mark.usefixtures("kept_threads")
def test_the_command_writes_to_a_folder_and_reports_on_recordings(tiny_weights, tmp_path, capsys):
    recording = tmp_path / "voice.wav"
    recording.write_bytes(encode_wav(voice(2.0)))
    target = tmp_path / "new" / "folder"
    arguments = ["--weights", str(tiny_weights), "--to", str(target), "--audio", str(recording), "--threads", "1"]
    assert main(["export-encoder", "--int8", "--device", "cpu", *arguments]) == 0
    told = capsys.readouterr().out
    assert sorted(path.name for path in target.iterdir()) == [
        *("encoder.int8.json", "encoder.int8.onnx", "encoder.json", "encoder.onnx"),
    ]
    assert re.search(r"^Wrote encoder\.onnx \(\d\.\d MB\) to .*folder\.$", told, re.MULTILINE)
    assert re.search(r"^Compared on \d\.\d s of recordings, \d+ codes \(1 threads?, CPU", told, re.MULTILINE)
    assert re.search(r"^  onnx: \d\.\d{3} s a run; 100\.00% of the codes are equal", told, re.MULTILINE)
    for engine in ("torch-bf16", "onnx-int8"):
        assert re.search(rf"^  {engine}: \d\.\d{{3}} s a run; \d+\.\d\d% of the codes are equal", told, re.MULTILINE)
    assert told.endswith(f"STEPAUDIO_LINGUISTIC_ENGINE=onnx-int8 and STEPAUDIO_LINGUISTIC_ONNX_DIR={target}.\n")


@pytest.mark.usefixtures("kept_threads")
def test_synthetic_sound_is_said_to_prove_little(tiny_weights, tmp_path, capsys):
    arguments = ["--weights", str(tiny_weights), "--to", str(tmp_path), "--runs", "1", "--device", "cpu"]
    assert main(["export-encoder", *arguments]) == 0
    told = capsys.readouterr().out
    assert "8.0 s of synthetic sound, 133 codes" in told
    assert "only recordings can say" in told
    assert "onnx-int8" not in told
    assert not (tmp_path / "encoder.int8.onnx").exists()


def test_a_recording_that_cannot_be_read_ends_the_command_before_anything_is_written(tiny_weights, tmp_path, capsys):
    target, arguments = tmp_path / "out", ["--weights", str(tiny_weights), "--to", str(tmp_path / "out")]
    assert main(["export-encoder", *arguments, "--audio", str(tmp_path / "none.wav")]) == 2
    assert re.fullmatch(r"The recording .*none\.wav cannot be read \(.*\)\.\n", capsys.readouterr().err)
    assert main(["export-encoder", *arguments, "--runs", "0"]) == 2
    assert not target.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_setting_chooses_the_engine_that_encodes(engine, weights, make_engine):
    engine_loaded = make_engine(weights=str(weights), linguistic_engine=engine)
    default = make_engine(weights=str(weights))
    sound = voice(2.0)
    ours, theirs = engine_loaded.encoder.encode(sound).encoding, default.encoder.encode(sound).encoding
    assert len(ours.linguistic) == len(theirs.linguistic) > 20
    assert (ours.linguistic == theirs.linguistic).mean() > 0.5
    np.testing.assert_array_equal(ours.semantic, theirs.semantic)
    assert (engine_loaded.encoder.linguistic.provider is not None) == engine.startswith("onnx")
    network = engine_loaded.encoder.linguistic._network
    assert any(isinstance(module, RoundedLinear) for module in network.modules()) == (engine == "torch-bf16")
    assert (engine in engine_loaded.summary) == (engine != "torch")


def test_what_one_engine_put_into_the_cache_is_never_given_to_another(weights, make_engine):
    sound = voice(1.5)
    for engine in ENGINES:
        loaded = make_engine(weights=str(weights), linguistic_engine=engine)
        first = loaded.pipeline.cache.get_or_encode(sound, loaded.encoder.encode)
        again = loaded.pipeline.cache.get_or_encode(sound, loaded.encoder.encode)
        assert (first.hit, again.hit) == (False, True), engine


def test_every_engine_and_every_export_has_a_fingerprint_of_its_own(weights, tmp_path):
    def of(folder: Path, **settings: str) -> str:
        chosen = Settings(weights=str(folder), **settings)
        found = choose_weights(chosen)
        return fingerprint(found, mel_config(found), linguistic_choice(chosen))

    seen = [of(weights, linguistic_engine=engine) for engine in ENGINES]
    assert len(set(seen)) == len(ENGINES)
    exports = shutil.copytree(weights / "Step-Audio-Tokenizer" / FUNASR_FOLDER, tmp_path / "exports")
    elsewhere = {"linguistic_engine": "onnx", "linguistic_onnx_dir": str(exports)}
    assert of(weights, **elsewhere) == seen[2]
    with (exports / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    assert of(weights, **elsewhere) != seen[2]


def test_an_engine_without_its_export_is_named_at_load(tiny_weights, make_engine):
    with pytest.raises(WeightsError, match=r"encoder\.onnx is missing in .*; 'python -m stepaudio export-encoder'"):
        make_engine(linguistic_engine="onnx")


def test_engines_are_held_against_the_first_one(tiny_weights):
    tokenizer = tiny_weights / "Step-Audio-Tokenizer"
    encoder = load_linguistic(
        tokenizer / FUNASR_FOLDER, tokenizer / "linguistic_tokenizer.npy", device=torch.device("cpu")
    )

    class Reversed:
        def frames(self, samples):
            return encoder.frames(samples)[::-1].copy()

        def encode(self, samples):
            return encoder.encode(samples)[::-1]

    clips = [voice(1.0, 16000, seed=seed).samples for seed in range(2)]
    first, other = compare({"torch": encoder, "reversed": Reversed()}, clips, 3)
    assert (first.equal, first.equal_where_certain, first.difference) == (1.0, 1.0, 0.0)
    assert first.codes == other.codes == sum(len(encoder.encode(clip)) for clip in clips)
    wanted = np.concatenate([encoder.encode(clip) for clip in clips])
    got = np.concatenate([encoder.encode(clip)[::-1] for clip in clips])
    assert other.equal == (wanted == got).mean() < 1
    assert other.difference > 0.1
    assert len(other.all_seconds) == 3
    with pytest.raises(ValueError, match="hold no code"):
        compare({"torch": encoder}, [np.zeros(100, np.float32)], 1)
