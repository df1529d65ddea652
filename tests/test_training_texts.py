"""The texts and the held-out list that mini's training begins with."""

from __future__ import annotations

from pathlib import Path

from training.texts import held_out, in_fixed_order, normal_form, sentences, short_texts, transcripts

HEADER = "corpus\tpath\tspeaker\tseconds\toriginal_hz\tlang\ttext\n"


def test_ten_speakers_and_forty_different_texts_are_held_out() -> None:
    held = held_out()
    assert len(held.speakers) == 10
    assert len(held.texts) == len(held.forms) == 40


def test_no_transcript_of_a_held_out_speaker_is_a_training_text(tmp_path: Path) -> None:
    held = held_out()
    index = tmp_path / "index.tsv"
    rows = [f"c\tp\t{speaker}\t1.0\t16000\ten\tSPOKEN BY {speaker.upper()}\n" for speaker in (*held.speakers, "other")]
    index.write_text(HEADER + "".join(rows))
    assert list(transcripts(index, held)) == ["Spoken by other."]


def test_a_held_out_text_is_left_out_however_it_is_written() -> None:
    held = held_out()
    disguised = [text.upper().replace(" ", "  ").rstrip(".!?") + "!" for text in held.texts]
    assert in_fixed_order([*disguised, "Another one."], 0, held) == ["Another one."]


def test_texts_of_the_same_words_are_kept_once() -> None:
    assert len(in_fixed_order(["Come in!", "come  in", "Come out."], 0, held_out())) == 2


def test_the_order_depends_on_the_seed_and_not_on_what_else_there_is() -> None:
    texts = [f"Text {number}" for number in range(50)]
    order = in_fixed_order(texts, 3, held_out())
    fewer = in_fixed_order(reversed(texts[:20]), 3, held_out())
    assert fewer == [text for text in order if text in fewer]
    assert order != in_fixed_order(texts, 4, held_out())


def test_the_normal_form_holds_words_alone() -> None:
    assert normal_form("  It’s HALF-past, six…") == "it's half past six"


def test_running_text_is_cut_into_sentences_that_can_be_read_as_they_stand() -> None:
    text = 'He said, "Come in." Then she left -- slowly. The NASA file a.out is gone. No.'
    assert list(sentences(text)) == ["He said, Come in.", "Then she left, slowly."]


def test_a_long_transcript_without_punctuation_is_cut_and_loses_no_word(tmp_path: Path) -> None:
    words = [f"WORD{chr(65 + number % 26)}" for number in range(47)]
    index = tmp_path / "index.tsv"
    index.write_text(HEADER + f"c\tp\ts\t1.0\t16000\ten\t{' '.join(words)}\n")
    pieces = list(transcripts(index, held_out()))
    assert [len(piece.split()) for piece in pieces] == [15, 16, 16]
    assert " ".join(normal_form(piece) for piece in pieces) == " ".join(words).lower()


def test_short_texts_have_one_to_three_words() -> None:
    texts = list(short_texts(["some words are common", "some are not"], 6))
    assert texts
    assert all(1 <= len(text.split()) <= 3 for text in texts)
