"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stepaudio.errors import InvalidInput, StepAudioError


def read_file(path: str | Path) -> bytes:
    """Return the bytes of a file that the user named; raises InvalidInput where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"The file {path} cannot be read: {error.strerror}.") from error


def write_file(path: Path, data: bytes) -> None:
    """Write what the user named: a plain file as write_whole does, a pipe or a device by writing to it.

    A link stays, and what it leads to is written. Raises StepAudioError where that cannot be.
    """
    with _told(path):
        target, plain = _target(path)
        if plain:
            write_whole(target, data)
        else:
            with target.open("wb") as file:
                file.write(data)


def check_target(path: Path) -> None:
    """Raise StepAudioError where write_file would, as far as that can be seen beforehand; nothing is touched."""
    with _told(path):
        target, plain = _target(path)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if plain:
            os.stat(os.path.join(target.parent, ""))
            with suppress(FileNotFoundError):  # as it should be; a name that is too long is another error
                part_of(target).lstat()
        if not os.access(target.parent if plain else target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the system says against writing a file into a StepAudioError."""
    try:
        yield
    except OSError as error:
        raise StepAudioError(f"The file {path} cannot be written: {error.strerror}.") from error


def _target(path: Path) -> tuple[Path, bool]:
    """Return where to write for this name, and whether that is a plain file, there or yet to be made.

    Only a plain one is looked for behind links: an open pipe has a name (/dev/stdout) that leads to none.
    """
    try:
        plain = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        plain = True
    return (Path(os.path.realpath(path)), True) if plain else (path, False)


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
