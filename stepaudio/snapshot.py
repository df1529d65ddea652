"""A folder brought to the state of its repositories: what is missing is fetched, what is there is verified.

    <target>/<folder>/               the files of one repository
    <target>/.incoming/<folder>/     the same until everything is there
    <target>/.download.json          which files were verified, so that the next run need not read them again

A folder gets its own name only when every file of all of them is verified, so that a service that starts in the
meantime never takes half a model for a whole one. A file is written to ``<name>.<first digits of its checksum>.part``,
which is why a resumed file is never a mixture of two versions, and why another hub can go on where one gave up.
Files come one after the other: one of them is four fifths of all bytes, so several at once would gain little.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stepaudio.errors import WeightsError
from stepaudio.hub import KNOWN, Hub, RemoteFile, confirm_known
from stepaudio.transfer import HubError, Session, matches

log = logging.getLogger(__name__)

RECORD, INCOMING = ".download.json", ".incoming"


@dataclass(frozen=True)
class Progress:
    """How far the download is, in bytes; ``file`` is the path below the target folder."""

    file: str
    done: int
    total: int
    overall_done: int
    overall_total: int


@dataclass(frozen=True)
class Report:
    """What a finished download did: which hub gave the files, which came anew, which were there already."""

    folder: Path
    source: str
    fetched: tuple[str, ...]
    kept: tuple[str, ...]
    total_bytes: int


@dataclass(frozen=True)
class _Wanted:
    """A file and where it is put; ``name`` is its path below the target folder once all is there."""

    name: str
    path: Path
    remote: RemoteFile

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.{self.remote.key}.part")


class Snapshot:
    """The job of one download; when a hub fails, ``update`` may be called with another and goes on."""

    def __init__(
        self,
        target: Path,
        repos: Mapping[str, str],
        session: Session,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.target = target
        self.repos = repos
        self._session = session
        self._progress = progress
        self._record = _Record(target / RECORD)

    def update(self, hub: Hub, *, attempts: int | None = None) -> Report:
        """Fetch from the hub what is missing or wrong. attempts: for the file lists, instead of the session's.

        Raises HubError, WeightsError, Cancelled, and OSError of the disk.
        """
        files = [file for folder, repo in self.repos.items() for file in self._listed(hub, folder, repo, attempts)]
        missing = [file for file in files if not self._there(file)]
        _make_sure_of_room(self.target, missing)
        total = sum(file.remote.size for file in files)
        done = total - sum(file.remote.size for file in missing)
        for file in missing:
            self._fetch(hub, file, done, total)
            done += file.remote.size
        self._reveal(files)
        fetched = tuple(file.name for file in missing)
        kept = tuple(file.name for file in files if file.name not in fetched)
        return Report(self.target, hub.name, fetched, kept, total)

    def _listed(self, hub: Hub, folder: str, repo: str, attempts: int | None) -> list[_Wanted]:
        listed = [confirm_known(file, KNOWN) for file in hub.files(self._session, repo, attempts=attempts)]
        if not listed:
            raise HubError(f"{hub.name} lists no weights in {repo}.")
        final = self.target / folder
        place = final if final.exists() else self.target / INCOMING / folder
        return [_Wanted(f"{folder}/{file.path}", place / file.path, file) for file in listed]

    def _there(self, file: _Wanted) -> bool:
        """Return whether the file is there and right; one that was verified before is not read again."""
        if not file.path.is_file():
            return False
        if self._record.vouches_for(file):
            return True
        if not matches(file.path, file.remote.size, file.remote.checksums, self._session.check):
            return False
        self._record.add(file)
        return True

    def _fetch(self, hub: Hub, file: _Wanted, before: int, total: int) -> None:
        remote = file.remote

        def on_bytes(done: int) -> None:
            if self._progress is not None:
                self._progress(Progress(file.name, done, remote.size, before + done, total))

        file.path.parent.mkdir(parents=True, exist_ok=True)
        resumed = file.part.exists()
        what = f"the file {remote.path} of {remote.repo}"
        # What a power cut left of a part may be damaged; such a file gets a second chance from its first byte.
        for _ in range(2 if resumed else 1):
            self._session.fetch(remote.url, file.part, remote.size, what, headers=hub.headers(), on_bytes=on_bytes)
            if matches(file.part, remote.size, remote.checksums, self._session.check):
                break
            file.part.unlink()
        else:
            raise WeightsError(
                f"The file {remote.path} of {remote.repo} came damaged (its checksum is wrong) and was removed; "
                "run the download again, or use another source."
            )
        # On the disk before it gets its name, so that a power cut cannot leave an empty file that is vouched for.
        with file.part.open("r+b") as written:
            os.fsync(written.fileno())
        os.replace(file.part, file.path)
        self._record.add(file)

    def _reveal(self, files: list[_Wanted]) -> None:
        """Give the finished folders their names; remove parts of versions that nobody will ask for again."""
        for file in files:
            for stale in file.path.parent.glob(f"{glob.escape(file.path.name)}.*.part"):
                stale.unlink()
        for folder in self.repos:
            aside = self.target / INCOMING / folder
            if aside.exists() and not (self.target / folder).exists():
                os.replace(aside, self.target / folder)
        with contextlib.suppress(OSError):  # it stays where it never was, or holds something that is not ours
            (self.target / INCOMING).rmdir()


class _Record:
    """Which files were verified, with size and modification time; a damaged record only costs reading them again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seals: dict[str, dict[str, object]] = {}
        try:
            self._seals = {str(name): dict(seal) for name, seal in json.loads(path.read_text("utf-8")).items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s); the files are verified anew.", path, error)

    def vouches_for(self, file: _Wanted) -> bool:
        return self._seals.get(file.name) == _seal(file)

    def add(self, file: _Wanted) -> None:
        self._seals[file.name] = _seal(file)
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.write_text(json.dumps(self._seals, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(fresh, self._path)


def _seal(file: _Wanted) -> dict[str, object]:
    """Return what an unchanged file keeps: its size, modification time and the checksums that it was verified by."""
    status = file.path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "listed_size": file.remote.size,
        "checksums": sorted(str(checksum) for checksum in file.remote.checksums),
    }


def _make_sure_of_room(target: Path, missing: list[_Wanted]) -> None:
    there = sum(file.part.stat().st_size for file in missing if file.part.exists())
    needed = sum(file.remote.size for file in missing) - there
    free = shutil.disk_usage(target).free
    if needed > free:
        raise WeightsError(
            f"There is not enough room in {target}: the download needs {readable(needed)} more, "
            f"and {readable(free)} are free."
        )


def readable(count: float) -> str:
    """Return a number of bytes as people read it: "9.23 GB", "14 MB", "120 bytes"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{2 if unit == 'GB' else 0}f} {unit}"
    return f"{count:.0f} bytes"
