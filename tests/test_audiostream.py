"""Files written piece by piece: every format, each piece at once, the tempo changed and the pitch not."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile

from stepaudio.audiofile import Limits, load_reference, pcm16
from stepaudio.audiostream import STREAM_FORMATS, StreamCoder, encode_whole
from stepaudio.errors import InvalidInput
from tests.conftest import voice

RATE = 24_000
LOSSLESS = ("wav", "pcm", "flac")


def decoded(data: bytes, name: str) -> np.ndarray:
    """Return the samples of a file, as another reader than the writer's own container has them, int16."""
    if name == "pcm":
        return np.frombuffer(data, "<i2")
    with av.open(io.BytesIO(data)) as container:
        (stream,) = container.streams
        assert (stream.rate, stream.channels) in ((RATE, 1), (48_000, 1))  # opus always plays at 48 kHz
        resampler = av.AudioResampler("s16", "mono", RATE)
        frames = [made for frame in container.decode(stream) for made in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def pieces(samples: np.ndarray, size: int = 2880) -> list[bytes]:
    return [pcm16(samples[start : start + size]) for start in range(0, len(samples), size)]


@pytest.mark.parametrize("name", STREAM_FORMATS)
def test_every_format_is_written_piece_by_piece_and_holds_the_sound(name):
    sound = voice(3.0).samples
    coder = StreamCoder(name, RATE)
    parts = [coder.add(piece) for piece in pieces(sound)]
    data = b"".join(parts) + coder.end()
    assert sum(map(bool, parts)) >= 20  # nearly every piece gives bytes at once
    assert len(parts[0]) > 0
    heard = decoded(data, name).astype(np.float64) / 32768
    if name in LOSSLESS:
        np.testing.assert_array_equal(decoded(data, name), np.frombuffer(pcm16(sound), "<i2"))
    else:
        assert len(sound) <= len(heard) <= len(sound) + 3000
        # Encoders begin a little late; at the best place the sounds are nearly the same.
        best = max(
            np.corrcoef(sound[: len(heard) - shift], heard[shift : shift + len(sound)])[0, 1]
            for shift in range(len(heard) - len(sound) + 1)
        )
        assert best > 0.97


@pytest.mark.parametrize("name", [name for name in STREAM_FORMATS if name != "pcm"])
def test_what_is_written_can_be_a_reference(name):
    data = encode_whole(pcm16(voice(2.0).samples), name, RATE)
    loaded = load_reference(data, Limits())
    assert loaded.waveform.seconds == pytest.approx(2.0, abs=0.15)


def test_a_whole_wav_knows_its_length():
    samples, rate = soundfile.read(io.BytesIO(encode_whole(pcm16(voice(1.0).samples), "wav", RATE)), dtype="int16")
    assert (len(samples), rate) == (RATE, RATE)


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.5, 0.8, 1.5, 2.0, 4.0])
def test_speed_changes_the_length_and_not_the_pitch(speed):
    t = np.arange(3 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 300 * t).astype(np.float32)
    coder = StreamCoder("pcm", RATE, speed)
    heard = np.frombuffer(b"".join([*map(coder.add, pieces(tone)), coder.end()]), "<i2")
    assert len(heard) == pytest.approx(len(tone) / speed, rel=0.03)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) * RATE / len(heard) == pytest.approx(300, abs=3)


@pytest.mark.parametrize("speed", [0.2, 4.1, float("nan"), -1.0])
def test_another_speed_is_refused(speed):
    with pytest.raises(InvalidInput, match="speed"):
        StreamCoder("wav", RATE, speed)


@pytest.mark.parametrize("name", STREAM_FORMATS)
def test_a_sound_of_no_samples_is_no_error(name):
    coder = StreamCoder(name, RATE)
    data = coder.add(b"") + coder.end()
    assert isinstance(data, bytes)


def test_ffmpeg_reads_the_open_ended_files_too(tmp_path):
    for name in ("flac", "wav"):
        path = tmp_path / f"sound.{name}"
        coder = StreamCoder(name, RATE)
        path.write_bytes(b"".join([*map(coder.add, pieces(voice(1.0).samples)), coder.end()]))
        with av.open(str(path)) as container:
            assert sum(frame.samples for frame in container.decode(audio=0)) == RATE
