"""The real weights, from Hugging Face or ModelScope, into a weights folder: resumable, verified.

    python -m stepaudio download [--source huggingface|modelscope] [--endpoint https://a-mirror] [--name folder]

hub.py knows what the hubs list, transfer.py how bytes survive a bad line, snapshot.py what is missing in a folder.
This module joins them and shows the progress in a terminal.
"""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TextIO, get_args

from filelock import FileLock, Timeout

from stepaudio.errors import Busy, InvalidInput, WeightsError
from stepaudio.hub import Hub, Source, choose_hubs
from stepaudio.snapshot import Progress, Report, Snapshot, readable
from stepaudio.transfer import HubError, Network, Session

log = logging.getLogger(__name__)

REPOS: Mapping[str, str] = MappingProxyType(
    {
        "Step-Audio-EditX": "stepfun-ai/Step-Audio-EditX",
        "Step-Audio-Tokenizer": "stepfun-ai/Step-Audio-Tokenizer",
    }
)
FOLDER = "step-audio-editx"
LOCK = ".download.lock"
NETWORK = Network()
# With another hub to turn to, one that does not answer is not waited for long.
ATTEMPTS_BEFORE_THE_NEXT_HUB = 2


def download(
    target: Path,
    *,
    source: Source = "auto",
    network: Network = NETWORK,
    repos: Mapping[str, str] = REPOS,
    progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Report:
    """Fetch what is missing of the repositories into the folder, and return what was done.

    repos: repository by the name of its folder below target. source "auto" tries Hugging Face, then ModelScope.
    progress and should_stop are called for every block of bytes, from the calling thread.
    Raises WeightsError (hub unreachable, refused, file damaged, disk full), Busy (another download into the same
    folder), Cancelled, InvalidInput. Whatever has arrived is kept for the next run.
    """
    hubs = choose_hubs(source, network)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / LOCK, timeout=0), Session(network, should_stop) as session:
            return _from_the_first_that_can(hubs, Snapshot(target, repos, session, progress))
    except Timeout as error:
        raise Busy(f"Another download into {target} is running already.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"The disk of {target} is full; make room and run the download again: it goes on where it stopped."
            ) from error
        raise WeightsError(f"The folder {target} cannot be written to ({error.strerror or error}).") from error


def _from_the_first_that_can(hubs: tuple[Hub, ...], snapshot: Snapshot) -> Report:
    *others, last = hubs
    refusals: list[str] = []
    for hub in others:
        try:
            return snapshot.update(hub, attempts=ATTEMPTS_BEFORE_THE_NEXT_HUB)
        except HubError as error:
            log.warning("%s Now the next hub.", error)
            refusals.append(str(error))
    try:
        return snapshot.update(last)
    except HubError as error:
        raise WeightsError(" ".join([*refusals, str(error)])) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m stepaudio download`` to its parser."""
    parser.add_argument(
        "--source", choices=get_args(Source), default="auto", help="auto: Hugging Face, or else ModelScope"
    )
    parser.add_argument("--endpoint", metavar="URL", help="a mirror to use instead of the hub named by --source")
    parser.add_argument("--name", default=FOLDER, help=f"name of the folder below the models (default: {FOLDER})")


def run(args: argparse.Namespace, models_dir: Path, *, token: str = "", stream: TextIO | None = None) -> int:
    """Run the command: show progress and result on stderr (or ``stream``), return the exit status.

    0: all is there.   130: interrupted; the next run goes on. Raises what download() raises.
    """
    out = stream or sys.stderr
    line = ProgressLine(out)
    try:
        if Path(args.name).name != args.name or args.name in ("", ".", ".."):
            raise InvalidInput(f"The folder name {args.name!r} must be one plain name.")
        if args.endpoint and args.source == "auto":
            raise InvalidInput("An --endpoint needs a --source, which says how to talk to it.")
        endpoints = {args.source: args.endpoint} if args.endpoint else {}
        report = download(
            models_dir / args.name,
            source=args.source,
            network=Network(endpoints=endpoints, token=token),
            progress=line,
        )
    except KeyboardInterrupt:
        line.end()
        out.write("Interrupted. What has arrived is kept; run the same command again and it goes on from there.\n")
        return 130
    finally:
        line.end()
    out.write(
        f"The weights are complete in {report.folder} ({readable(report.total_bytes)}): {len(report.fetched)} files "
        f"fetched from {report.source}, {len(report.kept)} were there already.\n"
    )
    return 0


class ProgressLine:
    """Shows Progress: one line that is rewritten in a terminal, else a line now and then (for logs)."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._rewrite = stream.isatty()
        self._every = 0.2 if self._rewrite else 15.0
        self._start: tuple[float, int] | None = None
        self._shown_at = 0.0
        self._file = ""
        self._open = False

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        start = self._start = self._start or (now, progress.overall_done)
        finished = progress.overall_done == progress.overall_total
        if progress.file == self._file and now - self._shown_at < self._every and not finished:
            return
        self._file, self._shown_at = progress.file, now
        text = _text(progress, now - start[0], progress.overall_done - start[1])
        # The cursor goes back to the start, where a line of the log may then take over.
        self._stream.write(f"{text}\x1b[K\r" if self._rewrite else f"{text}\n")
        self._stream.flush()
        self._open = self._rewrite

    def end(self) -> None:
        """Leave the line as it stands and go on below it."""
        if self._open:
            self._stream.write("\n")
            self._open = False


def _text(progress: Progress, seconds: float, gained: int) -> str:
    text = (
        f"{100 * progress.overall_done / max(progress.overall_total, 1):5.1f} %  "
        f"{readable(progress.overall_done)} of {readable(progress.overall_total)}"
    )
    if seconds >= 1 and gained > 0:
        left = int((progress.overall_total - progress.overall_done) * seconds / gained)
        text += f"  {readable(gained / seconds)}/s  {left // 3600}:{left % 3600 // 60:02}:{left % 60:02} left"
    return f"{text}  {progress.file}"
