"""Parts that several tabs have: the choice of a voice, the fields under "Advanced", a sound to take home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from stepaudio import tasks
from stepaudio.web.desk import FORMATS, PRIVATE, Desk, converted, error_update, file_of, uploaded
from stepaudio.web.forms import NEW, PRESET, Source, read_source
from stepaudio.web.handlers import attempt, transcribe
from stepaudio.web.sessions import Session
from stepaudio.web.specialise import any_value
from stepaudio.web.strings import Language, say

VISIBLE_TAGS = 10


def error_place(elem_id: str) -> gr.HTML:
    """Return the place for one sentence of error. What it lies in is always there, and announces it; see studio.js."""
    with gr.Column(scale=0, min_width=0, elem_classes="stepaudio-alert"):
        return gr.HTML(elem_id=elem_id, visible=False, elem_classes="stepaudio-error")


@dataclass(frozen=True)
class Heard:
    """The words that were heard in the sound of a source, which says what stood in the fields then."""

    source: Source
    words: str


class VoicePicker:
    """A preset, a saved voice, or a new one by upload or recording; and the words spoken in it."""

    def __init__(self, desk: Desk, prefix: str = "") -> None:
        self._desk = desk
        on, settings = desk.words.on, desk.service.settings
        self.presets = on(
            any_value(gr.Radio([], visible=False, elem_id=f"{prefix}presets", elem_classes="stepaudio-pills")),
            label="presets",
        )
        self.choice = on(
            any_value(gr.Dropdown([("", NEW)], value=NEW, elem_id=f"{prefix}voice", filterable=True)),
            label="voice",
            choices=desk.voice_choices,
        )
        self.upload = on(
            gr.Audio(sources=["upload", "microphone"], type="filepath", elem_id=f"{prefix}reference", buttons=[]),
            label="reference",
        )
        self.listen = on(
            gr.Audio(interactive=False, visible=False, elem_id=f"{prefix}voice-sound", buttons=[]), label="voice_sound"
        )
        self.consent = on(
            gr.Checkbox(False, visible=settings.require_consent, elem_id=f"{prefix}consent"), label="consent"
        )
        self.transcript = on(
            gr.Textbox(lines=2, max_lines=6, elem_id=f"{prefix}transcript"),
            label="transcript",
            placeholder=self._hint,
        )
        self.write = on(gr.Button(size="sm", visible=False, elem_id=f"{prefix}transcribe"), value="transcribe")
        # The words typed for a new voice while another one is chosen; None while a new voice is.
        self._put_aside = gr.State(None)
        self.heard = gr.State(None)  # a Heard, or None where nothing had to be heard

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The components whose values ``source`` takes."""
        return [self.upload, self.transcript, self.choice, self.consent]

    @staticmethod
    def source(path: str | None, transcript: str | None, choice: str | None, consent: bool) -> Source:
        """Return what the values of ``inputs`` say."""
        return Source(choice, uploaded(path), transcript or "", bool(consent))

    def write_after(self, event: gr.events.Dependency) -> None:
        """Let an event that sets ``heard`` be followed by these words in their field."""
        event.then(self._write, [self.heard, *self.inputs], self.transcript, **PRIVATE)

    def _write(self, heard: Heard | None, *values: Any) -> Any:
        """Return the words that were heard; nothing where meanwhile others were typed, or another voice was chosen."""
        if heard is None or replace(self.source(*values), consent=heard.source.consent) != heard.source:
            return gr.skip()
        return heard.words

    def wire(self, error: gr.HTML) -> list[gr.events.Dependency]:
        """Let the components follow each other; what goes wrong is shown in ``error``.

        Returns the events that put the words of another voice into their field.
        """
        known = [self.transcript, self._put_aside, self._desk.language]
        shown = [self.upload, self.listen, self.consent, self.transcript, self.presets, error, self._put_aside]
        chosen = self.choice.input(self._chosen, [self.choice, *known], shown, **PRIVATE)
        pressed = self.presets.input(
            lambda preset, *values: [preset, *self._chosen(preset, *values)],
            [self.presets, *known],
            [self.choice, *shown],
            **PRIVATE,
        )
        written = self.write.click(
            self._transcribe,
            [*self.inputs, self._desk.language],
            [self.heard, error],
            api_visibility="private",
            show_progress_on=self.transcript,
            concurrency_limit=None,
        )
        self.write_after(written)
        return [chosen, pressed]

    def refreshed(self, language: Language) -> list[dict[str, Any]]:
        """Return updates for ``offers``: what may be chosen and done may have changed since the page was loaded."""
        choices = self._desk.voice_choices(language)
        presets = [(name.removeprefix("★ "), value) for name, value in choices if value.startswith(PRESET)]
        return [
            gr.update(choices=choices),
            gr.update(choices=presets, visible=bool(presets)),
            gr.update(visible=self._desk.service.transcriber.available),
            gr.update(placeholder=self._hint(language)),
        ]

    @property
    def offers(self) -> list[gr.components.Component]:
        return [self.choice, self.presets, self.write, self.transcript]

    def _hint(self, language: Language) -> str:
        return say(language, "transcript_auto" if self._desk.service.transcriber.available else "transcript_hint")

    def _chosen(self, choice: str | None, written: str | None, aside: str | None, language: Language) -> list[Any]:
        """Show the sound and the words of a voice that was chosen, or the field for a new one with its own words.

        written: what stands in the field of words; aside: what stood there for a new voice, None where one was chosen.
        """
        new = not choice or choice == NEW
        need = new and self._desk.service.settings.require_consent
        hide = gr.update(visible=False)
        if new:
            return [
                gr.update(visible=True),
                gr.update(value=None, visible=False),
                gr.update(visible=need),
                gr.update() if aside is None else aside,  # never the words of the voice that was chosen before
                *(None, hide, None),
            ]
        service = self._desk.service
        found = attempt(language, lambda: read_source(service, Source(choice, None, "", False), language))
        sound = file_of(found.value.audio, "voice.wav") if found.value is not None else None
        words = found.value.transcript if found.value is not None else gr.update()
        return [
            hide,
            gr.update(value=sound, visible=True),
            gr.update(visible=need),
            words,
            choice if str(choice).startswith(PRESET) else None,
            error_update(found.error),
            (written or "") if aside is None else aside,
        ]

    def _transcribe(
        self,
        request: gr.Request,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio's way
    ) -> list[Any]:
        *fields, language = values
        source = self.source(*fields)
        heard = transcribe(self._desk.service, source, self._desk.tab(request, language, progress))
        return [Heard(source, heard.value) if heard.value is not None else None, error_update(heard.error)]


