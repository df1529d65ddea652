"""The page in a real browser where things go wrong: hasty clicks, a slow network, an outage, no storage."""

from __future__ import annotations

import time

import pytest

from tests.studio import WAIT, open_tab
from tests.test_browser import browser, recordings  # noqa: F401 - fixtures
from tests.test_browser_studio import generate, page, server  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

LONG = "The first snow fell during the night, and by morning the whole valley was white and still. " * 4
# Tickets come as late as window.ticketsLate says, in milliseconds.
LATE = """(() => {
    const really = window.fetch;
    window.fetch = async (where, how) => {
        if (window.ticketsLate && String(where).includes("stream/tickets")) {
            await new Promise((resolve, reject) => {
                setTimeout(resolve, window.ticketsLate);
                how?.signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
            });
        }
        return really(where, how);
    };
})();"""
# Contexts of sound that are open, in window.sounding.
COUNTED = """(() => {
    const Context = window.AudioContext;
    window.sounding = 0;
    window.AudioContext = class extends Context {
        constructor(...given) { super(...given); window.sounding += 1; }
        close() { window.sounding -= 1; return super.close(); }
    };
})();"""
CLICK = "(id) => document.querySelector(id).click()"


@pytest.fixture
def watched(page):  # noqa: F811
    """A page that began with the scripts above, its voice chosen."""
    page.add_init_script(LATE + COUNTED)
    page.set_default_timeout(WAIT / 3)
    page.reload()
    choose_ada(page)
    return page


def choose_ada(page) -> None:  # noqa: F811
    page.locator("#presets").get_by_text("Ada").click()
    page.wait_for_function("() => document.querySelector('#transcript textarea').value === 'Ada speaks.'")


def clones(server) -> int:  # noqa: F811
    """Return how many clones the server has made, refused or ended."""
    return server.log.count("Total time") + server.log.count("Clone cancelled") + server.log.count("Clone refused")


def test_a_stop_while_the_request_is_on_its_way_stops_it(watched, server):  # noqa: F811
    before = clones(server)
    watched.locator("#text textarea").fill(LONG)
    watched.evaluate("() => { window.ticketsLate = 2000; }")
    watched.evaluate(CLICK, "#generate")
    watched.wait_for_timeout(300)
    watched.evaluate(CLICK, "#stop")
    watched.locator("#error").get_by_text("was stopped while it was on its way").wait_for()
    assert clones(server) == before
    watched.evaluate("() => { window.ticketsLate = 0; }")
    generate(watched, "And the next one works.")


@pytest.mark.parametrize("late", [0, 1000], ids=["at once", "while the ticket is fetched"])
def test_a_double_click_on_generate_is_one_request(watched, server, late):  # noqa: F811
    before = clones(server)
    watched.locator("#text textarea").fill(LONG)
    watched.locator("#text-facts").get_by_text(f"{len(LONG)} of").wait_for()
    watched.evaluate("(late) => { window.ticketsLate = late; }", late)
    if late:
        watched.evaluate(CLICK, "#generate")
        watched.wait_for_timeout(300)
        watched.evaluate(CLICK, "#generate")
    else:
        watched.locator("#generate").dblclick(delay=60)
    watched.locator("#run").get_by_text("RTF").wait_for()
    assert not watched.locator("#error").is_visible()
    time.sleep(1)
    assert clones(server) == before + 1


def test_what_was_typed_outlives_a_reload_but_not_the_words_of_a_chosen_voice(page):  # noqa: F811
    def reload() -> list[str]:
        page.reload()
        page.locator("#presets").get_by_text("Ada").wait_for()
        page.wait_for_function("() => document.querySelector('#text textarea').value !== ''")
        return [page.locator(f"#{name} textarea").input_value() for name in ("text", "transcript")]

    page.locator("#text textarea").fill("A long speech.")
    page.locator("#transcript textarea").fill("What I said.")
    assert reload() == ["A long speech.", "What I said."]
    page.locator("#text-facts").get_by_text("14 of").wait_for()  # the page itself knows of it
    choose_ada(page)
    assert reload() == ["A long speech.", ""]


