"""The whole server as a process: how it ends, and what its log and folders keep to themselves."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from stepaudio import server as serving
from stepaudio.audiofile import encode_wav
from tests.conftest import voice
from tests.server import Server

LONG = 60
"""Seconds of speech that take a fast machine several seconds, too."""

RECORDING = encode_wav(voice(2.0))


@pytest.fixture
def long_weights(tiny_weights, tmp_path) -> str:
    """Tiny weights that may speak for minutes, so that a request can be caught while it runs."""
    weights = shutil.copytree(tiny_weights, tmp_path / "weights")
    (weights / "card.json").write_text(json.dumps({"title": "long"}))
    return str(weights)


@pytest.fixture
def make_server(tmp_path, long_weights):
    servers = []

    def make(**settings: str) -> Server:
        chosen = {
            "STEPAUDIO_WEIGHTS": long_weights,
            "STEPAUDIO_THREADS": "1",
            "STEPAUDIO_MAX_OUTPUT_SECONDS": "300",
            **settings,
        }
        servers.append(Server(tmp_path / f"server{len(servers)}", chosen))
        return servers[-1].start()

    yield make
    for server in servers:
        server.kill()


def ask(server: Server, seconds: float, text: str = "word " * 190, **more) -> httpx.Response:
    return httpx.post(
        f"{server.url}/stream",
        data={"transcript": "the words", "text": text, "max_seconds": str(seconds), "flow_steps": "20", **more},
        files={"audio": ("voice.wav", RECORDING)},
        timeout=120,
    )


class Asking:
    """A request in a thread of its own."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.response: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None
        self._thread = threading.Thread(target=self._ask, args=(server, seconds))
        self._thread.start()

    def _ask(self, server: Server, seconds: float) -> None:
        try:
            self.response = ask(server, seconds)
        except httpx.HTTPError as error:
            self.error = error

    def wait(self) -> None:
        self._thread.join(120)

    def join(self) -> httpx.Response:
        self.wait()
        assert self.response is not None, self.error
        return self.response


def measured(server: Server, name: str) -> float:
    """Return one of the server's numbers."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name} "))
    return float(value)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def told_to_end(server, seconds: int) -> tuple[Asking, Asking]:
    """Ask for so many seconds of sound and, behind that, for one; then send SIGTERM, and return both requests."""
    running = Asking(server, seconds)
    wait_for(lambda: measured(server, "stepaudio_queue_running") == 1)
    waiting = Asking(server, 1)
    wait_for(lambda: measured(server, "stepaudio_queue_waiting") == 1)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "Stopping: accepted requests" in server.log)
    return running, waiting


def test_sigterm_lets_accepted_requests_end_and_refuses_new_ones(make_server):
    server = make_server()
    running, waiting = told_to_end(server, LONG)
    assert server.process is not None
    refused = ask(server, 1)
    assert refused.status_code == 503
    assert "shut down" in refused.text
    ready = httpx.get(f"{server.url}/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
    assert httpx.get(f"{server.url}/health/live").status_code == 200
    assert LONG - 1 < (len(running.join().content) - 44) / (2 * 24000) <= LONG
    assert waiting.join().status_code == 200
    assert server.process.wait(30) == 0
    assert "nothing is left to do" in server.log
    assert "Traceback" not in server.log
    assert not list((server.folder / "temporary").iterdir())


def test_what_does_not_end_in_time_is_cancelled(make_server):
    server = make_server(STEPAUDIO_DRAIN_SECONDS="1")
    asking = Asking(server, 290)
    time.sleep(2.0)
    start = time.monotonic()
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert time.monotonic() - start < 20
    assert "what is not done after 1 s is cancelled" in server.log
    assert "Clone cancelled." in server.log
    asking.wait()
    assert isinstance(asking.error, httpx.RemoteProtocolError)  # the mark of a complete answer is missing
    assert "Traceback" not in server.log


def test_nothing_that_is_sent_is_held_back():
    with serving._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("a.host", "a.host")])
def test_the_address_in_the_log_can_be_opened(host, expected):
    assert serving._in_url(host) == expected


def test_a_second_signal_cancels_what_is_left_tells_who_waits_and_ends_it_at_once(make_server):
    server = make_server(STEPAUDIO_DRAIN_SECONDS="60")
    running, waiting = told_to_end(server, 290)
    assert server.process is not None
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert time.monotonic() - start < 6
    assert "what is not done is cancelled" in server.log
    assert "nothing is left to do" not in server.log
    told = waiting.join()
    assert (told.status_code, "shut down" in told.text) == (503, True)
    running.wait()
    assert "Traceback" not in server.log
    assert not list((server.folder / "temporary").iterdir())


@pytest.mark.parametrize("heeded", [True, False])
def test_a_second_signal_does_not_wait_for_a_job_that_does_not_heed_it(monkeypatch, heeded, caplog):
    monkeypatch.setattr(serving, "HURRY_SECONDS", 0.2)
    over = threading.Event()
    service = SimpleNamespace(drain=over.wait, cancel_all=over.set if heeded else lambda: None)
    server = serving.Server(uvicorn.Config(lambda: None), service, drain_seconds=60)
    with caplog.at_level("INFO"):
        server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.2)
        assert not server.should_exit
        server.handle_exit(signal.SIGTERM, None)
        wait_for(lambda: server.force_exit, 5)
    assert server.should_exit
    assert "nothing is left to do" not in caplog.text
    over.set()


def test_the_log_tells_nothing_of_what_users_say_or_of_passwords(make_server):
    """At the default level; what is refused is told without the words that were refused."""
    login = "ada:VERYSECRETPASSWORD"
    server = make_server(STEPAUDIO_LOGIN=login, STEPAUDIO_HUB_TOKEN="HUBTOKEN")
    headers = {"authorization": "Basic " + base64.b64encode(login.encode()).decode()}
    assert httpx.get(server.url).status_code == 401
    assert httpx.get(server.url, headers=headers).status_code == 200
    secret = "ZEBRAWORD"
    for fields in (
        {"text": secret, "transcript": f"{secret} again"},
        {"text": secret * 200, "transcript": secret},
        {"text": secret, "transcript": ""},
        {"text": "x", "transcript": "y", "seed": secret},
        {"text": "x", "transcript": "y", secret: "1"},
    ):
        for name, sound in ((f"{secret}.wav", RECORDING), (f"../../{secret}", b"no sound")):
            answer = httpx.post(
                f"{server.url}/stream",
                data={"max_seconds": "0.5", "flow_steps": "1", **fields},
                files={"audio": (name, sound)},
                headers=headers,
                timeout=60,
            )
            assert answer.status_code in (200, 400, 415, 422), answer.text
    assert "Total time" in server.log
    assert "refused" in server.log
    for word in (secret, "VERYSECRETPASSWORD", "HUBTOKEN", headers["authorization"]):
        assert word not in server.log
    assert not [path for path in Path(server.folder).rglob("*") if secret in path.name]
