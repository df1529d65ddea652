"""Which words each component of the page shows, so that the language can be switched without a reload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from stepaudio.web.strings import Language, say

C = TypeVar("C", bound=gr.blocks.Block)
Word = str | Callable[[Language], Any]
"""A key of the strings, or what makes the property of a component in a language."""


class Words:
    """The components that have words, and the properties that hold them."""

    def __init__(self) -> None:
        self._entries: list[tuple[gr.blocks.Block, dict[str, Word]]] = []

    def on(self, component: C, **properties: Word) -> C:
        """Let these properties of a component hold words; returns the component, in English for a start."""
        self._entries.append((component, properties))
        for name, word in properties.items():
            setattr(component, name, _said(word, "en"))
        return component

    @property
    def components(self) -> list[gr.blocks.Block]:
        return [component for component, _ in self._entries]

    def updates(self, language: Language) -> list[tuple[gr.blocks.Block, dict[str, Any]]]:
        """Return each component with the update that gives it its words in a language."""
        return [
            (component, gr.update(**{name: _said(word, language) for name, word in properties.items()}))
            for component, properties in self._entries
        ]


def _said(word: Word, language: Language) -> Any:
    return say(language, word) if isinstance(word, str) else word(language)
