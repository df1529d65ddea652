"""Transcribing: with a whole Paraformer, with a Whisper of the user's, and honestly not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.asr import Transcriber, absent, load_transcriber, load_whisper, paraformer_writer
from stepaudio.audiofile import encode_wav
from stepaudio.encoder.funasr_folder import import_automodel, load_funasr
from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.types import Waveform
from tests.conftest import ROOT, voice

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(conformance: Path):
    return load_funasr(conformance / "paraformer/model", CPU)


def test_a_whole_paraformer_writes_what_funasr_itself_does(whole, conformance: Path):
    """funasr's own way in, AutoModel.generate, is the reference; the weights are random, and so are the words."""
    sound = voice(2.7, sample_rate=16_000)
    own = import_automodel()(model=str(conformance / "paraformer/model"), disable_update=True, disable_pbar=True)
    own.kwargs["frontend"].dither = 0.0
    chunks = {"chunk_size": [0, 10, 5], "encoder_chunk_look_back": 4, "decoder_chunk_look_back": 1}
    (expected,) = own.generate(input=sound.samples, cache={}, is_final=True, **chunks)
    made = load_transcriber(whole, whisper_dir="", trained=True, device=CPU)
    assert (made.available, made.why_not, made.name) == (True, "", "Paraformer")
    assert made.transcribe(sound) == expected["text"]
    assert len(expected["text"]) > 3


def test_one_sound_leaves_nothing_behind_for_the_next(whole):
    made = Transcriber(paraformer_writer(whole))
    first = made.transcribe(voice(1.3, pitch=90.0))
    made.transcribe(voice(2.0, pitch=200.0))
    assert made.transcribe(voice(1.3, pitch=90.0)) == first


@pytest.mark.parametrize("samples", [0, 1, 879, 880, 959, 1280, 3840, 9599, 9600, 9601, 19_200, 20_159])
def test_sounds_of_every_awkward_length_are_written_down(whole, samples):
    sound = Waveform(voice(2.0, sample_rate=16_000).samples[:samples], 16_000)
    words = Transcriber(paraformer_writer(whole)).transcribe(sound)
    assert isinstance(words, str)
    assert words == "" or samples >= 880


def test_silence_and_noise_are_no_error(whole):
    made = Transcriber(paraformer_writer(whole))
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    for samples in (np.zeros(16_000, np.float32), noise):
        assert isinstance(made.transcribe(Waveform(samples, 16_000)), str)


@pytest.mark.parametrize("trained", [True, False])
def test_where_nothing_can_transcribe_the_reason_is_one_sentence(conformance, tmp_path, trained):
    for file in (conformance / "paraformer/model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if trained:
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        torch.save({name: t for name, t in state.items() if name.startswith("encoder.")}, tmp_path / "model.pt")
    made = load_transcriber(load_funasr(tmp_path, CPU), whisper_dir="", trained=trained, device=CPU)
    assert not made.available
    assert ("encoder alone" if trained else "random") in made.why_not
    with pytest.raises(WeightsError, match=made.why_not[:20]):
        made.transcribe(voice(1.0))


def test_an_exported_encoder_cannot_transcribe_and_says_so():
    assert "ONNX" in load_transcriber(None, whisper_dir="", trained=True, device=CPU).why_not


def test_a_transcriber_has_a_writer_or_a_reason():
    with pytest.raises(ValueError):
        Transcriber(None)
    with pytest.raises(ValueError):
        absent("")


def test_mini_holds_the_encoder_alone():
    (folder,) = (path.parent for path in (ROOT / "models/mini/Step-Audio-Tokenizer").glob("**/config.yaml"))
    assert not load_funasr(folder, CPU).can_transcribe


def write_whisper(folder: Path) -> Path:
    """Write a Whisper of random weights in transformers' layout, whose words are single letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizerFast,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|en|>",
        "<|transcribe|>",
        "<|translate|>",
        "<|notimestamps|>",
    ]
    inner.add_special_tokens(special)
    ids = {name: inner.token_to_id(name) for name in special}
    tokenizer = WhisperTokenizerFast(tokenizer_object=inner, eos_token=special[0], bos_token=special[0])
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=inner.get_vocab_size(),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=80,
        max_target_positions=24,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=end, bos_token_id=end, decoder_start_token_id=start, max_length=20
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    return folder


def test_a_whisper_in_a_folder_of_the_users_writes_words(tmp_path, whole):
    folder = write_whisper(tmp_path / "whisper")
    made = load_transcriber(whole, whisper_dir=str(folder), trained=False, device=CPU)
    assert made.name == "Whisper (whisper)"
    words = made.transcribe(voice(1.5))
    assert words
    assert "<|" not in words
    assert made.transcribe(voice(1.5)) == words


@pytest.mark.parametrize("damage", ["missing", "empty", "pickle only"])
def test_a_folder_without_a_whisper_is_named(tmp_path, damage):
    folder = tmp_path / "whisper"
    if damage == "empty":
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    elif damage == "pickle only":
        write_whisper(folder)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=str(folder)):
        load_whisper(folder, CPU)


def test_the_service_transcribes_and_keeps_the_words_out_of_the_log(make_engine, tiny_weights, tmp_path, caplog):
    caplog.set_level("INFO", logger="stepaudio")
    weights = tmp_path / "weights"
    weights.mkdir()
    for part in tiny_weights.iterdir():
        if part.is_dir():
            (weights / part.name).symlink_to(part)
    (weights / "card.json").write_text(json.dumps({"title": "taken for trained"}))
    engine = make_engine(weights=str(weights))
    service = Service(Settings(cache_dir=tmp_path / "cache"), lambda: engine)
    assert service.transcriber.why_not == "The models are still being loaded."
    service.start()
    assert service.wait_until_decided(120) == "ready"
    assert service.transcriber.available
    words = service.submit_transcription(encode_wav(voice(2.0))).result(60)
    assert len(words) > 3
    assert "Transcribed 2.00 s" in caplog.text
    assert words not in caplog.text
    with pytest.raises(InvalidInput, match="cannot be read"):
        service.submit_transcription(b"no sound").result(60)
    service.close()


def test_random_weights_do_not_transcribe_through_the_service(make_engine, tmp_path):
    engine = make_engine()
    service = Service(Settings(cache_dir=tmp_path / "cache"), lambda: engine)
    service.start()
    assert service.wait_until_decided(120) == "ready"
    assert "random" in service.transcriber.why_not
    with pytest.raises(WeightsError, match="random"):
        service.submit_transcription(encode_wav(voice(1.0))).result(60)
    service.close()
