"""The parts of the page that need no page: the chain, the sessions, the pictures, the runs, the download."""

from __future__ import annotations

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

from stepaudio.errors import Cancelled, InvalidInput, WeightsError
from stepaudio.runs import KEPT, RunHistory
from stepaudio.settings import Settings
from stepaudio.snapshot import Progress
from stepaudio.types import EncodingTimes, SpeechTokens, Synthesis, Task, Timings, Waveform
from stepaudio.web.fetching import WeightsFetcher
from stepaudio.web.history import MOST_STEPS, Chain
from stepaudio.web.model_tab import fetch_line
from stepaudio.web.performance_tab import answer, log_box
from stepaudio.web.pictures import axis_ticks, matching_gains, mel_png, waveform_svg
from stepaudio.web.sessions import IDLE_SECONDS, SHELF_SOUNDS, Session, Sessions
from stepaudio.web.tables import runs_table
from tests.conftest import voice


def made(total: float = 1.0, *, hit: bool = False, first: float | None = None) -> Synthesis:
    return Synthesis(
        waveform=voice(2.0),
        tokens=SpeechTokens(np.zeros(5, np.int64)),
        prompt_ids=(),
        timings=Timings(total),
        encoding=EncodingTimes(hit, 0.0, 0.0),
        seed=1,
        stopped="end",
        transcript="words",
        first_sound=first,
    )


# The chain


def test_a_step_comes_from_the_one_that_was_edited():
    chain = Chain()
    chain.start(b"0", "words")
    for parent in (0, 1, 1):
        chain.add(chain.steps[parent], Task("emotion", "happy"), 1, b"x", made())
    assert [step.parent.number for step in chain.steps[1:]] == [0, 1, 1]
    assert chain.selected == 3
    assert [step.number for step in chain.steps[3].line] == [0, 1, 3]
    assert chain.select(0).wav == b"0"
    with pytest.raises(InvalidInput, match="no step 9"):
        chain.select(9)


def test_a_chain_ends_somewhere():
    chain = Chain()
    original = chain.start(b"0", "words")
    for _ in range(MOST_STEPS - 1):
        chain.add(original, Task("vad"), 1, b"x", made())
    with pytest.raises(InvalidInput, match="please clear it"):
        chain.add(original, Task("vad"), 1, b"x", made())
    chain.clear()
    assert chain.current is None


@pytest.mark.parametrize("again", [False, True], ids=["cleared", "begun anew"])
def test_a_result_is_added_only_to_the_step_that_it_came_from(again):
    """While an edit ran the chain was cleared, or begun anew: its step 0 is another sound now."""
    chain = Chain()
    parent = chain.start(b"0", "words")
    chain.clear()
    if again:
        chain.start(b"other", "other words")
    before = chain.steps
    with pytest.raises(InvalidInput, match="was cleared or begun anew meanwhile"):
        chain.add(parent, Task("vad"), 1, b"x", made())
    assert chain.steps == before


# The sessions


def test_a_session_is_its_own_and_outlives_its_connection():
    sessions = Sessions()
    sessions.of("a").tell("1234", "one\ntwo")
    assert [line.split(" ", 1)[1] for line in sessions.of("a").log] == ["[1234] one", "[1234] two"]
    assert not sessions.of("b").log
    sessions.of("a").sent[1] = "may not have come through"
    sessions.lost("a")
    sessions.lost("unknown")
    assert len(sessions.of("a").log) == 2
    assert sessions.of("a").sent == {}
    assert len(sessions) == 2


def test_idle_sessions_are_forgotten_and_so_are_the_oldest_where_sounds_take_too_much():
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0], most_bytes=100)
    for name in "abc":
        now[0] += 1
        sessions.of(name).keep("clone", name.encode() * 40, "")
    now[0] += 1
    sessions.of("c")  # 120 bytes in all: a goes
    assert len(sessions) == 2
    now[0] += IDLE_SECONDS + 1
    sessions.of("c")
    assert len(sessions) == 1


def test_the_shelf_is_bounded_and_keeps_no_sound_twice():
    session = Session()
    first = session.keep("reference", b"same", "words")
    assert session.keep("reference", b"same", "words") is first
    for number in range(SHELF_SOUNDS):
        session.keep("clone", bytes([number]), "")
    assert len(session.shelf) == SHELF_SOUNDS
    assert session.sound(first.number) is None


def test_nothing_in_a_log_becomes_markup():
    session = Session()
    session.tell("1", "<script>alert(1)</script>")
    assert "<script>" not in log_box(session, "en")


