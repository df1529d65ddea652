"""The one HTTP application: routes as OpenAI's API has them and more, health checks, metrics, the page."""

from stepaudio.api.app import build_app

__all__ = ["build_app"]
