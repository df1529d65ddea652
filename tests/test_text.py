"""Text: cleaned, bounded, and the length cap that follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.errors import InvalidInput
from stepaudio.text import (
    CLAUSE_PAUSE,
    PARAGRAPH_PAUSE,
    SENTENCE_PAUSE,
    WORD_PAUSE,
    clean,
    passages,
    seconds_cap,
    speaking_seconds,
    split,
)


def test_control_characters_and_lone_surrogates_become_spaces():
    assert clean(" a\x00b\udc80c\nd\t ", what="The text", limit=50) == "a b c\nd"


def test_emoji_and_control_pieces_stay_as_typed():
    assert clean("🎉 <|EOT|> <audio_3>", what="The text", limit=50) == "🎉 <|EOT|> <audio_3>"


@pytest.mark.parametrize("text", ["", "  \n ", "\x00\x01"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(InvalidInput, match="The text is empty"):
        clean(text, what="The text", limit=50)


@pytest.mark.parametrize("text", ["...", "\U0001f642\U0001f642", "?!", "—", "( )", "\u0301"])
def test_a_text_without_letters_and_digits_is_refused(text):
    with pytest.raises(InvalidInput, match="The text holds nothing that can be spoken"):
        clean(text, what="The text", limit=100)


@pytest.mark.parametrize("text", ["7", "好。", "[sigh]", "é!", "\U0001f642 ok"])
def test_one_letter_or_digit_of_any_script_suffices(text):
    assert clean(text, what="The text", limit=100) == text


def test_a_long_text_is_refused_with_its_length_and_the_limit():
    with pytest.raises(InvalidInput, match=r"20000 characters; the limit is 1000"):
        clean("a" * 20_000, what="The text", limit=1000)


def test_the_cap_is_generous_for_each_script_and_for_tags():
    english = "The quick brown fox jumps over the lazy dog."  # about 2.7 s when read aloud
    chinese = "今天天气很好我们去公园散步吧"  # about 3.3 s
    assert 3 * 2.7 < seconds_cap(english) < 15
    assert 3 * 3.3 < seconds_cap(chinese) < 16
    assert seconds_cap("[Laughter]" + english) == pytest.approx(seconds_cap(english) + 3)
    assert seconds_cap("a") >= 3


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One two. Three four! Five?", ["One two.", "Three four!", "Five?"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("It costs 3.14 dollars. That is all.", ["It costs 3.14 dollars.", "That is all."]),
        ("Dr. Who met J. S. Bach at 5 p.m. today. Odd.", ["Dr. Who met J. S. Bach at 5 p.m. today.", "Odd."]),
        ("今天好。我们去吧！好吗？", ["今天好。", "我们去吧！", "好吗？"]),
        ("他说：“走吧。”然后走了。", ["他说：“走吧。”", "然后走了。"]),
        ("First line\nSecond line", ["First line", "Second line"]),
        ("Wait... what? [Laughter] Yes.", ["Wait...", "what?", "[Laughter] Yes."]),
    ],
)
def test_text_is_split_where_sentences_end(text, pieces):
    most = max(speaking_seconds(piece) for piece in pieces)
    found = split(text, most)
    # Short neighbours may share a piece; no piece may end where no sentence does.
    assert set(" ".join(found).split()) == set(" ".join(pieces).split())
    ends = {piece[-4:] for piece in pieces}
    assert all(piece[-4:] in ends for piece in found)


def test_sentences_share_a_piece_as_long_as_they_fit():
    text = "One two three. Four five six. Seven eight nine."
    assert split(text, 100) == [text]
    assert split(text, speaking_seconds("One two three. Four five six.")) == [
        "One two three. Four five six.",
        "Seven eight nine.",
    ]


def test_a_sentence_that_is_too_long_is_divided_between_clauses_then_words_then_anywhere():
    assert split("A first part, a second part, a third part.", 1.1) == [
        "A first part,",
        "a second part,",
        "a third part.",
    ]
    assert all(len(piece.split()) > 1 for piece in split("word " * 30, 1.5))
    assert split("好" * 10, 1.0) == ["好好好好", "好好好好", "好好"]


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab .,!?\n1。，好[]\"'", max_size=120), most=st.floats(0.3, 5))
def test_nothing_but_white_space_is_lost_and_no_piece_is_too_long(text, most):
    pieces = split(text, most)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and speaking_seconds(piece) <= most for piece in pieces)


def test_passages_are_even_and_keep_sentences_whole():
    text = "One two three four. " * 5  # split() alone would leave the last sentence by itself
    most = 4.5 * speaking_seconds("One two three four. ")
    found = [passage.text for passage in passages(text, most)]
    assert len(split(text, most)) == len(found) == 2
    assert [piece.count("four.") for piece in found] == [3, 2]


@pytest.mark.parametrize(
    ("text", "most", "pauses"),
    [
        ("A sentence. Another one.", 1.0, [SENTENCE_PAUSE, 0.0]),
        ('He said "Stop." He left.', 1.2, [SENTENCE_PAUSE, 0.0]),
        ("今天很好。我们去吧！", 1.6, [SENTENCE_PAUSE, 0.0]),
        ("A line without end\nAnother one", 1.5, [PARAGRAPH_PAUSE, 0.0]),
        ("A paragraph.\n\nAnother one.", 1.0, [PARAGRAPH_PAUSE, 0.0]),
        ("A first part, a second part", 1.1, [CLAUSE_PAUSE, 0.0]),
        ("word another", 0.6, [WORD_PAUSE, 0.0]),
        ("All in one.", 9.0, [0.0]),
    ],
)
def test_the_pause_between_passages_is_that_of_what_stands_there(text, most, pauses):
    found = passages(text, most)
    assert [passage.pause for passage in found] == pauses
    assert "".join("".join(passage.text for passage in found).split()) == "".join(text.split())


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab .,!?\n1。，好[]\"'", max_size=120), most=st.floats(0.3, 5))
def test_passages_lose_nothing_and_are_as_few_as_pieces(text, most):
    found = passages(text, most)
    assert "".join("".join(passage.text for passage in found).split()) == "".join(text.split())
    assert all(speaking_seconds(passage.text) <= most for passage in found)
    assert len(found) <= len(split(text, most))
