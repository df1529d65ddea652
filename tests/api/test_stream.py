"""Sound over HTTP while it is being made, from a recording that comes with the request, and by a ticket."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import threading
import time

import httpx
import numpy as np
import pytest
import soundfile

from stepaudio.api import sound
from stepaudio.api.sound import SoundResponse
from stepaudio.errors import GenerationError
from stepaudio.feed import SoundFeed
from stepaudio.queue import JobQueue
from stepaudio.service import CloneRequest, Service
from stepaudio.types import SamplingParams
from tests.api.kit import LONG, RECORDING
from tests.conftest import voice
from tests.test_speech_stream import failing_model


def form(**fields) -> dict:
    asked = {"transcript": "the words", "text": LONG, "seed": "3", "flow_steps": "1", "max_seconds": "2", **fields}
    return {"data": asked, "files": {"audio": ("voice.wav", RECORDING)}}


def told(answer: httpx.Response) -> dict:
    """Return the error object of an answer, which holds that alone."""
    assert list(answer.json()) == ["error"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]


def job_of(service: Service, monkeypatch) -> list:
    """Return a list that gets each job that is submitted from now on."""
    jobs = []
    submit = service.queue.submit
    monkeypatch.setattr(service.queue, "submit", lambda *args, **kw: jobs.append(submit(*args, **kw)) or jobs[-1])
    return jobs


def test_a_form_becomes_a_wav_of_unknown_length_and_the_same_as_pcm(client):
    wav = client.post("/stream", **form())
    pcm = client.post("/stream?format=pcm", **form())
    assert (wav.status_code, wav.headers["content-type"]) == (200, "audio/wav")
    assert wav.content[40:44] == b"\xff\xff\xff\xff"
    samples, rate = soundfile.read(io.BytesIO(wav.content), dtype="int16")
    assert (len(samples), rate) == (16 * 2880, 24_000)
    assert (pcm.status_code, pcm.headers["content-type"]) == (200, "audio/pcm")
    assert {name: pcm.headers[name] for name in ("x-sample-rate", "x-sample-format", "x-channels")} == {
        "x-sample-rate": "24000",
        "x-sample-format": "s16le",
        "x-channels": "1",
    }
    np.testing.assert_array_equal(np.frombuffer(pcm.content, "<i2"), samples)
    assert "content-length" not in pcm.headers


def test_the_first_bytes_come_long_before_the_sound_is_complete_and_the_log_tells_when(client, service, caplog):
    caplog.set_level(logging.INFO, logger="stepaudio")
    times = []
    with client.stream("POST", "/stream?format=pcm", **form(max_seconds="15")) as answer:
        received = sum((times.append(time.monotonic()), len(part))[1] for part in answer.iter_raw())
        request_id = answer.headers["x-request-id"]
    assert 2 * 120 * 2880 < received <= 2 * 125 * 2880
    assert len(times) >= 8
    (block,) = [r.getMessage() for r in caplog.records if "Total time" in r.getMessage()]
    total, first = (float(re.search(p, block)[1]) for p in (r"Total time: ([\d.]+)s", r"first sound ([\d.]+)s"))
    assert first < total / 2
    assert times[-1] - times[0] > total / 3
    assert len(block.splitlines()) <= 20
    assert re.fullmatch("[0-9a-f]{8}", request_id)


@pytest.mark.parametrize(
    ("path", "fields", "files", "status", "expected"),
    [
        ("/stream", {"text": " "}, None, 400, "The text is empty."),
        ("/stream", {"text": ""}, None, 422, "The field text is missing."),
        ("/stream", {"seed": "many"}, None, 422, "The field seed is not right: it must be a whole number."),
        ("/stream", {"seed": "nan"}, None, 422, "The field seed is not right: it must be a whole number."),
        ("/stream", {"temperature": "99"}, None, 422, "The field temperature is not right: it must be at most 2."),
        ("/stream", {"speed": "2"}, None, 422, "There is no field speed here."),
        ("/stream?format=mp5", {}, None, 422, "The field format is not right: it must be 'wav', 'pcm'"),
        ("/stream", {}, {}, 422, "The field audio is missing."),
        ("/stream", {"audio": "a.wav"}, {}, 422, "The field audio is not right: it must be a file."),
        ("/stream", {}, {"audio": ("a.wav", b"")}, 400, "The file audio is empty"),
        ("/stream", {}, {"audio": ("a.wav", b"a letter" * 99)}, 415, "cannot be read as sound"),
        ("/stream", {}, {"audio": ("a.wav", bytes(4_000_000))}, 413, "at most 3 MB"),
    ],
)
def test_what_is_wrong_has_a_status_and_one_sentence(client, path, fields, files, status, expected):
    asked = form(**fields)
    answer = client.post(path, data=asked["data"], files=asked["files"] if files is None else files)
    assert answer.status_code == status
    message = told(answer)["message"]
    assert expected in message
    assert "\n" not in message


def test_a_body_that_is_no_form_is_told_so(client):
    answer = client.post("/stream", content=b"x=1", headers={"Content-Type": "multipart/form-data; boundary=xx"})
    assert answer.status_code == 400
    assert told(answer)["type"] == "invalid_request_error"


def test_a_full_line_is_429_and_says_when_to_come_again(client, service, monkeypatch):
    release = threading.Event()
    with JobQueue(limit=1) as full:
        monkeypatch.setattr(service, "queue", full)
        for _ in range(2):
            full.submit(lambda job: release.wait(30))
        answer = client.post("/stream", **form())
        release.set()
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "The line is full" in told(answer)["message"]
    assert told(answer)["type"] == "rate_limit_error"


def test_an_unforeseen_error_before_the_first_byte_is_told_by_its_request_id(client, service, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(service.engine.pipeline, "stream", broken)
    answer = client.post("/stream", **form())
    assert answer.status_code == 500
    assert re.fullmatch(r"Internal error, request [0-9a-f]{8}: the server's log says more\.", told(answer)["message"])
    assert "ZeroDivisionError" in caplog.text


def test_an_error_after_the_first_byte_ends_the_connection_abnormally(client, service, monkeypatch):
    lm = service.engine.pipeline._lm
    monkeypatch.setattr(lm, "generate", failing_model(lm.generate, 200, GenerationError("made up")))
    with client.stream("POST", "/stream", **form(max_seconds="20")) as answer:
        assert answer.status_code == 200
        parts = answer.iter_raw()
        assert len(next(parts)) > 0
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            list(parts)


@pytest.mark.parametrize("after", ["the first byte", "the question"])
def test_a_client_that_leaves_stops_its_job_within_a_second(client, service, monkeypatch, after):
    jobs = job_of(service, monkeypatch)
    if after == "the first byte":
        with client.stream("POST", "/stream", **form(max_seconds="150")) as answer:
            next(answer.iter_raw())
    else:
        with pytest.raises(httpx.ReadTimeout):
            # Fifty steps: nothing can be there before the client has gone.
            client.post("/stream", **form(max_seconds="150", flow_steps="50"), timeout=0.05)
    start = time.monotonic()
    while not (jobs and jobs[0].over):
        assert time.monotonic() - start < 5
        time.sleep(0.01)
    if after == "the first byte":
        assert time.monotonic() - start < 1.0
    assert jobs[0].state == "cancelled"
    assert client.post("/stream", **form()).status_code == 200


def test_a_client_that_takes_nothing_for_too_long_is_dropped(service, monkeypatch):
    monkeypatch.setattr(sound, "STALLED_SECONDS", 0.2)
    sent = []

    async def stuck(message):
        sent.append(message)
        if message.get("body"):
            await asyncio.sleep(60)

    feed = SoundFeed()
    feed.put(voice(1.0))
    feed.end()
    response = SoundResponse(service, feed, "pcm")
    asyncio.run(asyncio.wait_for(response({}, lambda: asyncio.sleep(60), stuck), 5))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["more_body"]  # nothing says that this was all


def test_a_ticket_leads_to_the_sound_of_its_job_once_and_for_nobody_else(client, service):
    ticket, other = (client.post("/stream/tickets").json()["ticket"] for _ in range(2))
    feed = service.tickets.claim(ticket, "write")
    assert ticket != other
    request = CloneRequest(
        audio=RECORDING,
        transcript="the words",
        text=LONG,
        sampling=SamplingParams(seed=3),
        flow_steps=1,
        max_seconds=2.0,
    )
    job = service.submit_stream(request, feed)
    answer = client.get(f"/stream/{ticket}")
    assert answer.status_code == 200
    assert b"".join((job.result(30).wav[:44], answer.content)) == job.result(30).wav
    again = client.get(f"/stream/{ticket}")
    assert (again.status_code, told(again)["code"]) == (404, "not_found")
    assert client.get("/stream/guessed").status_code == 404


def test_a_ticket_without_a_job_is_answered_in_time(client, monkeypatch):
    monkeypatch.setattr(sound, "TICKET_SECONDS", 0.3)
    answer = client.get("/stream/" + client.post("/stream/tickets").json()["ticket"])
    assert answer.status_code == 499
    assert told(answer)["message"] == "No request came with this ticket."


def test_the_page_loads_its_player_from_here(client):
    page = client.get("/").text
    assert 'src=\\"/stream/player.js\\"' in page
    player = client.get("/stream/player.js")
    assert player.headers["content-type"].startswith("text/javascript")
    assert "stepaudioPlayer" in player.text
    assert "http" not in player.text
