"""The page's handler: whatever a browser sends, there is sound or one sentence, and the service lives on."""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
import re
import threading

import numpy as np
import pytest
import soundfile

from stepaudio.errors import Cancelled
from stepaudio.log import TextFormatter
from stepaudio.queue import FIRST_TURN_SECONDS, JobQueue
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.web import handlers
from stepaudio.web.forms import STOPPED, CloneForm, Knobs
from stepaudio.web.handlers import Tab, run_clone, transcribe
from stepaudio.web.sessions import SessionJobs
from stepaudio.web.tables import run_summary
from tests.conftest import voice

KNOBS = {
    "new_seed": False,
    "seed": 3,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 1.0,
    "max_seconds": 0.5,
    "flow_steps": 1,
}


def form(path, **fields) -> CloneForm:
    knobs = {name: fields.pop(name, value) for name, value in KNOBS.items()}
    defaults = {"audio_path": str(path) if path else None, "transcript": "the words", "text": "Hello."}
    return CloneForm(Knobs(**knobs), **{**defaults, **fields})


def clone(service, path, **fields):
    return run_clone(service, form(path, **fields), Tab(SessionJobs(), "tab", "en"))


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.wav"
    soundfile.write(path, voice(1.0).samples, 24000)
    return path


def nan() -> np.ndarray:
    samples = voice(1.0).samples.copy()
    samples[7] = np.nan
    return samples


BAD_FILES = {
    "empty.wav": (b"", "empty"),
    "silent.wav": (np.zeros(48000, np.float32), "silent"),
    "tenth.wav": (voice(0.1).samples, r"0.10 s long"),
    "letter.wav": (b"a letter, not a sound\n" * 40, "cannot be read"),
    "nan.wav": (nan(), "not numbers"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gives_one_sentence_and_the_next_request_gives_sound(service, good, tmp_path, name, caplog):
    content, expected = BAD_FILES[name]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, content, 24000, subtype="FLOAT")
    view = clone(service, path)
    assert expected in view.error
    assert view.wav is None
    assert "\n" not in view.error
    assert "Traceback" not in caplog.text
    assert clone(service, good).wav is not None


GOOD_FILES = {
    "forty-seconds.wav": (voice(40.0, 16000).samples, 16000),
    "8k.wav": (voice(1.0, 8000).samples, 8000),
    "96k.wav": (voice(1.0, 96000).samples, 96000),
    "stereo.wav": (np.stack([voice(1.0).samples] * 2, axis=1), 24000),
    "compressed.mp3": (voice(1.0).samples, 24000),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_unusual_files_give_sound(service, tmp_path, name):
    samples, rate = GOOD_FILES[name]
    soundfile.write(tmp_path / name, samples, rate)
    view = clone(service, tmp_path / name)
    assert view.error == ""
    assert view.wav[:4] == b"RIFF"
    assert view.synthesis.waveform.seconds > 0
    if name == "forty-seconds.wav":
        assert "40.0 s long; its first 30 s are used" in view.synthesis.notices[0]


def test_a_truncated_file_gives_sound(service, good, tmp_path):
    cut = tmp_path / "cut.wav"
    cut.write_bytes(good.read_bytes()[:36000])
    assert clone(service, cut).wav is not None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "a" * 20_000}, "20000 characters"),
        ({"text": ""}, "The text is empty"),
        ({"transcript": " "}, "transcript of the reference is empty"),
        ({"seed": -4}, "seed"),
        ({"temperature": 99.0}, "temperature is 99"),
        ({"top_p": 0.0}, "top-p"),
        ({"flow_steps": 51}, "flow steps"),
        ({"max_seconds": -1.0}, "longest output"),
    ],
)
def test_bad_fields_give_one_sentence(service, good, fields, expected):
    view = clone(service, good, **fields)
    assert expected in view.error
    assert view.wav is None


@pytest.mark.parametrize("text", ["🎉 hello", "<|EOT|> <audio_3>", "\x00 hello"])
def test_odd_texts_give_sound(service, good, text):
    assert clone(service, good, text=text).wav is not None


def test_emptied_numbers_fall_back_to_the_settings(service, good):
    empty = dict.fromkeys(("seed", "temperature", "top_k", "top_p", "flow_steps"))
    assert clone(service, good, **empty).wav is not None


def test_the_log_of_a_tab_tells_its_stages_and_the_block_of_the_request(service, good):
    told = []
    view = run_clone(
        service, form(good), Tab(SessionJobs(), "tab", "en", tell=lambda name, lines: told.append((name, lines)))
    )
    assert {name for name, _ in told} == {view.request_id}
    assert "Total time" in told[-1][1]
    refused = run_clone(
        service,
        form(good, text=""),
        Tab(SessionJobs(), "tab", "en", tell=lambda name, lines: told.append((name, lines))),
    )
    assert told[-1] == (refused.request_id, "The text is empty.")


