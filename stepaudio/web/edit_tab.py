"""The tab "Edit": a sound is changed step by step; every step can be heard, gone back to and branched from."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from stepaudio import tasks
from stepaudio.audiofile import Limits, encode_float_wav, load_reference
from stepaudio.errors import InvalidInput
from stepaudio.pipeline import MAX_PASSES
from stepaudio.types import Task
from stepaudio.web.desk import PRIVATE, Desk, error_update
from stepaudio.web.forms import EditForm, Given, Knobs, Source, read_source
from stepaudio.web.handlers import attempt, run_edit
from stepaudio.web.history import Chain, Step, original
from stepaudio.web.parts import Advanced, Heard, SoundOut, VoicePicker, error_place, tag_bar
from stepaudio.web.sessions import Session
from stepaudio.web.specialise import any_value
from stepaudio.web.strings import Language, say
from stepaudio.web.tables import run_summary


class EditTab:
    """Built inside its gr.Tab, wired once all tabs are there."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        on = desk.words.on
        first = tasks.EDITS[0]
        with gr.Row():
            with gr.Column():
                with gr.Column(elem_id="edit-source") as self.source_box:
                    self.picker = VoicePicker(desk, "edit-")
                self.chain = on(
                    any_value(gr.Radio([], visible=False, elem_id="chain", elem_classes="stepaudio-list")),
                    label="chain",
                )
                with gr.Row(elem_classes="stepaudio-tight"):
                    self.restore = on(gr.Button(size="sm", interactive=False, elem_id="restore"), value="restore")
                    self.clear = on(gr.Button(size="sm", interactive=False, elem_id="clear-chain"), value="clear_chain")
                self.task = on(
                    any_value(gr.Radio([(first.name, first.name)], value=first.name, elem_id="task")),
                    label="task",
                    choices=self._task_choices,
                )
                self.note = gr.Markdown(visible=False, elem_id="task-note", elem_classes="stepaudio-note")
                self.option = on(
                    any_value(
                        gr.Dropdown(
                            option_choices(first.name, "en"),
                            value=first.options[0],
                            elem_id="option",
                            filterable=True,
                        )
                    ),
                    label="option",
                )
                with gr.Column(visible=False) as self.new_text_box:
                    self.new_text = on(
                        gr.Textbox(lines=3, max_lines=8, elem_id="new-text"), label="new_text", placeholder="new_hint"
                    )
                    on(gr.HTML(elem_id="edit-tags"), value=lambda language: tag_bar("#new-text", language))
                self.passes = on(gr.Slider(1, MAX_PASSES, 1, step=1, elem_id="passes"), label="passes")
                self.advanced = Advanced(desk, "edit-")
                with gr.Row():
                    self.apply = on(gr.Button(variant="primary", scale=4, elem_id="apply"), value="apply")
                    self.stop = on(gr.Button(variant="stop", scale=1, min_width=100, elem_id="edit-stop"), value="stop")
            with gr.Column():
                self.error = error_place("edit-error")
                self.out = SoundOut(desk, "edit-")
                with gr.Column(scale=0, min_width=0, elem_classes="stepaudio-status"):
                    self.step = on(gr.HTML(elem_id="step"), value=lambda language: step_report(None, language))

    @property
    def inputs(self) -> list[gr.components.Component]:
        """What an edit takes: the source, the task, the fields under "Advanced", the language."""
        return [
            *self.picker.inputs,
            *(self.task, self.option, self.new_text, self.passes),
            *self.advanced.inputs,
            self._desk.language,
        ]

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What shows the chain, in the order of ``view``."""
        return [self.chain, self.source_box, self.restore, self.clear, self.step, *self.out.outputs, self.error]

    def wire(self) -> None:
        for chosen in self.picker.wire(self.error):
            self.begin_text_after(chosen)
        self.out.wire(_current)
        language = self._desk.language
        self.task.change(
            self._task_chosen,
            [self.task, self.picker.transcript, language],
            [self.option, self.new_text_box, self.new_text, self.note],
            **PRIVATE,
        )
        applied = self.apply.click(
            self._apply,
            [*self.inputs, self.out.format, self.chain],
            [*self.outputs, self.advanced.seed, self.picker.heard],
            api_visibility="private",
            show_progress_on=self.out.audio,
            concurrency_limit=None,
        )
        self.picker.write_after(applied)
        self.stop.click(self._desk.stop, None, None, **PRIVATE)
        self.chain.input(self._select, [self.chain, language, self.out.format], self.outputs, **PRIVATE)
        self.restore.click(self._restore, [language, self.out.format], self.outputs, **PRIVATE)
        cleared = self.clear.click(self._clear, [language, self.out.format], self.outputs, **PRIVATE)
        self.begin_text_after(cleared)

    def begin_text_after(self, event: gr.events.Dependency) -> None:
        """Let an event that brings another sound be followed by that sound's words where a new text is to be typed."""
        event.then(self._begin_text, [self.task, self.picker.transcript], self.new_text, **PRIVATE)

    def begin_with(self, session: Session, wav: bytes, transcript: str, language: Language, form: str) -> list[Any]:
        """Start a chain with a sound that another tab has made, and return the values of ``outputs``."""
        session.chain.start(wav, transcript)
        return self.view(session, language, form)

    def view(self, session: Session, language: Language, form: str = "wav", error: str = "") -> list[Any]:
        """Return the values of ``outputs``."""
        chain = session.chain
        current, filled = chain.current, bool(chain.steps)
        name = f"stepaudio-step-{chain.selected}"
        shown = attempt(language, lambda: self.out.shown(current.wav if current is not None else None, name, form))
        choices = chain_choices(chain, language)
        return [
            gr.update(choices=choices, value=chain.selected if filled else None, visible=filled),
            gr.update(visible=not filled),
            gr.update(interactive=filled and chain.selected != 0),
            gr.update(interactive=filled),
            step_report(chain, language),
            *(shown.value or [None, gr.update(interactive=False)]),
            error_update(error or shown.error),
        ]

    def task_view(self, task: str, language: Language) -> list[Any]:
        """Return the updates of task and note after the weights or the language have changed."""
        return [gr.update(choices=self._task_choices(language)), self._note(task, language)]

    def _task_choices(self, language: Language) -> list[tuple[str, str]]:
        marks = {True: "", False: " ○"}
        return [
            (say(language, f"task_{edit.name}") + marks[self._desk.knows(edit.name)], edit.name) for edit in tasks.EDITS
        ]

    def _note(self, task: str, language: Language) -> dict[str, Any]:
        engine = self._desk.service.engine
        known = self._desk.knows(task)
        title = engine.weights.card.title if engine is not None else ""
        return gr.update(value="" if known else f"○ {say(language, 'task_unknown', title=title)}", visible=not known)

    def _task_chosen(self, task: str, transcript: str | None, language: Language, request: gr.Request) -> list[Any]:
        """Show the fields that this task takes. transcript: the words of the sound that an empty chain begins with."""
        spec = tasks.TASKS[task]
        choices = option_choices(task, language)
        words = self._words(transcript, request)
        return [
            gr.update(choices=choices, value=choices[0][1] if choices else None, visible=bool(choices)),
            gr.update(visible=spec.needs_target),
            gr.update(value=words) if words and spec.needs_target else gr.update(),
            self._note(task, language),
        ]

    def _begin_text(self, task: str, transcript: str | None, request: gr.Request) -> str:
        """Return what the field of the new text begins with: nothing where there is none, and never another's words."""
        return self._words(transcript, request) if tasks.TASKS[task].needs_target else ""

    def _words(self, transcript: str | None, request: gr.Request) -> str:
        """Return the words of the sound that an edit would begin with now; transcript: those of the picker."""
        current = self._desk.session(request).chain.current
        return current.transcript if current is not None else transcript or ""

    def _apply(
        self,
        request: gr.Request,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio's way
    ) -> list[Any]:
        path, transcript, choice, consent, task, option, new_text, passes, *knobs, language, form, shown = values
        session, tab = self._desk.session(request), self._desk.tab(request, language, progress)
        asked = EditForm(Knobs(*knobs), task=task, option=option, new_text=new_text or "", passes=passes)
        source = self.picker.source(path, transcript, choice, consent)

        def begin() -> tuple[Step, bool]:
            _go_to(session.chain, shown, language)
            return self._parent(session.chain, source, language)

        began = attempt(language, begin)
        if began.value is None:
            return [*self.view(session, language, form, began.error), gr.skip(), gr.skip()]
        parent, first = began.value
        view = run_edit(self._desk.service, Given(parent.wav, parent.transcript), asked, tab)
        wav, synthesis = view.wav, view.synthesis
        if wav is None or synthesis is None or view.given is None:
            return [*self.view(session, language, form, view.error), gr.skip(), gr.skip()]
        if first:  # with its words, which may have been heard in it only now
            parent = replace(parent, transcript=view.given.transcript)
        session.last = synthesis
        made = Task(task, option if tasks.TASKS[task].options else None)

        def add() -> Step:
            if first:
                session.chain.begin(parent)
            return session.chain.add(parent, made, int(passes or 1), wav, synthesis)

        added = attempt(language, add)
        if added.value is None:
            return [*self.view(session, language, form, added.error), gr.skip(), gr.skip()]
        original_step = parent.line[0]
        reference = session.keep("reference", original_step.wav, original_step.transcript)
        session.keep("edit", wav, synthesis.transcript, f"{added.value.number}", reference)
        heard = Heard(source, parent.transcript) if first and not source.transcript.strip() else None
        return [*self.view(session, language, form), synthesis.seed, heard]

    def _parent(self, chain: Chain, source: Source, language: Language) -> tuple[Step, bool]:
        """Return the step to edit, and whether the chain has yet to begin with it: it is what the picker holds then.

        The chain begins once that edit is made: it takes the picker's place, whose fields may have to be corrected.
        """
        chain.check_room()
        current = chain.current
        if current is not None:
            return current, False
        given = read_source(self._desk.service, source, language)
        limits = Limits.of(self._desk.service.settings)
        # Kept as the sound that it is, sample by sample, so that a known voice is still known to the encoder cache.
        waveform = load_reference(
            given.audio, replace(limits, max_bytes=max(len(given.audio), limits.max_bytes))
        ).waveform
        return original(encode_float_wav(waveform), given.transcript), True

    def _select(self, number: int, language: Language, form: str, request: gr.Request) -> list[Any]:
        session = self._desk.session(request)
        error = attempt(language, lambda: session.chain.select(int(number))).error
        return self.view(session, language, form, error)

    def _restore(self, language: Language, form: str, request: gr.Request) -> list[Any]:
        return self._select(0, language, form, request)

    def _clear(self, language: Language, form: str, request: gr.Request) -> list[Any]:
        session = self._desk.session(request)
        session.chain.clear()
        return self.view(session, language, form)