class Advanced:
    """The fields under "Advanced", in the order of forms.Knobs."""

    def __init__(self, desk: Desk, prefix: str = "") -> None:
        settings, on = desk.service.settings, desk.words.on
        with on(gr.Accordion(open=False, elem_id=f"{prefix}advanced"), label="advanced"):
            with gr.Row():
                self.new_seed = on(gr.Checkbox(True, elem_id=f"{prefix}new-seed"), label="new_seed")
                self.seed = on(gr.Number(None, precision=0, elem_id=f"{prefix}seed"), label="seed")
            with gr.Row():
                self.temperature = on(
                    gr.Slider(0, 2, settings.temperature, step=0.05, elem_id=f"{prefix}temperature"),
                    label="temperature",
                )
                self.top_k = on(gr.Slider(0, 200, settings.top_k, step=1, elem_id=f"{prefix}top-k"), label="top_k")
                self.top_p = on(gr.Slider(0.05, 1, settings.top_p, step=0.05, elem_id=f"{prefix}top-p"), label="top_p")
            with gr.Row():
                most = settings.max_output_seconds
                self.max_seconds = on(
                    gr.Slider(1, most, most, step=1, elem_id=f"{prefix}max-seconds"), label="max_seconds"
                )
                self.flow_steps = on(
                    gr.Slider(0, 50, settings.flow_steps, step=1, elem_id=f"{prefix}flow-steps"), label="flow_steps"
                )

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [
            *(self.new_seed, self.seed, self.temperature, self.top_k, self.top_p),
            *(self.max_seconds, self.flow_steps),
        ]


class SoundOut:
    """A sound that was made: to be heard, and to be taken home in the format of one's choice."""

    def __init__(self, desk: Desk, prefix: str = "") -> None:
        self._desk = desk
        on = desk.words.on
        self.audio = on(gr.Audio(interactive=False, elem_id=f"{prefix}result", buttons=["download"]), label="result")
        with gr.Row(elem_classes="stepaudio-tight"):
            self.format = on(
                any_value(
                    gr.Dropdown(list(FORMATS), value="wav", elem_id=f"{prefix}format", filterable=False, min_width=90)
                ),
                label="format",
            )
            self.download = on(
                gr.DownloadButton(interactive=False, elem_id=f"{prefix}download", min_width=120), label="download"
            )

    @property
    def outputs(self) -> list[gr.components.Component]:
        return [self.audio, self.download]

    def shown(self, wav: bytes | None, name: str, form: str) -> list[Any]:
        """Return the values of ``outputs`` for a sound, or for none."""
        if wav is None:
            return [None, gr.update(value=None, interactive=False)]
        path = converted(wav, form if form in FORMATS else "wav", name)
        return [file_of(wav, f"{name}.wav"), gr.update(value=path, interactive=True)]

    def wire(self, current: Callable[[Session], tuple[bytes, str] | None]) -> None:
        """Convert what ``current`` returns, a sound and its name, when another format is chosen."""

        def choose(form: str, request: gr.Request) -> Any:
            found = current(self._desk.session(request))
            return self.shown(*found, form)[1] if found is not None else gr.skip()

        self.format.input(choose, self.format, self.download, **PRIVATE)


def tag_bar(target: str, language: Language) -> str:
    """Return the bar of paralinguistic tags as HTML: a click puts one where the cursor is; see studio.js."""

    def buttons(tags: tuple[str, ...]) -> str:
        return "".join(
            f'<button type="button" data-tag="{escape(tag)}" title="{escape(tag_title(tag, language))}">'
            f"{escape(tag[1:-1])}</button>"
            for tag in tags
        )

    all_tags = tasks.PARALINGUISTIC_TAGS
    more = (
        f"<details><summary>{escape(say(language, 'more_tags'))}</summary>{buttons(all_tags[VISIBLE_TAGS:])}</details>"
    )
    return _bar(target, say(language, "tags"), buttons(all_tags[:VISIBLE_TAGS]) + more)


def example_bar(target: str, texts: Sequence[str], language: Language) -> str:
    """Return texts to begin with as a bar of buttons: a click puts one into the field in place of what is there."""
    buttons = "".join(f'<button type="button" data-text="{escape(text)}">{escape(text)}</button>' for text in texts)
    return _bar(target, say(language, "examples"), buttons)


def _bar(target: str, title: str, content: str) -> str:
    """Return buttons that write into the field ``target``, with what they are before them; see studio.js."""
    return (
        f'<div class="stepaudio-tags" data-target="{target}" role="group" aria-label="{escape(title)}">'
        f"<span>{escape(title)}</span>{content}</div>"
    )


def tag_title(tag: str, language: Language) -> str:
    """Return what a tag means, in the language of the page."""
    return say(language, "tag_title", tag=tag)
