"""Every word of the page, from english.py and chinese.py; for the sentences of errors and notices see sentences.py."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from stepaudio.tasks import EDITS
from stepaudio.web.chinese import CHINESE
from stepaudio.web.chinese import OPTIONS as CHINESE_OPTIONS
from stepaudio.web.english import ENGLISH
from stepaudio.web.english import OPTIONS as ENGLISH_OPTIONS

Language = Literal["en", "zh"]
LANGUAGES: dict[Language, str] = {"en": "English", "zh": "中文"}


def _with_options(words: Mapping[str, str], names: Mapping[str, str]) -> Mapping[str, str]:
    """Return the words together with those for the options of tasks.py; an option without a name keeps its own."""
    options = {option for spec in EDITS for option in spec.options}
    return MappingProxyType({**words, **{f"option_{option}": names.get(option, option) for option in options}})


STRINGS: Mapping[Language, Mapping[str, str]] = MappingProxyType(
    {"en": _with_options(ENGLISH, ENGLISH_OPTIONS), "zh": _with_options(CHINESE, CHINESE_OPTIONS)}
)


def language_of(accept_language: str) -> Language:
    """Return the language of a browser's Accept-Language header: Chinese where it comes first, else English."""
    return "zh" if accept_language.strip().lower().startswith("zh") else "en"


def say(language: Language, key: str, **values: object) -> str:
    """Return a string of the page in this language, with its values filled in."""
    return STRINGS[language][key].format(**values) if values else STRINGS[language][key]
