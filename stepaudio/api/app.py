"""The one HTTP application put together: the API's routes, health checks, metrics, and the page mounted behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import gradio as gr
from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.routing import BaseRoute, Match

from stepaudio.api.batch import batch_routes
from stepaudio.api.catalogue import catalogue_routes
from stepaudio.api.edits import edit_routes
from stepaudio.api.errors import add_handlers, error_response
from stepaudio.api.guard import Guard, read_keys
from stepaudio.api.speech import speech_routes
from stepaudio.api.stream import stream_routes
from stepaudio.api.voices import voice_routes
from stepaudio.batches import Batches
from stepaudio.metrics import CONTENT_TYPE
from stepaudio.service import Service
from stepaudio.web.assets import css, head, theme
from stepaudio.web.page import Page
from stepaudio.web.uploads import take_uploads_only

DESCRIPTION = (
    "Speech in voices of your own, on your own hardware. The routes of OpenAI's API work with its clients as they are; "
    "what it has no field for stands in one object, `stepaudio`."
)


def build_app(service: Service) -> FastAPI:
    """Return the application over one Service; it is closed when the application shuts down.

    Raises InvalidInput where the settings name keys that cannot be read.
    """
    batches = Batches(service, most_bytes=service.settings.batches_megabytes * 2**20)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        batches.close()
        service.close()

    # The scripts of /docs come from here: FastAPI's own page for it loads them from elsewhere.
    app = FastAPIOffline(
        title="stepaudio",
        description=DESCRIPTION,
        root_path=service.settings.root_path,
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs-static",
    )
    keys = read_keys(service.settings)
    app.add_middleware(Guard, service=service, keys=keys)
    add_handlers(app, service)
    _add_health(app, service)
    routers = (
        speech_routes(service),
        catalogue_routes(service),
        voice_routes(service),
        edit_routes(service),
        batch_routes(service, batches),
        stream_routes(service),
    )
    # It is the guard who looks at the key; this tells of it in the description, so that /docs can send one.
    described = [Depends(HTTPBearer(scheme_name="key", auto_error=False))] if keys else []
    for router in routers:
        app.include_router(router, dependencies=described)
    _add_the_rest(app, [*app.routes, *(route for router in routers for route in router.routes)])
    return _with_page(app, service)


def _add_health(app: FastAPI, service: Service) -> None:
    engine = lambda: service.engine  # noqa: E731 - read anew at each look
    service.metrics.watch(
        waiting=lambda: service.queue.waiting,
        running=lambda: service.queue.running,
        ready=lambda: service.state == "ready",
        cache=lambda: found.pipeline.cache.stats() if (found := engine()) is not None else None,
    )

    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live", tags=["health"])
    def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.head("/health/ready", include_in_schema=False)
    @app.get("/health/ready", tags=["health"], responses={503: {"description": "Not yet, or loading failed."}})
    def ready(response: Response) -> dict[str, str]:
        """200 once the models are loaded and warm, 503 before that and when loading failed."""
        if service.state != "ready":
            response.status_code = 503
        return {"status": service.state, **({"problem": service.problem} if service.problem else {})}

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        """All numbers in Prometheus' text format."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)


def _add_the_rest(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer for what is not there at the API's paths: else the page, which is mounted behind, would."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]

    @app.api_route("/v1", methods=methods, include_in_schema=False)
    @app.api_route("/v1/{rest:path}", methods=methods, include_in_schema=False)
    @app.api_route("/stream", methods=methods, include_in_schema=False)
    @app.api_route("/stream/{rest:path}", methods=methods, include_in_schema=False)
    @app.api_route("/metrics", methods=methods, include_in_schema=False)
    def nothing(request: Request) -> Response:
        allowed = sorted(
            {
                method
                for route in routes
                if route.matches(request.scope)[0] == Match.PARTIAL
                for method in getattr(route, "methods", None) or ()
            }
        )
        path = request.url.path
        if allowed:
            *others, last = allowed
            names = f"{', '.join(others)} and {last} are" if others else f"{last} is"
            message = f"{request.method} is not possible at {path}; only {names}."
            headers = {"Allow": ", ".join(allowed)}
            return error_response(405, message, "invalid_request_error", "method_not_allowed", headers=headers)
        return error_response(404, f"There is nothing at {path}; see /docs.", "invalid_request_error", "not_found")


def _with_page(app: FastAPI, service: Service) -> FastAPI:
    blocks = Page(service).build()
    take_uploads_only(blocks)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        root_path=service.settings.root_path or None,
        max_file_size=service.settings.max_upload_bytes,
        show_error=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        theme=theme(),
        css=css(),
        head=head(service.settings.root_path),
    )
