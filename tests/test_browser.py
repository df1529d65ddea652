"""The page in a real browser: upload, clone, hit, errors, languages, cache; server killed and started again."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from tests.conftest import voice
from tests.server import CHROMIUM_FLAGS, Server
from tests.studio import TABS, open_tab

pytestmark = pytest.mark.browser

STAGE = re.compile("Writing speech tokens|Making the mel spectrogram|Making the sound")
CLONE_SECONDS = 120_000


def chromium_path() -> str:
    """Return where Chromium is, or skip; in CI its absence fails."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have Chromium: the browser tests may not be skipped there")
        pytest.skip("Chromium is not installed")
    return path


@pytest.fixture(scope="module")
def browser():
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("browser")).start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory, tiny_weights):
    """A server whose weights may speak for minutes, so that a run can be caught in the middle on a slow machine too."""
    folder = tmp_path_factory.mktemp("slow")
    weights = shutil.copytree(tiny_weights, folder / "weights")
    (weights / "card.json").write_text('{"title": "slow"}')
    slow = {"STEPAUDIO_MAX_OUTPUT_SECONDS": "300", "STEPAUDIO_FLOW_STEPS": "50"}
    running = Server(folder, {"STEPAUDIO_WEIGHTS": str(weights), **slow}).start()
    yield running
    running.kill()


@pytest.fixture
def slow_page(browser, slow_server, recordings):
    """A page with a long job that has begun."""
    with browser.new_context(locale="en-GB") as context:
        page = context.new_page()
        page.goto(slow_server.url)
        page.get_by_role("button", name="Generate").wait_for()
        upload(page, recordings["a"])
        ask(page, "word " * 200)
        page.locator("#result").get_by_text(STAGE).wait_for(timeout=CLONE_SECONDS)
        yield page


@pytest.fixture
def page(browser, server):
    context = browser.new_context(locale="en-GB", accept_downloads=True)
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.outside = lambda: [u for u in requests if not u.startswith((server.url, "data:", "blob:"))]
    page.goto(server.url)
    page.get_by_role("button", name="Generate").wait_for()
    yield page
    context.close()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, conformance) -> dict[str, Path]:
    """Two recordings of real voices, as files."""
    folder = tmp_path_factory.mktemp("recordings")
    vectors = np.load(conformance / "audio_frontend" / "vectors.npz", allow_pickle=False)
    files = {}
    for name, key, rate in (("a", "speech_16k_mono", 16000), ("b", "speech_24k_mono", 24000)):
        files[name] = folder / f"{name}.wav"
        soundfile.write(files[name], vectors[f"{key}.pcm16"].T, rate)
    return files


def upload(page, path: Path) -> None:
    clear = page.locator("#reference button[aria-label='Clear'], #reference button[title='Clear']")
    if clear.count():
        clear.first.click()
    page.locator("#reference input[type=file]").set_input_files(str(path))
    page.locator("#reference").get_by_text(path.name).or_(page.locator("#reference #waveform")).first.wait_for()


def ask(page, text: str, transcript: str = "the words of the reference") -> None:
    page.locator("#transcript textarea").fill(transcript)
    page.locator("#text textarea").fill(text)
    # A long text's passages push the buttons down once they are shown: a click must not fall beside them.
    page.locator("#text-facts").get_by_text(re.compile(rf"^{len(text)}\b")).wait_for()
    page.get_by_role("button", name=re.compile("Generate|生成")).click()


def clone(page, path: Path | None, text: str = "Hello there.") -> str:
    """Clone through the page and return what it reports."""
    if path is not None:
        upload(page, path)
    before = page.locator("#run").inner_text()
    ask(page, text)
    page.wait_for_function(
        "before => { const run = document.querySelector('#run'); "
        "return run && run.innerText.includes('RTF') && run.innerText !== before; }",
        arg=before,
        timeout=CLONE_SECONDS,
    )
    assert not page.locator("#error").is_visible()
    return page.locator("#run").inner_text()


def test_a_real_recording_gives_sound_that_can_be_downloaded(page, recordings, tmp_path):
    clone(page, recordings["a"])
    with page.expect_download() as download:
        page.locator("#result").get_by_label("Download").first.click()
    download.value.save_as(tmp_path / "result.wav")
    samples, rate = soundfile.read(tmp_path / "result.wav")
    assert rate == 24000
    assert 0.1 < len(samples) / rate <= 5.0
    assert np.abs(samples).max() > 0.001
    page.locator("#format input").click()
    page.get_by_role("option", name="flac").click()
    for _ in range(60):  # until the sound is there in that format
        with page.expect_download() as download:
            page.locator("#download").click()
        if download.value.suggested_filename.endswith(".flac"):
            break
        page.wait_for_timeout(500)
    assert soundfile.info(download.value.path()).format == "FLAC"
    open_tab(page, "performance")
    for stage in ("Get engine", "Decode audio", "FunASR", "LLM", "Flow", "Vocoder", "Post-process"):
        page.locator("#stages").get_by_text(stage).first.wait_for()
    page.locator("#log").get_by_text("Total time").wait_for()
    assert page.outside() == []  # the page works with no internet


