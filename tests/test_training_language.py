"""Training of mini's language model: its tokenizer, its sequences, its loss, and an export that the product loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stepaudio.llm.loading import load_step1
from stepaudio.prompts import PromptBuilder, SpeechTokenizer, layout_of
from stepaudio.tokens import interleave, rows
from stepaudio.types import SpeechTokens
from training import language
from training.language import (
    MOST_WORDS,
    Partners,
    Said,
    Sheet,
    Trainee,
    Writer,
    labels_of,
    loss_of,
    numbers_of,
    size_of,
)
from training.phones import IGNORED, SILENCE, classes
from training.shards import ClipRecord
from training.tokenizer import SPACE, TEMPLATE, write_tokenizer

SEMANTIC = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    syllables = ["ta", "mi", "ron", "ket", "sol", "e", "a", "pru", "ist", "ing"]
    texts = [" ".join("".join(rng.choice(syllables, 3)) for _ in range(8)) + "." for _ in range(3000)]
    path: Path = tmp_path_factory.mktemp("editx")
    write_tokenizer(texts, SEMANTIC, path)
    return path


def said(speaker: str, groups: int, seed: int) -> Said:
    rng = np.random.default_rng(seed)
    tokens = interleave(rng.integers(0, 1024, 2 * groups), rng.integers(0, SEMANTIC, 3 * groups))
    words = np.arange(5 * groups) * 2 // (5 * groups)
    return Said(speaker, "Tami ronket.", tokens.numbers, rng.integers(0, 5, 5 * groups), words)


def test_the_tokenizer_has_the_real_control_pieces_and_the_audio_pieces_in_order(folder: Path) -> None:
    tokenizer = SpeechTokenizer.load(folder / "tokenizer.model")
    assert layout_of(folder) == "current"
    vocabulary = tokenizer.vocabulary
    assert (len(vocabulary.linguistic), len(vocabulary.semantic), vocabulary.end) == (1024, SEMANTIC, 3)
    assert vocabulary.semantic.stop == tokenizer.size
    assert tokenizer.encode("TAMI Ronket") == tokenizer.encode("tami ronket")
    assert max(tokenizer.encode("<audio_3> <|EOT|>")) < vocabulary.linguistic.start


def test_the_fixed_stretches_of_the_template_are_a_piece_each(folder: Path) -> None:
    ids = PromptBuilder.load(folder).clone_as("debug", "tami", SpeechTokens(np.zeros(0, np.int64)), "ron")
    texts = sum(len(SpeechTokenizer.load(folder / "tokenizer.model").encode(one)) for one in ("tami", "ron"))
    turns = 3 + 2 + 1  # <|BOT|> thrice, <|EOT|> twice, <s>
    assert len(ids) <= len(TEMPLATE) + texts + turns + 1


def test_rows_of_the_vocoder_become_numbers_again() -> None:
    numbers = said("s", 7, 1).numbers
    np.testing.assert_array_equal(numbers_of(rows(numbers)), numbers)


def test_labels_tell_the_phoneme_in_the_middle_of_what_an_id_stands_for() -> None:
    h, vowel = classes("hɛ")
    record = ClipRecord("n", "s", 0, 48000, 24000, "en", "t", "hɛ", (0, 1200, 2880))  # 50 ms, 70 ms
    labels, words = labels_of(record, "hɛ", 0, 2)
    assert labels.tolist() == [h, vowel, h, vowel, vowel, *[SILENCE] * 5]
    assert words.tolist() == [0, 0, 0, 0, 0, *[-1] * 5]
    later, _ = labels_of(record, "hɛ", 640, 1)  # the codes begin 40 ms into the clip
    assert later.tolist() == [vowel, SILENCE, vowel, vowel, SILENCE]
    labels, words = labels_of(ClipRecord("n", "s", 0, 1, 16000, "en", "t", "hɛ", ()), "hɛ", 0, 2)
    assert set(labels) == {IGNORED}
    assert set(words) == {-1}


def test_words_are_what_spaces_divide_also_where_an_alignment_has_commas() -> None:
    record = ClipRecord("n", "s", 0, 48000, 24000, "en", "t", "hɛ,h", (0, 1200, 2400, 4800, 7200))
    _, words = labels_of(record, "hɛ h", 0, 3)
    assert words.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, -1, 1, -1, -1]


def test_a_sequence_is_the_products_prompt_and_its_answer(folder: Path) -> None:
    writer = Writer(folder)
    prompt, target = said("s", 4, 1), said("s", 6, 2)
    row = writer.row(prompt, target)
    head = PromptBuilder.load(folder).clone_as("debug", prompt.text, SpeechTokens(prompt.numbers), target.text)
    assert row.ids[: len(head)].tolist() == head
    vocabulary = writer.tokenizer.vocabulary
    assert row.ids[len(head) :].tolist() == [*vocabulary.ids(target.numbers), vocabulary.end]
    assert int(row.written.sum()) == 5 * (4 + 6) + 1
    np.testing.assert_array_equal(row.labels[row.labels != IGNORED], np.concatenate((prompt.labels, target.labels)))


def test_every_id_of_a_text_has_the_number_of_its_word_and_what_is_spoken_has_the_same(folder: Path) -> None:
    writer = Writer(folder)
    prompt, target = said("s", 4, 1), said("s", 6, 2)
    row = writer.row(prompt, target)
    texts: dict[int, str] = {}
    for number, word in zip(row.ids.tolist(), row.read.tolist(), strict=True):
        if word >= 0:
            texts[word] = texts.get(word, "") + writer.pieces[number].replace(SPACE, "")
    assert texts == {0: "tami", 1: "ronket.", MOST_WORDS: "tami", MOST_WORDS + 1: "ronket."}
    expected = [*prompt.words, *(target.words + MOST_WORDS)]
    assert row.spoken[row.spoken >= 0].tolist() == expected
    assert bool((row.spoken[:-1] >= 0)[row.written[:-1]].all())


def test_a_head_that_looks_at_the_right_word_is_not_astray_and_one_that_looks_elsewhere_is(folder: Path) -> None:
    torch.manual_seed(0)
    writer = Writer(folder)
    model = Trainee(size_of(writer.tokenizer.size))
    row = writer.row(said("s", 20, 1), said("s", 20, 2))
    ids, read, spoken = row.ids[None], row.read[None], row.spoken[None]
    model(ids, row.written[None])
    before = model.astray(read, spoken)
    # One word that is everywhere takes all attention there is; where no word is known there is nothing to learn.
    everywhere = torch.zeros_like(read)
    assert float(model.astray(everywhere, torch.zeros_like(spoken)).detach()) == pytest.approx(0, abs=1e-5)
    assert float(model.astray(read, torch.full_like(spoken, -1))) == 0
    assert float(before.detach()) > 0.5
    before.backward()
    guided = [model.model.layers[layer].self_attn.q_proj.weight.grad for layer in language.GUIDED_LAYERS]
    assert all(one is not None and one.any() for one in guided)


def test_padding_changes_no_loss_and_the_loss_reaches_every_weight(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "GUIDED_EVERY", 1)  # else only the first row would tell what it looked at
    torch.manual_seed(0)
    writer = Writer(folder)
    model = Trainee(size_of(writer.tokenizer.size))
    first, second = (writer.row(said("s", 20, n), said("s", 20 + 30 * n, n + 5)) for n in (0, 1))
    with torch.no_grad():
        alone = [float(loss_of(model, Sheet.of([row]), writer.tokenizer.vocabulary)) for row in (first, second)]
        counts = [int(row.written.sum()) for row in (first, second)]
        together = float(loss_of(model, Sheet.of([first, second]), writer.tokenizer.vocabulary))
    assert together == pytest.approx(np.average(alone, weights=counts), rel=5e-3)  # bfloat16; phonemes lack the end id
    loss_of(model, Sheet.of([first, second]), writer.tokenizer.vocabulary).backward()
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []


def test_the_loss_of_an_id_is_among_those_that_may_stand_in_its_place(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer.load(folder / "tokenizer.model")
    vocabulary, model = tokenizer.vocabulary, Trainee(size_of(tokenizer.size))
    wanted = torch.tensor([vocabulary.linguistic[5], vocabulary.semantic[7], vocabulary.end])
    states = torch.randn(3, language.HIDDEN)
    logits = model.lm_head(states)
    first = [*vocabulary.linguistic, vocabulary.end]
    expected = [
        F.cross_entropy(logits[row][list(legal)], torch.tensor(list(legal).index(int(wanted[row]))))
        for row, legal in enumerate((first, vocabulary.semantic, first))
    ]
    torch.testing.assert_close(model.mistaken(states, wanted, vocabulary), torch.stack(expected).mean())


def test_a_prompt_is_another_clip_of_the_voice() -> None:
    clips = [said("a", 20, 1), said("a", 30, 2), said("b", 20, 3), said("a", 5, 4)]
    partners = Partners(clips)
    assert [partners.has(clip) for clip in clips] == [True, True, False, True]
    generator = torch.Generator().manual_seed(0)
    assert {id(partners.draw(clips[0], generator)) for _ in range(20)} == {id(clips[1])}
    assert {id(partners.draw(clips[3], generator)) for _ in range(20)} == {id(clips[0]), id(clips[1])}


def test_the_export_is_loaded_by_the_product_and_gives_the_logits_of_training(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer.load(folder / "tokenizer.model")
    model = Trainee(size_of(tokenizer.size)).eval()
    (tmp_path / "language").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "language" / "checkpoint.pt")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    language.export(tmp_path, tmp_path)
    loaded = load_step1(tmp_path, torch.device("cpu"), torch.float32)
    ids = torch.randint(0, tokenizer.size, (1, 40))
    with torch.no_grad():
        found = loaded(ids).logits[0, :-1]
        expected = model.lm_head(model(ids, torch.ones_like(ids, dtype=torch.bool))[0])
    torch.testing.assert_close(found, expected * language.SHARPENED, atol=1e-2, rtol=1e-2)
