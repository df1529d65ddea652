"""The end of the program as clients of the API see it, who are still there."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from stepaudio.api import sound
from tests.api.kit import RECORDING, SHORT, serving, until
from tests.api.test_stream import told


@pytest.fixture
def stopping(make_service):
    """A service whose line is held up, and a client of its server."""
    service = make_service()
    release = threading.Event()
    with serving(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        form = {"name": "Ada", "transcript": "the words"}
        assert client.post("/v1/voices", data=form, files={"audio": ("a.wav", RECORDING)}).status_code == 200
        service.queue.submit(lambda job: release.wait(30))
        yield service, client
        release.set()


def speech(**fields) -> dict:
    return {"model": "tts-1", "voice": "Ada", "input": "Hello.", **fields}


def test_who_waits_when_the_time_is_over_is_told_that_the_program_ends(stopping):
    service, client = stopping
    with ThreadPoolExecutor(3) as threads:
        asked = [
            threads.submit(client.post, "/v1/audio/speech", json=speech(stepaudio={**SHORT, "stream": stream}))
            for stream in (True, False)
        ]
        asked.append(
            threads.submit(
                client.post, "/v1/audio/edits", data={"task": "denoise"}, files={"audio": ("a.wav", RECORDING)}
            )
        )
        until(lambda: service.queue.waiting == 3)
        assert not service.drain(0.1)
        answers = [answer.result(30) for answer in asked]
    for answer in answers:
        assert (answer.status_code, told(answer)["code"]) == (503, "shutting_down")
        assert "being shut down" in told(answer)["message"]
        assert len(answer.headers["x-request-id"]) == 8  # the job's


def test_no_batch_is_begun_that_would_not_be_made(stopping):
    service, client = stopping
    service.drain(0.1)
    refused = client.post("/v1/batch", json={**speech(), "input": ["One.", "Two."]})
    assert (refused.status_code, told(refused)["code"]) == (503, "shutting_down")


def test_a_sound_that_the_end_breaks_off_says_so_in_its_last_event(make_service, monkeypatch):
    service = make_service()
    begun, generate = threading.Event(), service.engine.pipeline.stream

    def held(*args, should_stop, **options):
        stream = generate(*args, should_stop=should_stop, **options)
        into = stream.into

        def slowly(put):
            def putting(piece):
                put(piece)
                begun.set()
                until(should_stop, 30)

            return into(putting)

        monkeypatch.setattr(stream, "into", slowly)
        return stream

    monkeypatch.setattr(service.engine.pipeline, "stream", held)
    with serving(service) as url, httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(1) as threads:
        form = {"name": "Ada", "transcript": "the words"}
        assert client.post("/v1/voices", data=form, files={"audio": ("a.wav", RECORDING)}).status_code == 200
        body = speech(input="Hello. " * 40, stream_format="sse", stepaudio={"max_seconds": 20, "flow_steps": 1})
        asked = threads.submit(client.post, "/v1/audio/speech", json=body)
        assert begun.wait(30)
        service.drain(0.1)
        answer = asked.result(30)
    assert answer.status_code == 200
    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert "being shut down" in last["error"]["message"]


@pytest.mark.parametrize("takes", [1, 2])
def test_others_are_answered_while_a_sound_is_encoded(client, url, ada, monkeypatch, takes):
    encode = sound.encode_whole
    alive = []

    def slow(*args):
        alive.append(httpx.get(f"{url}/health/live", timeout=10).status_code)
        return encode(*args)

    monkeypatch.setattr(sound, "encode_whole", slow)
    body = speech(stepaudio={**SHORT, "takes": takes, "stream": False})
    assert client.post("/v1/audio/speech", json=body).status_code == 200
    form = {"task": "denoise", "voice": ada, **{name: str(value) for name, value in SHORT.items()}}
    assert client.post("/v1/audio/edits", data=form).status_code == 200
    assert alive == [200] * (takes + 1)
