"""Sound files of users to Waveform, and Waveform to bytes.

Nothing here trusts its input: sizes and lengths are bounded before memory is taken, and whatever cannot be read is
answered with one sentence (InvalidInput).
"""

from __future__ import annotations

import io
import logging
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass

import numpy as np
import soundfile

from stepaudio.errors import InvalidInput
from stepaudio.types import FloatArray, Waveform

log = logging.getLogger(__name__)

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MAX_CHANNELS = 64
# A peak under this (-60 dB) is taken for silence: there is no voice in it to encode.
SILENCE_PEAK = 1e-3
# The loudest 20 ms must exceed this too: a single click in silence is not a voice.
SILENCE_RMS = 3e-4
FFMPEG_RATE = 48_000
# Containers that hold their sound themselves. Not among them: playlists (hls, concat, dash), which name other files.
FFMPEG_FORMATS = "mov,matroska,asf,aac,amr,avi,flv,mpeg,mpegts,wav,w64,mp3,ogg,flac,aiff,caf,au,ac3,eac3"
FFMPEG_SECONDS = 30
PCM16_SCALE = 32768
UNKNOWN_SIZE = 0xFFFFFFFF


@dataclass(frozen=True)
class Limits:
    """What a reference file may be; the fields are those of Settings."""

    max_bytes: int = 50 * 1024 * 1024
    min_seconds: float = 0.5
    max_seconds: float = 30.0
    refuse_long: bool = False


@dataclass(frozen=True, eq=False)
class LoadedReference:
    """The sound kept from a file, and a notice for the user where something was cut or repaired."""

    waveform: Waveform
    notices: tuple[str, ...] = ()


def load_reference(data: bytes, limits: Limits) -> LoadedReference:
    """Return the mono sound of a file's bytes, as decoded: no resampling, no change of level.

    Reads what libsndfile reads (wav, flac, ogg, opus, mp3, ...), and anything else through ffmpeg where that is
    installed. Raises InvalidInput with one sentence for anything that cannot serve as a reference.
    """
    if not data:
        raise InvalidInput("The reference file is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise InvalidInput(
            f"The reference file has {len(data) / 2**20:.1f} MB; the limit is {limits.max_bytes / 2**20:.0f} MB."
        )
    # One second more than is kept, so that "longer than the limit" is known without decoding the rest.
    samples, rate, seconds = _decode(data, limits.max_seconds + 1.0)
    notices = []
    if not np.isfinite(samples).all():
        raise InvalidInput("The reference holds values that are not numbers (NaN or infinity); please export it again.")
    if len(samples) / rate < limits.min_seconds:
        raise InvalidInput(
            f"The reference is {len(samples) / rate:.2f} s long; at least {limits.min_seconds:g} s are needed."
        )
    if len(samples) / rate > limits.max_seconds:
        if limits.refuse_long:
            raise InvalidInput(f"The reference is {seconds:.1f} s long; at most {limits.max_seconds:g} s are allowed.")
        samples = samples[: int(limits.max_seconds * rate)]
        notices.append(f"The reference is {seconds:.1f} s long; its first {limits.max_seconds:g} s are used.")
    peak = float(np.abs(samples).max())
    if peak < SILENCE_PEAK or _loudest_rms(samples, rate) < SILENCE_RMS:
        level = f"{20 * np.log10(peak):.0f} dB" if peak > 0 else "no signal at all"
        raise InvalidInput(f"The reference is silent (peak: {level}); please choose a recording with a voice in it.")
    return LoadedReference(Waveform(samples, rate), tuple(notices))


def pcm16(samples: FloatArray) -> bytes:
    """Return samples float32 (N,) as 16-bit little-endian integers, 2 * N bytes; what exceeds [-1, 1] is clipped."""
    return np.clip(np.rint(samples * PCM16_SCALE), -PCM16_SCALE, PCM16_SCALE - 1).astype("<i2").tobytes()


def wav_header(sample_rate: int, size: int = UNKNOWN_SIZE) -> bytes:
    """Return the 44 bytes before ``size`` bytes of pcm16() in a mono WAV file.

    Where the size is not known yet, both lengths hold the largest number, which readers take for "until the end".
    """
    riff = min(size + 36, UNKNOWN_SIZE)
    rates = (1, 1, sample_rate, 2 * sample_rate, 2, 16)  # PCM, mono, samples and bytes a second, of a frame, bits
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, *rates, b"data", size)


def encode_wav(waveform: Waveform) -> bytes:
    """Return the waveform as a 16-bit WAV file."""
    data = pcm16(waveform.samples)
    return wav_header(waveform.sample_rate, len(data)) + data


def _loudest_rms(samples: FloatArray, rate: int) -> float:
    frame = max(rate // 50, 1)
    usable = len(samples) // frame * frame
    if usable == 0:
        return float(np.sqrt(np.mean(np.square(samples))))
    return float(np.sqrt(np.mean(np.square(samples[:usable].reshape(-1, frame)), axis=1)).max())


def _decode(data: bytes, most_seconds: float) -> tuple[FloatArray, int, float]:
    """Return (mono samples of at most ``most_seconds``, rate, seconds of the whole file as far as known)."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
            _check_shape(rate, channels)
            samples = file.read(int(most_seconds * rate), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError) as error:
        if shutil.which("ffmpeg") is None:
            raise InvalidInput(
                "The reference cannot be read as sound; please give wav, flac, mp3, ogg or opus "
                "(for m4a and video, ffmpeg must be installed)."
            ) from error
        mono = _decode_with_ffmpeg(data, most_seconds)
        return mono, FFMPEG_RATE, len(mono) / FFMPEG_RATE
    if len(samples) == 0:
        raise InvalidInput("The reference holds no sound (0 samples).")
    # Some formats do not know their length; then libsndfile reports a huge number.
    seconds = frames / rate if 0 < frames < 2**40 else len(samples) / rate
    return samples.mean(axis=1, dtype=np.float32), rate, max(seconds, len(samples) / rate)


def _check_shape(rate: int, channels: int) -> None:
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise InvalidInput(
            f"The reference has {rate} samples a second; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} are allowed."
        )
    if channels > MAX_CHANNELS:
        raise InvalidInput(f"The reference has {channels} channels; at most {MAX_CHANNELS} are allowed.")


def _decode_with_ffmpeg(data: bytes, most_seconds: float) -> FloatArray:
    """Decode what libsndfile cannot read. Only pipes and one private file: no name of a user reaches the call."""
    with tempfile.NamedTemporaryFile(prefix="stepaudio-") as source:
        # A file, not a pipe: mp4 keeps its index at the end and must be seekable.
        source.write(data)
        source.flush()
        command = ["ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file"]
        command += ["-format_whitelist", FFMPEG_FORMATS, "-i", source.name]
        command += ["-t", f"{most_seconds:.3f}", "-vn", "-ac", "1", "-ar", str(FFMPEG_RATE), "-f", "f32le", "pipe:1"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=FFMPEG_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise InvalidInput(f"The reference could not be decoded within {FFMPEG_SECONDS} s.") from error
    samples = np.frombuffer(done.stdout[: len(done.stdout) // 4 * 4], dtype="<f4").astype(np.float32)
    if len(samples) == 0:
        log.debug("ffmpeg could not decode an upload: %s", done.stderr[:300].decode("utf-8", "replace").strip())
        raise InvalidInput("The reference cannot be read as sound; please give wav, flac, mp3, ogg, opus or m4a.")
    return samples