def test_the_progress_bar_moves_through_the_stages(slow_page):
    seen = []
    for _ in range(40):
        seen.append(slow_page.locator("#result").inner_text())
        slow_page.wait_for_timeout(100)
    assert STAGE.search("\n".join(seen))
    percents = [float(number) for number in re.findall(r"([\d.]+)%", "\n".join(seen))]
    assert len(set(percents)) >= 3
    assert percents == sorted(percents)


def test_the_page_says_plainly_that_tiny_weights_make_noise(page):
    page.locator("#banner").get_by_text("they make noise, not speech").wait_for()


def test_a_b_a_hits_on_the_third_and_so_does_a_request_after_kill_and_restart(browser, recordings, tmp_path):
    server = Server(tmp_path / "aba").start()
    try:
        with browser.new_context(locale="en-GB") as context:
            page = context.new_page()
            page.goto(server.url)
            assert "miss" in clone(page, recordings["a"])
            assert "hit" in clone(page, None, "A second text with the same recording.")
            assert "miss" in clone(page, recordings["b"])
            assert "hit" in clone(page, recordings["a"], "And the first voice again.")
        assert server.cache_lines() == ["MISS", "HIT", "MISS", "HIT"]
        server.kill()
        server.start()
        with browser.new_context(locale="en-GB") as context:
            page = context.new_page()
            page.goto(server.url)
            assert "hit" in clone(page, recordings["a"])
        assert server.cache_lines()[-1] == "HIT"
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("letter.wav", "cannot be read as sound"), ("silent.wav", "silent"), ("short.wav", "at least 0.5 s")],
)
def test_a_bad_file_gives_one_readable_sentence_and_the_next_request_works(
    page, name, expected, recordings, tmp_path, server
):
    path = tmp_path / name
    if name == "letter.wav":
        path.write_text("Dear server, this is not a sound.\n" * 20)
    else:
        seconds = 0.1 if name == "short.wav" else 2.0
        soundfile.write(path, voice(seconds).samples * (name == "short.wav"), 24000)
    page.locator("#reference input[type=file]").set_input_files(str(path))
    page.wait_for_timeout(1500)
    ask(page, "Hello.")
    page.locator("#error").get_by_text(expected).wait_for(timeout=CLONE_SECONDS)
    assert "Traceback" not in page.content()
    page.reload()
    page.get_by_role("button", name="Generate").wait_for()
    clone(page, recordings["a"])


def test_missing_fields_are_named(page):
    ask(page, "Hello.")
    page.locator("#error").get_by_text("Please choose a voice, or upload or record one").wait_for()


def test_an_error_and_a_result_are_read_aloud(page, recordings):
    """A reader of the screen tells what comes into an alert or a status that was there before."""
    page.evaluate("""() => {
        window.places = ["alert", "status"].map((role) => document.querySelector(`.column[role=${role}]`));
    }""")
    now = "() => window.places.map((place) => place.isConnected ? place.innerText : 'gone')"
    assert page.evaluate(now) == ["", ""]
    ask(page, "Hello.")
    page.locator("#error").get_by_text("Please choose a voice, or upload or record one").wait_for()
    alert, status = page.evaluate(now)
    assert "Please choose a voice, or upload or record one" in alert
    assert status == ""
    clone(page, recordings["a"])
    alert, status = page.evaluate(now)
    assert alert == ""
    assert "RTF" in status
    open_tab(page, "edit")
    page.locator("#step").wait_for()
    assert page.locator("#step").evaluate("step => step.closest('[role=status]') !== null")
    for tab, error in (("edit", "edit-error"), ("voices", "voices-error")):
        open_tab(page, tab)
        page.locator({"edit": "#apply", "voices": "#save-voice"}[tab]).click()
        page.locator(f"[role=alert] #{error}").wait_for()


def test_a_given_seed_is_used_and_a_drawn_one_is_written_back(page, recordings):
    clone(page, recordings["a"])
    page.locator("#advanced").get_by_text("Advanced").click()
    drawn = page.locator("#seed input").input_value()
    assert drawn.isdigit()
    page.locator("#new-seed input").uncheck()
    page.locator("#seed input").fill("1234")
    page.locator("#seed input").blur()
    assert "seed 1234" in clone(page, None)


