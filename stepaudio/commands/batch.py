"""``python -m stepaudio batch``: every line of a text, CSV or JSONL file becomes a sound file; resumable.

The output folder gets ``000001.wav``, ... by the place of each line among those that hold a text, and
``manifest.jsonl`` with one record for each line that is done or has failed; ``line`` in it is that place. What the
user is told counts the lines of the file, as an editor does. A sound is written whole before its record is, so a line
with a record has its file; a line without one is made again, into the same file. Lines that are done are told by the
digest of what they ask for (text, voice, transcript, seed, sampling, flow steps, --max-seconds, format): where that
changed, they are made anew. Other weights are not noticed; they need another folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepaudio.audiofile import FORMATS, check_format, encode
from stepaudio.commands import common
from stepaudio.errors import Busy, InvalidInput, StepAudioError
from stepaudio.files import part_of, read_file, write_whole
from stepaudio.locks import ProcessLock
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams

if TYPE_CHECKING:
    from stepaudio.queue import Job
    from stepaudio.service import CloneResult, Service

DESCRIPTION = (
    "Speak every line of a file. Text: one text a line. CSV (with a header) and JSONL: the fields text, voice (name "
    "or id of a saved voice or a preset) and seed, of which only text is needed. Started again, it goes on where it "
    "ended."
)
MANIFEST, LOCK = "manifest.jsonl", ".lock"
FIELDS = {"text": str, "voice": str, "seed": int}
KINDS = {str: "text", int: "a whole number"}
# One that runs and one that waits, so that the models never wait for the disk.
AT_ONCE = 2
EXIT_FAILED = 1


@dataclass(frozen=True)
class Line:
    """One line to speak.

    number: its place among the lines to speak, from 1. row: the line of the file on which it ends, from 1.
    voice: the id of a saved voice, the name of a preset, or "" for a recording. transcript: its words; "" for those
    saved with the voice. audio: the recording's bytes, or the preset's; b"" for a saved voice.
    """

    number: int
    text: str
    voice: str
    transcript: str
    seed: int | None
    audio: bytes = field(default=b"", repr=False)
    row: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """What all lines share."""

    sampling: SamplingParams
    flow_steps: int
    max_seconds: float | None
    format: str
    folder: Path

    def path(self, line: Line) -> Path:
        """Return the file of a line; its text has no part in the name."""
        return self.folder / f"{line.number:06d}{FORMATS[self.format].suffix}"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Tell in a sentence what the system says against writing to the folder: a StepAudioError."""
        try:
            yield
        except OSError as error:
            raise StepAudioError(f"The folder {self.folder} cannot be written: {error.strerror}.") from error

    def key(self, line: Line) -> str:
        """Return the digest of what a line asks for."""
        asked = {
            "text": line.text,
            "voice": hashlib.sha256(line.audio).hexdigest() if line.audio else line.voice,
            "transcript": line.transcript,
            "sampling": {**asdict(self.sampling), "seed": line.seed},
            "flow_steps": self.flow_steps,
            "max_seconds": self.max_seconds,
            "format": self.format,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``python -m stepaudio batch``."""
    parser.add_argument(
        "input",
        type=Path,
        help='a file that ends in .txt, .csv or .jsonl, in UTF-8; "-" reads one text a line from standard input',
    )
    parser.add_argument("--output-dir", "-o", type=Path, required=True, metavar="DIR", help="where the sounds go")
    parser.add_argument("--format", choices=list(FORMATS), default="wav", help="of the sounds (default: wav)")
    common.add_reference(parser, required=False)
    common.add_sampling(parser)


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Speak all lines that are not done, and return 0, or 1 where a line failed."""
    check_format(parsed.format)
    common.check_seed(parsed.seed)
    source = common.reference_of(parsed, settings, needs_transcript=True)
    shared = Line(0, "", source.voice or parsed.voice, source.transcript, parsed.seed, source.audio)
    lines = read_lines(parsed.input, lambda name: common.voice_of(name, settings), shared)
    without = next((line for line in lines if not line.voice and not line.audio), None)
    if without is not None:
        raise InvalidInput(f"Line {without.row} names no voice; give --reference or --voice for such lines.")
    sampling = common.sampling_of(settings, None)
    batch = Batch(sampling, settings.flow_steps, parsed.max_seconds, parsed.format, parsed.output_dir)
    with batch.writing():
        batch.folder.mkdir(parents=True, exist_ok=True)
    with ProcessLock(batch.folder / LOCK, 0.0) as lock:
        if lock.waited and not lock.held:
            raise Busy(f"Another batch is at work in {batch.folder}; please wait for it, or end it.")
        return _run(batch, lines, settings)


def read_lines(path: Path, find: Callable[[str], common.Source], shared: Line) -> list[Line]:
    """Return the lines of an input file ("-": standard input), empty ones left out; InvalidInput names the line.

    find: gives a line's own voice by its name or id. shared: voice and seed for lines that have none of their own.
    """
    kinds = {".txt": _text_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}
    rows = kinds[".txt"] if str(path) == common.STANDARD else kinds.get(path.suffix.lower())
    if str(path) == common.STANDARD:
        text = common.text_of(common.STANDARD)
    else:
        try:
            text = read_file(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"The file {path} is not UTF-8.") from error
    if rows is None:
        raise InvalidInput(f"The file {path} ends in none of {', '.join(kinds)}.")
    found: dict[str, common.Source] = {}
    lines: list[Line] = []
    for at, row in rows(text):
        _check_row(at, row)
        seed, name = row.get("seed", shared.seed), row.get("voice")
        line = replace(shared, number=len(lines) + 1, text=row["text"], seed=seed, row=at)
        try:
            common.check_seed(seed)
            if name and name not in found:
                found[name] = find(name)
        except InvalidInput as error:
            raise InvalidInput(f"Line {at}: {error}") from error
        if name:
            own = found[name]
            line = replace(line, voice=own.voice or name, transcript=own.transcript, audio=own.audio)
        lines.append(line)
    if not lines:
        raise InvalidInput(f"The file {path} holds no text.")
    return lines


def _text_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give each line that holds a text, and its number in the file; so do the other two."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, {"text": line.strip()}


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            seed = row.pop("seed", None)
            yield reader.line_num, row if not seed else {**row, "seed": int(seed)}
    except (csv.Error, ValueError) as error:
        raise InvalidInput(f"Line {reader.line_num} of the CSV file cannot be read: {error}.") from error


def _jsonl_rows(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"Line {number} of the JSONL file is not JSON: {error}.") from error
            yield number, row


def _check_row(number: int, row: Any) -> None:
    if not isinstance(row, dict) or "text" not in row or set(row) - set(FIELDS):
        raise InvalidInput(f"Line {number} needs the field text, and may have voice and seed, but no other.")
    for name, value in row.items():
        if type(value) is not FIELDS[name]:
            raise InvalidInput(f"The field {name} of line {number} is not {KINDS[FIELDS[name]]}.")


def _run(batch: Batch, lines: list[Line], settings: Settings) -> int:
    with batch.writing():
        done = _finished(batch, lines)
    pending = [line for line in lines if line.number not in done]
    sys.stderr.write(f"{len(lines)} lines, {len(done)} of them done already.\n")
    # Written anew without what failed or was cut off by a sudden end, so that each line gets one record.
    records = "".join(json.dumps(done[number], ensure_ascii=False) + "\n" for number in sorted(done))
    with batch.writing():
        write_whole(batch.folder / MANIFEST, records.encode())
    if not pending:
        return 0
    with common.running_service(settings) as service:
        if service.wait_until_decided() == "failed":
            raise StepAudioError(service.problem)
        failed = _speak(batch, pending, service)
    sys.stderr.write(f"{len(pending) - failed} lines spoken, {failed} failed.\n")
    return EXIT_FAILED if failed else 0


def _finished(batch: Batch, lines: list[Line]) -> dict[int, dict[str, Any]]:
    """Return the records of the lines that are done as they are asked for now, by their numbers."""
    wanted = {line.number: line for line in lines}
    done = {}
    for line in lines:
        part_of(batch.path(line)).unlink(missing_ok=True)
    try:
        text = (batch.folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    for row in text.split("\n"):
        record = _record(row)
        number = record.get("line", 0)
        if number not in wanted or "error" in record or record.get("key") != batch.key(wanted[number]):
            continue
        path = batch.path(wanted[number])
        if path.is_file() and path.stat().st_size == record.get("bytes"):
            done[number] = record
    return done


def _record(row: str) -> dict[str, Any]:
    """Return one record of the manifest; a row that a sudden end cut off is none."""
    try:
        record = json.loads(row)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("line"), int) else {}


def _speak(batch: Batch, pending: list[Line], service: Service) -> int:
    """Speak the lines in their order, and return how many failed."""
    started = time.monotonic()
    failed = 0
    waiting: deque[tuple[Line, Job[CloneResult]]] = deque()
    left = iter(pending)
    for count in range(1, len(pending) + 1):
        for line in left:
            waiting.append((line, _submit(batch, line, service)))
            if len(waiting) == AT_ONCE:
                break
        line, job = waiting.popleft()
        record = _finish(batch, line, job)
        with batch.writing():
            _add_record(batch, record)
        failed += "error" in record
        told = record.get("error") or f"{record['file']}  {record['seconds']:.2f} s"
        seconds = time.monotonic() - started
        rest = seconds / count * (len(pending) - count)
        sys.stderr.write(
            f"[{count}/{len(pending)}] line {line.row}: {told}  ({60 * count / seconds:.1f} lines a minute, "
            f"{_clock(rest)} left)\n"
        )
    return failed


def _submit(batch: Batch, line: Line, service: Service) -> Job[CloneResult]:
    from stepaudio.service import CloneRequest

    return service.submit_clone(
        CloneRequest(
            audio=line.audio,
            voice="" if line.audio else line.voice,
            transcript=line.transcript,
            text=line.text,
            sampling=replace(batch.sampling, seed=line.seed),
            flow_steps=batch.flow_steps,
            max_seconds=batch.max_seconds,
        )
    )


def _finish(batch: Batch, line: Line, job: Job[CloneResult]) -> dict[str, Any]:
    """Wait for a line, write its sound, and return its record."""
    while not job.over:
        job.wait_for_change(None)
    record: dict[str, Any] = {"line": line.number, "key": batch.key(line), "text": line.text, "voice": line.voice}
    if job.error is not None:
        known = isinstance(job.error, StepAudioError)
        return {**record, "error": str(job.error) if known else f"Internal error, request {job.id}: the log says more."}
    synthesis = job.result().synthesis
    data = encode(synthesis.waveform, batch.format)
    with batch.writing():
        write_whole(batch.path(line), data)
    return {
        **record,
        "file": batch.path(line).name,
        "bytes": len(data),
        "seconds": round(synthesis.waveform.seconds, 3),
        "seed": synthesis.seed,
        "stopped": synthesis.stopped,
    }


def _add_record(batch: Batch, record: dict[str, Any]) -> None:
    with (batch.folder / MANIFEST).open("a", encoding="utf-8", errors="replace") as manifest:
        manifest.write(json.dumps(record, ensure_ascii=False) + "\n")
        manifest.flush()
        os.fsync(manifest.fileno())


def _clock(seconds: float) -> str:
    """Return a length of time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