# The pictures


def test_pictures_share_one_axis_and_the_shorter_sound_leaves_its_end_clear():
    short, seconds = voice(1.0), 2.0
    data = base64.b64decode(mel_png(short, seconds).removeprefix("data:image/png;base64,"))
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert picture.shape[2] == 4
    width = picture.shape[1]
    assert (picture[:, : width // 2 - 10, 3] == 255).all()
    assert (picture[:, width // 2 + 10 :, 3] == 0).all()
    points = waveform_svg(short, seconds).split('points="')[1].split('"')[0].split()
    assert max(float(point.split(",")[0]) for point in points) == pytest.approx(500, abs=1)


@pytest.mark.parametrize("seconds", [0.12, 0.9, 4.92, 29.9, 300.0])
def test_an_axis_has_a_few_marks_within_it(seconds):
    ticks = axis_ticks(seconds)
    assert 1 <= len(ticks) <= 11
    assert ticks[0] == 0
    assert ticks[-1] <= seconds + 1e-6


def test_levels_are_matched_to_the_quieter_whatever_silence_is_around_it():
    loud = voice(2.0)
    padded = np.concatenate([loud.samples * 0.25, np.zeros(48000, np.float32)])
    gains = matching_gains([loud, Waveform(padded, loud.sample_rate)])
    assert gains == [pytest.approx(0.25, rel=0.02), 1.0]
    assert matching_gains([Waveform(np.zeros(100, np.float32), 24000), loud]) == [1.0, 1.0]


# The runs


def test_runs_are_summed_up_by_kind_with_median_and_95th_percentile():
    history = RunHistory()
    for total in range(1, 102):
        history.add("Clone", made(float(total), hit=True, first=total / 10))
    history.add("Edit", made(3.0))
    clone, edit = history.summaries()
    assert (clone.label, clone.hit, clone.count, clone.total) == ("Clone", True, 101, (51.0, 96.0))
    assert clone.rtf == (pytest.approx(25.5), pytest.approx(48.0))
    assert clone.first_sound == (pytest.approx(5.1), pytest.approx(9.6))
    assert (edit.count, edit.first_sound) == (1, None)
    html = runs_table((clone, edit), "en")
    assert "51.00 / 96.00" in html
    assert "Clone, known voice" in html


def test_no_more_runs_are_remembered_than_told():
    history = RunHistory()
    for _ in range(KEPT + 5):
        history.add("Clone", made())
    assert len(history.runs()) == KEPT


def test_an_answer_is_shown_where_the_documents_have_one(tmp_path, monkeypatch):
    monkeypatch.setattr("stepaudio.web.performance_tab.DOCS", tmp_path)
    assert answer("en") == ""
    (tmp_path / "ANSWER.zh.md").write_text(
        "# 回答\n[数据](../benchmarks/suite.json) [页](https://a.b)", encoding="utf-8"
    )
    assert answer("zh") == "## 回答\n数据 [页](https://a.b)"


# The download


def fetcher(tmp_path, fetch) -> WeightsFetcher:
    return WeightsFetcher(Settings(models_dir=tmp_path / "models"), fetch)


def test_a_download_shows_its_progress_stops_and_goes_on(tmp_path):
    begun, starts = threading.Event(), []

    def fetch(target, *, network, progress, should_stop):
        starts.append(target)
        progress(Progress("a/model.safetensors", 1, 2, 2**30, 4 * 2**30))
        begun.set()
        if len(starts) == 1:
            while not should_stop():
                pass
            raise Cancelled("The download was stopped.")

    loader = fetcher(tmp_path, fetch)
    assert "Will be put into" in fetch_line(loader, "en")
    loader.start()
    assert begun.wait(10)
    assert "1.00 of 4.00 GB: a/model.safetensors" in fetch_line(loader, "en")
    loader.start()  # runs already
    loader.stop()
    assert loader.wait(10).state == "stopped"
    assert 'value="0.2500"' in fetch_line(loader, "en")
    loader.start()
    assert loader.wait(10).state == "done"
    assert starts == [tmp_path / "models" / "step-audio-editx"] * 2
    assert "All is there" in fetch_line(loader, "en")


def test_a_download_that_fails_says_why(tmp_path):
    def fetch(target, **others):
        raise WeightsError("The disk of <models> is full.")

    loader = fetcher(tmp_path, fetch)
    loader.start()
    assert loader.wait(10).state == "failed"
    line = fetch_line(loader, "zh")
    assert "未完成：The disk of &lt;models&gt; is full." in line
