"""The HTTP application: alive at once, ready when warm, the page at the root, documented, counted."""

from __future__ import annotations

import re
import threading

import pytest
from fastapi.testclient import TestClient

from stepaudio.api import build_app
from stepaudio.errors import WeightsError
from stepaudio.service import Service
from stepaudio.settings import Settings
from tests.api.kit import RECORDING, SHORT
from tests.api.test_stream import told


def test_alive_at_once_and_ready_only_once_warm(kept_engine, tmp_path):
    gate = threading.Event()

    def load():
        gate.wait(30)
        return kept_engine

    service = Service(Settings(cache_dir=tmp_path / "cache"), load)
    service.start()
    with TestClient(build_app(service)) as client:
        assert client.get("/health/live").json() == {"status": "live"}
        early = client.get("/health/ready")
        assert (early.status_code, early.json()) == (503, {"status": "loading"})
        speech = client.post("/v1/audio/speech", json={"model": "tts-1", "voice": "Ada", "input": "Hello."})
        assert speech.status_code == 503
        assert speech.headers["retry-after"] == "5"
        assert "still being loaded" in speech.json()["error"]["message"]
        assert client.get("/v1/models").json() == {"object": "list", "data": []}
        gate.set()
        assert service.wait_until_decided(60) == "ready"
        late = client.get("/health/ready")
        assert (late.status_code, late.json()) == (200, {"status": "ready"})
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["test-weights"]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_the_health_checks_answer_monitors_that_want_no_body(client, path):
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_failed_start_is_told_by_the_health_check_and_the_api():
    def fail():
        raise WeightsError("The file hift.pt in models is missing.")

    broken = Service(Settings(), fail)
    broken.start()
    broken.wait_until_decided(10)
    with TestClient(build_app(broken)) as client:
        answer = client.get("/health/ready")
        speech = client.post("/v1/audio/speech", json={"model": "tts-1", "voice": "Ada", "input": "Hello."})
    assert answer.status_code == 503
    assert answer.json() == {"status": "failed", "problem": "The file hift.pt in models is missing."}
    assert speech.status_code == 503
    assert speech.json()["error"]["message"] == "The file hift.pt in models is missing."
    assert "retry-after" not in speech.headers


def test_the_page_is_at_the_root_and_names_nothing_outside(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "stepaudio" in page.text
    for host in ("fonts.googleapis.com", "fonts.gstatic.com"):
        assert host not in page.text


def test_the_documentation_loads_nothing_from_elsewhere(client):
    docs = client.get("/docs")
    assert docs.status_code == 200
    assert "http://" not in docs.text
    assert "https://" not in docs.text
    named = re.findall(r'(?:src|href)="([^"]+)"', docs.text)
    assert len(named) >= 2
    for place in named:
        assert client.get(place).status_code == 200, place
    assert "/openapi.json" in docs.text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/audio/speech", "/v1/audio/edits", "/v1/voices", "/v1/batch", "/v1/tags", "/stream"} <= set(paths)


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed", "sentence"),
    [
        ("GET", "/v1/nothing", 404, None, "There is nothing at /v1/nothing; see /docs."),
        ("GET", "/v1", 404, None, "There is nothing at /v1; see /docs."),
        ("GET", "/v1/audio/speech", 405, "POST", "GET is not possible at /v1/audio/speech; only POST is."),
        ("PUT", "/v1/voices", 405, "GET, POST", "PUT is not possible at /v1/voices; only GET and POST are."),
        ("GET", "/stream", 405, "POST", "GET is not possible at /stream; only POST is."),
        ("POST", "/stream/", 404, None, "There is nothing at /stream/; see /docs."),
        ("POST", "/metrics", 405, "GET", "POST is not possible at /metrics; only GET is."),
    ],
)
def test_what_is_not_there_is_told_by_the_api_and_not_the_page(client, method, path, status, allowed, sentence):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"] == sentence
    assert answer.headers.get("allow") == allowed
    assert answer.headers["x-request-id"]


def test_a_bug_is_told_as_an_error_object_whose_id_is_in_the_log(client, service, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(service.engine.pipeline, "edit", broken)
    monkeypatch.setattr(service.voices, "list", broken)
    for answer in (
        client.post("/v1/audio/edits", data={"task": "denoise"}, files={"audio": ("a.wav", RECORDING)}),
        client.get("/v1/voices"),
    ):
        request_id = answer.headers["x-request-id"]
        assert (answer.status_code, told(answer)["code"]) == (500, "internal_error")
        assert told(answer)["message"] == f"Internal error, request {request_id}: the server's log says more."
        assert "ZeroDivisionError" in caplog.text


def test_no_other_origin_may_read_anything(client):
    answer = client.get("/v1/voices", headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in answer.headers


def numbers(client) -> dict[str, float]:
    text = client.get("/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_the_metrics_tell_what_was_done(client, ada):
    before = numbers(client)
    body = {"model": "tts-1", "voice": ada, "input": "Hello.", "response_format": "wav", "stepaudio": SHORT}
    assert client.post("/v1/audio/speech", json=body).status_code == 200
    assert client.post("/v1/audio/speech", json={**body, "input": " "}).status_code == 400
    after = numbers(client)

    def rise(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert rise('stepaudio_requests_total{outcome="done",task="Clone"}') == 1
    assert rise('stepaudio_requests_total{outcome="refused",task="Clone"}') == 1
    assert rise('stepaudio_http_responses_total{method="POST",route="/v1/audio/speech",status="200"}') == 1
    assert rise('stepaudio_http_responses_total{method="POST",route="/v1/audio/speech",status="400"}') == 1
    assert rise('stepaudio_sound_seconds_total{task="Clone"}') == pytest.approx(0.6)
    assert rise("stepaudio_tokens_total") == 25
    for stage in ("FunASR", "LLM", "Flow", "Vocoder", "Decode audio"):
        assert rise(f'stepaudio_stage_seconds_count{{stage="{stage}",task="Clone"}}') == 1
    assert rise('stepaudio_first_sound_seconds_count{task="Clone"}') == 1
    assert rise('stepaudio_rtf_count{task="Clone"}') == 1
    assert rise("stepaudio_tokens_per_second_count") == 1
    assert rise("stepaudio_cache_hits_total") >= 1
    assert after["stepaudio_ready"] == 1
    assert after["stepaudio_queue_waiting"] == 0
    assert {"stepaudio_cache_seconds_saved", "stepaudio_cache_misses_total", "process_open_fds"} <= set(after)