def test_the_language_can_be_switched_and_follows_the_browser(browser, server, page):
    page.locator("#language").get_by_text("中文").click()
    page.get_by_role("button", name="生成").wait_for()
    page.locator("#banner").get_by_text("微型随机权重").wait_for()
    with browser.new_context(locale="zh-CN") as context:
        chinese = context.new_page()
        chinese.goto(server.url)
        chinese.get_by_role("button", name="生成").wait_for()


def test_the_cache_is_cleared_only_after_confirmation(page, recordings):
    clone(page, recordings["a"])
    open_tab(page, "performance")
    stats = page.locator("#cache-stats")
    stats.get_by_text(re.compile("voices: [1-9]")).wait_for()
    assert "voices: 0 " not in stats.inner_text()
    page.get_by_role("button", name="Clear the cache").click()
    page.get_by_role("button", name="No, keep it").click()
    assert "voices: 0 " not in stats.inner_text()
    page.get_by_role("button", name="Clear the cache").click()
    page.get_by_role("button", name="Yes, clear it").click()
    stats.get_by_text("voices: 0 ").wait_for()
    open_tab(page, "clone")
    assert "miss" in clone(page, None, "Once more.")


def test_a_cache_that_cannot_be_written_gives_a_banner_and_still_a_sound(browser, recordings, tmp_path):
    server = Server(tmp_path / "unwritable")
    server.folder.mkdir()
    (server.folder / "cache").write_text("a file where the folder should be")
    server.start()
    try:
        with browser.new_context(locale="en-GB") as context:
            page = context.new_page()
            page.goto(server.url)
            assert "miss" in clone(page, recordings["a"])
            page.locator("#banner").get_by_text(re.compile("cache", re.IGNORECASE)).first.wait_for()
    finally:
        server.kill()


def wait_for_cancelled(server: Server, count: int) -> None:
    """Wait until the log tells of so many cancelled clones."""
    end = time.monotonic() + 60
    while server.log.count("Clone cancelled.") < count:
        assert time.monotonic() < end, f"the job went on:\n{server.log}"
        time.sleep(0.1)


def test_a_reload_ends_the_job_that_nobody_waits_for_any_more(slow_page, slow_server):
    before = slow_server.log.count("Clone cancelled.")
    slow_page.reload()
    wait_for_cancelled(slow_server, before + 1)


def test_stop_ends_the_run_and_the_next_one_works(slow_page, slow_server):
    before = slow_server.log.count("Clone cancelled.")
    slow_page.locator("#stop").click(timeout=CLONE_SECONDS)
    slow_page.locator("#error").get_by_text(re.compile("stopped|cancelled")).wait_for(timeout=CLONE_SECONDS)
    wait_for_cancelled(slow_server, before + 1)
    slow_page.locator("#advanced").get_by_text("Advanced").click()
    slow_page.locator("#flow-steps input[type=number]").fill("1")
    slow_page.locator("#flow-steps input[type=number]").blur()
    clone(slow_page, None)


def player(page) -> dict[str, str]:
    """Return what the player says of itself."""
    return page.locator("#player .stepaudio-player").evaluate("line => ({...line.dataset})")


def wait_for_player(page, state: str) -> None:
    page.wait_for_function(
        "state => document.querySelector('#player .stepaudio-player').dataset.state === state",
        arg=state,
        timeout=CLONE_SECONDS,
    )


def test_the_sound_that_is_played_at_once_is_all_of_the_file(page, recordings, tmp_path):
    clone(page, recordings["a"], "A text that is long enough for some five seconds of sound, to be heard at once.")
    with page.expect_download() as download:
        page.locator("#result a[download]").click()
    download.value.save_as(tmp_path / "result.wav")
    wait_for_player(page, "ended")
    said = player(page)
    assert int(said["samples"]) == len(soundfile.read(tmp_path / "result.wav")[0])
    assert 0 < float(said["firstMs"]) < 10_000
    assert "first sound was ready" in page.locator("#run").inner_text()
    assert page.outside() == []


def test_the_sound_begins_while_it_is_being_made_and_ends_with_stop(slow_page, slow_server):
    before = slow_server.log.count("Clone cancelled.")
    wait_for_player(slow_page, "playing")
    assert "RTF" not in slow_page.locator("#run").inner_text()
    slow_page.locator("#player").get_by_text(re.compile(r"▶ \d+\.\d s / \d+\.\d s …")).wait_for(timeout=CLONE_SECONDS)
    slow_page.locator("#stop").click(timeout=CLONE_SECONDS)
    wait_for_player(slow_page, "stopped")
    wait_for_cancelled(slow_server, before + 1)


def test_without_the_tick_the_sound_comes_when_it_is_complete(page, recordings):
    page.locator("#live input").uncheck()
    report = clone(page, recordings["a"])
    assert "first sound" not in report
    assert player(page) == {}


