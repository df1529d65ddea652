"""Text of a user, cleaned and measured."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

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
_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Where a sentence may end: behind Latin marks only before white space or between Chinese or Japanese characters, behind
# Chinese marks anywhere.
_SENTENCE_END = re.compile(
    rf"[.!?…]+[{_CLOSERS}]*(?=\s)|[。！？]+[{_CLOSERS}]*|(?<=[{_WIDE}])[.!?]+[{_CLOSERS}]*(?=[{_WIDE}])|\n"
)
_CLAUSE_END = re.compile(
    rf"[,;:—–]+[{_CLOSERS}]*(?=\s)|[，、；：]+[{_CLOSERS}]*|(?<=[{_WIDE}])[,;:]+(?=[{_WIDE}])|\s[-–—](?=\s)"
)
_LAST_WORD = re.compile(r"([A-Za-z][A-Za-z.]*)$")
_LONGEST_ABBREVIATION = 20
_TAG = re.compile(r"\[[A-Za-z][A-Za-z -]*\]")
# What is not cut as long as it fits: a tag, or what stands between white space and tags.
_UNIT = re.compile(rf"\s*(?:{_TAG.pattern}|[^\s\[]+|\[)\s*")

# The silence between two passages, in seconds, by what stands where they meet.
PARAGRAPH_PAUSE, SENTENCE_PAUSE, CLAUSE_PAUSE, WORD_PAUSE = 0.6, 0.35, 0.2, 0.05
_EVEN_TRIES = 8

Span = tuple[int, int]
"""Where a part of a text begins and ends."""


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
    if not _speakable(kept):
        raise InvalidInput(f"{what} holds nothing that can be spoken: no letter, no digit.")
    return kept


def one_line(value: str) -> str:
    """Return a text as it is kept and looked for: on one line, its letters in composed form."""
    # C*: control and formatting characters, among them those that turn the direction of writing; Zl, Zp: line ends.
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c for c in value)
    return " ".join(unicodedata.normalize("NFC", kept).split())


def called(name: str, names: Sequence[str]) -> list[int]:
    """Return which of ``names`` are meant by ``name``: those that are the same, else the same but for their case."""
    wanted, known = one_line(name), [one_line(each) for each in names]
    same = [number for number, each in enumerate(known) if each == wanted]
    return same or [number for number, each in enumerate(known) if each.casefold() == wanted.casefold()]


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


def passages(text: str, most: float, lasting: Sequence[str] = ()) -> list[Passage]:
    """Return the text in passages of ``most`` seconds of speech or less: split() made even, with pauses between.

    No more of them than split() gives, but none much shorter than the others where the sentences allow that.
    ``lasting``: tags that hold until the next of them; a passage is spoken by itself, so it begins with the one that
    holds where it begins.
    """
    measured = _Measured(text)
    spans = _evenly(measured, most)
    found, holding = [], ""
    for number, (start, end) in enumerate(spans):
        part = text[start:end]
        told = part if part.startswith(tuple(lasting)) else f"{holding}{part}"
        holding = next((tag for tag in reversed(_TAG.findall(part)) if tag in lasting), holding)
        after = text[end : spans[number + 1][0]] if number + 1 < len(spans) else None
        found.append(Passage(told, 0.0 if after is None else _pause(part, after)))
    return found


class _Measured:
    """A text of which every part is measured without looking at its characters again."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._wide = list(accumulate((unicodedata.east_asian_width(c) in "WF" for c in text), initial=0))

    def seconds(self, start: int, end: int) -> float:
        """Return speaking_seconds() of a part."""
        wide = self._wide[end] - self._wide[start]
        return SECONDS_PER_WIDE * wide + SECONDS_PER_NARROW * (end - start - wide)

    def stripped(self, start: int, end: int) -> Span:
        """Return a part without white space at its ends; an empty one, if there is nothing else."""
        while start < end and self.text[start].isspace():
            start += 1
        while start < end and self.text[end - 1].isspace():
            end -= 1
        return start, end


