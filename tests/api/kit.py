"""What the tests of the API share: a server in a thread of this process, so that tests may change what it does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from stepaudio.api import build_app
from stepaudio.audiofile import encode_wav
from stepaudio.loading import Engine
from stepaudio.service import Service
from tests.conftest import voice

RECORDING = encode_wav(voice(2.0))
LONG = "[sigh] " * 60
SHORT = {"flow_steps": 1, "max_seconds": 0.6, "seed": 3}


class KeptEngine(Engine):
    """An engine that outlives the services it is lent to."""

    def close(self) -> None:
        pass


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serve the application over the service, and give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(build_app(service), log_config=None, access_log=False, timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


def until(condition, seconds: float = 10.0) -> None:
    """Wait until the condition holds; fails when it does not come to that in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)
