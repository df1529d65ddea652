"""Sound files of users to Waveform, and Waveform to bytes of the output formats.

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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import soundfile

from stepaudio.errors import InvalidInput, TooLarge, Unreadable
from stepaudio.settings import Settings
from stepaudio.types import FloatArray, Waveform

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MAX_CHANNELS = 64
# A peak under this (-60 dB) is taken for silence: there is no voice in it to encode.
SILENCE_PEAK = 1e-3
# The loudest 20 ms must exceed this too: a single click in silence is not a voice.
SILENCE_RMS = 3e-4
FFMPEG_RATE = 48_000
# The mean of all channels, in float: "<" scales the gains of the channels that there are to a sum of 1. What "-ac 1"
# does instead depends on ffmpeg's idea of loudspeakers: of two channels it makes 0.7 of their sum.
FFMPEG_MEAN = "aformat=sample_fmts=flt,pan=mono|c0<" + "+".join(f"c{number}" for number in range(MAX_CHANNELS))
# Containers that hold their sound themselves. Not among them: playlists (hls, concat, dash), which name other files.
FFMPEG_FORMATS = "mov,matroska,asf,aac,amr,avi,flv,mpeg,mpegts,wav,w64,mp3,ogg,flac,aiff,caf,au,ac3,eac3"
FFMPEG_SECONDS = 30
FFMPEG_BYTES = 2 * 2**30
"""Of address space, libraries included; what phones record takes a tenth of that."""
PCM16_SCALE = 32768
UNKNOWN_SIZE = 0xFFFFFFFF


@dataclass(frozen=True)
class FileFormat:
    """How sound is written. container, subtype: libsndfile's names. media_type: what HTTP calls it."""

    suffix: str
    container: str
    subtype: str
    media_type: str


FORMATS: Mapping[str, FileFormat] = MappingProxyType(
    {
        "wav": FileFormat(".wav", "WAV", "PCM_16", "audio/wav"),
        "flac": FileFormat(".flac", "FLAC", "PCM_16", "audio/flac"),
        "mp3": FileFormat(".mp3", "MP3", "MPEG_LAYER_III", "audio/mpeg"),
        "opus": FileFormat(".opus", "OGG", "OPUS", "audio/ogg"),
        "pcm": FileFormat(".pcm", "RAW", "PCM_16", "audio/pcm"),
    }
)
"""The output formats by their names; pcm is bare samples, 16 bits, little-endian, at the sound's own rate."""
SUFFIXES: Mapping[str, str] = MappingProxyType(
    {found.suffix: name for name, found in FORMATS.items()} | {".ogg": "opus"}
)


@dataclass(frozen=True)
class Limits:
    """What a reference file may be; the fields are those of Settings."""

    max_bytes: int = 50 * 1024 * 1024
    min_seconds: float = 0.5
    max_seconds: float = 30.0
    refuse_long: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings give."""
        return cls(
            max_bytes=settings.max_upload_bytes,
            min_seconds=settings.min_reference_seconds,
            max_seconds=settings.max_reference_seconds,
            refuse_long=settings.long_reference == "refuse",
        )


@dataclass(frozen=True, eq=False)
class LoadedReference:
    """The sound kept from a file, and a notice for the user where something was cut or repaired."""

    waveform: Waveform
    notices: tuple[str, ...] = ()


def load_reference(data: bytes, limits: Limits) -> LoadedReference:
    """Return the mono sound of a file's bytes: the mean of all its channels, at the level it was decoded with.

    Reads what libsndfile reads (wav, flac, ogg, opus, mp3, ...), at the file's own rate, and anything else through
    ffmpeg where that is installed, at 48 kHz. Raises InvalidInput with one sentence for anything that cannot serve as
    a reference.
    """
    if not data:
        raise InvalidInput("The reference file is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise TooLarge(
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
        most = f"{limits.max_seconds:g} s"
        length = f"longer than {most}" if seconds is None else f"{seconds:.1f} s long"
        if limits.refuse_long:
            raise InvalidInput(f"The reference is {length}; at most {most} are allowed.")
        samples = samples[: int(limits.max_seconds * rate)]
        notices.append(f"The reference is {length}; its first {most} are used.")
    peak = float(np.abs(samples).max())
    if peak < SILENCE_PEAK or _loudest_rms(samples, rate) < SILENCE_RMS:
        level = f"{20 * np.log10(peak):.0f} dB" if peak > 0 else "no signal at all"
        raise InvalidInput(f"The reference is silent (peak: {level}); please choose a recording with a voice in it.")
    return LoadedReference(Waveform(samples, rate), tuple(notices))


def check_format(name: str) -> FileFormat:
    """Return the output format of this name; raises InvalidInput for one that is unknown or not to be had here."""
    found = FORMATS.get(name)
    if found is None:
        raise InvalidInput(f"There is no output format {name!r}; the formats are {', '.join(FORMATS)}.")
    if found.container not in soundfile.available_formats() or not soundfile.check_format(
        found.container, found.subtype
    ):
        raise InvalidInput(
            f"The sound library of this machine (libsndfile {soundfile.__libsndfile_version__}) cannot write {name}; "
            "wav and flac always work."
        )
    return found


def format_of(path: Path) -> str:
    """Return the name of the output format that a file's name asks for; raises InvalidInput as check_format does."""
    name = SUFFIXES.get(path.suffix.lower())
    if name is None:
        raise InvalidInput(f"The name {path.name!r} ends in no output format; the endings are {', '.join(SUFFIXES)}.")
    check_format(name)
    return name