def _evenly(measured: _Measured, most: float) -> list[Span]:
    """Return split() with the shortest limit that gives as few pieces and cuts no sentence that fits into ``most``."""
    spans = _split(measured, most)
    if len(spans) < 2:
        return spans
    whole = (0, len(measured.text))
    longest = max(measured.seconds(*measured.stripped(*one)) for one in _cut(measured.text, whole, _SENTENCE_END))
    low, high = min(max(longest, measured.seconds(*whole) / len(spans)), most), most
    for _ in range(_EVEN_TRIES):
        middle = (low + high) / 2
        tried = _split(measured, middle)
        if len(tried) <= len(spans):
            spans, high = tried, middle
        else:
            low = middle
    return spans


def _pause(before: str, between: str) -> float:
    """Return the silence where a passage that ends so is followed, after this white space, by another."""
    if "\n" in between:
        return PARAGRAPH_PAUSE
    if _ends_with(before, _SENTENCE_END):
        return SENTENCE_PAUSE
    return CLAUSE_PAUSE if _ends_with(before, _CLAUSE_END) else WORD_PAUSE


def _ends_with(text: str, ends: re.Pattern[str]) -> bool:
    """Return whether the text ends in a match; white space is put behind it, which Latin marks ask for."""
    whole = f"{text} "
    return any(end >= len(text) for _, end in _cut(whole, (0, len(whole)), ends)[:-1])


def split(text: str, most: float) -> list[str]:
    """Return the text in pieces of ``most`` seconds of speech or less, each as long as whole sentences allow.

    A sentence that is longer by itself is divided between clauses, a clause between words, and what has no white
    space anywhere but in a tag ([sigh]), which stays whole even if it is too long. Numbers (3.14), abbreviations
    (Dr. Who) and initials (J. S. Bach) are kept whole. Nothing is lost but white space at the ends of pieces, and what
    would be a piece without a letter or digit (a line of dashes, say): the model would make some sound of it.
    """
    return [text[start:end] for start, end in _split(_Measured(text), most)]


def _split(measured: _Measured, most: float) -> list[Span]:
    """Return where the pieces of split() are."""
    spans: list[Span] = []
    for part in _parts(measured, most):
        start, end = measured.stripped(*part)
        if start == end:
            continue
        if spans and measured.seconds(spans[-1][0], end) <= most:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return [(start, end) for start, end in spans if _speakable(measured.text[start:end])]


def _speakable(text: str) -> bool:
    """Return whether there is something to speak: a letter or a digit of any script."""
    return any(unicodedata.category(c)[0] in "LN" for c in text)


def _cut(text: str, span: Span, ends: re.Pattern[str]) -> list[Span]:
    """Return a part of a text cut behind every match of ``ends`` that is none of an abbreviation."""
    found, start = list[Span](), span[0]
    for match in ends.finditer(text, *span):
        if match[0] == "." and _abbreviated(text[start : match.start()]):
            continue
        found.append((start, match.end()))
        start = match.end()
    return [*found, (start, span[1])]


def _abbreviated(before: str) -> bool:
    """Return whether a full stop behind this belongs to its last word: an abbreviation or an initial."""
    word = _LAST_WORD.search(before[-_LONGEST_ABBREVIATION:])
    return word is not None and (word[1].lower() in ABBREVIATIONS or (len(word[1]) == 1 and word[1].isupper()))


def _parts(measured: _Measured, most: float) -> Iterator[Span]:
    """Yield the sentences; of one that is too long its clauses, else its words, else as many characters as fit."""
    text = measured.text
    for sentence in _cut(text, (0, len(text)), _SENTENCE_END):
        if measured.seconds(*measured.stripped(*sentence)) <= most:
            yield sentence
            continue
        for clause in _cut(text, sentence, _CLAUSE_END):
            if measured.seconds(*measured.stripped(*clause)) <= most:
                yield clause
                continue
            for unit in _UNIT.finditer(text, *clause):
                start, end = measured.stripped(*unit.span())
                if _TAG.fullmatch(text, start, end):
                    yield start, end
                else:
                    yield from _fitting(measured, (start, end), most)


def _fitting(measured: _Measured, span: Span, most: float) -> Iterator[Span]:
    """Yield a part cut wherever it must be, lest its parts be too long; one character at the least."""
    start, end = span
    for place in range(start + 1, end):
        if measured.seconds(start, place + 1) > most:
            yield start, place
            start = place
    yield start, end
