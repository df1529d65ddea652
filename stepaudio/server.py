"""Serving: logging, weights, memory, service, HTTP, in that order; and the end, which loses nothing accepted."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from types import FrameType

import uvicorn

from stepaudio import memory
from stepaudio.api import build_app
from stepaudio.api.guard import read_keys
from stepaudio.doors import Login, Room
from stepaudio.errors import StepAudioError
from stepaudio.loading import choose, load_engine
from stepaudio.log import configure_logging
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.tempfolder import TempFolder

log = logging.getLogger(__name__)

# After the accepted jobs are over, connections get this long to fetch what is theirs, and Service.close() some
# seconds more. With STEPAUDIO_DRAIN_SECONDS that stays below the time after which docker-compose.yml lets the
# container be killed.
SHUTDOWN_SECONDS = 5

# Asked a second time to end, it gives the jobs this long to heed that they are cancelled, and then the connections.
HURRY_SECONDS = 1.0


def serve(settings: Settings) -> None:
    """Serve the page and the health checks until a signal ends the process.

    Raises WeightsError at once when there is no usable weights folder, InvalidInput for a login that is none, and
    StepAudioError when the port is taken. The models are loaded while the page is up.
    """
    configure_logging(settings.log_level, settings.log_format)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    login = Login.parse(settings.login)
    weights, runtime = choose(settings)
    for sentence in memory.advice(weights, runtime):
        log.warning("%s", sentence)
    listener = _listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    with TempFolder.opened(settings.temp_dir, port, settings.temp_megabytes * 2**20) as folder:
        service = Service(settings, lambda: load_engine(weights, settings, runtime))
        app = Room(build_app(service), folder)
        service.start()
        log.info("The page is at http://%s:%d%s/", _in_url(settings.host), port, settings.root_path)
        config = uvicorn.Config(
            _locked(app, login, settings) if login else app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        Server(config, service, settings.drain_seconds).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn that on the first SIGTERM lets the accepted jobs end, while new ones are told to go elsewhere.

    The doors stay open meanwhile, so that results are fetched and new requests get their 503. A second signal cancels
    the jobs, and lets those who wait for them be told so before it closes the doors. However it ends, the application
    is told of it and puts its things away.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._draining: threading.Thread | None = None
        self._hurrying = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGTERM and SIGINT."""
        # In threads: a handler interrupts whatever the main thread does, and must not wait for its locks.
        if self._draining is None:
            self._draining = threading.Thread(target=self._drain, name="stepaudio-drain", daemon=True)
            self._draining.start()
        elif not self._hurrying:
            self._hurrying = True
            threading.Thread(target=self._hurry, args=(self._draining,), name="stepaudio-hurry", daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the doors, then have the application put its things away, which uvicorn spares where it is forced."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def _drain(self) -> None:
        log.info("Stopping: accepted requests have %g s to end, new ones are refused.", self._drain_seconds)
        over = self._service.drain(self._drain_seconds)
        if not over:
            log.warning("Stopping: what is not done after %g s is cancelled.", self._drain_seconds)
        elif not self._hurrying:
            log.info("Stopping: nothing is left to do.")
        self.should_exit = True

    def _hurry(self, draining: threading.Thread) -> None:
        log.warning("Stopping at once: what is not done is cancelled.")
        self._service.cancel_all()
        draining.join(HURRY_SECONDS)
        self.should_exit = True
        time.sleep(HURRY_SECONDS)
        self.force_exit = True


def _locked(app: Room, login: tuple[bytes, bytes], settings: Settings) -> Login:
    return Login(app, login, root_path=settings.root_path, keyed=bool(read_keys(settings)))


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record tells more than that an open page was let go of at the end, a traceback otherwise."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; raises StepAudioError with one sentence when that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise StepAudioError(f"The page cannot be served at {host}, port {port}: {error.strerror}.") from error
    # What it accepts inherits this. asyncio sets it only on sockets that know their protocol, which these do not; and
    # without it the kernel holds back the end of each answer on a kept connection, or a piece of a stream, for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