def encode(waveform: Waveform, name: str) -> bytes:
    """Return the waveform in an output format (see FORMATS); samples beyond full scale are clipped.

    Raises InvalidInput as check_format does, and for a sample rate that the format does not have.
    """
    wanted = check_format(name)
    target = io.BytesIO()
    try:
        soundfile.write(
            target,
            np.clip(waveform.samples, -1.0, 1.0),
            waveform.sample_rate,
            format=wanted.container,
            subtype=wanted.subtype,
            endian="LITTLE" if wanted.container == "RAW" else None,
        )
    except soundfile.LibsndfileError as error:
        raise InvalidInput(f"Sound of {waveform.sample_rate} samples a second cannot be written as {name}.") from error
    return target.getvalue()


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


def encode_float_wav(waveform: Waveform) -> bytes:
    """Return the waveform as a WAV file of float32 samples, which load_reference gives back bit for bit."""
    target = io.BytesIO()
    soundfile.write(target, waveform.samples, waveform.sample_rate, format="WAV", subtype="FLOAT")
    return target.getvalue()


def _loudest_rms(samples: FloatArray, rate: int) -> float:
    frame = max(rate // 50, 1)
    usable = len(samples) // frame * frame
    if usable == 0:
        return float(np.sqrt(np.mean(np.square(samples))))
    return float(np.sqrt(np.mean(np.square(samples[:usable].reshape(-1, frame)), axis=1)).max())


def _decode(data: bytes, most_seconds: float) -> tuple[FloatArray, int, float | None]:
    """Return (mono samples of at most ``most_seconds``, rate, seconds of the whole file or None where not known)."""
    has_ffmpeg = shutil.which("ffmpeg") is not None
    refusal, cause = InvalidInput("The reference holds no sound (0 samples)."), None
    try:
        with soundfile.SoundFile(_Seekable(data)) as file:
            rate, channels, frames = file.samplerate, file.channels, file.frames
            _check_shape(rate, channels)
            samples = _read_mono(file, int(most_seconds * rate))
        if len(samples) > 0:
            # Some formats do not know their length; then libsndfile reports a huge number.
            return samples, rate, max(frames, len(samples)) / rate if 0 < frames < 2**40 else None
        # A recorder that is cut off leaves a header that says so, with sound behind it that ffmpeg may read.
    except (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError) as error:
        formats = (
            "wav, flac, mp3, ogg, opus or m4a"
            if has_ffmpeg
            else "wav, flac, mp3, ogg or opus (for m4a and video, ffmpeg must be installed)"
        )
        refusal, cause = Unreadable(f"The reference cannot be read as sound; please give {formats}."), error
    mono = _decode_with_ffmpeg(data, most_seconds) if has_ffmpeg else None
    if mono is None:
        raise refusal from cause
    return mono, FFMPEG_RATE, None


class _Seekable(io.BytesIO):
    """The bytes of an upload. A damaged file may send its reader to before the beginning: the reader stays where it is.

    BytesIO would raise within libsndfile's callback, where nobody can catch it, and a traceback would stand in the log.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place, as a file does, and return it."""
        return self.tell() if whence == io.SEEK_SET and offset < 0 else super().seek(offset, whence)


def _read_mono(file: soundfile.SoundFile, most: int) -> FloatArray:
    """Return at most ``most`` samples, the mean of all channels.

    Read in blocks of a second: the memory for all channels at once would be what the header claims, up to gigabytes.
    """
    blocks = []
    left = most
    while left > 0:
        block = file.read(min(left, file.samplerate), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        blocks.append(block.mean(axis=1, dtype=np.float32))
        left -= len(block)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _check_shape(rate: int, channels: int) -> None:
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise InvalidInput(
            f"The reference has {rate} samples a second; {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} are allowed."
        )
    if channels > MAX_CHANNELS:
        raise InvalidInput(f"The reference has {channels} channels; at most {MAX_CHANNELS} are allowed.")


def _decode_with_ffmpeg(data: bytes, most_seconds: float) -> FloatArray | None:
    """Return the mean of all channels at FFMPEG_RATE, of what libsndfile cannot read; None where ffmpeg cannot either.

    Only pipes and one private file: no name of a user reaches the call.
    """
    with tempfile.NamedTemporaryFile(prefix="stepaudio-") as source:
        # A file, not a pipe: mp4 keeps its index at the end and must be seekable.
        source.write(data)
        source.flush()
        command = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1", "-protocol_whitelist", "file"]
        command += ["-format_whitelist", FFMPEG_FORMATS, "-i", source.name]
        command += ["-t", f"{most_seconds:.3f}", "-vn", "-af", FFMPEG_MEAN, "-ar", str(FFMPEG_RATE)]
        command += ["-f", "f32le", "pipe:1"]
        sound, trouble = _run_bounded(command)
    samples = np.frombuffer(sound[: len(sound) // 4 * 4], dtype="<f4").astype(np.float32)
    if len(samples) == 0:
        log.debug("ffmpeg could not decode an upload: %s", trouble[:300].decode("utf-8", "replace").strip())
        return None
    return samples


def _run_bounded(command: list[str]) -> tuple[bytes, bytes]:
    """Return what a decoder writes to its two outputs; bounded in time and, on Linux, in memory.

    A few bytes of a file can claim tables of gigabytes, and reserve them before anything is found wrong.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if resource is not None and hasattr(resource, "prlimit"):
            with suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(process.pid, resource.RLIMIT_AS, (FFMPEG_BYTES, FFMPEG_BYTES))
        try:
            return process.communicate(timeout=FFMPEG_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise Unreadable(f"The reference could not be decoded within {FFMPEG_SECONDS} s.") from error
