"""The tab "Clone": a voice and a text become that text in that voice."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from stepaudio import tasks
from stepaudio.pipeline import MAX_TAKES
from stepaudio.text import passages, speaking_seconds
from stepaudio.web.desk import PRIVATE, Desk, error_update
from stepaudio.web.forms import CloneForm, Given, Knobs
from stepaudio.web.handlers import CloneView, Outcome, attempt, run_clone
from stepaudio.web.parts import Advanced, Heard, SoundOut, VoicePicker, error_place, example_bar, tag_bar
from stepaudio.web.sessions import Session, Take
from stepaudio.web.specialise import any_value
from stepaudio.web.strings import Language, say
from stepaudio.web.tables import run_summary

PLAYER = '<div class="stepaudio-player" hidden><progress max="1"></progress><span></span></div>'  # see player.js

EXAMPLES: dict[Language, tuple[str, ...]] = {
    "en": (
        "Good morning, and welcome to the show.",
        "Could you tell me where the station is, please?",
        "The first snow fell during the night, and by morning the whole valley was white and still.",
    ),
    "zh": ("早上好，欢迎收听今天的节目。", "夜里下了第一场雪，清晨的山谷一片洁白，十分安静。"),
}
"""Texts to begin with. Those of the page's language, or English ones where the weights have not learnt it."""


