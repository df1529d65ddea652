"""The download of the real weights from the page: one for the whole server, in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from stepaudio.download import FOLDER, download
from stepaudio.errors import Cancelled, StepAudioError
from stepaudio.settings import Settings
from stepaudio.snapshot import Progress
from stepaudio.transfer import Network

log = logging.getLogger(__name__)

State = Literal["idle", "running", "stopped", "failed", "done"]


class Fetch(Protocol):
    """What fetches the weights into a folder, as download.download does."""

    def __call__(
        self,
        target: Path,
        *,
        network: Network,
        progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> object: ...


@dataclass(frozen=True)
class FetchStatus:
    """How the download stands: bytes that are there, bytes in all (0: not known yet), and what went wrong."""

    state: State
    done: int = 0
    total: int = 0
    file: str = ""
    problem: str = ""


class WeightsFetcher:
    """Starts and stops the download. What has arrived is kept, so that a later start goes on from there."""

    def __init__(self, settings: Settings, fetch: Fetch = download) -> None:
        self.target = settings.models_dir / FOLDER
        self._network = Network(token=settings.hub_token)
        self._fetch = fetch
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._status = FetchStatus("idle")
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> FetchStatus:
        return self._status

    def start(self) -> None:
        """Begin or go on; one that runs already is left alone."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._stop.clear()
            self._status = FetchStatus("running", self._status.done, self._status.total)
            self._thread = threading.Thread(target=self._run, name="stepaudio-download", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask a running download to end; it does so with the next piece that arrives."""
        self._stop.set()

    def wait(self, seconds: float) -> FetchStatus:
        """Wait until the download is over, for so long at the most, and return how it stands."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._status

    def _run(self) -> None:
        try:
            self._fetch(self.target, network=self._network, progress=self._told, should_stop=self._stop.is_set)
        except Cancelled:
            self._end("stopped")
        except StepAudioError as error:
            log.warning("The download failed: %s", error)
            self._end("failed", str(error))
        else:
            log.info("The weights are complete in %s; they are used from the next start on.", self.target)
            self._end("done")
        finally:
            if self._status.state == "running":  # a bug, which the thread's end tells in the log
                self._end("failed", "The download ended unexpectedly; the server's log says more.")

    def _told(self, progress: Progress) -> None:
        self._status = FetchStatus("running", progress.overall_done, progress.overall_total, progress.file)

    def _end(self, state: State, problem: str = "") -> None:
        before = self._status
        self._status = FetchStatus(state, before.done, before.total, before.file, problem)
