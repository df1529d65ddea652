"""The studio in a real browser: saved voices, a chain of edits, two users at once, every tab in both languages."""

from __future__ import annotations

import re
import shutil

import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe

from tests.conftest import voice
from tests.server import Server
from tests.studio import TABS, WAIT, apply_edit, choose, open_tab, switch_language
from tests.test_browser import browser, clone, recordings, upload  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

# Text that is wider than its button, label or tab, or whose letters are cut at the bottom.
CUT = """() => [...document.querySelectorAll('button, label > span, summary, th, td, dt, dd, [role=tab]')]
    .filter(e => e.offsetParent && e.innerText.trim())
    .filter(e => e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).display !== 'inline')
    .filter(e => getComputedStyle(e).overflowX !== 'visible' || e.getBoundingClientRect().right > innerWidth)
    .map(e => e.innerText.slice(0, 60))"""

# The ids of all that the focused element lies in.
ABOVE = """() => {
    const ids = [];
    for (let e = document.activeElement; e; e = e.parentElement) ids.push(e.id);
    return ids;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_weights):
    """A server with a preset voice."""
    folder = tmp_path_factory.mktemp("studio")
    weights = shutil.copytree(tiny_weights, folder / "weights")
    (weights / "presets").mkdir()
    (weights / "presets" / "ada.json").write_text('{"name": "Ada", "transcript": "Ada speaks.", "language": "en"}')
    soundfile.write(weights / "presets" / "ada.flac", voice(1.5, pitch=200.0).samples, 24000)
    running = Server(folder, {"STEPAUDIO_WEIGHTS": str(weights)}).start()
    yield running
    running.kill()


@pytest.fixture
def page(browser, server):  # noqa: F811
    with browser.new_context(locale="en-GB") as context:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(server.url)
        page.locator("#presets").get_by_text("Ada").wait_for()
        yield page


def generate(page, text: str) -> None:
    """Clone with the voice that is chosen, in one piece, and wait for the result."""
    page.locator("#live input").uncheck()
    page.locator("#text textarea").fill(text)
    page.locator("#generate").click()
    page.locator("#run").get_by_text("RTF").wait_for()


def test_a_voice_that_is_saved_is_cloned_with_and_outlives_the_server(browser, server, page, recordings):  # noqa: F811
    open_tab(page, "voices")
    page.locator("#new-sound input[type=file]").set_input_files(str(recordings["a"]))
    page.locator("#new-sound #waveform").first.wait_for()
    page.locator("#new-name").get_by_role("textbox").fill("Bob")
    page.locator("#new-transcript textarea").fill("Bob speaks.")
    page.locator("#save-voice").click()
    page.locator("#voice-about").get_by_text("Bob speaks.").wait_for()
    server.kill()
    server.start()
    with browser.new_context(locale="en-GB") as context:
        again = context.new_page()
        again.set_default_timeout(WAIT)
        again.goto(server.url)
        again.locator("#presets").get_by_text("Ada").wait_for()
        again.locator("#voice input").click()
        again.get_by_role("option", name="Bob").click()
        again.locator("#voice-sound #waveform").first.wait_for()
        assert again.locator("#transcript textarea").input_value() == "Bob speaks."
        generate(again, "Said by a saved voice.")
        assert "Cache hit" in again.locator("#run").inner_text()  # it was encoded when it was saved
        again.locator("#presets").get_by_text("Ada").click()
        again.wait_for_function("() => document.querySelector('#transcript textarea').value === 'Ada speaks.'")
        again.locator("#voice input").click()
        again.get_by_role("option", name="New voice").click()
        again.wait_for_function("() => document.querySelector('#transcript textarea').value === ''")


def test_a_chain_of_three_edits_with_a_branch_and_the_original_again(page, recordings):  # noqa: F811
    upload(page, recordings["a"])
    page.locator("#transcript textarea").fill("the words")
    generate(page, "Words to edit.")
    page.locator("#edit-this").click()
    page.locator("#chain").get_by_text("Original").wait_for()
    apply_edit(page, "Emotion", "happy", steps=2)
    apply_edit(page, "Speed", "faster", steps=3)
    apply_edit(page, "Remove noise", None, steps=4)
    choose(page, "#chain", 1)
    page.locator("#step").get_by_text("Original → Emotion: happy", exact=True).wait_for()
    apply_edit(page, "Style", "whisper", steps=5)
    assert re.search(r"4 +Style: whisper +\(from 1,", page.locator("#chain").inner_text())
    page.locator("#step").get_by_text("Original → Emotion: happy → Style: whisper").wait_for()
    page.locator("#edit-result #waveform").first.wait_for()
    assert "Words to edit." in page.locator("#step").inner_text()
    page.locator("#restore").click()
    page.wait_for_function("() => document.querySelector('#chain input[type=radio]').checked")
    # What was made is compared with what it was made from, each in turn from one place in time.
    open_tab(page, "compare")
    page.locator("#pictures img").nth(1).wait_for()
    page.locator("#sound-b a[download]").wait_for(state="attached")
    page.locator("[data-ab=a]").click()
    page.locator(".stepaudio-ab[data-heard=a]").wait_for()
    page.locator("[data-ab=b]").click()
    page.locator(".stepaudio-ab[data-heard=b]").wait_for()
    assert page.locator("[data-ab=b]").get_attribute("aria-pressed") == "true"
    page.locator("[data-ab=stop]").click()
    page.wait_for_function("() => !document.querySelector('.stepaudio-ab').dataset.heard")
    open_tab(page, "edit")
    page.locator("#clear-chain").click()
    page.locator("#edit-reference").wait_for()


def test_two_browsers_at_once_see_nothing_of_each_other(browser, server, page, recordings):  # noqa: F811
    with browser.new_context(locale="en-GB") as context:
        other = context.new_page()
        other.set_default_timeout(WAIT)
        other.goto(server.url)
        other.locator("#generate").wait_for()
        for each, name in ((page, "a"), (other, "b")):
            upload(each, recordings[name])
            each.locator("#transcript textarea").fill("the words")
            each.locator("#live input").uncheck()
            each.locator("#text textarea").fill(f"A text of {name} alone.")
        page.locator("#generate").click()
        other.locator("#generate").click()
        seen = []
        for each in (page, other):
            each.locator("#run").get_by_text("RTF").wait_for()
            href = each.locator("#result a[download]").get_attribute("href")
            open_tab(each, "performance")
            each.locator("#log").get_by_text("Total time").wait_for()
            ids = set(re.findall(r"\[([0-9a-f]{8})\]", each.locator("#log").inner_text()))
            seen.append((ids, href))
        (mine, my_sound), (others, other_sound) = seen
        assert len(mine) == len(others) == 1
        assert mine != others
        assert my_sound != other_sound
        page.reload()
        page.locator("#generate").wait_for()
        page.wait_for_timeout(2000)
        assert page.locator("#result #waveform").count() == 0  # a reload begins anew
        open_tab(page, "performance")
        page.locator("#log").get_by_text("Only your own requests").wait_for()


def test_a_tag_goes_where_the_cursor_is_and_all_is_reached_by_keyboard(page):
    page.locator("#text textarea").fill("Hello there.")
    page.locator("#text textarea").evaluate("field => field.setSelectionRange(5, 5)")
    page.locator("#tags [data-tag='[Laughter]']").focus()
    page.keyboard.press("Enter")
    assert page.locator("#text textarea").input_value() == "Hello[Laughter] there."
    page.locator("#text-facts").get_by_text("22 of").wait_for()
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached |= set(page.evaluate(ABOVE))
        if "stop" in reached:
            break
    assert {"language", "dark", "presets", "voice", "text", "tags", "generate", "stop"} <= reached


def test_every_tab_in_both_languages_and_colours_is_whole_and_has_no_serious_fault_of_access(page, recordings):  # noqa: F811
    upload(page, recordings["a"])
    page.locator("#transcript textarea").fill("the words")
    generate(page, "Something to look at.")
    axe, faults = Axe(), []
    for language, dark in (("en", False), ("zh", False), ("en", True)):
        switch_language(page, language)
        if dark:
            page.locator("#dark").click()
        for tab in TABS:
            open_tab(page, tab)
            page.wait_for_timeout(1500)
            if tab == "compare":  # where pictures are drawn first
                page.locator("#pictures img").nth(1).wait_for()
                page.locator("#sound-b #waveform").first.wait_for()
            assert page.evaluate(CUT) == [], f"{tab} in {language}"
            if language == "zh":  # other words in the same elements
                continue
            for found in axe.run(page).response["violations"]:
                if found["impact"] in ("serious", "critical"):
                    faults += [f"{tab} {language} {found['id']}: {node['html'][:150]}" for node in found["nodes"]]
    assert faults == []
    assert page.evaluate("() => document.documentElement.lang") == "en"
    # The choices are remembered.
    switch_language(page, "zh")
    page.reload()
    page.get_by_role("button", name="生成").wait_for()
    assert page.evaluate("() => document.body.classList.contains('dark')")


def test_nothing_of_all_this_left_a_traceback_in_the_log(server):
    assert "Traceback" not in server.log
