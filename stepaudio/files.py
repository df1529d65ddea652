"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from stepaudio.errors import InvalidInput, StepAudioError


def read_file(path: str | Path) -> bytes:
    """Return the bytes of a file that the user named; raises InvalidInput where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"The file {path} cannot be read: {error.strerror}.") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file that the user named, as write_whole does; raises StepAudioError where it cannot be written."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise StepAudioError(f"The file {path} cannot be written: {error.strerror}.") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write the bytes beside ``path`` and rename them to it, so that no end of the program leaves half a file there.

    What a killed program leaves is ``part_of(path)``, which the next one overwrites. Raises OSError.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return where the bytes of ``path`` lie while they are being written."""
    return path.with_name(f".{path.name}.part")