class CloneTab:
    """Built inside its gr.Tab, wired once all tabs are there."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        on = desk.words.on
        with gr.Row():
            with gr.Column():
                self.picker = VoicePicker(desk)
                self.text = on(gr.Textbox(lines=4, max_lines=12, elem_id="text"), label="text", placeholder="text_hint")
                self.facts = gr.HTML(self._facts("", "", "en"), elem_id="text-facts")
                self.examples = gr.HTML(self.examples_for("en"), elem_id="examples")
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
                    self.takes = on(gr.Slider(1, MAX_TAKES, 1, step=1, elem_id="takes"), label="takes")
                self.advanced = Advanced(desk)
                self.live = on(
                    gr.Checkbox(True, interactive=True, container=False, elem_id="live"), label="live"
                )  # read by player.js
                self.ticket = gr.Textbox("", visible=False)  # filled in by player.js
                with gr.Row():
                    self.generate = on(gr.Button(variant="primary", scale=4, elem_id="generate"), value="generate")
                    self.stop = on(gr.Button(variant="stop", scale=1, min_width=100, elem_id="stop"), value="stop")
            with gr.Column():
                self.error = error_place("error")
                gr.HTML(PLAYER, elem_id="player")
                self.takes_made = on(
                    any_value(gr.Radio([], visible=False, elem_id="takes-made", elem_classes="stepaudio-list")),
                    label="takes_made",
                )
                self.out = SoundOut(desk)
                with gr.Column(scale=0, min_width=0, elem_classes="stepaudio-status"):
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
            *(self.text, self.language_tag, self.takes),
            *self.advanced.inputs,
            *(self.ticket, self._desk.language),
        ]

    def form(self, *values: Any) -> CloneForm:
        """Return the form that the values of ``inputs``, less the language, make."""
        path, transcript, choice, consent, text, tag, takes, *knobs, ticket = values
        source = self.picker.source(path, transcript, choice, consent)
        return CloneForm(
            Knobs(*knobs),
            audio_path=source.audio_path,
            transcript=source.transcript,
            text=text or "",
            choice=source.choice,
            consent=source.consent,
            language_tag=tag or "",
            takes=takes,
            ticket=ticket or "",
        )

    @property
    def outputs(self) -> list[gr.components.Component]:
        return [
            *self.out.outputs,
            *(self.run, self.takes_made, self.error, self.advanced.seed, self.picker.heard),
            *(self.edit, self.compare),
        ]

    def wire(self) -> None:
        self.picker.wire(self.error)
        self.out.wire(_current)
        asked = self.inputs
        generated = self.generate.click(
            self._generate,
            [*asked, self.out.format],
            self.outputs,
            api_visibility="private",
            show_progress_on=self.out.audio,
            concurrency_limit=None,
            js=f"(...values) => stepaudioPlayer.begin(values.slice(0, {len(asked) + 1}))",
        )
        self.picker.write_after(generated)
        self.takes_made.input(
            self._pick,
            [self.takes_made, self._desk.language, self.out.format],
            [*self.out.outputs, self.run, self.advanced.seed],
            **PRIVATE,
        )
        self.stop.click(self._desk.stop, None, None, **PRIVATE)
        gr.on(
            [self.text.change, self.language_tag.input, self._desk.language.change],
            self._facts,
            [self.text, self.language_tag, self._desk.language],
            self.facts,
            trigger_mode="always_last",
            **PRIVATE,
        )

    def examples_for(self, language: Language) -> str:
        """Return the bar of texts to begin with, in the page's language if the weights understand it."""
        return example_bar("#text", EXAMPLES[language if self._desk.understands(language) else "en"], language)

    def note_for(self, language: Language) -> dict[str, Any]:
        """Return the update of the line below the tags: what these weights have not learnt."""
        known = self._desk.knows("paralinguistic")
        return gr.update(value="" if known else f"○ {say(language, 'tags_unknown')}", visible=not known)

    def report(self, session: Session, language: Language) -> str:
        """Return what is told of the chosen take of a tab's last clone."""
        return run_summary(session.take.synthesis, language) if session.take is not None else ""

    def take_choices(self, session: Session, language: Language) -> dict[str, Any]:
        """Return the update of the list of takes; one alone needs no choice."""
        takes = session.takes if len(session.takes) > 1 else []
        choices = [
            (
                say(
                    language,
                    "take",
                    number=number + 1,
                    seconds=take.synthesis.waveform.seconds,
                    seed=take.synthesis.seed,
                ),
                number,
            )
            for number, take in enumerate(takes)
        ]
        return gr.update(choices=choices, value=session.picked if takes else None, visible=bool(takes))

    def _generate(
        self,
        request: gr.Request,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio's way
    ) -> list[Any]:
        *fields, language, form = values
        tab, session = self._desk.tab(request, language, progress), self._desk.session(request)
        asked = self.form(*fields)
        view = run_clone(self._desk.service, asked, tab)
        if view.synthesis is None or view.given is None:  # what was made before stays as it is
            error = error_update(view.error)
            return [error if output is self.error else gr.skip() for output in self.outputs]
        self._remember(session, view, view.given)
        shown = self._shown(session, language, form)
        return [
            *(shown.value or [None, gr.update(interactive=False)]),
            self.report(session, language),
            self.take_choices(session, language),
            error_update(shown.error),
            view.synthesis.seed,
            Heard(asked.source, view.given.transcript) if not asked.transcript.strip() else None,
            gr.update(interactive=True),
            gr.update(interactive=True),
        ]

    def _pick(self, number: int, language: Language, form: str, request: gr.Request) -> list[Any]:
        session = self._desk.session(request)
        if isinstance(number, int) and 0 <= number < len(session.takes):
            session.picked = number
        shown = self._shown(session, language, form)
        seed = session.take.synthesis.seed if session.take is not None else gr.skip()
        return [*(shown.value or [None, gr.update(interactive=False)]), self.report(session, language), seed]

    def _shown(self, session: Session, language: Language, form: str) -> Outcome[list[Any]]:
        """Return what shows the chosen take, or nothing where there is none."""
        wav, name = _current(session) or (None, "")
        return attempt(language, lambda: self.out.shown(wav, name, form))

    def _remember(self, session: Session, view: CloneView, given: Given) -> None:
        """Keep what the other tabs of the page show of a clone that was made, and of the reference given for it."""
        reference = session.keep("reference", given.audio, given.transcript)
        takes = []
        for number, made in enumerate(view.takes, 1):
            name = f"{view.request_id}-{number}" if len(view.takes) > 1 else view.request_id
            sound = session.keep("clone", made.wav, made.synthesis.transcript, name, reference)
            takes.append(Take(sound, made.synthesis))
        session.picked, session.takes = 0, takes
        session.last = view.synthesis

    def _facts(self, text: str | None, tag: str | None, language: Language) -> str:
        """Return how long the text is, with the tag of its language, in characters and in seconds.

        Of one that is too long only that is told: to look further at a whole book takes seconds.
        """
        text = f"{tag or ''}{text}" if (text or "").strip() else text or ""
        count, limit = len(text), self._desk.service.settings.max_text_characters
        if count > limit:
            words = say(language, "text_over", count=count, limit=limit)
            return f'<div class="stepaudio-facts"><span class="over">{escape(words)}</span></div>'
        words = say(language, "text_facts", count=count, limit=limit, seconds=speaking_seconds(text))
        return f'<div class="stepaudio-facts"><span>{escape(words)}</span>{self._pieces(text, language)}</div>'

    def _pieces(self, text: str, language: Language) -> str:
        """Return how a long text will be split, so that this is seen before the time for it is spent."""
        found = passages(text, self._desk.service.settings.passage_seconds, tasks.LANGUAGE_TAGS)
        if len(found) < 2:
            return ""
        items = "".join(f"<li>{escape(piece.text)}</li>" for piece in found)
        return f'<p>{escape(say(language, "text_pieces", count=len(found)))}</p><ol tabindex="0">{items}</ol>'


def _current(session: Session) -> tuple[bytes, str] | None:
    take = session.take
    return (take.sound.wav, f"stepaudio-{take.sound.detail}") if take is not None else None


def language_choices(language: Language) -> list[tuple[str, str]]:
    """Return the languages and dialects that a tag can ask for; the first asks for none."""
    tags = [(say(language, f"tag_{tag[1:-1]}"), tag) for tag in tasks.LANGUAGE_TAGS]
    return [(say(language, "language_none"), ""), *tags]


def first_steps(language: Language) -> str:
    """Return the three lines that stand where a result will be."""
    steps = "".join(f"<li>{escape(say(language, f'step_{number}'))}</li>" for number in (1, 2, 3))
    notice = escape(say(language, "notice"))
    return f'<div class="stepaudio-steps"><ol>{steps}</ol><p>{notice}</p></div>'
