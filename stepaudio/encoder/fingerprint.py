"""What an encoding depends on besides the sound, as one hash: the encoder's files and its constants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from stepaudio import audio, features
from stepaudio.encoder import s3, sanm
from stepaudio.errors import WeightsError
from stepaudio.features import MelConfig

ENCODER_REVISION = 1
"""To be raised whenever the code of the encoder changes what comes out of it."""


def preprocessing_constants(mel: MelConfig) -> dict[str, object]:
    """Return every number, besides the files, that the encoding of a sound depends on."""
    return {
        "revision": ENCODER_REVISION,
        "mel": asdict(mel),
        "code_rate": audio.CODE_RATE,
        "peaks": [audio.PEAK_LIMIT, audio.CODE_PEAK, audio.QUIET_PEAK],
        "gate": [audio.GATE_DB, audio.GATE_FRAME, audio.GATE_HOP, audio.GATE_FLOOR],
        "kept": [audio.KEEP_BEFORE, audio.KEEP_AFTER, audio.LENGTH_STEP],
        "sinc": [audio.SINC_WIDTH, audio.SINC_ROLLOFF, audio.LARGEST_KERNEL],
        "windows": [sanm.NEW_FRAMES, sanm.CARRIED_FRAMES, sanm.LOOK_BACK_WINDOWS],
        "semantic_blocks": [s3.BLOCK_SECONDS, s3.SHORTEST_BLOCK],
        "log_mel": [features.WHISPER_RATE, features.WHISPER_FFT, features.WHISPER_HOP, features.WHISPER_MELS],
        "log_mel_limits": [features.WHISPER_FLOOR, features.WHISPER_RANGE],
        "mel_floors": [features.MEL_FLOOR, features.MAGNITUDE_FLOOR],
        "full_scale": features.FULL_SCALE,
        "fbank": [features.FBANK_RATE, features.FBANK_BINS, features.FBANK_FRAME],
    }


def encoder_fingerprint(files: Sequence[Path], constants: Mapping[str, object]) -> str:
    """Return the SHA-256, in hexadecimal, over names, sizes and contents of ``files`` and over ``constants``.

    Names without folders, so that a moved weights folder keeps its cache. ``constants`` must be what JSON can say.
    Raises WeightsError for a file that cannot be read. Reads 1.4 GB for the real weights: once, at load.
    """
    whole = hashlib.sha256(json.dumps(constants, sort_keys=True).encode())
    for path in files:
        content, size = hash_file(path)
        whole.update(json.dumps([path.name, size, content]).encode())
    return whole.hexdigest()


def file_states(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """Return size and times of change of each file, None for one that is not there: other ones once it was replaced.

    The second time is of the entry itself, which renaming changes where a file brings its old time along. No inodes:
    some network file systems number the same file anew.
    """
    return [_state(path) for path in files]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def hash_file(path: Path) -> tuple[str, int]:
    """Return (SHA-256 in hexadecimal, size in bytes) of a file; raises WeightsError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise WeightsError(f"The file {path.name} in {path.parent} cannot be read ({error.strerror}).") from error