def test_playing_the_file_ends_the_playing_at_once(page, recordings):
    clone(page, recordings["a"], "A text that is long enough for some five seconds of sound, to be heard at once.")
    page.locator("#player").get_by_text(re.compile(r"▶ \d+\.\d s / \d+\.\d s$")).wait_for()  # all of it has come
    page.locator("#result").get_by_label("Play", exact=True).click()
    wait_for_player(page, "stopped")


def test_a_voice_can_be_recorded(browser, server, tmp_path):
    """Chromium plays a file in place of the microphone."""
    soundfile.write(tmp_path / "spoken.wav", voice(6.0, 48000).samples, 48000)
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    fake += [f"--use-file-for-fake-audio-capture={tmp_path / 'spoken.wav'}"]
    chromium = browser.browser_type.launch(executable_path=chromium_path(), args=[*CHROMIUM_FLAGS, *fake])
    try:
        page = chromium.new_context(locale="en-GB", permissions=["microphone"]).new_page()
        page.goto(server.url)
        page.get_by_role("button", name="Generate").wait_for()
        page.get_by_label("Record audio").click()
        page.locator("#reference button.record-button").click()
        page.wait_for_timeout(3000)
        page.locator("#reference button.stop-button").click()
        page.locator("#reference").get_by_label("Play", exact=True).wait_for()
        assert "RTF" in clone(page, None)
    finally:
        chromium.close()


def test_the_page_fits_a_phone(browser, server, recordings):
    with browser.new_context(locale="en-GB", viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        page.goto(server.url)
        page.get_by_role("button", name="Generate").wait_for()
        clone(page, recordings["a"])
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
        assert page.locator("#heading").bounding_box()["width"] > 300  # the whole width
        for tab in TABS:
            open_tab(page, tab)
            page.wait_for_timeout(500)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390, tab
        # The tables can be scrolled where they are wider than the screen.
        assert page.evaluate("() => getComputedStyle(document.querySelector('.stepaudio-run')).overflowX") == "auto"


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_the_switches_are_whole_on_a_phone(browser, server, locale):
    with browser.new_context(locale=locale, viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        page.goto(server.url)
        for switch in ("#language", "#dark"):
            page.locator(switch).wait_for()
            box = page.locator(switch).bounding_box()
            assert box["x"] >= 0, switch
            assert box["x"] + box["width"] <= 390, switch
        page.locator("#dark").click()  # nothing lies over it
        assert page.evaluate("() => document.body.classList.contains('dark')")


def test_nothing_of_all_this_left_a_traceback_in_the_log(server):
    """Behind the others on purpose, and before the forged paths: Gradio logs a traceback for those."""
    log = server.log
    assert "Total time" in log
    assert "Traceback" not in log


def ask_gradio(server: Server, function: int, data: list) -> dict:
    """Call a function of the page as its scripts do, and return how that ended."""
    joined = httpx.post(
        f"{server.url}/gradio_api/queue/join", json={"data": data, "fn_index": function, "session_hash": "forger"}
    )
    assert joined.status_code == 200, joined.text
    with httpx.stream(
        "GET", f"{server.url}/gradio_api/queue/data", params={"session_hash": "forger"}, timeout=60
    ) as stream:
        events = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    (done,) = [event for event in events if event["msg"] == "process_completed"]
    return done


@pytest.mark.parametrize("path", ["/etc/hostname", "{folder}/outside.wav", "http://127.0.0.1:{port}/health/live"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_forged_path_is_neither_read_nor_fetched(server, tmp_path, path, loaded):
    """A client may send any path in place of its upload's; once, the server copied that file for it."""
    soundfile.write(server.folder / "outside.wav", voice(2.0).samples, 24000)
    path = path.format(folder=server.folder, port=server.port)
    config = httpx.get(f"{server.url}/config").json()
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    values = {part["id"]: part["props"].get("value") for part in config["components"]}
    (generate,) = [d for d in config["dependencies"] if [ids["generate"], "click"] in d["targets"]]
    (load,) = [d for d in config["dependencies"] if any(target[1] == "load" for target in d["targets"])]
    values[ids["reference"]] = {"path": path, "meta": {"_type": "gradio.FileData"}}
    if loaded:  # the page's words make Gradio create its components anew
        assert ask_gradio(server, load["id"], ["en"])["success"] is True
    held = set((server.folder / "gradio").rglob("*"))
    blocks = server.log.count("Total time")
    done = ask_gradio(server, generate["id"], [values[number] for number in generate["inputs"]])
    assert done["success"] is False
    assert set((server.folder / "gradio").rglob("*")) == held
    assert server.log.count("Total time") == blocks
