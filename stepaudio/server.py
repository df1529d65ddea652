"""Serving: logging, weights, service, HTTP, in that order."""

from __future__ import annotations

import logging
import socket

import uvicorn

from stepaudio.api import build_app
from stepaudio.errors import StepAudioError
from stepaudio.loading import choose, load_engine
from stepaudio.log import configure_logging
from stepaudio.service import Service
from stepaudio.settings import Settings

log = logging.getLogger(__name__)

# On SIGTERM connections get this long to end (a request ends with its job), then Service.close() some seconds more.
# Together they stay below the 40 s after which docker-compose.yml lets the container be killed.
SHUTDOWN_SECONDS = 25


def serve(settings: Settings) -> None:
    """Serve the page and the health checks until a signal ends the process.

    Raises WeightsError at once when there is no usable weights folder, and StepAudioError when the port is taken. The
    models are loaded while the page is up.
    """
    configure_logging(settings.log_level, settings.log_format)
    weights, runtime = choose(settings)
    listener = _listen(settings.host, settings.port)
    service = Service(settings, lambda: load_engine(weights, settings, runtime))
    app = build_app(service)
    service.start()
    log.info("The page is at http://%s:%d%s/", settings.host, listener.getsockname()[1], settings.root_path)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; raises StepAudioError with one sentence when that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise StepAudioError(f"The page cannot be served at {host}, port {port}: {error.strerror}.") from error
