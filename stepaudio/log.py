"""Logging: one handler, the request id in every prefix, a request's block written in one piece."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

NO_REQUEST = "-"
_request_id: ContextVar[str] = ContextVar("stepaudio_request_id", default=NO_REQUEST)


@contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Put this id into the prefix of every record logged by the body."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


class TextFormatter(logging.Formatter):
    """``time level [id] message``; a message of several lines gets the prefix on each of them."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"{self.formatTime(record)} {record.levelname} [{_request_id.get()}] "
        return "\n".join(prefix + line for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object a record; a finished request brings its facts as ``record.facts``."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname, "id": _request_id.get()}
        facts = getattr(record, "facts", None)
        fields.update(facts if facts is not None else {"message": record.getMessage()})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(level: str, log_format: str, stream: TextIO | None = None) -> logging.Handler:
    """Send stepaudio's records of ``level`` and above, and the libraries' warnings, to standard error."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("stepaudio").setLevel(level)
    return handler
