"""Mini in a real browser: what a newcomer sees first speaks, with a preset voice and a text to begin with."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soundfile

from stepaudio.text import speaking_seconds
from stepaudio.types import FloatArray
from tests.server import ROOT, Server
from tests.test_browser import CLONE_SECONDS, browser  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser

FRAME_SECONDS = 0.04


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("mini"), {"STEPAUDIO_MODELS_DIR": str(ROOT / "models")}).start()
    yield running
    running.kill()


@pytest.fixture
def page(browser, server):  # noqa: F811
    with browser.new_context(locale="en-GB", accept_downloads=True) as context:
        page = context.new_page()
        page.goto(server.url)
        page.get_by_role("button", name="Generate").wait_for()
        yield page


def frames_of(samples: FloatArray, rate: int) -> FloatArray:
    """Return (n, frame) of a sound."""
    length = int(FRAME_SECONDS * rate)
    return samples[: len(samples) // length * length].reshape(-1, length)


def voiced_share(samples: FloatArray, rate: int) -> float:
    """Return how much of what is loud has a pitch between 70 and 400 Hz, by the autocorrelation of each frame."""
    frames = frames_of(samples, rate) - samples.mean()
    energy = np.square(frames).sum(1)
    loud = frames[energy > 0.05 * energy.max()]
    spectra = np.abs(np.fft.rfft(loud, 2 * loud.shape[1])) ** 2
    correlations = np.fft.irfft(spectra)[:, : loud.shape[1]]
    best = correlations[:, rate // 400 : rate // 70].max(1) / correlations[:, 0]
    return float(np.mean(best > 0.5))


def test_a_preset_speaks_an_example_and_what_comes_sounds_like_speech(page, tmp_path):
    page.locator("#presets").get_by_text("Nora").click()
    page.wait_for_function("() => document.querySelector('#transcript textarea').value.includes('kettle')")
    page.locator("#examples button").nth(1).click()
    text = page.locator("#text textarea").input_value()
    assert len(text.split()) > 4
    page.locator("#text-facts").get_by_text(re.compile(rf"^{len(text)}\b")).wait_for()
    page.get_by_role("button", name="Generate").click()
    page.locator("#run").get_by_text("RTF").first.wait_for(timeout=CLONE_SECONDS)
    assert not page.locator("#error").is_visible()
    with page.expect_download() as download:
        page.locator("#result a[download]").click()
    download.value.save_as(tmp_path / "result.wav")
    samples, rate = soundfile.read(tmp_path / "result.wav", dtype="float32")

    expected = speaking_seconds(text)
    assert 0.5 * expected < len(samples) / rate < 2 * expected
    assert 0.01 < float(np.sqrt(np.mean(samples**2))) < 0.5
    assert float(np.abs(samples).max()) < 0.999
    loudness = np.sqrt(np.square(frames_of(samples, rate)).mean(1))
    assert loudness.std() / loudness.mean() > 0.3  # syllables and pauses, no hum
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / rate)
    assert power[(hertz > 80) & (hertz < 4000)].sum() > 0.8 * power.sum()
    assert voiced_share(samples, rate) > 0.3  # noise has none


def test_the_page_says_what_mini_is_and_how_to_get_the_real_model(page):
    notice = page.get_by_text("This is mini")
    notice.wait_for()
    assert "python -m stepaudio download" in notice.inner_text()


def test_nothing_of_all_this_left_a_traceback_in_the_log(server):
    assert "Traceback" not in server.log
    assert "no real weights" in server.log
