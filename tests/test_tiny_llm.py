"""tiny/llm.py: a complete, deterministic folder in the real layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from stepaudio.llm.generate import SpeechLM
from stepaudio.llm.loading import load_step1
from stepaudio.prompts import ControlIds, PromptBuilder, SpeechTokenizer
from stepaudio.tiny.llm import write_llm
from stepaudio.tokens import interleave
from stepaudio.types import SamplingParams, Task, Waveform
from tests.token_kit import obeys_cycle

FILES = {
    "config.json",
    "model-00001.safetensors",
    "model.safetensors.index.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_llm(path, 1)
    return path


def test_the_same_seed_gives_the_same_bytes_and_another_other_weights(folder: Path, tmp_path: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    for seed, same in ((1, True), (2, False)):
        other = tmp_path / str(seed)
        other.mkdir()
        write_llm(other, seed)
        for name in FILES - {"model-00001.safetensors"}:
            assert (other / name).read_bytes() == (folder / name).read_bytes()
        equal = (other / "model-00001.safetensors").read_bytes() == (folder / "model-00001.safetensors").read_bytes()
        assert equal is same


def test_writing_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write_llm(tmp_path, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_control_pieces_and_bytes_have_the_real_ids(folder: Path, small_files: Path) -> None:
    tokenizer = SpeechTokenizer.load(folder / "tokenizer.model")
    assert tokenizer.control == ControlIds(1, 3, 4, 31, 33, 34)
    assert (len(tokenizer.vocabulary.linguistic), len(tokenizer.vocabulary.semantic)) == (1024, 4096)
    assert tokenizer.vocabulary.semantic.stop == tokenizer.size
    assert tokenizer.size == json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    real = sentencepiece.SentencePieceProcessor(model_file=str(small_files / "tokenizer.model"))
    for number in (*range(5), *range(31, 35), *range(68, 325)):
        assert ours.id_to_piece(number) == real.id_to_piece(number)
        assert ours.is_control(number) == real.is_control(number)
        assert ours.is_byte(number) == real.is_byte(number)


def test_the_tokenizer_spells_any_text_and_reads_it_back(folder: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in ("system\nhello world", "  two  spaces ", "你好 é 😀", "Call 010-12345!"):
        ids = processor.encode(text)
        assert 0 not in ids
        assert processor.decode(ids) == text
    assert processor.encode("hello human", out_type=str) == ["▁hello", "▁human"]


def test_a_clone_and_an_edit_run_from_the_folder(folder: Path) -> None:
    prompts = PromptBuilder.load(folder)
    assert prompts.layout == "current"
    vocabulary = SpeechTokenizer.load(folder / "tokenizer.model").vocabulary
    lm = SpeechLM(load_step1(folder, torch.device("cpu"), torch.float32), vocabulary)
    speech = interleave(np.arange(20), np.arange(30))
    silence = Waveform(np.zeros(1000, dtype=np.float32), 16000)
    for ids in (
        prompts.clone("hello there", speech, "good day <audio_3>", silence),
        prompts.edit(Task("emotion", "happy"), "hello there", speech),
    ):
        assert [i for i in ids if i >= vocabulary.linguistic.start] == vocabulary.ids(speech.numbers).tolist()
        result = lm.generate(ids, SamplingParams(), seed=1, max_tokens=40)
        assert result.tokens.groups > 0
        assert obeys_cycle(result.tokens.numbers)
