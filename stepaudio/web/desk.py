"""What all tabs of the page work with: the service, the words, the sessions, and what every action returns."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import soundfile
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from stepaudio.audiofile import check_format, encode
from stepaudio.service import Service
from stepaudio.types import Waveform
from stepaudio.voices import Voice
from stepaudio.web.forms import NEW, PRESET, VOICE
from stepaudio.web.handlers import Tab
from stepaudio.web.sessions import Session, SessionJobs, Sessions
from stepaudio.web.strings import Language, say
from stepaudio.web.uploads import is_upload
from stepaudio.web.words import Words

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of every event of the page: it is no API, and shows its progress itself where it takes long."""
FORMATS = ("wav", "flac", "mp3", "opus")
VOICES_SECONDS = 2.0


class Desk:
    """One for the page; the tabs are built on it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.words = Words()
        self.jobs = SessionJobs()
        self.sessions = Sessions()
        self.language: gr.Radio  # set by the page, before the tabs are built
        self._voices: tuple[float, tuple[Voice, ...]] = (-VOICES_SECONDS, ())

    def session(self, request: gr.Request) -> Session:
        """Return what is remembered of the browser tab that asks."""
        return self.sessions.of(str(request.session_hash))

    def tab(self, request: gr.Request, language: Language, progress: gr.Progress | None = None) -> Tab:
        """Return the tab that asks, for the handlers."""
        session = self.session(request)
        show: Callable[[float, str], None] = lambda fraction, words: None  # noqa: E731
        if progress is not None:
            show = lambda fraction, words: progress(fraction, desc=words)  # noqa: E731
        return Tab(self.jobs, str(request.session_hash), language, show, session.tell)

    def end(self, request: gr.Request) -> None:
        """The tab was closed or loaded anew, or its connection broke: its jobs end, as nobody may wait for them."""
        self.jobs.stop(str(request.session_hash))
        self.sessions.lost(str(request.session_hash))

    def stop(self, request: gr.Request) -> None:
        """Stop the jobs of the tab that asks."""
        self.jobs.stop(str(request.session_hash))

    def voice_choices(self, language: Language) -> list[tuple[str, str]]:
        """Return what may be chosen as a voice, a new one first."""
        presets = [(f"★ {preset.name}", PRESET + preset.id) for preset in self.service.presets.list()]
        saved = [(voice.name, VOICE + voice.id) for voice in self._saved_voices()]
        return [(say(language, "new_voice"), NEW), *presets, *saved]

    def _saved_voices(self) -> tuple[Voice, ...]:
        """Return the saved voices as they were a moment ago at the most: every open page asks all the time."""
        read, voices = self._voices
        if time.monotonic() - read >= VOICES_SECONDS:
            voices = self.service.voices.list()
            self._voices = (time.monotonic(), voices)
        return voices

    def knows(self, task: str) -> bool:
        """Return whether the weights have learnt a task; taken for granted until they are loaded."""
        engine = self.service.engine
        return engine is None or engine.weights.card.knows(task)

    def understands(self, language: Language) -> bool:
        """Return whether the weights have learnt a language; taken for granted until they are loaded."""
        engine = self.service.engine
        return engine is None or engine.weights.card.understands(language)


def file_of(data: bytes, name: str) -> str:
    """Put a sound where the page's components may give it to the browser, and return its path."""
    return save_bytes_to_cache(data, name, get_upload_folder())


def uploaded(path: str | None) -> str | None:
    """Return the path of an upload, None for anything else."""
    return path if path and is_upload(path) else None


def wave_of(data: bytes) -> Waveform:
    """Return the mono sound of a file that this program has written or read before."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return Waveform(np.ascontiguousarray(samples.mean(axis=1, dtype=np.float32)), rate)


def converted(wav: bytes, name: str, stem: str) -> str:
    """Return the path of a sound in an output format; raises InvalidInput for one that is not to be had."""
    suffix = check_format(name).suffix
    return file_of(wav if name == "wav" else encode(wave_of(wav), name), f"{stem}{suffix}")


def merged(values: Iterable[tuple[gr.blocks.Block, Any]]) -> dict[gr.blocks.Block, Any]:
    """Return one update for each component of what may be several, and values among them; later ones win."""
    updates: dict[gr.blocks.Block, dict[str, Any]] = {}
    for component, value in values:
        update = value if isinstance(value, dict) and value.get("__type__") == "update" else gr.update(value=value)
        updates.setdefault(component, gr.update()).update(update)
    return dict(updates)


def error_update(error: str) -> dict[str, Any]:
    """Return the update of an error_place that shows one sentence of error, or hides where there is none.

    A sentence may hold what a user typed, as the name of a voice: nothing in it becomes markup.
    """
    return gr.update(value=paragraph(error) if error else "", visible=bool(error))


def paragraph(sentence: str) -> str:
    """Return a sentence as HTML."""
    return f"<p>{escape(sentence, quote=False)}</p>"