def test_two_quick_clicks_on_a_and_b_play_one_pair_and_stop_ends_it(watched):
    generate(watched, "Something to compare.")
    watched.locator("#compare-this").click()
    watched.locator("#pictures img").nth(1).wait_for()
    watched.locator("#sound-b a[download]").wait_for(state="attached")
    watched.wait_for_timeout(2000)
    before = watched.evaluate("window.sounding")
    watched.evaluate("""() => {
        for (const side of ["a", "b"]) document.querySelector(`[data-ab=${side}]`).click();
    }""")
    watched.locator(".stepaudio-ab[data-heard=b]").wait_for()
    watched.wait_for_timeout(300)
    assert watched.evaluate("window.sounding") == before + 1
    watched.evaluate("""() => {
        document.querySelector("[data-ab=stop]").click();
        for (const side of ["a", "stop"]) document.querySelector(`[data-ab=${side}]`).click();
    }""")
    watched.wait_for_timeout(1500)
    assert watched.evaluate("window.sounding") == before


def test_compare_shows_the_newest_clone_each_time(watched):
    seen = set()
    for number in range(3):
        open_tab(watched, "clone")
        before = watched.locator("#run").inner_text() if number else ""
        watched.locator("#live input").uncheck()
        watched.locator("#text textarea").fill(f"Number {number}.")
        watched.locator("#generate").click()
        watched.wait_for_function(
            "before => { const run = document.querySelector('#run').innerText; "
            "return run.includes('RTF') && run !== before; }",
            arg=before,
        )
        watched.locator("#compare-this").click()
        watched.locator("#pictures img").nth(1).wait_for()
        watched.wait_for_timeout(2500)
        seen.add(watched.locator("#compare-second input").input_value())
    assert len(seen) == 3


def test_the_keyboard_goes_on_where_a_question_or_a_tab_has_gone(watched):
    def focused() -> str:
        return watched.evaluate("document.activeElement.id || document.activeElement.innerText")

    open_tab(watched, "performance")
    watched.locator("#clear").click()
    watched.locator("#clear-no").focus()
    watched.keyboard.press("Enter")
    watched.locator("#clear-no").wait_for(state="hidden")
    assert focused() == "clear"
    open_tab(watched, "clone")
    generate(watched, "Something to edit.")
    watched.locator("#edit-this").focus()
    watched.keyboard.press("Enter")
    watched.locator("#chain").get_by_text("Original").wait_for()
    assert focused() == "Edit"


def test_the_page_works_where_the_browser_keeps_nothing(browser, server):  # noqa: F811
    errors: list[str] = []
    denied = "".join(
        f"Object.defineProperty(window, '{storage}', "
        "{ get() { throw new DOMException('denied', 'SecurityError'); } });"
        for storage in ("localStorage", "sessionStorage")
    )
    with browser.new_context(locale="zh-CN") as context:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(denied)
        page.goto(server.url)
        page.get_by_role("button", name="生成").wait_for(timeout=WAIT)
        page.locator("#dark").click()
        page.wait_for_function("() => document.body.classList.contains('dark')")
    assert [error for error in errors if "stepaudio" in error] == []


def test_no_name_of_a_voice_becomes_markup(watched, recordings):  # noqa: F811
    asked: list[str] = []
    watched.on("request", lambda request: asked.append(request.url))
    name = "![p](http://evil.example/e.png)<b>bold</b>"
    open_tab(watched, "voices")
    for place in (".toast-body", "#voices-error"):  # saved; and then refused, as there is one of this name
        watched.locator("#new-sound input[type=file]").set_input_files(str(recordings["a"]))
        watched.locator("#new-sound #waveform").first.wait_for()
        watched.locator("#new-name").get_by_role("textbox").fill(name)
        watched.locator("#new-transcript textarea").fill("Words.")
        watched.locator("#save-voice").click()
        watched.locator(place).get_by_text(name).first.wait_for()
    assert [url for url in asked if "evil" in url] == []