def heard(feed) -> bytes:
    """Return what the reader of a feed gets."""

    async def read() -> bytes:
        got = b""
        while (part := await feed.next()) is not None:
            got += part
        return got

    return asyncio.run(asyncio.wait_for(read(), 10))


def test_a_request_with_a_ticket_is_heard_by_its_holder_while_it_is_made(service, good):
    ticket = service.tickets.open()
    feed = service.tickets.claim(ticket, "read")
    view = clone(service, good, ticket=ticket)
    assert view.error == ""
    assert view.wav[44:] == heard(feed)
    assert view.synthesis.first_sound is not None


def test_a_request_that_is_not_accepted_ends_the_wait_of_its_tickets_holder(service):
    ticket = service.tickets.open()
    feed = service.tickets.claim(ticket, "read")
    assert clone(service, None, ticket=ticket).error != ""
    assert heard(feed) == b""
    assert isinstance(feed.error, Cancelled)


def test_several_takes_are_not_played_while_they_are_made(service, good):
    ticket = service.tickets.open()
    feed = service.tickets.claim(ticket, "read")
    view = clone(service, good, ticket=ticket, takes=2)
    assert view.error == ""
    assert [take.synthesis.seed for take in view.takes] == [3, 4]
    assert heard(feed) == b""


def test_a_ticket_that_is_not_good_costs_only_the_playing_at_once(service, good):
    view = clone(service, good, ticket="worn out")
    assert view.wav is not None
    assert view.synthesis.first_sound is None


def test_the_wait_behind_another_request_is_told_before_the_figures(service, good):
    """They begin with the request's turn: alone they read as if it had come at once."""
    quick = clone(service, good)
    assert not [notice for notice in quick.synthesis.notices if "waited" in notice]
    service.queue.submit(lambda job: threading.Event().wait(1.0))
    told = []
    tab = Tab(SessionJobs(), "tab", "en", tell=lambda name, lines: told.append(lines))
    view = run_clone(service, form(good, takes=2), tab)
    for take in view.takes:
        assert re.fullmatch(r"The request waited \d+\.\d s for its turn\.", take.synthesis.notices[0])
    assert "waited" in run_summary(view.synthesis, "en")
    assert "排队等候了" in run_summary(view.synthesis, "zh")
    assert "in the queue" in told[-1]


def test_the_wait_that_is_shown_grows_with_the_place_in_the_line(service, monkeypatch):
    release = threading.Event()
    with JobQueue(limit=8) as line:
        monkeypatch.setattr(service, "queue", line)
        jobs = [line.submit(lambda job: release.wait(30)) for _ in range(4)]
        while jobs[0].state == "waiting":
            jobs[0].wait_for_change(0.1)
        shown = [handlers._progress(service, job, "en")[1] for job in jobs[1:]]
        release.set()
    assert shown == [f"Waiting: {ahead} ahead, about {ahead * FIRST_TURN_SECONDS:.0f} s" for ahead in (1, 2, 3)]


def test_a_request_that_was_stopped_before_it_came_is_not_begun(service, good):
    view = clone(service, good, ticket=STOPPED)
    assert view.error == "The request was stopped while it was on its way."
    assert service.runs.runs() == ()


def test_an_unforeseen_error_is_logged_with_its_traceback_and_shown_with_the_request_id(
    service, good, monkeypatch, caplog
):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(service.engine.pipeline, "clone", broken)
        view = clone(service, good)
    assert view.error == f"Internal error, request {view.request_id}: the server's log says more."
    assert "ZeroDivisionError" in caplog.text
    assert clone(service, good).wav is not None


def test_a_full_queue_is_told_in_one_sentence(service, good, monkeypatch):
    release = threading.Event()
    with JobQueue(limit=1, workers=1) as full:
        monkeypatch.setattr(service, "queue", full)
        running = full.submit(lambda job: release.wait(30))
        while running.state == "waiting":
            running.wait_for_change(0.1)
        full.submit(lambda job: release.wait(30))
        assert clone(service, good).error == "The line is full with 1 waiting; please try again in a minute."
        release.set()


def test_a_new_request_of_a_tab_ends_its_earlier_one_and_no_other_tabs(service, good):
    jobs, started = SessionJobs(), threading.Event()
    views = {}

    def run(name: str, session: str, seconds: float) -> None:
        asked = form(good, max_seconds=seconds, flow_steps=50, text="word " * 60)
        views[name] = run_clone(service, asked, Tab(jobs, session, "en", lambda fraction, words: started.set()))

    threads = [threading.Thread(target=run, args=("first", "a", 5.0))]
    threads[0].start()
    started.wait(30)
    threads += [threading.Thread(target=run, args=(name, name, 0.5)) for name in ("a", "b")]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert views["first"].wav is None
    assert "stopped" in views["first"].error or "cancelled" in views["first"].error
    assert views["a"].wav is not None
    assert views["b"].wav is not None
    assert len(jobs) == 0


