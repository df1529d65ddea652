"""Transcriptions through the official client; 404 where the weights cannot."""

from __future__ import annotations

import openai
import pytest

from stepaudio.asr import absent
from tests.api.kit import RECORDING, serving
from tests.api.test_stream import told


def test_the_official_client_gets_the_words(openai_client, service):
    made = openai_client.audio.transcriptions.create(model="whisper-1", file=("a.wav", RECORDING))
    assert made.text == service.submit_transcription(RECORDING).result(60)
    assert len(made.text) > 3
    text = openai_client.audio.transcriptions.create(
        model="test-weights", file=("a.wav", RECORDING), response_format="text"
    )
    assert text == made.text + "\n"


@pytest.mark.parametrize(
    ("data", "files", "status", "expected"),
    [
        ({"model": "gpt-99"}, {"file": ("a.wav", RECORDING)}, 404, "gpt-99"),
        ({"model": "whisper-1"}, {"file": ("a.wav", b"no sound")}, 415, "cannot be read as sound"),
        ({"model": "whisper-1"}, None, 422, "file"),
        ({"model": "whisper-1", "response_format": "srt"}, {"file": ("a.wav", RECORDING)}, 422, "response_format"),
        ({"model": "whisper-1", "prompt": "x"}, {"file": ("a.wav", RECORDING)}, 422, "prompt"),
    ],
)
def test_what_is_wrong_is_told(client, data, files, status, expected):
    answer = client.post("/v1/audio/transcriptions", data=data, files=files)
    assert answer.status_code == status
    assert expected in told(answer)["message"]


def test_weights_that_cannot_transcribe_say_why(make_service, monkeypatch):
    service = make_service()
    monkeypatch.setattr(type(service), "transcriber", property(lambda self: absent("The encoder alone.")))
    with serving(service) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.NotFoundError, match="The encoder alone"):
            client.audio.transcriptions.create(model="whisper-1", file=("a.wav", RECORDING))
        with pytest.raises(openai.NotFoundError, match="The encoder alone"):
            client.models.retrieve("whisper-1")
        assert client.models.retrieve("tts-1").id == "tts-1"


def test_a_name_for_transcription_means_weights_that_can(openai_client):
    assert openai_client.models.retrieve("whisper-1").id == "whisper-1"
