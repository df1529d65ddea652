"""Text: cleaned, bounded, and the length cap that follows from it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.errors import InvalidInput
from stepaudio.text import (
    _SENTENCE_END,
    CLAUSE_PAUSE,
    PARAGRAPH_PAUSE,
    SENTENCE_PAUSE,
    WORD_PAUSE,
    _cut,
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
        ("今天好.我们去吧!好吗?", ["今天好.", "我们去吧!", "好吗?"]),
        ("这个版本是3.14吗?是的.", ["这个版本是3.14吗?", "是的."]),
        ("他说：“走吧。”然后走了。", ["他说：“走吧。”", "然后走了。"]),
        ("First line\nSecond line", ["First line", "Second line"]),
        ("Wait... what? [Laughter] Yes.", ["Wait...", "what?", "[Laughter] Yes."]),
    ],
)
def test_text_is_split_where_sentences_end(text, pieces):
    cut = [text[start:end].strip() for start, end in _cut(text, (0, len(text)), _SENTENCE_END)]
    assert [piece for piece in cut if piece] == pieces
    # Short neighbours share a piece; no piece ends where no sentence does.
    found = split(text, max(speaking_seconds(piece) for piece in pieces))
    assert " ".join(" ".join(found).split()) in (" ".join(text.split()), " ".join(pieces))
    assert {piece[-4:] for piece in found} <= {piece[-4:] for piece in pieces}


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


def speakable(text: str) -> str:
    """Return the letters and digits."""
    return "".join(c for c in text if unicodedata.category(c)[0] in "LN")


TEXTS = st.lists(st.sampled_from([*"ab .,!?\n1。，好[]\"'-", "[sigh]", " " * 90, "\u3000" * 30, "-" * 80])).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, most=st.floats(0.3, 5))
def test_nothing_that_can_be_spoken_is_lost_and_no_piece_is_too_long(text, most):
    pieces = split(text, most)
    assert speakable("".join(pieces)) == speakable(text)
    assert all(speakable(piece) for piece in pieces)
    assert all(speaking_seconds(piece) <= most or piece.startswith("[") for piece in pieces)
    if speaking_seconds(text.strip()) <= most:
        assert pieces == [text.strip()] or not speakable(text)


@pytest.mark.parametrize("rule", ["-" * 72, "=" * 72, "* " * 30, "\U0001f642 " * 40, "……" * 30])
def test_a_line_that_cannot_be_spoken_is_no_passage(rule):
    sentence = f"{'word ' * 34}end."
    found = passages(f"{sentence}\n{rule}\n{sentence}", 15)
    assert [passage.text for passage in found] == [sentence, sentence]
    assert found[0].pause == PARAGRAPH_PAUSE


@pytest.mark.parametrize("gap", [" " * 220 + "\n", "\u3000" * 61, "\t" * 500])
def test_a_long_stretch_of_white_space_is_none_of_a_texts_trouble(gap):
    assert [passage.text for passage in passages(f"Dear Sir,{gap}thank you. {'More. ' * 40}", 15)] != []
    assert passages(f"Dear Sir,{gap}thank you.", 15)[-1].text.endswith("thank you.")


def test_a_tag_is_never_cut():
    found = split("word " * 41 + "[clears throat] and then " + "word " * 20, 15)
    assert sum("[clears throat]" in piece for piece in found) == 1
    assert sum("[Laughter]" in piece for piece in split("好" * 9 + "[Laughter]" + "好" * 9, 1.0)) == 1
    assert split("[clears throat]", 0.5) == ["[clears throat]"]


def test_a_long_text_is_measured_once():
    calls = 0

    class Counted(str):
        def __getitem__(self, key):
            nonlocal calls
            calls += 1
            return super().__getitem__(key)

    text = Counted("字" * 5000)
    assert "".join(split(text, 15)) == text
    assert calls < 10 * len(text)


def test_a_language_holds_until_the_next_one():
    tags = ("[Cantonese]", "[Japanese]")
    chinese, japanese = "今天天氣好好，我哋去公園行下啦。" * 8, "今日はいい天気ですね。" * 16
    found = [passage.text for passage in passages(f"[Cantonese]{chinese}[Japanese]{japanese}", 15, tags)]
    begin_with = [text[: text.index("]") + 1] for text in found]
    assert begin_with == sorted(begin_with)
    assert all(begin_with.count(tag) > 1 for tag in tags)
    assert "".join(found).replace("[Cantonese]", "").replace("[Japanese]", "") == chinese + japanese
    assert not any("[" in passage.text for passage in passages(chinese, 15, tags))


def test_an_abbreviation_ends_no_sentence_where_a_long_one_is_divided():
    found = passages("The show was opened late this evening by Dr. Smith of the university of Leeds.", 3.2)
    assert [(passage.text[-3:], passage.pause) for passage in found] == [("Dr.", WORD_PAUSE), ("ds.", 0.0)]


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
@given(text=TEXTS, most=st.floats(0.3, 5))
def test_passages_lose_nothing_and_are_as_few_as_pieces(text, most):
    found = passages(text, most)
    assert speakable("".join(passage.text for passage in found)) == speakable(text)
    assert all(speaking_seconds(passage.text) <= most or passage.text.startswith("[") for passage in found)
    assert len(found) <= len(split(text, most))
