"""``python -m stepaudio clone`` and ``edit``: one request, its sound in a file or on standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from stepaudio import tasks
from stepaudio.audiofile import FORMATS, check_format, encode, format_of
from stepaudio.commands import common
from stepaudio.commands.streams import put
from stepaudio.files import check_target, write_file
from stepaudio.settings import Settings
from stepaudio.types import Synthesis, Task


def add_clone_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``python -m stepaudio clone``."""
    parser.add_argument("text", help='the text to speak; "-" reads it from standard input')
    _add_common(parser)


def add_edit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``python -m stepaudio edit``."""
    parser.add_argument("task", choices=[spec.name for spec in tasks.EDITS], help="what to do to the reference")
    parser.add_argument("option", nargs="?", help="which emotion, style or speed")
    parser.add_argument(
        "--new-text", metavar="TEXT", help='for paralinguistic: the words with tags; "-": standard input'
    )
    parser.add_argument("--passes", type=int, default=1, help="how often, each time on what came out (default: 1)")
    _add_common(parser)


def run_clone(parsed: argparse.Namespace, settings: Settings) -> int:
    """Clone one text, and return 0."""
    from stepaudio.service import CloneRequest

    name = _format(parsed)
    request = CloneRequest(text=common.text_of(parsed.text), **_fields(parsed, settings, needs_transcript=True))
    with common.running_service(settings) as service:
        result = service.submit_clone(request).result()
    _write(result.synthesis, parsed.output, name)
    return 0


def run_edit(parsed: argparse.Namespace, settings: Settings) -> int:
    """Do one edit, and return 0."""
    from stepaudio.service import EditRequest

    name, task = _format(parsed), Task(parsed.task, parsed.option)
    needs_transcript = tasks.spec_of_edit(task).needs_transcript
    new_text = common.text_of(parsed.new_text) if parsed.new_text is not None else None
    fields = _fields(parsed, settings, needs_transcript=needs_transcript)
    request = EditRequest(task=task, new_text=new_text, passes=parsed.passes, **fields)
    with common.running_service(settings) as service:
        result = service.submit_edit(request).result()
    _write(result.synthesis, parsed.output, name)
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    common.add_reference(parser)
    parser.add_argument("--output", "-o", required=True, metavar="FILE", help='the file to write; "-": standard output')
    parser.add_argument("--format", choices=list(FORMATS), help="of the output (default: by its ending; wav for -)")
    common.add_sampling(parser)


def _format(parsed: argparse.Namespace) -> str:
    """Return the name of the output's format; refused before anything is loaded where it cannot be written."""
    name = parsed.format or ("wav" if parsed.output == common.STANDARD else format_of(Path(parsed.output)))
    check_format(name)
    if parsed.output != common.STANDARD:
        check_target(Path(parsed.output))
    return str(name)


def _fields(parsed: argparse.Namespace, settings: Settings, *, needs_transcript: bool) -> dict[str, Any]:
    """Return the fields that every request has."""
    source = common.reference_of(parsed, settings, needs_transcript=needs_transcript)
    return {
        "audio": source.audio,
        "voice": source.voice,
        "transcript": source.transcript,
        "sampling": common.sampling_of(settings, parsed.seed),
        "flow_steps": settings.flow_steps,
        "max_seconds": parsed.max_seconds,
    }


def _write(synthesis: Synthesis, output: str, name: str) -> None:
    """Write the sound; then what the user should know goes to standard error."""
    data = encode(synthesis.waveform, name)
    if output == common.STANDARD:
        put(data)
    else:
        write_file(Path(output), data)
    for notice in synthesis.notices:
        sys.stderr.write(f"{notice}\n")
