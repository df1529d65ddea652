"""Standard output and standard error of a command, also where they take no more, or not every character."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from stepaudio.errors import StepAudioError


def prepare() -> None:
    """Let standard output show "?" for a character that its encoding lacks; standard error has its own way."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def put(data: str | bytes) -> None:
    """Write a result to standard output, at once.

    Raises StepAudioError where it cannot be written, BrokenPipeError where who read it has gone.
    """
    if sys.stdout is None:
        raise StepAudioError("Standard output is closed.")
    with _told():
        if isinstance(data, bytes):
            sys.stdout.buffer.write(data)
        else:
            sys.stdout.write(data)
        sys.stdout.flush()


def flush() -> None:
    """Write what still waits for standard output; raises as put does."""
    if sys.stdout is not None:
        with _told():
            sys.stdout.flush()


def tell(text: str) -> None:
    """Write to standard error, if it takes anything: there is no other way to say that it does not."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(text)


def let_go() -> None:
    """Give up what cannot be written; else the interpreter tries it once more at its end, and complains."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the system says against writing to standard output into a StepAudioError, but for a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StepAudioError(f"Standard output cannot be written: {error.strerror}.") from error
