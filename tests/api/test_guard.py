"""What stands before every route: keys, sizes, time, and a limit for each client."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from stepaudio.api import build_app, guard
from stepaudio.api.guard import BATCH_BYTES, FORM_BYTES, PAGE_BYTES, read_keys
from stepaudio.doors import Room
from stepaudio.errors import InvalidInput
from stepaudio.log import TextFormatter
from stepaudio.settings import Settings
from stepaudio.tempfolder import TempFolder
from tests.api.kit import LONG, RECORDING, SHORT, serving, until
from tests.api.test_stream import told
from tests.test_doors import old


@pytest.fixture(scope="module")
def keyed(kept_engine, tmp_path_factory):
    """The address and the service of a server with two keys, one from a file, and two jobs for each client."""
    from tests.api.conftest import started

    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text("# of people\nkey-of-bob\n\n")
    service = started(kept_engine, folder, api_keys="key-of-ada, ", api_keys_file=str(folder / "keys"), client_limit=2)
    with serving(service) as url:
        yield url, service
    service.close()


def headers(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{name}"}


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"Authorization": "Bearer key-of-eve"},
        {"Authorization": "key-of-ada"},
        {"Authorization": "Basic key-of-ada"},
    ],
)
@pytest.mark.parametrize(
    "place", ["GET /v1/voices", "POST /v1/audio/speech", "POST /stream", "GET /metrics", "GET /v1/x"]
)
def test_without_a_right_key_nothing_is_answered(keyed, sent, place):
    method, path = place.split()
    answer = httpx.request(method, keyed[0] + path, headers=sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert told(answer)["type"] == "authentication_error"
    assert "key-of" not in answer.text


def test_each_key_opens_and_the_health_checks_need_none(keyed):
    url, _ = keyed
    for name in ("ada", "bob"):
        assert httpx.get(f"{url}/v1/voices", headers=headers(name)).status_code == 200
    assert httpx.get(f"{url}/health/ready").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    assert [m.id for m in openai.OpenAI(base_url=f"{url}/v1", api_key="key-of-bob").models.list()] == ["test-weights"]


def test_no_way_of_writing_a_path_of_the_api_needs_no_key(keyed, make_service):
    url, _ = keyed
    for path in ("/metrics%0A", "/v1/voices%0A", "/stream%0a", "/v1%0a", "/nothing%00of%20the%20api"):
        answer = httpx.get(url + path)
        assert (answer.status_code, told(answer)["code"]) == (400, "invalid_path"), path
    with TestClient(build_app(make_service(api_keys="key-of-ada", root_path="/v"))) as client:
        for path in ("/v1/voices", "/v/v1/voices"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=headers("ada")).status_code == 200


def test_the_description_tells_of_the_key_where_one_is_needed(keyed, client):
    described = httpx.get(f"{keyed[0]}/openapi.json").json()
    assert described["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert described["paths"]["/v1/voices"]["get"]["security"] == [{"key": []}]
    assert "security" not in described["paths"]["/health/live"]["get"]
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def begun(url: str, request: httpx.Request) -> socket.socket:
    """Send a request over a connection of its own, and return that without waiting for the answer."""
    content = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)
    connection.sendall(f"{request.method} {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + content)
    return connection


def test_one_client_cannot_fill_the_line_and_others_still_get_in(keyed):
    url, service = keyed

    def request(name: str, **more) -> httpx.Request:
        data = {"transcript": "the words", "text": LONG, "max_seconds": "100", "flow_steps": "1", **more}
        return httpx.Request(
            "POST", f"{url}/stream", data=data, files={"audio": ("a.wav", RECORDING)}, headers=headers(name)
        )

    with httpx.Client(timeout=30) as client, begun(url, request("ada")), begun(url, request("ada")):
        until(lambda: service.queue.running == 1 and service.queue.waiting == 1)
        refused = client.send(request("ada"))
        assert refused.status_code == 429
        assert "2 requests of yours" in told(refused)["message"]
        assert int(refused.headers["retry-after"]) >= 1
        with begun(url, request("bob")):
            until(lambda: service.queue.waiting == 2)
    until(lambda: service.queue.waiting == 0 and service.queue.running == 0)


def test_keys_come_from_the_settings_and_are_not_shown(tmp_path):
    file = tmp_path / "keys"
    file.write_text("\ufeffone\n# not this\n  # nor this\n two \none\n", encoding="utf-8")
    settings = Settings(api_keys="three,, one", api_keys_file=str(file))
    assert read_keys(settings) == (b"three", b"one", b"two")
    assert "three" not in repr(settings)


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe"])
def test_a_file_of_keys_without_keys_does_not_open_the_door(make_service, tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput, match=str(file)):
        build_app(make_service(api_keys_file=str(file)))


@pytest.mark.parametrize("keys", [",", " ", " , ,"])
def test_nor_does_a_setting_of_keys_without_keys(keys):
    with pytest.raises(InvalidInput, match="The setting api_keys holds no key"):
        read_keys(Settings(api_keys=keys))


def said_too_large(url: str, path: str, limit: int, said: bool) -> str:
    """Send more than the limit, by the length that is said or by what comes, and return what a 413 says of it."""
    form = path in ("/v1/voices", "/gradio_api/upload")
    kind = "application/json" if not form else "multipart/form-data; boundary=x"
    length = f"Content-Length: {limit + 1}" if said else "Transfer-Encoding: chunked"
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' if form else b"["
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode())
        if not said:
            for piece in (start, *[b" " * 2**16] * (limit // 2**16 + 1)):
                connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(2**16)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"413"
    return body.decode()


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/v1/audio/speech", FORM_BYTES), ("/v1/batch", BATCH_BYTES), ("/v1/voices", FORM_BYTES + 2 * 2**20)],
)
@pytest.mark.parametrize("said", [True, False])
def test_what_is_too_large_is_refused_before_it_is_read(url, path, limit, said):
    error = json.loads(said_too_large(url, path, limit, said))["error"]
    assert error["code"] == "too_large"
    assert f"{limit / 2**20:.0f} MB" in error["message"]


@pytest.mark.parametrize(
    ("path", "limit", "said"),
    [
        ("/gradio_api/queue/join", PAGE_BYTES, True),
        ("/gradio_api/queue/join", PAGE_BYTES, False),
        ("/gradio_api/run/predict", PAGE_BYTES, False),
        ("/gradio_api/upload", FORM_BYTES + 2 * 2**20, True),
    ],
)
def test_so_is_what_the_page_never_sends(url, path, limit, said):
    assert f"at most {limit / 2**20:.0f} MB are taken here" in said_too_large(url, path, limit, said)


@pytest.mark.parametrize(
    ("sent", "status", "left"),
    [
        ({"Content-Length": "99999999999"}, 401, True),
        ({"Content-Length": "99999999999", **headers("ada")}, 413, True),
        ({"Origin": "http://evil.example"}, 403, True),
        ({}, 422, False),
    ],
)
def test_room_is_made_only_for_a_request_that_is_taken(make_service, tmp_path, sent, status, left):
    """The first three are refused by what stands before their bodies."""
    keys = "key-of-ada" if status != 403 else ""
    folder = TempFolder(tmp_path / "uploads", 3 * 2**20)
    result = old(folder.path / "result.wav", 2 * 2**20)
    app = Room(build_app(make_service(api_keys=keys)), folder)
    with TestClient(app) as client:
        own = {**(headers("ada") if status == 422 else {}), **sent}
        answer = client.post("/v1/voices", files={"audio": bytes(3 * 2**19)}, headers=own)
    assert answer.status_code == status
    assert result.exists() == left


def test_where_no_room_can_be_made_the_api_says_so(make_service, tmp_path):
    folder = TempFolder(tmp_path / "uploads", 3 * 2**20)
    old(folder.path / "result.wav", 2 * 2**20, age=1)
    with TestClient(Room(build_app(make_service()), folder)) as client:
        for answer in (
            client.post("/v1/voices", files={"audio": bytes(2 * 2**20)}),
            client.post("/v1/batch", content=b" " * (2 * 2**20), headers=JSON),
        ):
            assert answer.status_code == 507
            assert answer.headers["retry-after"] == "60"
            assert told(answer)["code"] == "no_room"
            assert "no room for more uploads" in told(answer)["message"]
        assert client.post("/gradio_api/upload", files={"files": bytes(2 * 2**20)}).status_code == 507


@pytest.mark.parametrize("length", ["-1", "many", "1e3", "99999999999999999999999"])
def test_a_length_that_is_none_is_refused(url, length):
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        answer = connection.recv(1000)
    assert answer.split()[1] in (b"400", b"413")


def test_a_body_that_does_not_come_ends_the_request(client, url, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
        head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        start = time.monotonic()
        answer = connection.recv(2000)
        assert answer.split()[1] == b"408"
        assert 0.2 < time.monotonic() - start < 5
    assert client.get("/v1/models").status_code == 200


def test_every_answer_has_an_id_of_its_own(client):
    ids = {client.get("/v1/models").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_urls_of_clients_are_not_fetched(client, ada):
    """No field takes an address: what looks like one is a name that nothing has."""
    for place in ("http://127.0.0.1:9/voice.wav", "file:///etc/passwd"):
        body = {"model": "tts-1", "voice": place, "input": "Hello.", "stepaudio": SHORT}
        assert client.post("/v1/audio/speech", json=body).status_code == 404
        form = {"task": "denoise", "audio": place}
        assert client.post("/v1/audio/edits", data=form).status_code == 422


JSON = {"Content-Type": "application/json"}


def refusals(caplog) -> list[tuple[str, dict]]:
    """Return the lines of the log about answers that told of an error, with what each is to a program."""
    found = [record for record in caplog.records if record.name == guard.__name__]
    return [(record.getMessage(), record.facts) for record in found]


@pytest.mark.parametrize(
    ("method", "path", "asked", "line"),
    [
        ("POST", "/v1/audio/speech", {"json": {"voice": "secret words"}}, "POST /v1/audio/speech refused: 422"),
        ("POST", "/v1/audio/speech", {"content": b"{", "headers": JSON}, "/v1/audio/speech refused: 400 invalid_body"),
        ("POST", "/v1/audio/speech", {"content": b"x" * (FORM_BYTES + 1)}, "POST unknown refused: 413 too_large"),
        ("GET", "/v1/voices/secret words", {}, "GET /v1/voices/{voice_id} refused: 404 not_found"),
        ("GET", "/v1/secret words", {}, "GET /v1/{rest:path} refused: 404 not_found"),
        ("PUT", "/v1/voices", {}, "PUT /v1/{rest:path} refused: 405 method_not_allowed"),
        ("BREW", "/v1/voices", {}, "other "),
    ],
)
def test_a_refusal_before_the_line_is_one_line_of_the_log_under_the_id_of_the_answer(
    client, caplog, method, path, asked, line
):
    caplog.set_level(logging.INFO, logger="stepaudio")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    logging.getLogger(guard.__name__).addHandler(handler)
    answer = client.request(method, path, **asked)
    logging.getLogger(guard.__name__).removeHandler(handler)
    ((message, facts),) = refusals(caplog)
    assert line in message
    assert facts["status"] == answer.status_code
    assert f"[{answer.headers['x-request-id']}] " in stream.getvalue()
    assert "secret" not in caplog.text


def test_a_wrong_key_is_in_the_log_without_it(keyed, caplog):
    caplog.set_level(logging.INFO, logger="stepaudio")
    httpx.get(f"{keyed[0]}/v1/voices", headers=headers("eve"))
    httpx.get(f"{keyed[0]}/v1/voices", headers=headers("ada"))
    assert [message for message, _ in refusals(caplog)] == ["GET unknown refused: 401 invalid_api_key"]
    assert "key-of" not in caplog.text


def test_what_a_job_refused_is_in_the_log_once_under_the_id_of_the_job(client, ada, caplog):
    caplog.set_level(logging.INFO, logger="stepaudio")
    for stream in (True, False):
        caplog.clear()
        body = {"model": "tts-1", "voice": ada, "input": " ", "stepaudio": {**SHORT, "stream": stream}}
        answer = client.post("/v1/audio/speech", json=body)
        assert answer.status_code == 400
        assert len(answer.headers["x-request-id"]) == 8
        assert len(caplog.records) == 1


def test_a_job_that_is_given_up_before_its_turn_is_in_the_log_too(make_service, caplog):
    caplog.set_level(logging.INFO, logger="stepaudio")
    release = threading.Event()
    service = make_service(request_seconds=0.2)
    with serving(service) as url:
        blocking = service.queue.submit(lambda job: release.wait(30))
        form = {"task": "denoise", **{name: str(value) for name, value in SHORT.items()}}
        answers = [httpx.post(f"{url}/v1/audio/edits", data=form, files={"audio": ("a.wav", RECORDING)}, timeout=30)]
        form = {"transcript": "the words", "text": "Hello.", "seed": "3"}
        answers.append(httpx.post(f"{url}/stream", data=form, files={"audio": ("a.wav", RECORDING)}, timeout=30))
        release.set()
        blocking.result(30)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert [message for message, _ in refusals(caplog)] == [
        "POST /v1/audio/edits refused: 503 timeout",
        "POST /stream refused: 503 timeout",
    ]
