"""The languages of the answer to the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from stepaudio.bench.words_en import EN
from stepaudio.bench.words_zh import ZH

Language = Literal["en", "zh"]

WORDS: Mapping[Language, Mapping[str, str]] = {"en": EN, "zh": ZH}
