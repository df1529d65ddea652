"""The tab "Compare": two sounds of this tab's, on one time axis, and to be heard in turn at one level."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from stepaudio.web.desk import PRIVATE, Desk, file_of, wave_of
from stepaudio.web.pictures import axis_ticks, matching_gains, mel_png, waveform_svg
from stepaudio.web.sessions import Session, Sound
from stepaudio.web.specialise import any_value
from stepaudio.web.strings import Language, say

SIDES = ("a", "b")


class CompareTab:
    """Built inside its gr.Tab, wired once all tabs are there."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        on = desk.words.on
        on(gr.Markdown(elem_id="compare-intro"), value="compare_intro")
        with gr.Row():
            self.first = on(any_value(gr.Dropdown([], elem_id="compare-first", filterable=False)), label="compare_a")
            self.second = on(any_value(gr.Dropdown([], elem_id="compare-second", filterable=False)), label="compare_b")
        self.switch = on(gr.HTML(elem_id="ab"), value=lambda language: ab_switch([1.0, 1.0], language, ready=False))
        self.pictures = gr.HTML(elem_id="pictures")
        with gr.Row():
            self.sound_a = on(gr.Audio(interactive=False, elem_id="sound-a", buttons=["download"]), label="compare_a")
            self.sound_b = on(gr.Audio(interactive=False, elem_id="sound-b", buttons=["download"]), label="compare_b")

    @property
    def outputs(self) -> list[gr.components.Component]:
        return [self.first, self.second, self.switch, self.pictures, self.sound_a, self.sound_b]

    def wire(self) -> None:
        for choice in (self.first, self.second):
            choice.input(self._chosen, [self.first, self.second, self._desk.language], self.outputs, **PRIVATE)

    def opened(self, session: Session, first: int | None, second: int | None, language: Language) -> list[Any]:
        """Return the values of ``outputs``; where a choice is not there (any more), the newest sounds are taken."""
        a, b = session.sound(first), session.sound(second)
        if a is None or b is None:
            return self._view(session, *_with_source(session, newest(session)), language)
        return self._view(session, a, b, language)

    def opened_with_take(self, session: Session, language: Language) -> list[Any]:
        """Return the values of ``outputs`` for the take of a clone that is chosen, behind its own reference."""
        made = session.take.sound if session.take is not None else None
        return self._view(session, *_with_source(session, made), language)

    def _chosen(self, first: int | None, second: int | None, language: Language, request: gr.Request) -> list[Any]:
        session = self._desk.session(request)
        return self._view(session, session.sound(first), session.sound(second), language)

    def _view(self, session: Session, first: Sound | None, second: Sound | None, language: Language) -> list[Any]:
        by_age = sorted(session.shelf, key=lambda sound: sound.number)
        choices = [(title(sound, language), sound.number) for sound in by_age]
        chosen = [gr.update(choices=choices, value=sound.number if sound else None) for sound in (first, second)]
        if first is None or second is None:
            nothing = f'<p class="stepaudio-empty">{escape(say(language, "compare_empty"))}</p>'
            return [*chosen, ab_switch([1.0, 1.0], language, ready=False), nothing, None, None]
        waves = [wave_of(sound.wav) for sound in (first, second)]
        gains = matching_gains(waves)
        seconds = max(wave.seconds for wave in waves)
        parts = "".join(
            f'<figure class="side-{side}"><figcaption><b>{side.upper()}</b> {escape(title(sound, language))}'
            f" · {wave.seconds:.2f} s</figcaption>{waveform_svg(wave, seconds)}"
            f'<img src="{mel_png(wave, seconds)}" alt="{escape(say(language, "mel_of", what=title(sound, language)))}">'
            "</figure>"
            for side, sound, wave in zip(SIDES, (first, second), waves, strict=True)
        )
        pictures = f'<div class="stepaudio-pictures">{parts}{_axis(seconds)}<i class="cursor" hidden></i></div>'
        files = [file_of(sound.wav, f"stepaudio-sound-{sound.number}.wav") for sound in (first, second)]
        return [*chosen, ab_switch(gains, language, ready=True), pictures, *files]


def newest(session: Session) -> Sound | None:
    """Return the newest sound that was made; of several takes the one that is chosen."""
    made = [sound for sound in session.shelf if sound.kind != "reference"]
    found = max(made, key=lambda sound: sound.number, default=None)
    return session.take.sound if found is not None and found.kind == "clone" and session.take is not None else found


def _with_source(session: Session, made: Sound | None) -> tuple[Sound | None, Sound | None]:
    """Return a sound behind what it was made from, both on the shelf: the original of an edit, or a reference."""
    pair = (made.source if made is not None else None, made)
    for sound in pair:
        if sound is not None:
            session.put_back(sound)
    return pair


def title(sound: Sound, language: Language) -> str:
    """Return what a sound is called where it can be chosen."""
    return say(language, f"sound_{sound.kind}", number=sound.number, detail=sound.detail)


def ab_switch(gains: list[float], language: Language, *, ready: bool) -> str:
    """Return the buttons that play A and B, at these gains, as HTML; see studio.js."""
    disabled = "" if ready else " disabled"
    buttons = "".join(
        f'<button type="button" data-ab="{name}"{disabled}{pressed}>{escape(say(language, f"ab_{name}"))}</button>'
        for name, pressed in (("a", ' aria-pressed="false"'), ("b", ' aria-pressed="false"'), ("stop", ""))
    )
    told = say(language, "ab_level") if ready else ""
    return (
        f'<div class="stepaudio-ab" data-gain-a="{gains[0]:.4f}" data-gain-b="{gains[1]:.4f}" role="group" '
        f'aria-label="{escape(say(language, "ab"))}">{buttons}<span>{escape(told)}</span></div>'
    )


def _axis(seconds: float) -> str:
    marks = "".join(f'<span style="left:{100 * tick / seconds:.2f}%">{tick:g}</span>' for tick in axis_ticks(seconds))
    return f'<div class="axis" aria-hidden="true">{marks}</div>'
