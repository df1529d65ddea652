"""Pages of other addresses: what they make a browser send is refused, and the page's own and programs' is not."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from starlette.datastructures import Headers

from stepaudio.api import build_app
from stepaudio.api.origins import is_foreign
from tests.api.kit import RECORDING
from tests.api.test_stream import told

EVIL = "http://evil.example"


@pytest.mark.parametrize(
    "sent",
    [
        {},  # a program
        {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "voice.example", "origin": "https://voice.example"},
        {"host": "Voice.Example:443", "origin": "https://voice.example"},
        # A proxy that asks for us by another name, and says by which it was asked itself.
        {"host": "127.0.0.1:7860", "x-forwarded-host": "voice.example", "origin": "https://voice.example"},
        {"host": "ui:7860", "x-forwarded-host": "voice.example:8443, inner", "origin": "https://voice.example:8443"},
        # One that does not say so, where the browser does.
        {"host": "127.0.0.1:7860", "origin": "https://voice.example", "sec-fetch-site": "same-origin"},
        {"host": "127.0.0.1:7860", "origin": "chrome-extension://abc", "sec-fetch-site": "none"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_the_page_of_this_server_and_programs_are_not_foreign(method, sent):
    assert not is_foreign(method, Headers(sent))


@pytest.mark.parametrize(
    "sent",
    [
        {"host": "127.0.0.1:7860", "origin": EVIL},
        {"host": "127.0.0.1:7860", "origin": "null"},
        {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8888"},
        {"host": "voice.example", "origin": "http://voice.example:8080"},
        {"host": "voice.example", "origin": "https://voice.example.evil.example"},
        {"host": "voice.example", "origin": "https://voice.example:port"},
        {"host": "voice.example", "origin": "http://[", "x-forwarded-host": "["},
        {"host": "", "origin": ""},
        {"origin": EVIL},
        {"host": "localhost", "origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
        {"host": "localhost", "origin": "null", "sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_page_of_another_address_is_foreign(method, sent):
    assert is_foreign(method, Headers(sent))


def test_a_link_from_elsewhere_opens_the_page_and_a_form_from_elsewhere_is_not_taken():
    sent = Headers({"host": "localhost:7860", "sec-fetch-site": "cross-site"})
    assert not is_foreign("GET", sent)
    assert is_foreign("POST", sent)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "192.168.1.5:7860"])
@pytest.mark.parametrize("origin", [EVIL, "null"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("OPTIONS", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/queue/join"),
        ("GET", "/gradio_api/queue/data?session_hash=abc"),
        ("GET", "/config"),
        ("GET", "/v1/voices"),
        ("POST", "/stream/tickets"),
    ],
)
def test_no_page_of_another_address_is_answered(client, host, origin, method, path):
    headers = {"Host": host, "Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = client.request(method, path, headers=headers)
    assert (answer.status_code, told(answer)["code"]) == (403, "foreign_origin")
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_page_of_another_address_saves_a_voice_and_the_page_itself_is_answered(client, url):
    form = {"data": {"name": "Eve", "transcript": "the words"}, "files": {"audio": ("a.wav", RECORDING)}}
    assert client.post("/v1/voices", **form, headers={"Origin": EVIL}).status_code == 403
    assert client.post("/v1/voices", **form, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert "Eve" not in client.get("/v1/voices").text
    assert client.post("/stream/tickets", headers={"Origin": url}).status_code == 200
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
    assert client.get("/config", headers={"Origin": url}).status_code == 200


def test_a_program_with_a_key_may_have_an_origin_but_no_page_may_read_its_answer(make_service):
    """As desktop programs that are made of a browser do."""
    with TestClient(build_app(make_service(api_keys="key-of-ada"))) as client:
        sent = {"Origin": "app://reader", "Authorization": "Bearer key-of-ada"}
        answer = client.get("/v1/voices", headers=sent)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/voices", headers=asked).status_code == 401
        assert client.post("/gradio_api/queue/join", headers={**sent, "Origin": EVIL}).status_code == 403