def _go_to(chain: Chain, shown: int | None, language: Language) -> None:
    """Select the step that the browser shows as chosen, None for no history.

    Raises InvalidInput where the chain is another one, as after the server was started anew.
    """
    if shown is None and not chain.steps:
        return
    if shown is None or not 0 <= int(shown) < len(chain.steps):
        raise InvalidInput(say(language, "history_other"))
    chain.select(int(shown))


def _current(session: Session) -> tuple[bytes, str] | None:
    step = session.chain.current
    return (step.wav, f"stepaudio-step-{step.number}") if step is not None else None


def option_choices(task: str, language: Language) -> list[tuple[str, str]]:
    """Return the options of a task with their names in a language."""
    return [(say(language, f"option_{option}"), option) for option in tasks.TASKS[task].options]


def task_words(task: Task, language: Language) -> str:
    """Return a task and its option in a language."""
    name = say(language, f"task_{task.name}")
    return f"{name}: {say(language, f'option_{task.option}')}" if task.option else name


def chain_choices(chain: Chain, language: Language) -> list[tuple[str, int]]:
    """Return the steps of a chain as choices: number, task, seed and time, and which step each came from."""
    return [(_step_words(step, language), step.number) for step in chain.steps]


def _step_words(step: Step, language: Language) -> str:
    if step.task is None or step.synthesis is None or step.parent is None:
        return f"0  {say(language, 'step_original')}"
    depth = len(step.line) - 2
    times = f" ×{step.passes}" if step.passes > 1 else ""
    facts = say(
        language,
        "step_facts",
        parent=step.parent.number,
        seconds=step.synthesis.waveform.seconds,
        seed=step.synthesis.seed,
        total=step.synthesis.timings.total,
    )
    return f"{'└ ' * depth}{step.number}  {task_words(step.task, language)}{times}  ({facts})"


def step_report(chain: Chain | None, language: Language) -> str:
    """Return what is told of the selected step as HTML: how it came about, its words, its run."""
    step = chain.current if chain is not None else None
    if step is None:
        return f'<div class="stepaudio-steps"><p>{escape(say(language, "edit_intro"))}</p></div>'
    line = " → ".join(
        task_words(found.task, language) if found.task is not None else say(language, "step_original")
        for found in step.line
    )
    words = f'<p class="words">“{escape(step.transcript)}”</p>' if step.transcript.strip() else ""
    run = run_summary(step.synthesis, language) if step.synthesis is not None else ""
    return f'<div class="stepaudio-step"><p>{escape(line)}</p>{words}</div>{run}'
