"""A sound file that is written while its sound is still being made: piece by piece, in any of the API's formats.

FFmpeg's libraries (PyAV) do the encoding, in this process. What is written cannot be gone back to, so that the lengths
in the headers of wav and flac stay open; players take the sound until its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import av
import numpy as np

from stepaudio.audiofile import FORMATS, wav_header
from stepaudio.errors import InvalidInput

MIN_SPEED, MAX_SPEED = 0.25, 4.0


@dataclass(frozen=True)
class StreamFormat:
    """How a stream is written. container, codec: FFmpeg's names, "" for bare samples. media_type: of HTTP."""

    media_type: str
    suffix: str
    container: str = ""
    codec: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def _like(name: str, container: str = "", codec: str = "", **options: str) -> StreamFormat:
    found = FORMATS[name]
    return StreamFormat(found.media_type, found.suffix, container, codec, options)


STREAM_FORMATS: Mapping[str, StreamFormat] = MappingProxyType(
    {
        # No Xing header: it would hold the length. Pages of 60 ms: by default opus holds a second back.
        "mp3": _like("mp3", "mp3", "libmp3lame", write_xing="0", id3v2_version="0"),
        "opus": _like("opus", "ogg", "libopus", page_duration="60000"),
        "aac": StreamFormat("audio/aac", ".aac", "adts", "aac"),
        "flac": _like("flac", "flac", "flac"),
        "wav": _like("wav"),
        "pcm": _like("pcm"),
    }
)
"""The formats by OpenAI's names; pcm is bare samples, 16 bits, little-endian, mono, at the sound's own rate."""


class StreamCoder:
    """Turns pieces of 16-bit mono samples into the bytes of one file; one thread at a time.

    speed: how much faster the sound becomes, at the same pitch (FFmpeg's atempo).
    """

    def __init__(self, name: str, sample_rate: int, speed: float = 1.0) -> None:
        """Raises InvalidInput for a speed outside 0.25 to 4."""
        self._format = STREAM_FORMATS[name]
        self._out = _Sink()
        self._tempo = _Tempo(sample_rate, speed) if speed != 1.0 else None
        self._encoder = _Encoder(self._format, sample_rate, self._out) if self._format.container else None
        if name == "wav":
            self._out.write(wav_header(sample_rate))

    def add(self, samples: bytes) -> bytes:
        """Return the bytes of the file that are ready after these samples (16 bits, little-endian); maybe none."""
        return self._write(self._tempo.add(samples) if self._tempo is not None else samples)

    def end(self) -> bytes:
        """Return the last bytes of the file; nothing can be added afterwards."""
        left = self._write(self._tempo.end()) if self._tempo is not None else b""
        if self._encoder is not None:
            self._encoder.end()
        return left + self._out.take()

    def _write(self, samples: bytes) -> bytes:
        if self._encoder is None:
            self._out.write(samples)
        elif samples:
            self._encoder.add(samples)
        return self._out.take()


def encode_whole(samples: bytes, name: str, sample_rate: int, speed: float = 1.0) -> bytes:
    """Return 16-bit mono samples as one file, in one piece. Raises InvalidInput as StreamCoder does."""
    coder = StreamCoder(name, sample_rate, speed)
    data = coder.add(samples) + coder.end()
    if name == "wav":  # here the length is known
        body = data[44:]
        return wav_header(sample_rate, len(body)) + body
    return data


class _Sink:
    """Where FFmpeg writes to: it has no ``seek``, so nothing written is changed later."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: Any) -> int:
        self._held += bytes(data)
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._held)
        self._held.clear()
        return taken


class _Encoder:
    """One encoder and its container."""

    def __init__(self, form: StreamFormat, sample_rate: int, sink: _Sink) -> None:
        self._container = av.open(sink, "w", format=form.container, options=dict(form.options))
        self._stream: Any = self._container.add_stream(form.codec, rate=sample_rate, layout="mono")
        self._rate = sample_rate
        self._written = 0

    def add(self, samples: bytes) -> None:
        frame = _frame(samples, self._rate, self._written)
        self._written += frame.samples
        self._container.mux(self._stream.encode(frame))

    def end(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


class _Tempo:
    """Changes how long the sound is, not its pitch."""

    def __init__(self, sample_rate: int, speed: float) -> None:
        if not MIN_SPEED <= speed <= MAX_SPEED:
            raise InvalidInput(f"The speed is {speed:g}; it must lie between {MIN_SPEED} and {MAX_SPEED:g}.")
        self._rate, self._read = sample_rate, 0
        self._graph = av.filter.Graph()
        source = self._graph.add_abuffer(sample_rate=sample_rate, format="s16", layout="mono")
        # One atempo halves at most.
        steps = [max(speed, 0.5)] + ([speed / 0.5] if speed < 0.5 else [])
        filters = [self._graph.add("atempo", f"{step:.6f}") for step in steps]
        sink = self._graph.add("abuffersink")
        self._graph.link_nodes(source, *filters, sink).configure()

    def add(self, samples: bytes) -> bytes:
        if not samples:
            return b""
        frame = _frame(samples, self._rate, self._read)
        self._read += frame.samples
        self._graph.push(frame)
        return self._pull()

    def end(self) -> bytes:
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> bytes:
        """Return what the filter has ready; that there is no more comes as an exception."""
        ready = bytearray()
        while True:
            try:
                ready += self._graph.pull().to_ndarray().astype("<i2").tobytes()
            except (av.error.BlockingIOError, av.error.EOFError):
                return bytes(ready)


def _frame(samples: bytes, rate: int, start: int) -> av.AudioFrame:
    """Return 16-bit mono samples as FFmpeg has them; start: how many came before."""
    frame = av.AudioFrame.from_ndarray(np.frombuffer(samples, "<i2").astype(np.int16)[None], "s16", "mono")
    frame.sample_rate, frame.pts = rate, start
    return frame
