"""Text of a user, cleaned and measured."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from stepaudio.errors import InvalidInput

# The length cap: how many seconds a text may take at the most, so that a runaway generation ends. Speech needs
# about 0.07 s for a letter and 0.25 s for a Chinese character; the cap allows some three times that, and a start.
CAP_START_SECONDS = 3.0
CAP_SECONDS_PER_NARROW = 0.2
CAP_SECONDS_PER_WIDE = 0.7
CAP_SECONDS_PER_TAG = 3.0

# How long speech usually takes: what a text is measured by when it is split.
SECONDS_PER_NARROW = 0.07
SECONDS_PER_WIDE = 0.25

_TITLES = "mr mrs ms dr prof st sr jr no vs etc fig vol ch pp approx dept est inc ltd co gen col sgt capt lt rev hon"
_DATES = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun e.g i.e a.m p.m u.s u.k"
ABBREVIATIONS = frozenset(f"{_TITLES} {_DATES}".split())
"""What a full stop follows without ending a sentence, in lower case and without that stop."""

_CLOSERS = "\"'”’」』）)\\]"
# Where a sentence may end: behind Latin marks only before white space, behind Chinese ones anywhere.
_SENTENCE_END = re.compile(rf"[.!?…]+[{_CLOSERS}]*(?=\s)|[。！？]+[{_CLOSERS}]*|\n")
_CLAUSE_END = re.compile(rf"[,;:—–]+[{_CLOSERS}]*(?=\s)|[，、；：]+[{_CLOSERS}]*|\s[-–—](?=\s)")
_LAST_WORD = re.compile(r"([A-Za-z][A-Za-z.]*)$")

# The silence between two passages, in seconds, by what stands where they meet.
PARAGRAPH_PAUSE, SENTENCE_PAUSE, CLAUSE_PAUSE, WORD_PAUSE = 0.6, 0.35, 0.2, 0.05
_EVEN_TRIES = 8

_TAG = re.compile(r"\[[A-Za-z][A-Za-z -]*\]")


@dataclass(frozen=True)
class Passage:
    """A part of a long text that is spoken by itself, and the silence after it in seconds (0 after the last)."""

    text: str
    pause: float


def clean(text: str, *, what: str, limit: int) -> str:
    """Return the text without control characters and outer white space.

    ``what`` names the field in the message of the InvalidInput that a text raises which is too long or holds nothing
    to speak: no letter, no digit. The model would make some sound of that, too.
    """
    if len(text) > limit:
        raise InvalidInput(f"{what} has {len(text)} characters; the limit is {limit}.")
    # Cc: control characters, Cs: halves of surrogate pairs. Neither can be spoken, and Cs cannot be encoded.
    kept = "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else " " for c in text).strip()
    if not kept:
        raise InvalidInput(f"{what} is empty.")
    if not any(unicodedata.category(c)[0] in "LN" for c in kept):
        raise InvalidInput(f"{what} holds nothing that can be spoken: no letter, no digit.")
    return kept


def seconds_cap(text: str) -> float:
    """Return the longest sound, in seconds, that speaking this text may take (see the constants above)."""
    tags = len(_TAG.findall(text))
    plain = _TAG.sub("", text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in plain)
    return (
        CAP_START_SECONDS
        + CAP_SECONDS_PER_TAG * tags
        + CAP_SECONDS_PER_WIDE * wide
        + CAP_SECONDS_PER_NARROW * (len(plain) - wide)
    )


def speaking_seconds(text: str) -> float:
    """Return how long speaking this text takes, roughly."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return SECONDS_PER_WIDE * wide + SECONDS_PER_NARROW * (len(text) - wide)


def passages(text: str, most: float) -> list[Passage]:
    """Return the text in passages of ``most`` seconds of speech or less: split() made even, with pauses between.

    No more of them than split() gives, but none much shorter than the others where the sentences allow that.
    """
    pieces = _evenly(text, most)
    found, end = [], 0
    for number, piece in enumerate(pieces):
        end = text.index(piece, end) + len(piece)
        after = text[end : text.index(pieces[number + 1], end)] if number + 1 < len(pieces) else None
        found.append(Passage(piece, 0.0 if after is None else _pause(piece, after)))
    return found


def _evenly(text: str, most: float) -> list[str]:
    """Return split() with the shortest limit that gives as few pieces and cuts no sentence that fits into ``most``."""
    pieces = split(text, most)
    if len(pieces) < 2:
        return pieces
    longest = max(speaking_seconds(sentence.strip()) for sentence in _cut(text, _SENTENCE_END))
    low, high = min(max(longest, speaking_seconds(text) / len(pieces)), most), most
    for _ in range(_EVEN_TRIES):
        middle = (low + high) / 2
        tried = split(text, middle)
        if len(tried) <= len(pieces):
            pieces, high = tried, middle
        else:
            low = middle
    return pieces


def _pause(before: str, between: str) -> float:
    """Return the silence where a passage that ends so is followed, after this white space, by another."""
    if "\n" in between:
        return PARAGRAPH_PAUSE
    if _ends_with(before, _SENTENCE_END):
        return SENTENCE_PAUSE
    return CLAUSE_PAUSE if _ends_with(before, _CLAUSE_END) else WORD_PAUSE


def _ends_with(text: str, ends: re.Pattern[str]) -> bool:
    """Return whether the text ends in a match; white space is put behind it, which Latin marks ask for."""
    matches = list(ends.finditer(f"{text} "))
    return bool(matches) and matches[-1].end() >= len(text)


def split(text: str, most: float) -> list[str]:
    """Return the text in pieces of ``most`` seconds of speech or less, each as long as whole sentences allow.

    A sentence that is longer by itself is divided between clauses, a clause between words, and what has no white
    space anywhere. Nothing but white space at the ends of pieces is lost. Numbers (3.14), abbreviations (Dr. Who)
    and initials (J. S. Bach) are kept whole.
    """
    pieces: list[str] = []
    for sentence in _cut(text, _SENTENCE_END):
        parts = [sentence] if speaking_seconds(sentence) <= most else _divided(sentence, most)
        for part in parts:
            joined = f"{pieces[-1]}{part}" if pieces else part
            if pieces and speaking_seconds(joined.strip()) <= most:
                pieces[-1] = joined
            else:
                pieces.append(part)
    return [piece.strip() for piece in pieces if piece.strip()]


def _cut(text: str, ends: re.Pattern[str]) -> list[str]:
    """Return the text cut behind every match of ``ends`` that is none of an abbreviation; joined they are the text."""
    found, start = [], 0
    for match in ends.finditer(text):
        if match[0] == "." and _abbreviated(text[start : match.start()]):
            continue
        found.append(text[start : match.end()])
        start = match.end()
    return [*found, text[start:]]


def _abbreviated(before: str) -> bool:
    """Return whether a full stop behind this belongs to its last word: an abbreviation or an initial."""
    word = _LAST_WORD.search(before)
    return word is not None and (word[1].lower() in ABBREVIATIONS or (len(word[1]) == 1 and word[1].isupper()))


def _divided(sentence: str, most: float) -> list[str]:
    """Return a sentence that is too long in parts that are not: clauses, else words, else as many characters as fit."""
    parts: list[str] = []
    for clause in _cut(sentence, _CLAUSE_END):
        if speaking_seconds(clause) <= most:
            parts.append(clause)
            continue
        for word in re.findall(r"\s*\S+\s*", clause):
            while speaking_seconds(word) > most:
                count = max(1, next(n for n in range(1, len(word) + 1) if speaking_seconds(word[:n]) > most) - 1)
                parts.append(word[:count])
                word = word[count:]
            parts.append(word)
    return parts
