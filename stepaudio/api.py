"""The one HTTP application: health checks, sound while it is being made, and the page mounted in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import gradio as gr
from fastapi import FastAPI, Response

from stepaudio.service import Service
from stepaudio.stream_routes import add_stream_routes
from stepaudio.web.assets import css, head, theme
from stepaudio.web.page import Page
from stepaudio.web.uploads import take_uploads_only


def build_app(service: Service) -> FastAPI:
    """Return the application over one Service; it is closed when the application shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # No /docs: FastAPI's page for it loads scripts from elsewhere.
    app = FastAPI(title="stepaudio", root_path=service.settings.root_path, lifespan=lifespan, openapi_url=None)

    @app.get("/health/live")
    def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready")
    def ready(response: Response) -> dict[str, str]:
        """200 once the models are loaded and warm, 503 before that and when loading failed."""
        if service.state != "ready":
            response.status_code = 503
        return {"status": service.state, **({"problem": service.problem} if service.problem else {})}

    add_stream_routes(app, service)
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
