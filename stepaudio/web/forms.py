"""The fields of the page as the browser sent them, and the requests that become of them. Numbers may be missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepaudio import tasks
from stepaudio.errors import InvalidInput, NotFound
from stepaudio.pipeline import MAX_PASSES, MAX_TAKES
from stepaudio.service import CloneRequest, EditRequest, Service
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams, Task
from stepaudio.web.strings import Language, say

NEW, VOICE, PRESET = "new", "voice:", "preset:"
"""What the choice of a voice is: a new one, or one of these with its id behind it."""

STOPPED = "stopped"
"""In place of a ticket: the run was stopped before it was submitted; see player.js."""


@dataclass(frozen=True)
class Source:
    """Whose voice: an upload or recording (``choice`` is NEW), a saved voice or a preset. consent: the tick.

    transcript: the words of the sound; empty: those that are saved with it, if any.
    """

    choice: str | None
    audio_path: str | None
    transcript: str
    consent: bool


@dataclass(frozen=True)
class Knobs:
    """The fields under "Advanced"."""

    new_seed: bool
    seed: float | None
    temperature: float | None
    top_k: float | None
    top_p: float | None
    max_seconds: float | None
    flow_steps: float | None

    def sampling(self, settings: Settings) -> SamplingParams:
        """Return how the language model shall draw; raises InvalidInput for a number out of range."""
        return SamplingParams(
            temperature=_number(self.temperature, settings.temperature, 0.0, 2.0, "temperature"),
            top_k=int(_number(self.top_k, settings.top_k, 0, 10_000, "top-k")),
            top_p=_number(self.top_p, settings.top_p, 0.01, 1.0, "top-p"),
            repetition_rule=settings.repetition_rule,
            seed=None if self.new_seed or self.seed is None else int(self.seed),
        )

    def steps(self, settings: Settings) -> int:
        return int(_number(self.flow_steps, settings.flow_steps, 0, 50, "number of flow steps"))

    def longest(self, settings: Settings) -> float:
        return _number(self.max_seconds, settings.max_output_seconds, 0.12, 3600.0, "longest output")


@dataclass(frozen=True)
class CloneForm:
    """The fields of the tab "Clone"; audio_path, transcript, choice and consent are those of a Source.

    language_tag: one of tasks.LANGUAGE_TAGS, or "". ticket: of the stream by which the browser wants to hear the
    sound while it is being made (see feed.py), or "", or STOPPED. It is good for nothing where several takes are asked
    for.
    """

    knobs: Knobs
    audio_path: str | None
    transcript: str
    text: str
    choice: str | None = NEW
    consent: bool = False
    language_tag: str = ""
    takes: float | None = 1
    ticket: str = ""

    @property
    def source(self) -> Source:
        return Source(self.choice, self.audio_path, self.transcript or "", self.consent)


@dataclass(frozen=True)
class EditForm:
    """The fields of the tab "Edit"; the sound is the chain's affair."""

    knobs: Knobs
    task: str
    option: str | None
    new_text: str
    passes: float | None


@dataclass(frozen=True, eq=False)
class Given:
    """The sound of a source as bytes of a file, and the words that go with it."""

    audio: bytes
    transcript: str


def read_source(service: Service, source: Source, language: Language) -> Given:
    """Return what a source stands for; raises InvalidInput where it stands for nothing that can be used."""
    choice = source.choice or NEW
    if choice.startswith(VOICE):
        try:
            voice, wav = service.voices.load(choice.removeprefix(VOICE))
        except NotFound as error:
            raise NotFound(say(language, "voice_gone")) from error
        return Given(wav, source.transcript or voice.transcript)
    if choice.startswith(PRESET):
        preset, data = service.presets.load(choice.removeprefix(PRESET))
        return Given(data, source.transcript or preset.transcript)
    if not source.audio_path:
        raise InvalidInput(say(language, "no_voice"))
    check_consent(service.settings, source.consent, language)
    return Given(read_upload(service.settings, source.audio_path), source.transcript)


def check_consent(settings: Settings, given: bool, language: Language) -> None:
    """Raise InvalidInput where the settings want the tick of consent and it is not there."""
    if settings.require_consent and not given:
        raise InvalidInput(say(language, "consent_missing"))


def read_upload(settings: Settings, path: str) -> bytes:
    """Return the bytes of a file that was uploaded; raises InvalidInput for one that is too large or gone."""
    try:
        size = Path(path).stat().st_size
        if size > settings.max_upload_bytes:
            raise InvalidInput(
                f"The reference file has {size / 2**20:.1f} MB; the limit is {settings.max_upload_megabytes} MB."
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput("The uploaded reference is no longer there; please upload it again.") from error


def clone_request(settings: Settings, audio: bytes, form: CloneForm) -> CloneRequest:
    """Return the request of a form and the bytes of its reference.

    Raises InvalidInput for a number out of range and for an unknown language tag.
    """
    if form.language_tag and form.language_tag not in tasks.LANGUAGE_TAGS:
        raise InvalidInput(f"There is no language tag {form.language_tag!r}.")
    return CloneRequest(
        audio=audio,
        transcript=form.transcript or "",
        text=f"{form.language_tag}{form.text or ''}" if (form.text or "").strip() else "",
        sampling=form.knobs.sampling(settings),
        flow_steps=form.knobs.steps(settings),
        max_seconds=form.knobs.longest(settings),
        takes=int(_number(form.takes, 1, 1, MAX_TAKES, "number of takes")),
    )


def edit_request(settings: Settings, given: Given, form: EditForm) -> EditRequest:
    """Return the request of a form and the sound to edit. Raises InvalidInput for what the task does not take."""
    spec = tasks.TASKS.get(form.task)
    task = Task(form.task, form.option or None if spec is not None and spec.options else None)
    spec = tasks.spec_of_edit(task)
    return EditRequest(
        audio=given.audio,
        transcript=given.transcript or "",
        task=task,
        new_text=(form.new_text or "") if spec.needs_target else None,
        passes=int(_number(form.passes, 1, 1, MAX_PASSES, "number of passes")),
        sampling=form.knobs.sampling(settings),
        flow_steps=form.knobs.steps(settings),
        max_seconds=form.knobs.longest(settings),
    )


def _number(value: float | None, default: float, least: float, most: float, name: str) -> float:
    """Return the value of a field that may have been emptied, checked against its range."""
    if value is None:
        return default
    if not least <= value <= most:
        raise InvalidInput(f"The {name} is {value:g}; it must lie between {least:g} and {most:g}.")
    return value
