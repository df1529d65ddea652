"""Texts to be spoken: collected, cut into sentences, cleaned, without the held-out ones, in a fixed order."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FORTUNES = Path("/usr/share/games/fortunes")
"""Where Debian's package ``fortunes`` puts its files."""

SKIPPED_FORTUNES = frozenset({"ascii-art", "translate-me", "magic", "linuxcookie", "zippy", "perl", "limerick"})
"""Drawings, verse and text that is not meant to be spoken."""

LEAST_WORDS, MOST_WORDS = 2, 25
CHUNK_WORDS = (5, 20)
"""A transcript without punctuation that is too long is cut into pieces of so many words."""

SHORT_TEXTS = 3000
VERSES = 6000
"""So many sentences of the Bible are enough of its English."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])")
_SPEAKABLE = re.compile(r"[A-Za-z][A-Za-z ,;:'.!?-]*")
_ATTRIBUTION = re.compile(r"^\s*(--|\[|\t\t)")


@dataclass(frozen=True)
class HeldOut:
    """Speakers and texts that nothing is ever trained on."""

    speakers: frozenset[str]
    texts: tuple[str, ...]

    @property
    def forms(self) -> frozenset[str]:
        """The texts as :func:`normal_form` gives them."""
        return frozenset(normal_form(text) for text in self.texts)


def held_out() -> HeldOut:
    """Return the list that is kept beside this file."""
    content = json.loads(Path(__file__).with_name("heldout.json").read_text(encoding="utf-8"))
    return HeldOut(frozenset(content["speakers"]), tuple(content["texts"]))


def normal_form(text: str) -> str:
    """Return the words of ``text`` in lower case with single spaces: texts of equal form sound the same."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower().replace("’", "'")))


def sentences(paragraph: str) -> Iterator[str]:
    """Yield the sentences of running text that a speaker can read as they stand, of 2 to 25 words."""
    text = " ".join(paragraph.replace("`", "'").replace("--", ", ").split())
    for sentence in _SENTENCE_END.split(text):
        plain = sentence.strip("\"'() ").replace('"', "").replace(" ,", ",")
        if not LEAST_WORDS <= len(plain.split()) <= MOST_WORDS or not _SPEAKABLE.fullmatch(plain):
            continue
        if re.search(r"\b[A-Z]{2,}\b|[a-z][A-Z]|\.\w|\w{18,}|([!?.,])\1", plain):
            continue  # abbreviations, names of functions, dots
        yield plain if plain[-1] in ".!?" else plain.rstrip(",;: -") + "."


def fortunes(folder: Path = FORTUNES) -> Iterator[str]:
    """Yield sentences of Debian's fortunes."""
    for path in sorted(folder.iterdir()):
        if path.suffix or path.name in SKIPPED_FORTUNES:
            continue
        for entry in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            lines = entry.splitlines()
            for number, line in enumerate(lines):
                if _ATTRIBUTION.match(line):
                    lines = lines[:number]
                    break
            yield from sentences(" ".join(lines))


def bible(verses: str = "gen1:1-rev22:21") -> Iterator[str]:
    """Yield sentences of the King James Bible, by the command of Debian's package ``bible-kjv``."""
    done = subprocess.run(["bible", "-f", verses], stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True)
    for line in done.stdout.splitlines():
        _, _, verse = line.partition(" ")
        yield from sentences(verse)


def transcripts(index: Path, held: HeldOut) -> Iterator[str]:
    """Yield the English transcripts of the recordings, but those of held-out speakers, cut to 25 words."""
    for row in recordings(index):
        if row["lang"] != "en" or row["speaker"] in held.speakers or not row["text"]:
            continue
        if not row["text"].isupper():
            yield from sentences(row["text"])
            continue
        words = row["text"].lower().split()
        words = [("I" + word[1:]) if word == "i" or word.startswith("i'") else word for word in words]
        if len(words) <= MOST_WORDS:
            yield _sentence(words)
            continue
        pieces = -(-len(words) // CHUNK_WORDS[1])
        for piece in range(pieces):
            yield _sentence(words[len(words) * piece // pieces : len(words) * (piece + 1) // pieces])


def recordings(index: Path) -> list[dict[str, str]]:
    """Return the rows of the recordings' index.tsv."""
    with index.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def short_texts(longer: Iterable[str], count: int = SHORT_TEXTS) -> Iterator[str]:
    """Yield texts of one to three words made of the commonest words of ``longer``."""
    counts = Counter(word for text in longer for word in normal_form(text).split() if len(word) > 1)
    common = [word for word, _ in counts.most_common(count) if word.isalpha()]
    for number, word in enumerate(common):
        other = common[int(_rank(word, 1), 16) % len(common)]
        third = common[int(_rank(word, 2), 16) % min(200, len(common))]
        words = [[word], [word, other], [third, word, other]][number % 3]
        yield _sentence(words, ".!?"[int(_rank(word, 3), 16) % 5 % 3])


def in_fixed_order(texts: Iterable[str], seed: int, held: HeldOut) -> list[str]:
    """Return ``texts`` without held-out ones and repetitions, shuffled in a way that depends on the seed alone.

    The place of a text does not depend on the other texts' number, so more texts may be added later.
    """
    forms, kept = set(held.forms), []
    for text in texts:
        form = normal_form(text)
        if form and form not in forms:
            forms.add(form)
            kept.append(text)
    return sorted(kept, key=lambda text: _rank(text, seed))


def training_texts(index: Path, seed: int) -> list[str]:
    """Return every text for the teachers, mixed, in a fixed order: fortunes, transcripts, short ones, some verses."""
    held = held_out()
    ours = in_fixed_order(transcripts(index, held), seed, held)
    verses = in_fixed_order(bible(), seed, held)[:VERSES]
    return in_fixed_order([*fortunes(), *ours, *short_texts(ours), *verses], seed, held)


def _sentence(words: list[str], end: str = ".") -> str:
    text = " ".join(words)
    return text[0].upper() + text[1:] + end


def _rank(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest()
