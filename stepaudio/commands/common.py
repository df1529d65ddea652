"""What the commands that make sound share: their flags, and a service that runs while they do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepaudio import text as texts
from stepaudio.audiofile import Limits, load_reference
from stepaudio.errors import InvalidInput, NotFound
from stepaudio.files import read_file
from stepaudio.presets import PresetFolder
from stepaudio.settings import Settings, add_flags
from stepaudio.types import SamplingParams
from stepaudio.voices import VoiceFolder
from stepaudio.weights import choose_weights

if TYPE_CHECKING:
    from stepaudio.service import Service

STANDARD = "-"
# What only the server has a use for.
_NOT_HERE = {
    *("host", "port", "root_path", "queue_limit", "hub_token"),
    *("login", "drain_seconds", "temp_dir", "temp_megabytes", "require_consent"),
    *("client_limit", "api_keys", "api_keys_file", "request_seconds", "max_batch_lines", "batches_megabytes"),
}
SETTINGS = [name for name in Settings.model_fields if name not in _NOT_HERE]


@dataclass(frozen=True, eq=False)
class Source:
    """Whose voice speaks: a sound file's bytes, a preset's too, or the id of a saved voice; the other one is empty.

    transcript: the words of the sound; "" for a saved voice means those that were saved with it.
    """

    audio: bytes
    voice: str
    transcript: str


@contextmanager
def running_service(settings: Settings) -> Iterator[Service]:
    """Give a service whose models are being loaded; its log goes to standard error. What runs at the end is cancelled.

    So does what libraries print meanwhile, as FunASR does without ffmpeg: a result is put out after the end.
    Raises WeightsError at once when there is no usable weights folder.
    """
    with redirect_stdout(sys.stderr):
        from stepaudio.loading import choose, load_engine  # heavy: torch
        from stepaudio.log import configure_logging
        from stepaudio.service import Service

        configure_logging(settings.log_level, settings.log_format)
        weights, runtime = choose(settings)
        service = Service(settings, lambda: load_engine(weights, settings, runtime))
        service.start()
        try:
            yield service
        finally:
            service.close(drain_seconds=0.0)


def add_reference(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the flags that name the reference: a file with its transcript, or a voice that has one."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--reference", type=Path, metavar="FILE", help="a recording of the voice")
    group.add_argument(
        "--voice", metavar="NAME|ID", default="", help="a saved voice or a preset ('voices list' shows both)"
    )
    parser.add_argument("--transcript", default="", metavar="TEXT", help="the words spoken in the reference")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the flags of one run, and all settings that concern it."""
    parser.add_argument("--seed", type=int, help="seed of the run (default: one is drawn and told in the log)")
    parser.add_argument("--max-seconds", type=_seconds, metavar="SECONDS", help="longest sound to make")
    add_flags(parser, only=SETTINGS)


def reference_of(parsed: argparse.Namespace, settings: Settings, *, needs_transcript: bool) -> Source:
    """Return the reference that the flags name; all of it is empty where they name none.

    Raises InvalidInput for a file that cannot serve and as voice_of does: before the models are loaded, which may
    take minutes.
    """
    if parsed.reference is None:
        return voice_of(parsed.voice, settings, parsed.transcript) if parsed.voice else Source(b"", "", "")
    audio = read_file(parsed.reference)
    load_reference(audio, Limits.of(settings))
    if needs_transcript:
        limit = settings.max_transcript_characters
        texts.clean(parsed.transcript, what="The transcript of the reference", limit=limit)
    return Source(audio, "", parsed.transcript)


def voice_of(name_or_id: str, settings: Settings, transcript: str = "") -> Source:
    """Return the saved voice, or else the preset, of this name or id; ``transcript`` stands in for its own.

    Raises NotFound for neither, InvalidInput for more than one saved voice of the name, WeightsError where presets
    cannot be looked for.
    """
    try:
        return Source(b"", VoiceFolder.of(settings).find(name_or_id).id, transcript)
    except NotFound as error:
        try:
            preset, audio = presets_of(settings).find(name_or_id)
        except NotFound:
            raise NotFound(f"{error} The command 'voices list' shows those that there are.") from error
        return Source(audio, "", transcript or preset.transcript)


def presets_of(settings: Settings) -> PresetFolder:
    """Return the preset voices of the weights that will be used; raises WeightsError where there are no weights."""
    return PresetFolder(choose_weights(settings).path)


def sampling_of(settings: Settings, seed: int | None) -> SamplingParams:
    """Return how the settings let ids be drawn, with this seed; raises InvalidInput as check_seed does."""
    check_seed(seed)
    return SamplingParams(settings.temperature, settings.top_k, settings.top_p, settings.repetition_rule, seed=seed)


def check_seed(seed: int | None) -> None:
    """Raise InvalidInput for a seed outside its range; the pipeline would, once the models are loaded."""
    if seed is not None:
        from stepaudio.orders import seed_of  # heavy: torch

        seed_of(SamplingParams(seed=seed))


def text_of(value: str) -> str:
    """Return the text, or what standard input holds where it is "-"; raises InvalidInput where that is not UTF-8."""
    if value != STANDARD:
        return value
    if sys.stdin is None:
        raise InvalidInput("Standard input is closed.")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput("The text on standard input is not UTF-8.") from error


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is no length")
    return seconds
