"""The command line: ``python -m stepaudio COMMAND``; build_parser has them all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from stepaudio.commands import streams
from stepaudio.errors import StepAudioError
from stepaudio.settings import Settings, add_flags, bound_waiting, flags_from, load_settings

# The last two are what a shell reports of a program that SIGINT or SIGPIPE has ended.
EXIT_ERROR, EXIT_INTERRUPTED, EXIT_UNREAD = 2, 130, 141
DOCTOR_SETTINGS = (
    *("models_dir", "weights", "cache_dir", "device", "dtype", "threads"),
    *("linguistic_engine", "linguistic_onnx_dir"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: well. 2: one sentence of error. 130: interrupted. 141: who read standard output or error has gone.
    """
    try:
        streams.prepare()
        bound_waiting()
        parsed = build_parser().parse_args(arguments)
        status = int(parsed.run(parsed, load_settings(flags_from(parsed))))
        streams.flush()
        return status
    except StepAudioError as error:
        streams.tell(f"{error}\n")
        return EXIT_ERROR
    except KeyboardInterrupt:
        streams.tell("Interrupted.\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_UNREAD
    finally:
        streams.let_go()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each sets ``run(arguments, settings) -> exit status``."""
    parser = argparse.ArgumentParser(prog="python -m stepaudio", description="Clone a voice on your own hardware.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the page and the API", description="Serve the page and the API.")
    add_flags(serve)
    serve.set_defaults(run=_serve)

    from stepaudio.commands import batch as batching
    from stepaudio.commands import speak, voices

    clone = commands.add_parser(
        "clone",
        help="speak a text in a voice",
        description="Speak a text in the voice of a recording, a saved voice or a preset.",
    )
    speak.add_clone_arguments(clone)
    clone.set_defaults(run=speak.run_clone)

    edit = commands.add_parser(
        "edit",
        help="change emotion, style, speed or sound of a recording",
        description="Speak a recording's own words otherwise: another emotion, style or speed, without noise, ...",
    )
    speak.add_edit_arguments(edit)
    edit.set_defaults(run=speak.run_edit)

    batch = commands.add_parser("batch", help="clone every line of a file", description=batching.DESCRIPTION)
    batching.add_arguments(batch)
    batch.set_defaults(run=batching.run)

    voices.add_arguments(
        commands.add_parser("voices", help="list, add, remove, rename, export and import saved voices")
    )

    download = commands.add_parser(
        "download", help="fetch the real weights", description="Fetch the real weights (about 10 GB); resumable."
    )
    from stepaudio import download as downloading

    downloading.add_arguments(download)
    add_flags(download, only=["models_dir", "hub_token"])
    download.set_defaults(run=_download)

    doctor = commands.add_parser(
        "doctor", help="say what runs where and what is missing", description="Say what runs where and what is missing."
    )
    doctor.add_argument(
        "--real", action="store_true", help="try the weights for real: hashes, engines, one clone, one report to paste"
    )
    doctor.add_argument("--audio", type=Path, metavar="FILE", help="with --real: a recording of a voice")
    doctor.add_argument("--transcript", default="", help="with --real: the words of the recording")
    doctor.add_argument("--text", default="", help="with --real: the text to speak (default: an English sentence)")
    doctor.add_argument("--to", type=Path, metavar="FILE", help="with --real: also write the report to this file")
    add_flags(doctor, only=DOCTOR_SETTINGS)
    doctor.set_defaults(run=_doctor)

    tiny = commands.add_parser(
        "tiny",
        help="write a weights folder of tiny random networks",
        description="Write a complete weights folder of tiny random networks: they make noise, not speech.",
    )
    tiny.add_argument("folder", type=Path, help="the folder to write")
    tiny.add_argument("--seed", type=int, default=1, help="seed of the random weights (default: 1)")
    tiny.set_defaults(run=_tiny)

    export = commands.add_parser(
        "export-encoder",
        help="write the linguistic encoder as ONNX, and measure it",
        description="Write the linguistic encoder as ONNX, then compare codes and time of every engine with torch's.",
    )
    from stepaudio import export_encoder

    export_encoder.add_arguments(export)
    add_flags(export, only=["models_dir", "weights", "cache_dir", "device", "threads"])
    export.set_defaults(run=export_encoder.run)

    from stepaudio.bench import suite

    bench = commands.add_parser(
        "bench",
        help="measure the product against the reference's way of working",
        description="Measure the whole product, side by side with the reference's way of working, in one run.",
    )
    suite.add_arguments(bench)
    add_flags(bench, only=suite.SETTINGS)
    bench.set_defaults(run=suite.run)
    benches = bench.add_subparsers(dest="bench", metavar="WHAT", help="(none: everything)")
    encode = benches.add_parser("encode", help="chunk loop against window-parallel; miss against hit")
    from stepaudio.bench import encode as bench_encode

    bench_encode.add_arguments(encode)
    encode.set_defaults(run=lambda parsed, settings: bench_encode.run(parsed))
    decode = benches.add_parser("decode", help="the language model: plain decoding against the step; takes; prefixes")
    from stepaudio.bench import decode as bench_decode

    bench_decode.add_arguments(decode)
    decode.set_defaults(run=lambda parsed, settings: bench_decode.run(parsed))
    return parser


def _serve(parsed: argparse.Namespace, settings: Settings) -> int:
    from stepaudio.server import serve  # heavy: torch, gradio

    with redirect_stdout(sys.stderr):  # what libraries print belongs to the log
        serve(settings)
    return 0


def _download(parsed: argparse.Namespace, settings: Settings) -> int:
    from stepaudio.download import run

    return run(parsed, settings.models_dir, token=settings.hub_token)


def _doctor(parsed: argparse.Namespace, settings: Settings) -> int:
    from stepaudio.doctor import examine, render

    if parsed.real:
        from stepaudio import fieldtest
        from stepaudio.files import check_target, write_file

        if parsed.to:
            check_target(parsed.to)  # a trial of the weights takes long
        with redirect_stdout(sys.stderr):
            text, healthy = fieldtest.try_out(settings, fieldtest.trial(parsed.audio, parsed.transcript, parsed.text))
        if parsed.to:
            write_file(parsed.to, text.encode("utf-8"))
        streams.put(text)
        return 0 if healthy else 1
    with redirect_stdout(sys.stderr):  # what libraries print is no finding
        report = examine(settings)
    streams.put(render(report))
    return 0 if report.healthy else 1


def _tiny(parsed: argparse.Namespace, settings: Settings) -> int:
    from stepaudio.tiny import write_tiny

    try:
        folder = write_tiny(parsed.folder, parsed.seed)
    except OSError as error:
        raise StepAudioError(f"The tiny weights cannot be written to {parsed.folder}: {error}.") from error
    streams.put(f"Tiny weights written to {folder}\n")
    return 0
