"""Text: cleaned, bounded, and the length cap that follows from it."""

from __future__ import annotations

import pytest

from stepaudio.errors import InvalidInput
from stepaudio.text import clean, seconds_cap


def test_control_characters_and_lone_surrogates_become_spaces():
    assert clean(" a\x00b\udc80c\nd\t ", what="The text", limit=50) == "a b c\nd"


def test_emoji_and_control_pieces_stay_as_typed():
    assert clean("🎉 <|EOT|> <audio_3>", what="The text", limit=50) == "🎉 <|EOT|> <audio_3>"


@pytest.mark.parametrize("text", ["", "  \n ", "\x00\x01"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(InvalidInput, match="The text is empty"):
        clean(text, what="The text", limit=50)


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
