"""Batches over HTTP: progress, the archive, what goes wrong, what is left behind."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
import zipfile
from pathlib import Path

import httpx
import pytest

from stepaudio import batches as batching
from stepaudio.audiofile import encode_wav
from stepaudio.batches import Batch, Batches
from stepaudio.errors import NotFound
from stepaudio.service import CloneRequest
from stepaudio.types import SamplingParams
from tests.api.kit import LONG, SHORT, serving, until
from tests.api.test_speech import samples_of
from tests.api.test_stream import told
from tests.conftest import voice

OPTIONS = {"flow_steps": 1, "max_seconds": 0.6}


@pytest.fixture
def begin(client, ada):
    def ask(texts, **fields):
        body = {"model": "tts-1", "voice": "Ada", "input": texts, "stepaudio": OPTIONS, **fields}
        return client.post("/v1/batch", json=body)

    return ask


def finished(client, answer) -> dict:
    assert answer.status_code == 202, answer.text
    place = f"/v1/batch/{answer.json()['id']}"
    until(lambda: client.get(place).json()["status"] != "running", 60)
    return client.get(place).json()


def archive_of(client, batch: dict) -> zipfile.ZipFile:
    answer = client.get(f"/v1/batch/{batch['id']}/results")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    return archive


def test_a_hundred_lines_in_one_voice_are_all_there_and_encoded_once(make_service, caplog):
    """A voice whose reference nobody has encoded yet, in a cache of its own: exactly one miss."""

    caplog.set_level(logging.INFO, logger="stepaudio")
    service = make_service()
    with serving(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        recording = encode_wav(voice(1.1, pitch=177.0, seed=100))
        caplog.clear()
        form = {"name": "Hundred", "transcript": "the words"}
        assert client.post("/v1/voices", data=form, files={"audio": ("a.wav", recording)}).status_code == 200
        body = {"model": "tts-1", "voice": "Hundred", "input": [f"Line {n}." for n in range(100)]}
        batch = finished(
            client, client.post("/v1/batch", json={**body, "stepaudio": {"flow_steps": 1, "max_seconds": 0.12}})
        )
        archive = archive_of(client, batch)
    assert (batch["status"], batch["total"], batch["done"], batch["failed"]) == ("done", 100, 100, 0)
    assert archive.namelist() == [*(f"{n:06d}.wav" for n in range(1, 101)), "manifest.jsonl"]
    log = "\n".join(record.getMessage() for record in caplog.records)
    assert log.count("FunASR cache MISS") == 1
    assert log.count("FunASR cache HIT") == 100
    seeds = {json.loads(line)["seed"] for line in archive.read("manifest.jsonl").splitlines()}
    assert len(seeds) > 90  # each line draws its own


def test_a_line_that_fails_is_told_and_the_others_are_made(client, begin):
    batch = finished(client, begin(["Hello.", " ", "Bye."], response_format="mp3"))
    assert (batch["status"], batch["done"], batch["failed"]) == ("done", 2, 1)
    assert batch["failures"] == [{"line": 2, "error": "The text is empty."}]
    archive = archive_of(client, batch)
    assert archive.namelist() == ["000001.mp3", "000003.mp3", "manifest.jsonl"]
    records = [json.loads(line) for line in archive.read("manifest.jsonl").splitlines()]
    assert [record.get("file") for record in records] == ["000001.mp3", None, "000003.mp3"]
    assert records[1]["error"] == "The text is empty."


def test_a_line_is_what_speech_in_one_piece_gives(client, begin, ada):
    batch = finished(client, begin(["Hello."], stepaudio=SHORT))
    body = {"model": "tts-1", "voice": "Ada", "input": "Hello.", "response_format": "wav"}
    alone = client.post("/v1/audio/speech", json={**body, "stepaudio": {**SHORT, "stream": False}})
    made = archive_of(client, batch).read("000001.wav")
    assert samples_of(made).tolist() == samples_of(alone.content).tolist()


def test_progress_is_told_and_the_archive_comes_only_at_the_end(client, begin):
    answer = begin([LONG] * 3, stepaudio={"max_seconds": 20, "flow_steps": 20})
    place = f"/v1/batch/{answer.json()['id']}"
    early = client.get(f"{place}/results")
    assert (early.status_code, told(early)["code"]) == (409, "not_done")
    until(lambda: client.get(place).json()["done"] >= 1, 60)
    progress = client.get(place).json()
    assert progress["status"] == "running"
    assert progress["seconds_left"] > 0
    gone = client.delete(place)
    assert gone.json() == {"id": answer.json()["id"], "object": "stepaudio.batch.deleted", "deleted": True}
    assert client.get(place).status_code == 404


def test_a_removed_batch_stops_its_job_and_others_come_in_between(client, service, begin, ada):
    answer = begin([LONG] * 50, stepaudio={"max_seconds": 10})
    body = {"model": "tts-1", "voice": "Ada", "input": "Hello.", "stepaudio": SHORT}
    assert client.post("/v1/audio/speech", json=body).status_code == 200  # long before the batch is done
    assert client.get(f"/v1/batch/{answer.json()['id']}").json()["done"] < 10
    client.delete(f"/v1/batch/{answer.json()['id']}")
    until(lambda: service.queue.running == 0 and service.queue.waiting == 0, 5)


def test_one_client_may_have_two_batches_at_work(client, begin):
    ids = [begin([LONG] * 9, stepaudio={"max_seconds": 10}).json()["id"] for _ in range(2)]
    refused = begin(["Hello."])
    assert refused.status_code == 429
    assert "2 batches of yours" in told(refused)["message"]
    for place in ids:
        client.delete(f"/v1/batch/{place}")
    assert finished(client, begin(["Hello."]))["done"] == 1


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"input": []}, 422, "input"),
        ({"input": "one text"}, 422, "input"),
        ({"input": ["x"] * 1001}, 400, "1001 texts"),
        ({"voice": "Eve"}, 404, "There is no saved voice 'Eve'"),
        ({"model": "gpt-99"}, 404, "gpt-99"),
    ],
)
def test_what_is_wrong_is_told(begin, fields, status, expected):
    answer = begin(["Hello."], **fields) if "input" not in fields else begin(fields["input"])
    assert answer.status_code == status
    assert expected in told(answer)["message"]


def test_batches_are_removed_after_an_hour_and_with_the_program(service, ada):
    now = [1000.0]
    made = Batches(service, most_bytes=2**30, clock=lambda: now[0])
    shared = CloneRequest(voice=ada, text="", sampling=SamplingParams(seed=1), flow_steps=1, max_seconds=0.12)
    batch = made.begin(shared, ["Hello."], "wav", "me")
    batch.wait(30)
    folder = batch.archive.parent
    assert batch.archive.exists()
    now[0] = batch.progress.finished + batching.LIFE_SECONDS + 1
    with pytest.raises(NotFound):
        made.get(batch.id)
    assert not batch.archive.exists()
    assert folder.is_relative_to(Path(tempfile.gettempdir()))
    made.close()
    assert not folder.exists()


def test_a_batch_whose_archive_cannot_be_written_has_failed_and_the_next_has_a_new_folder(service, ada, caplog):
    made = Batches(service, most_bytes=2**30)
    shared = CloneRequest(voice=ada, text="", sampling=SamplingParams(seed=1), flow_steps=1, max_seconds=0.12)
    first = made.begin(shared, ["One."], "wav", "me")
    first.wait(30)
    folder = first.archive.parent
    shutil.rmtree(folder)
    folder.touch()  # where there is a file, none can be written below it
    lost = Batch(shared, ["Two."], "wav", "me", folder)
    lost.start(service, lambda: 2**30)
    lost.wait(30)
    assert lost.progress.state == "failed"
    assert "cannot be written" in lost.progress.failures[0].error
    assert "its archive cannot be written" in caplog.text
    again = made.begin(shared, ["Three."], "wav", "me")
    again.wait(30)
    assert again.progress.state == "done"
    assert again.archive.exists()
    made.close()


def test_an_archive_that_had_to_make_room_is_told_so(client, service, begin, monkeypatch):
    made = []
    batch = Batches.begin
    monkeypatch.setattr(Batches, "begin", lambda *args: made.append(batch(*args)) or made[-1])
    finished(client, begin(["Hello."]))
    made[0].archive.unlink()
    answer = client.get(f"/v1/batch/{made[0].id}/results")
    assert answer.status_code == 404
    assert "make room" in told(answer)["message"]


def test_where_there_is_no_room_the_line_fails_and_says_so(service, ada):
    made = Batches(service, most_bytes=10_000)
    shared = CloneRequest(voice=ada, text="", sampling=SamplingParams(seed=1), flow_steps=1, max_seconds=0.12)
    batch = made.begin(shared, ["One.", "Two.", "Three."], "wav", "me")
    batch.wait(30)
    progress = batch.progress
    assert (progress.done, progress.failed, progress.state) == (1, 2, "done")
    assert "There is no room" in progress.failures[0].error
    made.close()


def test_an_internal_error_costs_its_line_alone(service, ada, monkeypatch):
    made = Batches(service, most_bytes=2**30)
    clone = service.engine.pipeline.clone

    def sometimes(reference, text, *args, **kwargs):
        return 1 / 0 if text == "Bad." else clone(reference, text, *args, **kwargs)

    monkeypatch.setattr(service.engine.pipeline, "clone", sometimes)
    shared = CloneRequest(voice=ada, text="", sampling=SamplingParams(seed=1), flow_steps=1, max_seconds=0.12)
    batch = made.begin(shared, ["One.", "Bad.", "Three."], "wav", "me")
    batch.wait(30)
    assert (batch.progress.done, batch.progress.failed) == (2, 1)
    assert "Internal error, request" in batch.progress.failures[0].error
    made.close()
