"""The folder of uploads and results: private, bounded, empty at every start and gone at the end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stepaudio.errors import StepAudioError
from stepaudio.locks import ProcessLock

log = logging.getLogger(__name__)

FRESH_SECONDS = 600.0
"""A file that was written or changed within this time is never taken away: somebody is about to use it."""
MOST_FOLDERS = 32
"""Servers of one port that are told apart."""


class TempFolder:
    """A folder of at most ``limit`` bytes, as far as old files can make room for new ones. Safe for threads."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def opened(cls, parent: str, port: int, limit: int) -> Iterator[TempFolder]:
        """Make the folder, let this process put its temporary files there, and remove it at the end.

        Its name is that of the port, and of a number where another server has that: the port may be taken at two
        addresses, or in two containers that share the parent. What a killed one left is removed here.
        parent: a folder, or "" for the system's own. Raises StepAudioError where the folder cannot be had.
        """
        base = Path(parent or tempfile.gettempdir()) / f"stepaudio-{_user()}-{port}"
        with ExitStack() as held:
            path = _free(base, held)
            try:
                shutil.rmtree(path, ignore_errors=True)
                # Fails where somebody else has put a folder or a link of this name; nobody else may read this one.
                path.mkdir(mode=0o700, parents=True)
            except OSError as error:
                raise StepAudioError(f"The temporary folder {path} cannot be made: {error.strerror}.") from error
            before, tempfile.tempdir = tempfile.tempdir, str(path)
            try:
                yield cls(path, limit)
            finally:
                tempfile.tempdir = before
                shutil.rmtree(path, ignore_errors=True)

    def restore(self) -> None:
        """Make the folder again where it was removed: programs that clean up /tmp take what lay idle for days."""
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            return
        except OSError as error:  # what is to be written there will fail, and tell it
            log.error("The temporary folder %s is gone and cannot be made again: %s.", self.path, error.strerror)
            return
        log.warning("The temporary folder %s was removed by something else, and is made again.", self.path)

    def make_room(self, needed: int) -> bool:
        """Return whether ``needed`` more bytes fit, after the oldest files were removed as far as that takes.

        For what would not fit without all of them either, none is removed. The disk counts as well as the limit.
        """
        with self._lock:
            oldest_fresh = time.time() - FRESH_SECONDS
            files = sorted(self._files())
            fresh = sum(size for modified, size, _ in files if modified > oldest_fresh)
            total = sum(size for _, size, _ in files)
            limit = min(self._limit, total + shutil.disk_usage(self.path).free)
            if fresh + needed > limit:
                return False
            removed = 0
            for _, size, path in files:
                if total + needed <= limit:
                    break
                path.unlink(missing_ok=True)
                total -= size
                removed += 1
            if removed:
                log.info("Removed %d old uploads and results to make room.", removed)
            return True

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Return modification time, size and path of every file."""
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder) / name
                try:
                    status = path.lstat()
                except OSError:  # gone meanwhile
                    continue
                yield status.st_mtime, status.st_size, path


def _free(base: Path, held: ExitStack) -> Path:
    """Return the first of base, base-2, ... that no other process has, and hold it; base, where nothing can be held."""
    for number in range(1, MOST_FOLDERS + 1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        lock = held.enter_context(ProcessLock(path.with_name(f"{path.name}.lock"), wait_seconds=0.0))
        if lock.held:
            return path
        if not lock.waited:
            break
    return base


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
