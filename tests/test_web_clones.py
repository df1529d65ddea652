"""The tab "Clone": a request that gives no sound takes nothing away from the one before it."""

from __future__ import annotations

import gradio as gr
import pytest

from stepaudio.errors import Cancelled
from stepaudio.web.desk import error_update
from tests.page_kit import shown_value
from tests.test_web_controls import engine, page, recorder, service, start, studio  # noqa: F401 - fixtures

KEPT = ("result", "download", "run", "takes-made", "seed", "transcript", "edit-this", "compare-this")


@pytest.mark.parametrize("stopped", [False, True], ids=["refused", "stopped"])
def test_the_result_before_stays_where_a_clone_gives_no_sound(studio, recorder, engine, monkeypatch, stopped):  # noqa: F811
    def stop(*args, **named):
        raise Cancelled("The synthesis was stopped.")

    studio.fill(takes=3, seed=10, new_seed=False).press("generate")
    studio.fill(takes_made=2).press("takes-made", "input")
    before = {name: studio.value(name) for name in KEPT}
    with monkeypatch.context() as patch:
        if stopped:
            patch.setattr(engine.pipeline, "takes", stop)
        failed = studio.fill(temperature=0.7 if stopped else 99.0).press("generate")
    assert ("stopped" if stopped else "temperature is 99") in shown_value(failed["error"])
    assert {name: studio.value(name) for name in KEPT} == before
    assert all("interactive" not in failed[name] for name in ("download", "edit-this", "compare-this"))
    # The takes are still there, also for the other tabs, and the next clone takes the error away.
    assert studio.fill(takes_made=1).press("takes-made", "input")["seed"] == 11
    assert [number for _, number in studio.press("edit-this")["chain"]["choices"]] == [0]
    assert shown_value(studio.fill(temperature=0.7, takes=1).press("generate")["error"]) == ""


def test_the_tag_of_a_language_counts_as_it_does_for_the_limit(studio):  # noqa: F811
    html = studio.fill(text="a" * 5000).press("text", "change")["text-facts"]
    assert "5000 of 5000 characters" in html
    html = studio.fill(language_tag="[Cantonese]").press("language-tag", "input")["text-facts"]
    assert "5011 of 5000 characters" in html
    assert 'class="over"' in html
    assert "1 of 5000" in studio.fill(text=" ").press("text", "change")["text-facts"]


def test_a_text_that_is_too_long_is_not_looked_at_further(studio, monkeypatch):  # noqa: F811
    """A pasted book took the server a minute, though it is refused."""

    def refuse(*args):
        raise AssertionError("looked at")

    monkeypatch.setattr("stepaudio.web.clone_tab.passages", refuse)
    monkeypatch.setattr("stepaudio.web.clone_tab.speaking_seconds", refuse)
    html = studio.fill(text="A sentence. " * 1000).press("text", "change")["text-facts"]
    assert "12000 of 5000 characters: too long" in html


def test_an_error_does_not_stay_in_the_other_language(studio):  # noqa: F811
    assert shown_value(studio.fill(temperature=99.0).press("generate")["error"])
    assert shown_value(studio.fill(language="zh").press("language", "input")["error"]) == ""


def test_no_name_becomes_markup_in_a_sentence():
    sentence = "There is a saved voice '<img src=x>![p](http://evil/e.png)' already."
    shown = shown_value(error_update(sentence))
    assert "<img" not in shown
    assert shown.startswith("<p>There is a saved voice '&lt;img")
    assert error_update("") == gr.update(value="", visible=False)
