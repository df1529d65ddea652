"""The weights of mini in the repository: small, in the real layout, loaded by the code that loads the real ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch

from stepaudio import device
from stepaudio.encoder import funasr_folder
from stepaudio.loading import S3_ONNX, load_encoder, load_engine
from stepaudio.presets import PresetFolder
from stepaudio.settings import Settings
from stepaudio.text import speaking_seconds
from stepaudio.tokens import interleave
from stepaudio.types import Reference, SamplingParams, Waveform
from stepaudio.vocoder.vocoder import load_vocoder
from stepaudio.weights import WeightsFolder, choose_weights, read_card

from .conftest import voice

MINI = Path(__file__).resolve().parents[1] / "models" / "mini"
MOST_BYTES = 30_000_000


@pytest.fixture(scope="module")
def weights() -> WeightsFolder:
    return WeightsFolder(MINI, read_card(MINI), "in the repository")


def test_all_of_it_takes_thirty_megabytes_at_most() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) <= MOST_BYTES


def test_the_card_says_what_it_is_in_both_languages_and_the_readme_names_whose_voices_taught_it(
    weights: WeightsFolder,
) -> None:
    assert weights.card.speaks
    assert set(weights.card.notice) == {"en", "zh"}
    readme = (MINI / "README.md").read_text(encoding="utf-8")
    for source in ("LibriSpeech", "CC BY 4.0", "Kokoro", "Apache", "held-out"):
        assert source in readme


def test_funasrs_auto_model_loads_the_paraformer_and_onnx_runtime_the_others(weights: WeightsFolder) -> None:
    ours = funasr_folder.load_funasr(weights.funasr, torch.device("cpu")).model.get_submodule("encoder")
    from funasr import AutoModel  # after the product has prepared torchaudio

    loaded = AutoModel(model=str(weights.funasr), device="cpu", disable_update=True, disable_pbar=True)
    assert type(loaded.model).__name__ == "ParaformerStreaming"
    state = loaded.model.encoder.state_dict()
    assert state.keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(state[name], value)
    for path in (weights.tokenizer / S3_ONNX, weights.cosyvoice / "campplus.onnx"):
        assert onnxruntime.InferenceSession(path).get_outputs()


def test_a_sound_becomes_codes_and_a_voice(weights: WeightsFolder) -> None:
    encoder = load_encoder(weights, device.choose("cpu"))
    first, second = (encoder.encode(voice(2.0, sample_rate=rate)).encoding for rate in (24000, 16000))
    encoder.close()
    assert len(set(first.linguistic.tolist())) > 5
    assert len(set(first.semantic.tolist())) > 10
    likeness = float(first.speaker @ second.speaker / np.linalg.norm(first.speaker) / np.linalg.norm(second.speaker))
    assert likeness > 0.7


def test_codes_become_sound_that_is_as_long_and_neither_silent_nor_clipped(weights: WeightsFolder) -> None:
    encoder = load_encoder(weights, device.choose("cpu"))
    said = encoder.encode(voice(2.0)).encoding
    encoder.close()
    vocoder = load_vocoder(weights.cosyvoice, torch.device("cpu"))
    tokens = interleave(said.linguistic, said.semantic)
    with torch.inference_mode():
        mel = vocoder.flow(tokens, tokens, said.mel, said.speaker, seed=1)
        sound = vocoder.sound(mel, seed=1).samples
    assert len(sound) == tokens.groups * 2880
    assert 0.01 < float(np.sqrt(np.mean(sound**2))) < 0.5
    assert float(np.abs(sound).max()) < 0.99


def preset_voices() -> list[Reference]:
    folder = PresetFolder(MINI)
    loaded = (folder.load(one.id) for one in folder.list())
    return [
        Reference(Waveform(*soundfile.read(io.BytesIO(data), dtype="float32")), preset.transcript)
        for preset, data in loaded
    ]


def test_it_brings_four_preset_voices_or_more_of_a_few_seconds() -> None:
    voices = preset_voices()
    assert len(voices) >= 4
    assert all(2.0 < voice.waveform.seconds < 10.0 and len(voice.text.split()) > 5 for voice in voices)


def test_a_preset_speaks_and_ends_by_itself(tmp_path: Path) -> None:
    settings = Settings(models_dir=MINI.parent, cache_dir=tmp_path, device="cpu")
    engine = load_engine(choose_weights(settings), settings, device.choose("cpu"))
    assert engine.weights.path == MINI
    text = "The train leaves in the morning, and we will be home before night."
    made = [engine.pipeline.clone(preset_voices()[0], text, SamplingParams(seed=seed)) for seed in range(3)]
    engine.close()
    assert sum(one.stopped == "end" for one in made) >= 2
    for one in made:
        assert 0.5 < one.waveform.seconds / speaking_seconds(text) < 2
        assert 0.01 < float(np.sqrt(np.mean(one.waveform.samples**2))) < 0.5
