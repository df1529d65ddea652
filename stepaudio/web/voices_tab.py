"""The tab "Voices": save a voice, hear, rename, export, delete those that are saved, import one."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from stepaudio.errors import InvalidInput
from stepaudio.service import SavedVoice
from stepaudio.voices import Voice, VoiceDraft, read_export
from stepaudio.web.desk import PRIVATE, Desk, error_update, file_of, uploaded
from stepaudio.web.forms import check_consent, read_upload
from stepaudio.web.handlers import Outcome, attempt, save_voice
from stepaudio.web.parts import error_place
from stepaudio.web.sentences import in_language
from stepaudio.web.specialise import any_value
from stepaudio.web.strings import Language, say


class VoicesTab:
    """Built inside its gr.Tab, wired once all tabs are there. Saved voices are those of everybody on this server."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        on = desk.words.on
        with gr.Row():
            with gr.Column():
                on(gr.Markdown(elem_id="save-intro"), value="save_intro")
                self.sound = on(
                    gr.Audio(sources=["upload", "microphone"], type="filepath", elem_id="new-sound", buttons=[]),
                    label="reference",
                )
                self.name = on(gr.Textbox(elem_id="new-name", max_lines=1), label="voice_name")
                self.transcript = on(gr.Textbox(lines=2, elem_id="new-transcript"), label="transcript")
                with gr.Row():
                    self.spoken = on(gr.Textbox(elem_id="new-language", max_lines=1), label="voice_language")
                    self.consent_note = on(gr.Textbox(elem_id="new-consent-note", max_lines=2), label="consent_note")
                self.consent = on(gr.Checkbox(False, elem_id="new-consent"), label="consent")
                self.save = on(gr.Button(variant="primary", elem_id="save-voice"), value="save_voice")
                self.file = on(
                    gr.UploadButton(size="sm", file_types=[".zip"], elem_id="import-voice"), label="import_voice"
                )
            with gr.Column():
                self.error = error_place("voices-error")
                self.chosen = on(
                    any_value(gr.Radio([], elem_id="voice-list", elem_classes="stepaudio-list")), label="saved_voices"
                )
                self.about = on(gr.HTML(elem_id="voice-about"), value=lambda language: about(None, language))
                self.listen = on(gr.Audio(interactive=False, elem_id="voice-listen", buttons=[]), label="voice_sound")
                with gr.Row(elem_classes="stepaudio-tight"):
                    self.new_name = on(gr.Textbox(elem_id="rename-to", max_lines=1, scale=3), label="rename_to")
                    self.rename = on(gr.Button(size="sm", elem_id="rename", min_width=90), value="rename")
                with gr.Row(elem_classes="stepaudio-tight"):
                    self.export = on(gr.DownloadButton(size="sm", interactive=False, elem_id="export"), label="export")
                    self.delete = on(gr.Button(size="sm", variant="stop", elem_id="delete"), value="delete")
                with gr.Group(visible=False, elem_id="delete-confirm") as self.confirm:
                    on(gr.Markdown(container=True), value="delete_sure")
                    with gr.Row():
                        self.delete_yes = on(
                            gr.Button(size="sm", variant="stop", elem_id="delete-yes"), value="delete_yes"
                        )
                        self.delete_no = on(gr.Button(size="sm", elem_id="delete-no"), value="delete_no")

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What shows the list and the voice that is chosen in it."""
        return [self.chosen, self.about, self.listen, self.new_name, self.export, self.confirm, self.error]

    def wire(self) -> None:
        language = self._desk.language
        fields = [self.sound, self.name, self.transcript, self.spoken, self.consent_note, self.consent]
        self.save.click(
            self._save,
            [*fields, language],
            [*self.outputs, *fields],
            api_visibility="private",
            show_progress_on=self.chosen,
            concurrency_limit=None,
        )
        self.file.upload(
            self._import,
            [self.file, self.consent, language],
            self.outputs,
            api_visibility="private",
            show_progress_on=self.chosen,
            concurrency_limit=None,
        )
        self.chosen.input(lambda voice, said: self.view(voice, said), [self.chosen, language], self.outputs, **PRIVATE)
        self.rename.click(self._rename, [self.chosen, self.new_name, language], self.outputs, **PRIVATE)
        self.delete.click(lambda voice: gr.update(visible=bool(voice)), self.chosen, self.confirm, **PRIVATE)
        self.delete_no.click(lambda: gr.update(visible=False), None, self.confirm, **PRIVATE)
        self.delete_yes.click(self._delete, [self.chosen, language], self.outputs, **PRIVATE)

    def view(self, chosen: str | None, language: Language, error: str = "") -> list[Any]:
        """Return the values of ``outputs`` with this voice chosen, if it is there."""
        folder = self._desk.service.voices
        voices = folder.list()
        voice = next((voice for voice in voices if voice.id == chosen), None)
        sound = export = None
        if voice is not None:
            voice_id, name = voice.id, voice.name
            packed: Outcome[tuple[bytes, bytes]] = attempt(
                language, lambda: (folder.load(voice_id)[1], folder.export(voice_id))
            )
            error = error or packed.error
            if packed.value is not None:
                sound = file_of(packed.value[0], "voice.wav")
                export = file_of(packed.value[1], f"{_plain(name)}.zip")
        return [
            gr.update(choices=[(_entry(each), each.id) for each in voices], value=voice.id if voice else None),
            about(voice, language, count=len(voices)),
            sound,
            voice.name if voice is not None else "",
            gr.update(value=export, interactive=export is not None),
            gr.update(visible=False),
            error_update(error),
        ]

    def _save(
        self,
        request: gr.Request,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio's way
    ) -> list[Any]:
        path, name, transcript, spoken, note, consent, language = values
        service, tab = self._desk.service, self._desk.tab(request, language, progress)

        def draft() -> VoiceDraft:
            found = uploaded(path)
            if not found:
                raise InvalidInput(say(language, "no_reference"))
            check_consent(service.settings, consent, language)
            agreed = consent_words(note or "", consent, language)
            return VoiceDraft(read_upload(service.settings, found), name or "", transcript or "", spoken or "", agreed)

        drafted = attempt(language, draft)
        saved = save_voice(service, drafted.value, tab) if drafted.value is not None else Outcome[SavedVoice]()
        error = drafted.error or saved.error
        if saved.value is None:
            return [*self.view(None, language, error), *(gr.skip() for _ in values[:-1])]
        gr.Info(escape(say(language, "saved", name=saved.value.voice.name)))
        _warn(saved.value, language)
        # All fields are emptied: what was said of this voice is not true of the next one.
        return [*self.view(saved.value.voice.id, language), None, "", "", "", "", False]

    def _import(
        self,
        request: gr.Request,
        path: str | None,
        consent: bool,
        language: Language,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio's way
    ) -> list[Any]:
        service = self._desk.service

        def draft() -> VoiceDraft:
            found = uploaded(path)
            if not found:
                raise InvalidInput("The uploaded reference is no longer there; please upload it again.")
            read = read_export(Path(found).read_bytes())
            check_consent(service.settings, consent or bool(read.consent), language)
            return read

        drafted = attempt(language, draft)
        if drafted.value is None:
            return self.view(None, language, drafted.error)
        saved = save_voice(service, drafted.value, self._desk.tab(request, language, progress))
        if saved.value is None:
            return self.view(None, language, saved.error)
        _warn(saved.value, language)
        return self.view(saved.value.voice.id, language)

    def _rename(self, voice_id: str | None, name: str, language: Language) -> list[Any]:
        def rename() -> Voice:
            return self._desk.service.voices.rename(self._needed(voice_id, language), name or "")

        return self.view(voice_id, language, attempt(language, rename).error)

    def _delete(self, voice_id: str | None, language: Language) -> list[Any]:
        def delete() -> None:
            self._desk.service.voices.delete(self._needed(voice_id, language))

        return self.view(None, language, attempt(language, delete).error)

    @staticmethod
    def _needed(voice_id: str | None, language: Language) -> str:
        if not voice_id:
            raise InvalidInput(say(language, "choose_voice"))
        return voice_id


def _warn(saved: SavedVoice, language: Language) -> None:
    """Show what the user should know of the recording that was saved."""
    for notice in saved.notices:
        gr.Warning(escape(in_language(notice, language)))


def consent_words(note: str, ticked: bool, language: Language) -> str:
    """Return the consent note to save: what was typed, and that the tick was set, with its date."""
    if not ticked:
        return note
    day = datetime.now(UTC).date().isoformat()
    return " ".join(filter(None, [note.strip(), say(language, "consent_ticked", day=day)]))


def about(voice: Voice | None, language: Language, count: int = 0) -> str:
    """Return what is known of a voice as HTML, or what to do where none is chosen."""
    if voice is None:
        words = say(language, "choose_voice" if count else "no_voices")
        return f'<p class="stepaudio-empty">{escape(words)}</p>'
    rows = [
        ("transcript_short", voice.transcript),
        ("voice_language", voice.language or "–"),
        ("consent_note", voice.consent or "–"),
        ("voice_length", f"{voice.seconds:.2f} s"),
        ("voice_created", voice.created.replace("T", " ")),
    ]
    cells = "".join(f"<dt>{escape(say(language, key))}</dt><dd>{escape(value)}</dd>" for key, value in rows)
    return f'<dl class="stepaudio-facts-list">{cells}</dl>'


def _entry(voice: Voice) -> str:
    language = f", {voice.language}" if voice.language else ""
    return f"{voice.name} ({voice.seconds:.1f} s{language})"


def _plain(name: str) -> str:
    """Return a name of a voice as a name of a file."""
    return "".join(c if c.isalnum() else "-" for c in name).strip("-") or "voice"
