"""Digits, dates, sums and common abbreviations as the words that are spoken for them.

The real model reads "$3.50" by itself. A small one has never seen it: its weights folder declares in card.json
that texts are to be verbalised first, and its training did the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from stepaudio.errors import WeightsError

log = logging.getLogger(__name__)

LANGUAGES = ("en",)

# What the grammars are given: no line ends, no brackets (which are tags), no quotes, all of which they trip over.
_STRETCH = re.compile(r"[^\n\[\]{}<>\"\\|]*[0-9A-Za-z][^\n\[\]{}<>\"\\|]*")

Verbalise = Callable[[str], str]


def verbaliser(language: str | None) -> Verbalise:
    """Return what a folder's card asks for: a function from text to text; None leaves every text as it is.

    By the grammars of WeTextProcessing (https://github.com/wenet-e2e/WeTextProcessing).
    Raises WeightsError for a language that there is no grammar for.
    """
    if language is None:
        return lambda text: text
    if language not in LANGUAGES:
        raise WeightsError(f"The card asks to verbalise {language!r}; only {', '.join(LANGUAGES)} can be.")
    # Imported here: 0.4 s, which only some weights need.
    from wetext import Normalizer

    normalizer = Normalizer(lang=language, operator="tn")

    def spoken(found: re.Match[str]) -> str:
        stretch = found[0]
        before, after = len(stretch) - len(stretch.lstrip()), len(stretch.rstrip())
        try:
            return stretch[:before] + str(normalizer.normalize(stretch[before:after])) + stretch[after:]
        except (AssertionError, IndexError, KeyError, RuntimeError, ValueError) as error:
            # A text that the grammars stumble over is better read as it was typed than not at all.
            log.info("A stretch of %d characters could not be verbalised: %r", len(stretch), error)
            return stretch

    return lambda text: _STRETCH.sub(spoken, text)