def test_words_written_down_beside_a_clone_of_the_same_tab_end_nothing(service, good, monkeypatch):
    """Nor do an edit, and a voice that is saved or imported."""
    jobs, cloned, started = SessionJobs(), threading.Event(), threading.Event()
    tab = Tab(jobs, "tab", "en", lambda fraction, words: started.set())
    monkeypatch.setattr(service, "submit_transcription", lambda audio: service.queue.submit(lambda job: "words"))
    views = []

    def run() -> None:
        views.append(run_clone(service, form(good, max_seconds=5.0, text="word " * 60), tab))
        cloned.set()

    threading.Thread(target=run).start()
    started.wait(30)
    source = form(good).source
    assert transcribe(service, source, tab).value == "words"
    assert cloned.wait(60)
    assert views[0].error == ""


def test_a_stop_ends_all_jobs_of_its_tab_and_no_other_tabs(service):
    jobs, release = SessionJobs(), threading.Event()
    clone, edit, others = (service.queue.submit(lambda job: release.wait(60)) for _ in range(3))
    jobs.begin("tab", "Clone", clone)
    jobs.begin("tab", "Edit", edit)
    jobs.begin("other", "Clone", others)
    jobs.stop("tab")
    release.set()
    assert clone.should_stop()
    assert edit.state == "cancelled"
    assert others.result(60) is True
    assert len(jobs) == 1


def test_a_stop_ends_the_request_of_its_tab(service, good):
    jobs = SessionJobs()

    def show(fraction: float, words: str) -> None:
        jobs.stop("tab")

    asked = form(good, max_seconds=5.0, flow_steps=50, text="word " * 60)
    view = run_clone(service, asked, Tab(jobs, "tab", "en", show))
    assert view.wav is None
    assert "stopped" in view.error or "cancelled" in view.error


def test_the_bar_moves_seldom_enough_for_the_browser_to_keep_up(service, good, monkeypatch):
    def shown(seconds: float) -> int:
        monkeypatch.setattr(handlers, "SHOW_SECONDS", seconds)
        steps: list[float] = []
        tab = Tab(SessionJobs(), "tab", "en", lambda fraction, words: steps.append(fraction))
        assert run_clone(service, form(good, max_seconds=2.0, text="word " * 60), tab).wav
        return len(steps)

    assert shown(0.0) > 3
    assert shown(60.0) == 1


def test_errors_are_told_in_the_language_of_the_page(service, good):
    view = run_clone(service, form(good, text=""), Tab(SessionJobs(), "tab", "zh"))
    assert view.error == "要朗读的文本是空的。"


def test_a_failed_start_is_told_in_its_own_words(tmp_path, good):
    from stepaudio.errors import WeightsError

    def fail():
        raise WeightsError("The file flow.pt in models is damaged.")

    broken = Service(Settings(), fail)
    broken.start()
    assert broken.wait_until_decided(10) == "failed"
    assert clone(broken, good).error == "The file flow.pt in models is damaged."
    broken.close(0)


def test_the_block_of_a_request_stands_in_the_log_under_its_id(service, good, caplog):
    with caplog.at_level(logging.INFO, logger="stepaudio"):
        clone(service, good)
        clone(service, good)
    blocks = [record.getMessage() for record in caplog.records if "Total time" in record.getMessage()]
    assert len(blocks) == 2
    assert blocks[0].startswith("❌ FunASR cache MISS, encoding...\n⏱️ FunASR encoding: ")
    assert blocks[1].startswith("✅ FunASR cache HIT! Total: ")
    assert all(len(block.splitlines()) <= 20 for block in blocks)
    assert "the words" not in caplog.text  # no text of a user in the log


def test_blocks_of_two_parallel_requests_are_contiguous(service, good, tmp_path, monkeypatch, caplog):
    """With two workers, so that two requests really run and finish beside each other."""
    other = tmp_path / "other.wav"
    soundfile.write(other, voice(1.2, pitch=200.0).samples, 24000)
    both = JobQueue(limit=8, workers=2)
    monkeypatch.setattr(service, "queue", both)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    logger = logging.getLogger("stepaudio")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger="stepaudio")
    try:
        threads = [
            threading.Thread(target=lambda path=path: [clone(service, path).wav for _ in range(4)])
            for path in (good, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        logger.removeHandler(handler)
        both.close()
    lines = [line for line in stream.getvalue().splitlines() if "runs with" not in line]
    ids = [re.search(r"\[(\w+)\]", line).group(1) for line in lines]
    changes = sum(a != b for a, b in itertools.pairwise(ids))
    assert len(set(ids)) == 8
    assert changes == 7  # each id's lines stand together
