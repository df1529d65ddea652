"""The decoder of uploads, fed what nobody would call a sound file: a sound or one sentence, whatever comes."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepaudio import audiofile
from stepaudio.audiofile import Limits, load_reference
from stepaudio.audiostream import STREAM_FORMATS, encode_whole
from stepaudio.errors import InvalidInput
from tests.conftest import voice

LIMITS = Limits(max_bytes=200_000, max_seconds=5.0)
BOUNDED = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def whole_files() -> list[bytes]:
    """Return small sound files of every kind that is read."""
    sound = voice(0.7)
    made = [encode_whole(audiofile.pcm16(sound.samples), name, 24_000) for name in STREAM_FORMATS if name != "pcm"]
    for container, subtype in (
        ("WAV", "FLOAT"),
        ("AIFF", "PCM_24"),
        ("OGG", "VORBIS"),
        ("CAF", "ALAC_16"),
        ("AU", "ULAW"),
    ):
        target = io.BytesIO()
        soundfile.write(target, sound.samples, 24_000, format=container, subtype=subtype)
        made.append(target.getvalue())
    return made


FILES = whole_files()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a sound file with bytes changed (its head above all), cut out, doubled, or behind something else."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.one_of(st.integers(0, 80), st.integers(0, len(data))))
        kind = draw(st.sampled_from(("set", "cut", "double", "end")))
        if kind == "set":
            data[place : place + 4] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 3000))]
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 3000))]
        else:
            del data[place:]
    return bytes(data)


def check(data: bytes) -> None:
    try:
        loaded = load_reference(data, LIMITS)
    except InvalidInput as error:
        sentence = str(error)
    else:
        sentence = ""
    if sentence:
        assert "\n" not in sentence
        assert sentence.endswith((".", ")"))
        return
    samples = loaded.waveform.samples
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert np.isfinite(samples).all()
    assert 0.5 <= loaded.waveform.seconds <= 5.0
    assert np.abs(samples).max() > 0


@given(st.binary(max_size=3000))
@settings(max_examples=150, **BOUNDED)
def test_bytes_of_no_kind(without_ffmpeg, data):
    check(data)


@given(damaged())
@settings(max_examples=400, **BOUNDED)
def test_damaged_sound_files(without_ffmpeg, data):
    check(data)


@given(damaged())
@settings(max_examples=15, **BOUNDED)
def test_damaged_sound_files_with_ffmpeg_behind_the_sound_library(data):
    check(data)


@pytest.fixture(scope="module")
def without_ffmpeg():
    """No ffmpeg: a process for each of hundreds of files would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        yield


@pytest.mark.proof
@given(damaged())
@settings(max_examples=3000, **BOUNDED)
def test_thousands_of_damaged_sound_files_with_ffmpeg_too(data):
    check(data)
