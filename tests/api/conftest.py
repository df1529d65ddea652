"""A service over tiny weights that are taken for trained ones, a server over it, and clients."""

from __future__ import annotations

import json
from dataclasses import fields

import httpx
import openai
import pytest

from stepaudio import device
from stepaudio.audiofile import encode_wav
from stepaudio.loading import load_engine
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.weights import choose_weights
from tests.api.kit import RECORDING, KeptEngine, serving
from tests.conftest import voice


@pytest.fixture(scope="session")
def kept_engine(tiny_weights, tmp_path_factory):
    """An engine for all tests of the API; its card does not say that the weights are random, nor limits the sound."""
    weights = tmp_path_factory.mktemp("api") / "weights"
    weights.mkdir()
    for part in tiny_weights.iterdir():
        if part.is_dir():
            (weights / part.name).symlink_to(part)
    (weights / "card.json").write_text(json.dumps({"title": "test weights"}))
    (weights / "presets").mkdir()
    (weights / "presets" / "grace.wav").write_bytes(encode_wav(voice(1.5, pitch=222.0)))
    notes = {"name": "Grace", "transcript": "the words", "language": "en"}
    (weights / "presets" / "grace.json").write_text(json.dumps(notes))
    settings = Settings(
        weights=str(weights), cache_dir=weights.parent / "cache", max_output_seconds=300.0, passage_seconds=100.0
    )
    engine = load_engine(choose_weights(settings), settings, device.choose("cpu", "float32"))
    yield KeptEngine(**{field.name: getattr(engine, field.name) for field in fields(engine)})
    engine.close()


def started(engine, folder, **settings) -> Service:
    """Return a service that is ready."""
    own = {"cache_dir": folder / "cache", "data_dir": folder / "data", "max_upload_megabytes": 2, **settings}
    service = Service(Settings(**own), lambda: engine)
    service.start()
    assert service.wait_until_decided(120) == "ready"
    return service


@pytest.fixture
def make_service(kept_engine, tmp_path):
    """Make a service that is ready, with settings of the test's own."""
    made = []

    def make(**settings) -> Service:
        made.append(started(kept_engine, tmp_path, **settings))
        return made[-1]

    yield make
    for service in made:
        service.close()


# One server for all tests of a module: what a test changes of it, it puts back.
@pytest.fixture(scope="module")
def service(kept_engine, tmp_path_factory):
    service = started(kept_engine, tmp_path_factory.mktemp("service"))
    yield service
    service.close()


@pytest.fixture(scope="module")
def url(service):
    with serving(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with httpx.Client(base_url=url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def ada(client) -> str:
    """The id of a saved voice that is called Ada."""
    form = {"name": "Ada", "transcript": "the words"}
    answer = client.post("/v1/voices", data=form, files={"audio": ("ada.wav", RECORDING)})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


@pytest.fixture(scope="module")
def openai_client(url) -> openai.OpenAI:
    """The official client, as it is, but without tries that would hide an error."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
