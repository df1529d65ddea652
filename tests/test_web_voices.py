"""The tab "Voices": what is said of one voice never goes to the next one."""

from __future__ import annotations

import gradio as gr
import pytest

from tests.test_web_controls import engine, page, recorder, service, start, studio, upload  # noqa: F401 - fixtures

FIELDS = {"new_name": "Cleo", "new_transcript": "Words.", "new_language": "en", "new_consent_note": "She wrote it."}


def values(studio) -> dict[str, object]:  # noqa: F811
    return {name: studio.value(name.replace("_", "-")) for name in (*FIELDS, "new_sound", "new_consent")}


def test_after_saving_all_fields_are_empty_for_the_next_voice(studio, service):  # noqa: F811
    studio.fill(**FIELDS, new_sound=upload(), new_consent=True).press("save-voice")
    assert values(studio) == {**dict.fromkeys(FIELDS, ""), "new_sound": None, "new_consent": False}
    studio.fill(new_name="Bob", new_transcript="Other words.", new_sound=upload(1.5)).press("save-voice")
    (bob,) = [voice for voice in service.voices.list() if voice.name == "Bob"]
    assert (bob.language, bob.consent) == ("", "")


def test_what_could_not_be_saved_stays_in_its_fields(studio):  # noqa: F811
    studio.fill(**FIELDS, new_consent=True).press("save-voice")  # without a sound
    assert values(studio) == {**FIELDS, "new_sound": None, "new_consent": True}


@pytest.mark.parametrize(
    ("language", "sentence"), [("en", "its first 30 s are used."), ("zh", "30")], ids=["English", "Chinese"]
)
def test_what_was_cut_from_a_saved_voice_is_told(studio, monkeypatch, language, sentence):  # noqa: F811
    told = []
    monkeypatch.setattr(gr, "Warning", told.append)
    studio.fill(language=language, **FIELDS, new_sound=upload(1.0), new_consent=True).press("save-voice")
    assert told == []
    studio.fill(language=language, **{**FIELDS, "new_name": "Long"}, new_sound=upload(31.0)).press("save-voice")
    assert len(told) == 1
    assert sentence in told[0]
    assert ("The reference" in told[0]) == (language == "en")
