"""Digits and abbreviations become words where the weights ask for it, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.errors import WeightsError
from stepaudio.verbalise import Verbalise, verbaliser


@pytest.fixture(scope="module")
def english() -> Verbalise:
    return verbaliser("en")


@pytest.mark.parametrize(
    ("typed", "spoken"),
    [
        ("Dr. Smith paid $3.50.", "doctor Smith paid three point five dollars."),
        ("I'm 25, he's 7.", "I'm twenty five, he's seven."),
        ("It is 25% of it.", "It is twenty five percent of it."),
        ("In 1999\nat 10:30", "In nineteen ninety nine\nat ten thirty"),
        ("Plain words, [laugh] and <|EOT|> stay.", "Plain words, [laugh] and <|EOT|> stay."),
        ("你好。", "你好。"),
    ],
)
def test_what_is_written_becomes_what_is_said(english: Verbalise, typed: str, spoken: str) -> None:
    assert english(typed) == spoken


def test_weights_that_do_not_ask_read_what_was_typed() -> None:
    assert verbaliser(None)("Dr. Smith paid $3.50.\n") == "Dr. Smith paid $3.50.\n"


def test_a_language_without_a_grammar_is_named() -> None:
    with pytest.raises(WeightsError, match="'tlh'"):
        verbaliser("tlh")


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=80))
def test_no_text_breaks_it(english: Verbalise, text: str) -> None:
    assert isinstance(english(text), str)
