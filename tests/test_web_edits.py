"""The tab "Edit" where things go wrong or other ways than planned: nothing is lost, and the tab works on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from stepaudio.errors import InvalidInput
from tests.conftest import voice
from tests.page_kit import shown_value
from tests.test_web_controls import engine, page, recorder, service, start, studio, synthesis  # noqa: F401 - fixtures


@pytest.mark.parametrize("button", ["clear-chain", "edit-this"])
def test_the_history_may_be_cleared_or_begun_anew_while_an_edit_runs(studio, recorder, engine, monkeypatch, button):  # noqa: F811
    studio.press("generate")
    studio.press("edit-this")
    studio.fill(edit_seed=5, edit_new_seed=False).press("apply")

    def meanwhile(reference, task, **others):
        studio.press(button)
        return synthesis("late words", 7)

    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline, "edit", meanwhile)
        late = studio.press("apply")
    assert "was cleared or begun anew meanwhile" in shown_value(late["edit-error"])
    assert len(late["chain"]["choices"]) == (0 if button == "clear-chain" else 1)
    compared = studio.press("compare-this")
    assert [name for name, _ in compared["compare-first"]["choices"] if "edit" in name] == ["3: edit, step 1"]
    again = studio.press("apply")  # from the original of the new chain, or from what the fields hold
    assert shown_value(again["edit-error"]) == ""
    assert [number for _, number in again["chain"]["choices"]] == [0, 1]


def test_a_first_edit_that_fails_leaves_the_fields_of_its_sound_where_they_are(studio, recorder, engine, monkeypatch):  # noqa: F811
    def broken(*args, **named):
        raise InvalidInput("The transcript of the reference is empty.")

    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline, "edit", broken)
        failed = studio.fill(edit_transcript="").press("apply")
    assert "transcript of the reference is empty" in shown_value(failed["edit-error"])
    assert failed["edit-source"]["visible"] is True
    assert failed["chain"]["visible"] is False
    made = studio.fill(edit_transcript="The words.").press("apply")
    assert shown_value(made["edit-error"]) == ""
    assert recorder.last["reference"].text == "The words."
    assert made["edit-source"]["visible"] is False
    assert [number for _, number in made["chain"]["choices"]] == [0, 1]


def test_a_first_edit_does_not_take_the_place_of_a_history_that_was_begun_meanwhile(studio, engine, monkeypatch):  # noqa: F811
    studio.press("generate")

    def meanwhile(reference, task, **others):
        studio.press("edit-this")
        return synthesis("late words", 7)

    monkeypatch.setattr(engine.pipeline, "edit", meanwhile)
    late = studio.press("apply")
    assert "was cleared or begun anew meanwhile" in shown_value(late["edit-error"])
    assert [number for _, number in late["chain"]["choices"]] == [0]


def test_a_new_text_begins_with_the_words_of_the_voice_that_is_chosen(studio):  # noqa: F811
    studio.fill(edit_voice="preset:ada").press("edit-voice", "input")
    studio.fill(task="emotion").press("task", "change")
    assert studio.value("new-text") in (None, "")
    studio.fill(task="paralinguistic").press("task", "change")
    assert studio.value("new-text") == "Ada speaks."
    studio.fill(new_text="Ada [Laughter] speaks.").press("apply")
    studio.fill(edit_transcript="other").press("task", "change")  # the history's words now
    assert studio.value("new-text") == "Ada [Laughter] speaks."


def test_words_that_an_edit_needs_are_heard_where_none_are_given(studio, recorder):  # noqa: F811
    studio.fill(edit_transcript="", task="denoise", option=None).press("apply")
    assert recorder.last["reference"].text == ""  # that one needs none
    studio.press("clear-chain")
    studio.fill(task="emotion", option="happy").press("apply")
    assert recorder.last["reference"].text == "heard 16000"
    assert studio.value("edit-transcript") == "heard 16000"
    assert "heard 16000" in studio.press("restore")["step"]


def disconnect(studio) -> None:  # noqa: F811
    """Do what Gradio does when the connection of a tab ends, be it only for a moment."""
    (unload,) = [f for f in studio.blocks.fns.values() if any(event == "unload" for _, event in f.targets)]
    unload.fn(SimpleNamespace(session_hash=studio.session))


def test_a_connection_that_breaks_for_a_moment_takes_no_history_away(studio, recorder):  # noqa: F811
    studio.fill(edit_seed=5, edit_new_seed=False).press("apply")
    disconnect(studio)
    made = studio.press("apply")
    assert shown_value(made["edit-error"]) == ""
    assert [number for _, number in made["chain"]["choices"]] == [0, 1, 2]
    np.testing.assert_allclose(recorder.last["reference"].waveform.samples, voice(1.0, seed=5).samples, atol=1e-4)


def test_a_history_that_the_server_has_not_is_not_edited(studio, recorder):  # noqa: F811
    studio.press("apply")
    studio.session += "-begun-anew"
    calls = len(recorder.calls)
    refused = studio.press("apply")
    assert "no longer the server's" in shown_value(refused["edit-error"])
    assert len(recorder.calls) == calls
    assert refused["edit-source"]["visible"] is True  # what the server has: nothing
    assert shown_value(studio.press("apply")["edit-error"]) == ""


def test_an_edit_starts_from_the_step_that_the_browser_shows(studio, recorder):  # noqa: F811
    studio.fill(edit_seed=5, edit_new_seed=False).press("apply")
    studio.fill(chain=0).press("apply")  # the click on it is still on its way
    np.testing.assert_array_equal(recorder.last["reference"].waveform.samples, voice(1.0).samples)


def test_a_new_text_never_has_the_words_of_another_sound(studio):  # noqa: F811
    studio.fill(edit_voice="preset:ada").press("edit-voice", "input")
    studio.fill(task="paralinguistic").press("task", "change")
    studio.fill(new_text="Ada [Laughter] speaks.", edit_voice="new").press("edit-voice", "input")
    assert studio.value("new-text") == "T"  # what was typed for the new voice
    studio.fill(edit_presets="preset:ada").press("edit-presets", "input")
    assert studio.value("new-text") == "Ada speaks."
    studio.fill(text="A clone's words.").press("generate")
    studio.press("edit-this")
    assert studio.value("new-text") == "A clone's words."
    studio.fill(task="emotion").press("clear-chain")
    assert studio.value("new-text") == ""


def test_the_file_keeps_its_format_where_the_language_is_switched(studio):  # noqa: F811
    studio.press("apply")
    studio.fill(edit_format="flac").press("edit-format", "input")
    assert studio.fill(language="zh").press("language", "input")["edit-download"]["value"].endswith(".flac")
