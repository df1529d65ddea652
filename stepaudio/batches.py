"""Lists of texts spoken in one voice for clients of the API: each in the background, its sounds in one archive.

Nothing of a batch outlives the program; what must survive a sudden end is made by ``python -m stepaudio batch``.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stepaudio.audiofile import pcm16
from stepaudio.audiostream import STREAM_FORMATS, encode_whole
from stepaudio.errors import Busy, Cancelled, NotFound, ShuttingDown, StepAudioError
from stepaudio.queue import Job
from stepaudio.service import CloneRequest, CloneResult, Service

log = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
LIFE_SECONDS = 3600.0
"""How long a batch is kept once it is over."""
MOST_UNFINISHED = 16
MOST_UNFINISHED_EACH = 2
"""Batches at work: of all clients together, and of one."""
STOP_SECONDS = 10.0

State = Literal["running", "done", "cancelled", "failed"]
"""failed: its archive could not be written."""


@dataclass(frozen=True)
class Failure:
    """A line that gave no sound, and why. line: its place in the list, from 1."""

    line: int
    error: str


@dataclass
class BatchProgress:
    """How far a batch is. Times: seconds since the epoch."""

    total: int
    done: int = 0
    failed: int = 0
    state: State = "running"
    created: float = field(default_factory=time.time)
    finished: float | None = None
    bytes: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """How long the rest will take at the rate so far; None before anything is known."""
        ended = self.done + self.failed
        if self.state != "running" or ended == 0:
            return None
        return (time.time() - self.created) / ended * (self.total - ended)


class Batch:
    """One list of texts on its way; ``progress`` is a copy, safe to read at any time."""

    def __init__(self, shared: CloneRequest, texts: Sequence[str], form: str, client: str, folder: Path) -> None:
        self.id = secrets.token_hex(16)
        self.client = client
        self.archive = folder / f"{self.id}.zip"
        self._shared, self._texts, self._form = shared, tuple(texts), form
        self._progress = BatchProgress(len(texts))
        self._mutex = threading.Lock()
        self._stopped = threading.Event()
        self._job: Job[CloneResult] | None = None
        self._thread: threading.Thread | None = None

    @property
    def progress(self) -> BatchProgress:
        with self._mutex:
            return replace(self._progress)

    def start(self, service: Service, room: Callable[[], int]) -> None:
        """Begin to speak, in a thread of its own; room: how many bytes may still be kept."""
        self._thread = threading.Thread(
            target=self._run, args=(service, room), name=f"stepaudio-batch-{self.id[:8]}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End after the line that is being spoken is cancelled; what is done stays."""
        self._stopped.set()
        job = self._job
        if job is not None:
            job.cancel()

    def wait(self, timeout: float) -> None:
        """Wait until the batch is over."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self, service: Service, room: Callable[[], int]) -> None:
        state: State = "cancelled"
        try:
            with zipfile.ZipFile(self.archive, "w", zipfile.ZIP_STORED) as archive:
                records = []
                for number, text in enumerate(self._texts, 1):
                    if self._stopped.is_set():
                        break
                    records.append(self._line(number, text, service, archive, room))
                lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records if record)
                archive.writestr(MANIFEST, lines.encode("utf-8", "replace"))
            state = "cancelled" if self._stopped.is_set() else "done"
        except OSError as error:
            state = "failed"
            log.error("The batch %s ended: its archive cannot be written (%s).", self.id[:8], error)
            self._count(Failure(0, f"The archive cannot be written: {error.strerror}."))
        finally:
            with self._mutex:
                self._progress.state, self._progress.finished = state, time.time()

    def _line(
        self, number: int, text: str, service: Service, archive: zipfile.ZipFile, room: Callable[[], int]
    ) -> dict[str, Any]:
        """Speak one line into the archive, and return its record; {} where the batch was stopped."""
        record: dict[str, Any] = {"line": number, "text": text}
        try:
            synthesis = self._spoken(text, service).synthesis
            waveform = synthesis.waveform
            data = encode_whole(pcm16(waveform.samples), self._form, waveform.sample_rate)
            if len(data) > room():
                raise StepAudioError("There is no room for more sounds of batches; fetch and remove one first.")
        except Cancelled:
            if self._stopped.is_set():
                return {}
            return self._failed(record, "The line was cancelled.")
        except StepAudioError as error:
            return self._failed(record, str(error))
        name = f"{number:06d}{STREAM_FORMATS[self._form].suffix}"
        archive.writestr(name, data)
        with self._mutex:
            self._progress.done += 1
            self._progress.bytes += len(data)
        seconds = round(waveform.seconds, 3)
        return {**record, "file": name, "seconds": seconds, "seed": synthesis.seed, "stopped": synthesis.stopped}

    def _spoken(self, text: str, service: Service) -> CloneResult:
        """Wait for a place in the line, then for the sound."""
        while True:
            if self._stopped.is_set():
                raise Cancelled("The batch was stopped.")
            try:
                job = self._job = service.submit_clone(replace(self._shared, text=text))
                break
            except ShuttingDown:
                self._stopped.set()
            except Busy:
                self._stopped.wait(min(service.queue.turn_seconds, 1.0))
        if self._stopped.is_set():  # between the check above and the line below
            job.cancel()
        while not job.over:
            job.wait_for_change(None)
        error = job.error
        if error is not None and not isinstance(error, StepAudioError):  # the queue has logged it
            raise StepAudioError(f"Internal error, request {job.id}: the server's log says more.") from error
        return job.result(0)

    def _failed(self, record: dict[str, Any], message: str) -> dict[str, Any]:
        self._count(Failure(record["line"], message))
        return {**record, "error": message}

    def _count(self, failure: Failure) -> None:
        with self._mutex:
            self._progress.failed += 1
            self._progress.failures = (*self._progress.failures, failure)


class Batches:
    """All batches of the process, in a temporary folder that goes with it. Safe in many threads."""

    def __init__(self, service: Service, *, most_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._service = service
        self._most_bytes = most_bytes
        self._clock = clock
        self._batches: dict[str, Batch] = {}
        self._mutex = threading.Lock()
        self._folder: Path | None = None

    def begin(self, shared: CloneRequest, texts: Sequence[str], form: str, client: str) -> Batch:
        """Begin to speak the texts, each as ``shared`` says, and return the batch.

        Raises Busy for too many at once, ShuttingDown when the program is coming to its end.
        """
        if self._service.state == "stopping":
            raise ShuttingDown("The program is being shut down and takes no more batches; please try again later.")
        with self._mutex:
            self._expire()
            unfinished = [batch for batch in self._batches.values() if batch.progress.state == "running"]
            own = sum(batch.client == client for batch in unfinished)
            if own >= MOST_UNFINISHED_EACH or len(unfinished) >= MOST_UNFINISHED:
                raise Busy(f"{own} batches of yours and {len(unfinished)} in all are at work already; please wait.")
            if self._folder is None or not self._folder.is_dir():  # what cleans up /tmp may have taken it
                self._folder = Path(tempfile.mkdtemp(prefix="stepaudio-batches-"))
            batch = Batch(shared, texts, form, client, self._folder)
            self._batches[batch.id] = batch
        batch.start(self._service, self._room)
        return batch

    def get(self, batch_id: str) -> Batch:
        """Return a batch; raises NotFound for one that is not, or no more, there."""
        with self._mutex:
            self._expire()
            batch = self._batches.get(batch_id)
        if batch is None:
            raise NotFound(f"There is no batch {batch_id[:40]!r}, or not any more.")
        return batch

    def remove(self, batch_id: str) -> None:
        """Stop a batch and remove what it has made; raises NotFound as get does."""
        batch = self.get(batch_id)
        batch.stop()
        batch.wait(STOP_SECONDS)
        with self._mutex:
            self._drop(batch)

    def close(self) -> None:
        """Stop all batches and remove their folder."""
        with self._mutex:
            batches, self._batches = list(self._batches.values()), {}
            folder, self._folder = self._folder, None
        for batch in batches:
            batch.stop()
        for batch in batches:
            batch.wait(STOP_SECONDS)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _room(self) -> int:
        with self._mutex:
            return self._most_bytes - sum(batch.progress.bytes for batch in self._batches.values())

    def _expire(self) -> None:
        for batch in list(self._batches.values()):
            finished = batch.progress.finished
            if finished is not None and self._clock() - finished > LIFE_SECONDS:
                self._drop(batch)

    def _drop(self, batch: Batch) -> None:
        self._batches.pop(batch.id, None)
        batch.archive.unlink(missing_ok=True)
