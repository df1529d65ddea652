"""Saved voices over HTTP."""

from __future__ import annotations

import errno
import logging
import tempfile
import time

import httpx
import pytest

from tests.api.kit import RECORDING, SHORT, serving
from tests.api.test_stream import told

FORM = {"name": "Bob", "transcript": "the words", "language": "en", "consent": "Bob, on paper"}
FILE = {"audio": ("b.wav", RECORDING)}


def test_a_voice_is_saved_shown_and_removed(client, service):
    made = client.post("/v1/voices", data=FORM, files=FILE)
    assert made.status_code == 200
    voice = made.json()
    assert voice["object"] == "audio.voice"
    assert {name: voice[name] for name in FORM} == FORM
    assert voice["seconds"] == 2.0
    assert abs(voice["created_at"] - time.time()) < 60
    assert client.get(f"/v1/voices/{voice['id']}").json() == voice
    assert voice in client.get("/v1/voices").json()["data"]
    gone = client.delete(f"/v1/voices/{voice['id']}")
    assert gone.json() == {"id": voice["id"], "object": "audio.voice.deleted", "deleted": True}
    assert voice not in client.get("/v1/voices").json()["data"]
    for method in (client.get, client.delete):
        answer = method(f"/v1/voices/{voice['id']}")
        assert (answer.status_code, told(answer)["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("form", "files", "status", "expected"),
    [
        ({**FORM, "name": " "}, FILE, 400, "The name of the voice is empty"),
        ({**FORM, "transcript": " "}, FILE, 400, "transcript of the reference is empty"),
        ({**FORM, "name": "x" * 81}, FILE, 400, "81 characters"),
        ({"name": "Bob"}, FILE, 422, "transcript"),
        (FORM, None, 422, "audio"),
        (FORM, {"audio": ("b.wav", b"no sound")}, 415, "cannot be read as sound"),
        (FORM, {"audio": ("b.wav", b"")}, 400, "The file audio is empty"),
        ({**FORM, "id": "1"}, FILE, 422, "id"),
    ],
)
def test_what_cannot_be_a_voice_is_told_and_nothing_is_saved(client, service, form, files, status, expected):
    answer = client.post("/v1/voices", data=form, files=files)
    assert answer.status_code == status
    assert expected in told(answer)["message"]
    assert not [voice for voice in service.voices.list() if voice.name == "Bob"]


def test_a_full_temporary_disk_is_the_servers_fault_and_is_told_so(client, monkeypatch, caplog):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
    with caplog.at_level(logging.WARNING, "stepaudio"):
        answer = client.post("/v1/voices", data=FORM, files={"audio": ("b.wav", bytes(1_200_000))})
    assert (answer.status_code, told(answer)["code"]) == (507, "no_room")
    assert answer.headers["retry-after"] == "60"
    assert "cannot be kept: No space left on device" in caplog.text


@pytest.mark.parametrize("place", ["x", "0" * 16, "..%2f..%2fetc%2fpasswd", "%00", "a" * 500])
def test_ids_that_are_none_reach_no_file(client, place):
    answer = client.delete(f"/v1/voices/{place}")
    assert answer.status_code in (400, 404, 422, 405)
    assert told(answer)["type"] == "invalid_request_error"


def test_where_consent_is_asked_for_no_recording_is_taken_without(make_service):
    service = make_service(require_consent=True)
    with serving(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        for path, form in (
            ("/v1/voices", {"name": "Eve", "transcript": "the words"}),
            ("/v1/audio/edits", {"task": "denoise", **SHORT}),
            ("/stream", {"text": "Hello.", "transcript": "the words", **SHORT}),
        ):
            form = {name: str(value) for name, value in form.items()}
            refused = client.post(path, data=form, files=FILE)
            assert refused.status_code == 400
            assert "the field consent" in told(refused)["message"]
            assert client.post(path, data={**form, "consent": "Eve, today"}, files=FILE).status_code == 200
