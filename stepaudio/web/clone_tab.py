"""The tab "Clone": a voice and a text become that text in that voice."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from stepaudio import tasks
from stepaudio import text as texts
from stepaudio.web.desk import PRIVATE, Desk, error_update
from stepaudio.web.forms import CloneForm, Knobs
from stepaudio.web.handlers import CloneView, attempt, run_clone
from stepaudio.web.parts import Advanced, SoundOut, VoicePicker, tag_bar
from stepaudio.web.sessions import Session, Sound
from stepaudio.web.specialise import any_value
from stepaudio.web.strings import Language, say
from stepaudio.web.tables import run_summary

PLAYER = '<div class="stepaudio-player" hidden><progress max="1"></progress><span></span></div>'  # see player.js


class CloneTab:
    """Built inside its gr.Tab, wired once all tabs are there."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        on = desk.words.on
        with gr.Row():
            with gr.Column():
                self.picker = VoicePicker(desk)
                self.text = on(gr.Textbox(lines=4, max_lines=12, elem_id="text"), label="text", placeholder="text_hint")
                self.facts = gr.HTML(self._facts("", "en"), elem_id="text-facts")
                on(gr.HTML(elem_id="tags"), value=lambda language: tag_bar("#text", language))
                self.note = gr.Markdown(visible=False, elem_id="tags-note", elem_classes="stepaudio-note")
                with gr.Row():
                    self.language_tag = on(
                        any_value(
                            gr.Dropdown(language_choices("en"), value="", elem_id="language-tag", filterable=False)
                        ),
                        label="language_tag",
                        choices=language_choices,
                    )
                    self.live = on(
                        gr.Checkbox(value=True, interactive=True, elem_id="live"), label="live"
                    )  # see player.js
                self.advanced = Advanced(desk)
                self.ticket = gr.Textbox("", visible=False)  # filled in by player.js
                with gr.Row():
                    self.generate = on(gr.Button(variant="primary", scale=4, elem_id="generate"), value="generate")
                    self.stop = on(gr.Button(variant="stop", scale=1, min_width=100, elem_id="stop"), value="stop")
            with gr.Column():
                self.error = gr.Markdown(elem_id="error", visible=False, elem_classes="stepaudio-error")
                gr.HTML(PLAYER, elem_id="player")
                self.out = SoundOut(desk)
                self.run = gr.HTML(elem_id="run")
                with gr.Row(elem_classes="stepaudio-tight"):
                    self.edit = on(gr.Button(size="sm", interactive=False, elem_id="edit-this"), value="edit_this")
                    self.compare = on(gr.Button(size="sm", interactive=False, elem_id="compare-this"), value="compare")
                on(gr.HTML(elem_id="first-steps"), value=first_steps)

    @property
    def inputs(self) -> list[gr.components.Component]:
        """What a generation takes, in the order of ``form``; the ticket and the language stand last (see player.js)."""
        return [
            *self.picker.inputs,
            *(self.text, self.language_tag),
            *self.advanced.inputs,
            *(self.ticket, self._desk.language),
        ]

    def form(self, *values: Any) -> CloneForm:
        """Return the form that the values of ``inputs``, less the language, make."""
        path, transcript, choice, consent, text, tag, *knobs, ticket = values
        source = self.picker.source(path, transcript, choice, consent)
        return CloneForm(
            Knobs(*knobs),
            audio_path=source.audio_path,
            transcript=source.transcript,
            text=text or "",
            choice=source.choice,
            consent=source.consent,
            language_tag=tag or "",
            ticket=ticket or "",
        )

    @property
    def outputs(self) -> list[gr.components.Component]:
        return [
            *self.out.outputs,
            *(self.run, self.error, self.advanced.seed, self.picker.transcript, self.edit, self.compare),
        ]

    def wire(self) -> None:
        self.picker.wire(self.error)
        self.out.wire(_current)
        asked = self.inputs
        self.generate.click(
            self._generate,
            [*asked, self.out.format],
            self.outputs,
            api_visibility="private",
            show_progress_on=self.out.audio,
            concurrency_limit=None,
            js=f"(...values) => stepaudioPlayer.begin(values.slice(0, {len(asked) + 1}))",
        )
        self.stop.click(self._desk.stop, None, None, **PRIVATE)
        gr.on(
            [self.text.change, self._desk.language.change],
            self._facts,
            [self.text, self._desk.language],
            self.facts,
            trigger_mode="always_last",
            **PRIVATE,
        )

    def note_for(self, language: Language) -> dict[str, Any]:
        """Return the update of the line below the tags: what these weights have not learnt."""
        known = self._desk.knows("paralinguistic")
        return gr.update(value="" if known else f"○ {say(language, 'tags_unknown')}", visible=not known)

    def report(self, session: Session, language: Language) -> str:
        """Return what is told of the last clone of a tab."""
        return run_summary(session.syntheses[0], language) if session.syntheses else ""

    def _generate(
        self,
        request: gr.Request,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio's way
    ) -> list[Any]:
        *fields, language, form = values
        tab, session = self._desk.tab(request, language, progress), self._desk.session(request)
        view = run_clone(self._desk.service, self.form(*fields), tab)
        self._remember(session, view)
        made = view.synthesis is not None
        shown = attempt(language, lambda: self.out.shown(view.wav, f"stepaudio-{view.request_id}", form))
        return [
            *(shown.value or [None, gr.update(interactive=False)]),
            self.report(session, language),
            error_update(view.error or shown.error),
            view.synthesis.seed if view.synthesis is not None else gr.skip(),
            view.given.transcript if view.given is not None else gr.skip(),
            gr.update(interactive=made),
            gr.update(interactive=made),
        ]

    def _remember(self, session: Session, view: CloneView) -> None:
        """Keep what the other tabs of the page show of a clone."""
        session.takes, session.syntheses = [], []
        if view.synthesis is None or view.wav is None or view.given is None:
            return
        session.keep("reference", view.given.audio, view.given.transcript)
        session.takes = [session.keep("clone", view.wav, view.synthesis.transcript, view.request_id)]
        session.syntheses = [view.synthesis]
        session.last = view.synthesis

    def _facts(self, text: str, language: Language) -> str:
        """Return how long the text is, in characters and in seconds."""
        count, limit = len(text or ""), self._desk.service.settings.max_text_characters
        seconds = texts.speaking_seconds(text or "")
        over = ' class="over"' if count > limit else ""
        words = say(language, "text_facts", count=count, limit=limit, seconds=seconds)
        return f'<div class="stepaudio-facts"><span{over}>{escape(words)}</span></div>'


def _current(session: Session) -> tuple[bytes, str] | None:
    take: Sound | None = session.takes[0] if session.takes else None
    return (take.wav, f"stepaudio-{take.detail}") if take is not None else None


def language_choices(language: Language) -> list[tuple[str, str]]:
    """Return the languages and dialects that a tag can ask for; the first asks for none."""
    tags = [(say(language, f"tag_{tag[1:-1]}"), tag) for tag in tasks.LANGUAGE_TAGS]
    return [(say(language, "language_none"), ""), *tags]


def first_steps(language: Language) -> str:
    """Return the three lines that stand where a result will be."""
    steps = "".join(f"<li>{escape(say(language, f'step_{number}'))}</li>" for number in (1, 2, 3))
    notice = escape(say(language, "notice"))
    return f'<div class="stepaudio-steps"><ol>{steps}</ol><p>{notice}</p></div>'
