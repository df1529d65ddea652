"""stepaudio in a program of one's own: a pipeline from the settings, and sound files. Nothing heavy loads on import."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from stepaudio.audiofile import Limits, encode, format_of, load_reference
from stepaudio.files import read_file, write_file
from stepaudio.settings import Settings, load_settings
from stepaudio.types import Waveform

if TYPE_CHECKING:
    from stepaudio.pipeline import Pipeline

log = logging.getLogger(__name__)


def load_pipeline(settings: Settings | None = None) -> Pipeline:
    """Return the pipeline of the weights and the device that the settings choose (None: environment and defaults).

    It takes one request at a time; ``close()`` releases its threads and the cache. Raises WeightsError when the
    weights are missing or damaged, InvalidInput where the environment holds a setting that cannot be. Settings of one's
    own come from ``load_settings({"device": "cpu"})``, which raises InvalidInput for them; ``Settings(device="cpu")``
    raises pydantic's ValidationError.
    """
    from stepaudio.loading import choose, load_engine  # heavy: torch

    settings = settings or load_settings()
    weights, runtime = choose(settings)
    return load_engine(weights, settings, runtime).pipeline


def read_sound(path: str | Path, settings: Settings | None = None) -> Waveform:
    """Return the mono sound of a file, to serve as a reference, within the limits of the settings.

    What is cut from a long one is told in the log. Raises InvalidInput for a file that cannot be read or cannot serve.
    """
    loaded = load_reference(read_file(path), Limits.of(settings or load_settings()))
    for notice in loaded.notices:
        log.warning("%s", notice)
    return loaded.waveform


def write_sound(waveform: Waveform, path: str | Path) -> None:
    """Write the waveform to a file, in the format that its ending names: .wav, .flac, .mp3, .opus, .ogg or .pcm.

    Raises InvalidInput for another ending and a format that is not to be had here, StepAudioError for a bad place.
    """
    write_file(Path(path), encode(waveform, format_of(Path(path))))
