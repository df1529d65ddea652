"""Speech through the official OpenAI client, unmodified, and what lies beside its happy path."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import zipfile

import httpx
import numpy as np
import openai
import pytest
import soundfile

from stepaudio.errors import GenerationError
from stepaudio.queue import JobQueue
from tests.api.kit import LONG, SHORT, until
from tests.api.test_stream import told
from tests.test_audiostream import decoded
from tests.test_speech_stream import failing_model

A_NUMBER = "it must be a number."


@pytest.fixture
def speak(openai_client, ada):
    """Ask the official client for speech; what is given replaces the short request that it makes otherwise."""

    def ask(streamed=False, stepaudio=None, **fields):
        asked = {"model": "tts-1", "voice": "Ada", "input": "Hello.", "response_format": "wav", **fields}
        body = {"stepaudio": {**SHORT, **(stepaudio or {})}}
        create = openai_client.audio.speech.with_streaming_response if streamed else openai_client.audio.speech
        return create.create(**asked, extra_body=body)

    return ask


def samples_of(wav: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
    assert rate == 24_000
    return samples


def test_the_official_client_makes_speech(speak):
    answer = speak()
    assert len(samples_of(answer.content)) == 5 * 2880
    headers = answer.response.headers
    assert headers["content-type"] == "audio/wav"
    assert re.fullmatch("[0-9a-f]{8}", headers["x-request-id"])
    assert headers["x-stepaudio-seed"] == "3"
    assert headers["x-stepaudio-cache"] == "hit"
    assert re.search(r"funasr;dur=[\d.]+;desc=\"hit\"", headers["server-timing"])


def test_the_official_client_gets_the_sound_while_it_is_made(speak, service):
    more = {"max_seconds": 15.0}
    with speak(streamed=True, input=LONG, response_format="pcm", stepaudio=more) as answer:
        parts = answer.iter_bytes()
        first = next(parts)
        assert service.queue.running == 1  # still at work
        rest = list(parts)
    assert 2 * 120 * 2880 < len(first) + sum(map(len, rest)) <= 2 * 125 * 2880
    assert len(rest) >= 5


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_that_openai_names(speak, name):
    answer = speak(response_format=name)
    kind = {"mp3": "mpeg", "opus": "ogg"}.get(name, name)
    assert answer.response.headers["content-type"] == f"audio/{kind}"
    assert len(decoded(answer.content, name)) == pytest.approx(5 * 2880, abs=3000)


def test_without_a_format_it_is_mp3_as_at_openai(client, ada):
    body = {"model": "gpt-4o-mini-tts", "voice": {"id": ada}, "input": "Hello.", "stepaudio": SHORT}
    answer = client.post("/v1/audio/speech", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")


def test_server_sent_events_carry_the_same_sound(speak):
    """The events are decoded by the official client's own decoder."""
    with speak(streamed=True, stream_format="sse", response_format="pcm") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        decoder = openai._streaming.SSEDecoder()
        events = [json.loads(event.data) for event in decoder.iter_bytes(answer.iter_bytes())]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert sound == samples_of(speak().content).astype("<i2").tobytes()
    assert events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["output_tokens"] == 25
    assert usage["total_tokens"] == usage["input_tokens"] + 25
    assert usage["input_tokens"] > 25


