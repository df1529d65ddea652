"""Serving: logging, weights, service, HTTP, in that order."""

from __future__ import annotations

import logging

import uvicorn

from stepaudio import device
from stepaudio.api import build_app
from stepaudio.loading import load_engine
from stepaudio.log import configure_logging
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.weights import choose_weights

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 30


def serve(settings: Settings) -> None:
    """Serve the page and the health checks until a signal ends the process.

    Raises WeightsError at once when there is no usable weights folder. The models are loaded while the page is up.
    """
    configure_logging(settings.log_level, settings.log_format)
    runtime = device.choose(settings.device, settings.dtype, tf32=settings.tf32, threads=settings.threads or None)
    device.apply(runtime)
    log.info("Running on %s, %d threads.", runtime.reason, runtime.threads)
    weights = choose_weights(settings)
    log.info("Weights: %s in %s (%s).", weights.card.title, weights.path, weights.reason)
    if "en" in weights.card.notice:
        log.warning("%s", weights.card.notice["en"])
    service = Service(settings, lambda: load_engine(weights, settings, runtime))
    app = build_app(service)
    service.start()
    log.info("The page is at http://%s:%d%s/", settings.host, settings.port, settings.root_path)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
