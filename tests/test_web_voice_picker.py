"""The choice of a voice: the words in the field are always those of the sound that is chosen."""

from __future__ import annotations

import pytest

from tests.test_web_controls import engine, page, recorder, service, start, studio, synthesis  # noqa: F401 - fixtures


@pytest.mark.parametrize("prefix", ["", "edit_"])
@pytest.mark.parametrize("typed", ["", "What I say."])
def test_a_new_voice_never_gets_the_words_of_the_one_chosen_before(studio, prefix, typed):  # noqa: F811
    def choose(voice: str) -> str:
        hyphened = prefix.replace("_", "-")
        studio.fill(**{f"{prefix}voice": voice}).press(f"{hyphened}voice", "input")
        return studio.value(f"{hyphened}transcript")

    studio.fill(**{f"{prefix}transcript": typed})
    assert choose("new") == typed
    assert choose("preset:ada") == "Ada speaks."
    assert choose("preset:ada") == "Ada speaks."
    assert choose("voice:0123456789abcdef") == "Ada speaks."  # one that is gone
    assert choose("new") == typed
    assert choose("new") == typed
    # The next time it is the words of now that come back.
    studio.fill(**{f"{prefix}transcript": "Other words."})
    assert choose("preset:ada") == "Ada speaks."
    assert choose("new") == "Other words."


def test_a_preset_by_its_button_keeps_the_typed_words_too(studio):  # noqa: F811
    studio.fill(transcript="What I say.", presets="preset:ada").press("presets", "input")
    assert studio.value("transcript") == "Ada speaks."
    studio.fill(voice="new").press("voice", "input")
    assert studio.value("transcript") == "What I say."


@pytest.mark.parametrize("empty", [False, True], ids=["given", "heard"])
@pytest.mark.parametrize("button", ["generate", "apply"])
def test_a_voice_that_is_chosen_while_a_run_goes_on_keeps_its_own_words(studio, engine, monkeypatch, button, empty):  # noqa: F811
    prefix, hyphened = ("edit_", "edit-") if button == "apply" else ("", "")

    def meanwhile(reference, *args, **named):
        studio.fill(**{f"{prefix}voice": "preset:ada"}).press(f"{hyphened}voice", "input")
        return synthesis("late words", 7)

    for method in ("clone", "edit"):
        monkeypatch.setattr(engine.pipeline, method, meanwhile)
    studio.fill(**{f"{prefix}transcript": "" if empty else "T"}).press(button)
    assert studio.value(f"{hyphened}transcript") == "Ada speaks."


def test_what_is_typed_while_words_are_being_written_down_stays(studio, service, monkeypatch):  # noqa: F811
    def typed_meanwhile(audio):
        studio.fill(transcript="Typed by hand.")
        return transcription(audio)

    transcription = service.submit_transcription
    monkeypatch.setattr(service, "submit_transcription", typed_meanwhile)
    studio.fill(transcript="").press("transcribe")
    assert studio.value("transcript") == "Typed by hand."