def test_the_same_seed_gives_the_same_samples_and_another_does_not(speak):
    first, again, other = (speak(stepaudio={"seed": seed}).content for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_without_a_seed_the_one_that_was_drawn_gives_the_sound_again(speak):
    first = speak(stepaudio={"seed": None})
    seed = int(first.response.headers["x-stepaudio-seed"])
    assert speak(stepaudio={"seed": seed}).content == first.content


def test_in_one_piece_the_headers_tell_every_stage(speak):
    answer = speak(stepaudio={"stream": False})
    header = answer.response.headers["server-timing"]
    stages = dict(re.findall(r"([a-z-]+);dur=([\d.]+)", header))
    assert {"get-engine", "clone", "decode-audio", "funasr", "llm", "flow", "vocoder", "total"} <= set(stages)
    assert len(samples_of(answer.content)) == 5 * 2880
    assert answer.response.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("sent", [{}, {"stream": False}, {"takes": 2}], ids=["as it is made", "whole", "takes"])
def test_speed_changes_the_length(speak, sent):
    def lengths(speed: float) -> list[int]:
        content = speak(speed=speed, stepaudio={"max_seconds": 3, **sent}).content
        if "takes" not in sent:
            return [len(samples_of(content))]
        archive = zipfile.ZipFile(io.BytesIO(content))
        return [len(samples_of(archive.read(name))) for name in archive.namelist() if name.endswith(".wav")]

    plain, fast = lengths(1.0), lengths(2.0)
    assert len(plain) == sent.get("takes", 1)
    assert fast == pytest.approx([length / 2 for length in plain], rel=0.05)


def test_another_transcript_of_the_reference_is_another_prompt(speak):
    assert speak(stepaudio={"transcript": "other words"}).content != speak().content


def test_several_takes_come_in_one_archive_and_each_can_be_made_again(speak):
    answer = speak(stepaudio={"takes": 3})
    assert answer.response.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["take-01.wav", "take-02.wav", "take-03.wav", "manifest.json"]
    records = json.loads(archive.read("manifest.json"))
    assert [record["file"] for record in records] == archive.namelist()[:3]
    sounds = [samples_of(archive.read(name)) for name in archive.namelist()[:3]]
    assert not np.array_equal(sounds[0], sounds[1])
    for record, sound in zip(records, sounds, strict=True):
        again = speak(stepaudio={"seed": record["seed"], "stream": False})
        np.testing.assert_array_equal(samples_of(again.content), sound)


def test_a_voice_speaks_by_its_name_in_any_case(speak):
    np.testing.assert_array_equal(samples_of(speak(voice="ADA ").content), samples_of(speak(voice="Ada").content))


@pytest.mark.parametrize("name", ["Grace", "grace", "GRACE"])
def test_a_voice_that_came_with_the_weights_speaks_by_its_name_and_its_id(speak, client, name):
    assert len(samples_of(speak(voice=name).content)) == 5 * 2880
    shown = client.get("/v1/voices/grace").json()
    assert (shown["name"], shown["preset"]) == ("Grace", True)
    assert shown in client.get("/v1/voices").json()["data"]


@pytest.mark.parametrize(
    ("fields", "kind", "param", "expected"),
    [
        ({"model": "gpt-99"}, openai.NotFoundError, None, "There is no model 'gpt-99' here"),
        ({"voice": "alloy"}, openai.NotFoundError, None, "There is no saved voice 'alloy'"),
        ({"voice": "../../etc/passwd"}, openai.NotFoundError, None, "There is no saved voice"),
        ({"input": " "}, openai.BadRequestError, None, "The text is empty"),
        ({"input": "a" * 99_999}, openai.BadRequestError, None, "99999"),
        ({"instructions": "Be happy."}, openai.BadRequestError, None, "follows no instructions"),
        ({"speed": 5.0}, openai.UnprocessableEntityError, "speed", "The field speed"),
        ({"response_format": "mp5"}, openai.UnprocessableEntityError, "response_format", "response_format"),
        ({"stepaudio": {"seed": -1}}, openai.UnprocessableEntityError, "stepaudio.seed", "seed"),
        ({"stepaudio": {"colour": "red"}}, openai.UnprocessableEntityError, "stepaudio.colour", "colour"),
        ({"stream_format": "sse", "stepaudio": {"stream": False}}, openai.BadRequestError, None, "goes with neither"),
        ({"stream_format": "sse", "stepaudio": {"takes": 2}}, openai.BadRequestError, None, "goes with neither"),
        ({"stepaudio": {"takes": 17}}, openai.UnprocessableEntityError, "stepaudio.takes", "takes"),
    ],
)
def test_what_is_wrong_reaches_the_official_client_as_its_own_errors(speak, fields, kind, param, expected):
    with pytest.raises(kind) as caught:
        speak(**fields)
    assert expected in caught.value.message
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"voice": 5}, "voice", "The field voice is not right: it must be a text."),
        ({"voice": ""}, "voice", "The field voice is empty."),
        ({"voice": {}}, "voice.id", "The field voice.id is missing."),
        ({"voice": {"id": 5}}, "voice.id", "The field voice.id is not right: it must be a text."),
        ({"voice": {"id": "a", "Name": "b"}}, "voice.Name", "There is no field voice.Name here."),
        ({"Colour": "red"}, "Colour", "There is no field Colour here."),
        ({"input": None}, "input", "The field input is not right: it must be a text."),
        (
            {"input": "a" * 100_001},
            "input",
            "The field input is not right: it may have at most 100000 characters.",
        ),
        ({"speed": "fast"}, "speed", "The field speed is not right: it must be a number."),
        ({"speed": 0}, "speed", "The field speed is not right: it must be at least 0.25."),
        ({"stepaudio": 5}, "stepaudio", "The field stepaudio is not right: it must be an object."),
        (
            {"stepaudio": {"seed": 2**32}},
            "stepaudio.seed",
            "The field stepaudio.seed is not right: it must be at most 4294967295.",
        ),
        *(
            ({"stepaudio": {name: True}}, f"stepaudio.{name}", f"The field stepaudio.{name} is not right: {A_NUMBER}")
            for name in ("seed", "temperature", "top_k", "top_p", "flow_steps", "max_seconds", "takes")
        ),
        ({"speed": True}, "speed", f"The field speed is not right: {A_NUMBER}"),
        (
            {"stepaudio": {"stream": "perhaps"}},
            "stepaudio.stream",
            "The field stepaudio.stream is not right: it must be true or false.",
        ),
        (
            {"stream_format": "x"},
            "stream_format",
            "The field stream_format is not right: it must be 'audio' or 'sse'.",
        ),
    ],
)
def test_a_wrong_field_is_told_without_a_word_of_python(client, fields, param, message):
    body = {"model": "tts-1", "voice": "Ada", "input": "Hello.", **fields}
    error = told(client.post("/v1/audio/speech", json=body))
    assert (error["param"], error["message"]) == (param, message)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"[]", "application/json", "The body must be a JSON object"),
        (b"{}", "text/plain", "The body must be a JSON object, sent with the header 'Content-Type: application/json'."),
        (b"", "application/json", "The body is missing."),
    ],
)
def test_a_wrong_body_is_told_so_too(client, content, kind, message):
    answer = client.post("/v1/audio/speech", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, told(answer)["param"]) == (422, None)
    assert message in told(answer)["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"a":' * 5000,
        b"\xff\xfe",
        b'{"input": "\\ud800", "model": "tts-1", "voice": "Ada"}',
    ],
)
def test_bodies_of_every_wrong_kind_are_told_apart_from_bugs(client, body):
    answer = client.post("/v1/audio/speech", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert told(answer)["type"] == "invalid_request_error"


def test_a_full_line_is_the_official_clients_rate_limit_error(speak, service, monkeypatch):
    release = threading.Event()
    with JobQueue(limit=1) as full:
        monkeypatch.setattr(service, "queue", full)
        for _ in range(2):
            full.submit(lambda job: release.wait(30))
        with pytest.raises(openai.RateLimitError) as caught:
            speak()
        release.set()
    assert caught.value.type == "rate_limit_error"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("whole", [False, True])
def test_a_client_that_leaves_stops_its_job(speak, client, service, whole):
    body = {"model": "tts-1", "voice": "Ada", "input": LONG, "response_format": "pcm"}
    body["stepaudio"] = {"max_seconds": 150, "stream": not whole}
    if whole:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/audio/speech", json=body, timeout=0.3)
    else:
        with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            next(answer.iter_raw())
    until(lambda: service.queue.running == 0 and service.queue.waiting == 0, 5)
    assert speak().content


def test_an_error_amid_server_sent_events_reaches_the_official_client(speak, service, monkeypatch):
    lm = service.engine.pipeline._lm
    monkeypatch.setattr(lm, "generate", failing_model(lm.generate, 200, GenerationError("made up")))
    with speak(streamed=True, input=LONG, stream_format="sse", stepaudio={"max_seconds": 20}) as answer:
        decoder = openai._streaming.SSEDecoder()
        events = [json.loads(event.data) for event in decoder.iter_bytes(answer.iter_bytes())]
    assert events[0]["type"] == "speech.audio.delta"
    assert events[-1]["error"]["message"] == "made up"


def test_a_request_that_takes_too_long_is_ended_and_said_so(make_service):
    from tests.api.kit import RECORDING, serving

    service = make_service(request_seconds=0.5)
    with serving(service) as url, httpx.Client(base_url=url, timeout=30) as client:
        form = {"name": "Ada", "transcript": "the words"}
        assert client.post("/v1/voices", data=form, files={"audio": ("a.wav", RECORDING)}).status_code == 200
        body = {"model": "tts-1", "voice": "Ada", "input": LONG, "response_format": "pcm"}
        body["stepaudio"] = {"max_seconds": 150, "flow_steps": 50, "stream": False}
        answer = client.post("/v1/audio/speech", json=body)
        assert answer.status_code == 503
        assert told(answer)["code"] == "timeout"
        until(lambda: service.queue.running == 0, 5)
