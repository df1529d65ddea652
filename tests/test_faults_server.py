"""The rows of the fault table that need a whole server: signals, slow clients, a thousand hostile uploads."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import threading
import time

import httpx
import pytest
import soundfile

from tests.conftest import voice
from tests.fault_kit import VOICES, post, put_down, resident_megabytes
from tests.server import Server

pytestmark = [pytest.mark.proof, pytest.mark.faults]

UPLOADS = int(os.environ.get("PROOF_UPLOADS", "1000"))
SLOW_CLIENTS = 40


@pytest.fixture
def server(tmp_path, tiny_weights):
    running = Server(tmp_path / "server", {"STEPAUDIO_WEIGHTS": str(tiny_weights), "STEPAUDIO_THREADS": "1"}).start()
    yield running
    running.kill()


def test_sigterm_under_load_loses_nothing_that_was_accepted(server):
    statuses: list[int] = []
    broken: list[str] = []
    stop = threading.Event()

    def client(number: int) -> None:
        while not stop.is_set():
            try:
                answer = post(server.url, VOICES["ab"[number % 2]], max_seconds="1.2")
                statuses.append(answer.status_code)
            except httpx.ConnectError:
                return  # the doors are closed
            except httpx.HTTPError as error:
                broken.append(repr(error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(90)
    stop.set()
    for thread in threads:
        thread.join(60)
    made, refused = statuses.count(200), statuses.count(503)
    assert status == 0
    assert "nothing is left to do" in server.log
    assert set(statuses) <= {200, 429, 503}
    assert broken == []
    assert made >= 8
    assert refused >= 1
    assert "Traceback" not in server.log
    put_down("SIGTERM under load", clients=8, made=made, refused=refused, broken_off=0, exit_status=status)


def test_slow_clients_hold_nobody_up(server):
    """Some send a byte a second, some never read their sound; everybody else is served meanwhile."""
    body = b"--x\r\nContent-Disposition: form-data; name=audio; filename=a.wav\r\n\r\n" + VOICES["a"]
    head = (
        b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 90000\r\n\r\n"
    )
    slow = []
    try:
        for number in range(SLOW_CLIENTS):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connection.sendall(head + body[: 10 * number])
            slow.append(connection)
        seconds = []
        for name in "abab":
            for connection, byte in zip(slow, body[1000 : 1000 + SLOW_CLIENTS], strict=True):
                connection.sendall(bytes([byte]))
            start = time.monotonic()
            assert post(server.url, VOICES[name]).status_code == 200
            seconds.append(time.monotonic() - start)
            assert httpx.get(f"{server.url}/health/ready", timeout=10).status_code == 200
    finally:
        for connection in slow:
            connection.close()
    assert post(server.url, VOICES["a"]).status_code == 200
    assert max(seconds) < 60
    put_down("slow clients", connections=SLOW_CLIENTS, slowest_request_seconds=round(max(seconds), 2))


def sound_files() -> list[bytes]:
    files = []
    for container, subtype in (
        *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
        *(("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("AU", "ULAW")),
    ):
        target = io.BytesIO()
        soundfile.write(target, voice(1.0).samples, 24000, format=container, subtype=subtype)
        files.append(target.getvalue())
    return files


def malformed(draw: random.Random, files: list[bytes]) -> bytes:
    """Return a file that somebody has spoilt: in its head, anywhere, cut off, glued together, or no sound at all."""
    data = bytearray(draw.choice(files))
    kind = draw.randrange(6)
    if kind == 0:
        return draw.randbytes(draw.randrange(0, 5000))
    if kind == 1:
        return bytes(data[: draw.randrange(len(data))])
    if kind == 2:
        return bytes(data[: draw.randrange(200)]) + bytes(draw.choice(files))
    for _ in range(draw.choice([1, 4, 50])):
        place = draw.randrange(min(len(data), 120) if kind in (3, 4) else len(data))
        data[place] = draw.choice([0, 0xFF, 0x7F, draw.randrange(256)])
    return bytes(data)


def test_a_thousand_malformed_uploads(server):
    draw = random.Random(1)
    files = sound_files()
    assert server.process is not None
    assert post(server.url, VOICES["a"]).status_code == 200
    before = resident_megabytes(server.process.pid)
    statuses: dict[int, int] = {}
    start = time.monotonic()
    for _ in range(UPLOADS):
        answer = post(server.url, malformed(draw, files), max_seconds="0.12")
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        if answer.status_code != 200:
            assert answer.status_code in (400, 413, 415, 422), answer.text
            told = answer.json()["error"]
            sentence = told if isinstance(told, str) else told["message"]
            assert sentence.endswith(".")
            assert "\n" not in sentence
    seconds = time.monotonic() - start
    grown = resident_megabytes(server.process.pid) - before
    assert "Traceback" not in server.log
    assert post(server.url, VOICES["a"]).status_code == 200
    assert grown < 300
    assert not [path for path in (server.folder / "temporary").rglob("*") if path.is_file()]
    put_down(
        "malformed uploads",
        uploads=UPLOADS,
        seconds=round(seconds, 1),
        statuses={str(status): count for status, count in sorted(statuses.items())},
        memory_grown_megabytes=round(grown, 1),
    )
