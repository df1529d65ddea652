"""What the proofs of the API share: a server process of its own, requests with known answers, its vital numbers."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stepaudio.audiofile import encode_wav
from stepaudio.bench.conditions import commit, cpu_model
from tests.conftest import ROOT, voice
from tests.server import Server

VOICES = 4


@dataclass(frozen=True)
class Call:
    """One request: how it is sent, and what to call the answer that it must get."""

    name: str
    path: str
    json: dict[str, Any] | None = None
    data: dict[str, str] | None = None
    audio: bytes | None = None

    def send(self) -> dict[str, Any]:
        """Return the arguments for httpx."""
        files = {"audio": ("voice.wav", self.audio)} if self.audio is not None else None
        return {"url": self.path, "json": self.json, "data": self.data, "files": files}


def serve(folder: Path, **settings: str) -> Server:
    """Return a running server on tiny weights."""
    own = {"STEPAUDIO_DATA_DIR": str(folder / "data"), "TMPDIR": str(folder / "tmp")}
    # Small, so that it is full long before the end: what is kept within its bounds must not look like a leak.
    # One thread: on a small machine the clients need a core, too.
    own |= {"STEPAUDIO_PREFIX_MEGABYTES": "8", "STEPAUDIO_THREADS": "1", **settings}
    (folder / "tmp").mkdir(parents=True)
    return Server(folder, own).start()


def save_voices(client: httpx.Client) -> None:
    """Save the voices that the calls name."""
    for number in range(VOICES):
        recording = encode_wav(voice(2.0, pitch=100.0 + 20 * number))
        form = {"name": f"voice-{number}", "transcript": "the words"}
        client.post("/v1/voices", data=form, files={"audio": ("voice.wav", recording)}).raise_for_status()


def known_call(number: int, seconds: float = 1.2) -> Call:
    """Return a request in a saved voice, whose encoding the cache has."""
    options = {"seed": number, "max_seconds": seconds, "flow_steps": 4}
    body = {"model": "tts-1", "voice": f"voice-{number % VOICES}", "input": f"Text number {number}, please."}
    body |= {"response_format": "pcm", "stepaudio": options}
    return Call(f"hit-{number}", "/v1/audio/speech", json=body)


def fresh_call(number: int, seconds: float = 1.2) -> Call:
    """Return a request with a recording that nobody has sent before."""
    form = {"transcript": "the words", "text": f"Text number {number}, please.", "seed": str(number)}
    form |= {"max_seconds": str(seconds), "flow_steps": "4"}
    recording = encode_wav(voice(2.0, pitch=90.0 + number % 37, seed=1000 + number))
    return Call(f"miss-{number}", "/stream?format=pcm", data=form, audio=recording)


def digest(sound: bytes) -> str:
    """Return what two answers share exactly when their samples are equal."""
    return hashlib.sha256(sound).hexdigest()


def alone(client: httpx.Client, call: Call) -> str:
    """Return the digest of the answer when nobody else asks."""
    answer = client.post(**call.send())
    answer.raise_for_status()
    return digest(answer.content)


def vital(client: httpx.Client, server: Server) -> dict[str, float]:
    """Return memory, files, threads and the line of the server."""
    numbers = {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in client.get("/metrics").text.splitlines())
        if name
        in ("process_resident_memory_bytes", "process_open_fds", "stepaudio_queue_waiting", "stepaudio_queue_running")
    }
    assert server.process is not None
    threads = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
    left = sum(1 for path in (server.folder / "tmp").rglob("*") if path.is_file())
    return {
        "megabytes": round(numbers["process_resident_memory_bytes"] / 2**20, 1),
        "files": numbers["process_open_fds"],
        "threads": threads,
        "temporary_files": left,
        "waiting": numbers["stepaudio_queue_waiting"],
        "running": numbers["stepaudio_queue_running"],
    }


def quiet(client: httpx.Client, server: Server, seconds: float = 20.0) -> dict[str, float]:
    """Wait until nothing waits or runs, a little longer for what ends behind it, and return the vital numbers."""
    end = time.monotonic() + seconds
    while (found := vital(client, server))["waiting"] + found["running"]:
        assert time.monotonic() < end, f"after {seconds} s there is still something at work: {found}"
        time.sleep(0.1)
    time.sleep(1.0)
    return vital(client, server)


def write(name: str, result: dict[str, Any], command: str) -> Path:
    """Write a result with its conditions under benchmarks/, and return where."""
    path = ROOT / "benchmarks" / f"{name}.json"
    conditions = {
        "commit": commit(),
        "command": command,
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "weights": "tiny random ones",
    }
    path.write_text(json.dumps({**conditions, **result}, indent=1) + "\n", encoding="utf-8")
    return path
