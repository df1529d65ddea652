"""Edits over HTTP, and the list of what can be asked for."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from stepaudio import tasks
from stepaudio.api.sound import notice_header
from stepaudio.audiofile import encode_wav
from stepaudio.voices import VoiceDraft
from stepaudio.weights import WeightsCard
from tests.api.kit import RECORDING, SHORT, serving, until
from tests.api.test_speech import samples_of
from tests.api.test_stream import told
from tests.conftest import voice

FORM = {name: str(value) for name, value in SHORT.items()}
FILE = {"audio": ("a.wav", RECORDING)}


def test_a_recording_is_edited_and_the_headers_tell_how(client):
    form = {"task": "emotion", "option": "happy", "transcript": "the words", **FORM}
    answer = client.post("/v1/audio/edits", data=form, files=FILE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    assert len(samples_of(answer.content)) == 5 * 2880
    assert answer.headers["x-stepaudio-seed"] == "3"
    assert answer.headers["x-stepaudio-cache"] in ("hit", "miss")
    assert "edit;dur=" in answer.headers["server-timing"]


def test_a_saved_voice_is_edited_with_the_words_saved_with_it(client, ada):
    form = {"task": "paralinguistic", "new_text": "the [Sigh] words", "voice": "Ada", "response_format": "mp3", **FORM}
    answer = client.post("/v1/audio/edits", data=form, files={})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")
    assert len(answer.content) > 500


def test_speed_changes_the_length_of_an_edit(client):
    form = {"task": "denoise", **FORM, "max_seconds": "3"}
    plain, fast = (
        len(samples_of(client.post("/v1/audio/edits", data={**form, "speed": speed}, files=FILE).content))
        for speed in ("1", "2")
    )
    assert fast == pytest.approx(plain / 2, rel=0.05)


def test_an_edit_keeps_to_its_longest_output_and_its_flow_steps(client, service, monkeypatch):
    vocoder = service.engine.pipeline._vocoder
    flow_many = vocoder.flow_many
    steps = []
    monkeypatch.setattr(
        vocoder, "flow_many", lambda *given, **named: steps.append(named["steps"]) or flow_many(*given, **named)
    )
    form = {"task": "denoise", "seed": "3", "max_seconds": "0.6", "flow_steps": "2"}
    answer = client.post("/v1/audio/edits", data=form, files=FILE)
    assert len(samples_of(answer.content)) == 5 * 2880
    assert steps == [2]


@pytest.mark.parametrize(
    ("fields", "files", "status", "expected"),
    [
        ({}, FILE, 422, "task"),
        ({"task": "emotion", "option": "hungry", "transcript": "x"}, FILE, 400, "'hungry' is not one of them"),
        ({"task": "clone", "transcript": "x"}, FILE, 400, "not an edit"),
        ({"task": "foo", "transcript": "x"}, FILE, 400, "There is no edit 'foo'; the edits are emotion, style, speed,"),
        ({"task": "denoise"}, None, 400, "either the file audio or the field voice"),
        ({"task": "denoise", "voice": "Ada"}, FILE, 400, "either the file audio or the field voice"),
        ({"task": "denoise", "voice": "Eve"}, None, 404, "There is no saved voice 'Eve'"),
        ({"task": "denoise"}, {"audio": ("a.wav", b"no sound")}, 415, "cannot be read as sound"),
        ({"task": "denoise", "passes": "9"}, FILE, 422, "passes"),
        ({"task": "denoise", "colour": "red"}, FILE, 422, "colour"),
        ({"task": "speed", "option": "faster"}, FILE, 400, "transcript of the reference is empty"),
    ],
)
def test_what_is_wrong_is_told(client, ada, fields, files, status, expected):
    answer = client.post("/v1/audio/edits", data=fields, files=files)
    assert answer.status_code == status
    assert expected in told(answer)["message"]


def test_a_client_that_leaves_stops_its_edit(client, service, ada):

    form = {"task": "vad", "voice": "Ada", "passes": "5", "flow_steps": "50"}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/audio/edits", data=form, timeout=0.2)
    until(lambda: service.queue.running == 0 and service.queue.waiting == 0, 5)


def test_the_tags_are_those_of_the_one_table(client):
    found = client.get("/v1/tags").json()
    assert found["paralinguistic"] == list(tasks.PARALINGUISTIC_TAGS)
    assert found["languages"] == list(tasks.LANGUAGE_TAGS)
    assert {edit["task"]: edit["options"] for edit in found["edits"]} == {s.name: list(s.options) for s in tasks.EDITS}
    assert [edit["task"] for edit in found["edits"] if edit["needs_new_text"]] == ["paralinguistic"]
    assert all(edit["learnt"] for edit in found["edits"])


def test_a_task_that_the_weights_have_not_learnt_is_marked_and_told_with_the_sound(client, service, monkeypatch):
    card = WeightsCard(title="mini 米", tasks=("clone", "denoise"))
    engine = service.engine
    monkeypatch.setattr(service, "_engine", replace(engine, weights=replace(engine.weights, card=card)))
    found = client.get("/v1/tags").json()
    assert [edit["task"] for edit in found["edits"] if edit["learnt"]] == ["denoise"]
    notices = []
    for task in ("denoise", "vad"):
        answer = client.post("/v1/audio/edits", data={"task": task, **FORM}, files=FILE)
        assert answer.status_code == 200
        notices.append(answer.headers.get("x-stepaudio-notice"))
    assert notices[0] is None
    assert 'The weights "mini ?" have not learnt this task' in notices[1]


def test_what_was_cut_is_told_with_the_sound_and_the_saved_voice(make_service):
    long = {"audio": ("a.wav", encode_wav(voice(3.0)))}
    cut = "The reference is 3.0 s long; its first 2 s are used."
    with serving(make_service(max_reference_seconds=2.0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        edited = client.post("/v1/audio/edits", data={"task": "denoise", **FORM}, files=long)
        assert (edited.status_code, edited.headers["x-stepaudio-notice"]) == (200, cut)
        form = {"name": "Ada", "transcript": "the words"}
        saved = client.post("/v1/voices", data=form, files=long)
        assert (saved.status_code, saved.headers["x-stepaudio-notice"]) == (200, cut)
        body = {"model": "tts-1", "voice": "Ada", "input": "Hello.", "stepaudio": {**SHORT, "stream": False}}
        spoken = client.post("/v1/audio/speech", json=body)
        assert spoken.status_code == 200
        assert "x-stepaudio-notice" not in spoken.headers
        streamed = client.post("/stream", data={"transcript": "the words", "text": "Hello.", **SHORT}, files=long)
        assert (streamed.status_code, streamed.headers["x-stepaudio-notice"]) == (200, cut)
        again = client.post("/v1/audio/speech", json={**body, "stepaudio": SHORT})
        assert again.status_code == 200
        assert "x-stepaudio-notice" not in again.headers


def test_what_is_cut_from_a_saved_voice_is_told_with_several_takes(make_service):
    """It was saved when the limit was higher."""
    draft = VoiceDraft(encode_wav(voice(3.0)), "Ada", "the words")
    make_service().save_voice(draft).result(60)
    with serving(make_service(max_reference_seconds=2.0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        body = {"model": "tts-1", "voice": "Ada", "input": "Hello.", "stepaudio": {**SHORT, "takes": 2}}
        spoken = client.post("/v1/audio/speech", json=body)
    assert (spoken.status_code, spoken.headers["content-type"]) == (200, "application/zip")
    assert spoken.headers["x-stepaudio-notice"] == "The reference is 3.0 s long; its first 2 s are used."


@pytest.mark.parametrize(
    ("notices", "line"),
    [
        ([], None),
        (["One.", "Two."], "One. Two."),
        (["a\r\nX-Other: b\x00\x7f"], "a X-Other: b??"),
        (["The weights “米” are new."], 'The weights "?" are new.'),
    ],
)
def test_a_notice_is_one_line_in_ascii(notices, line):
    assert notice_header(notices).get("X-Stepaudio-Notice") == line
