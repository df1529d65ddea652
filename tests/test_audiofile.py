"""Files of users: sound, or one clear sentence."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stepaudio import audiofile
from stepaudio.audiofile import (
    FORMATS,
    SUFFIXES,
    Limits,
    check_format,
    encode,
    encode_wav,
    format_of,
    load_reference,
    pcm16,
    wav_header,
)
from stepaudio.errors import InvalidInput
from stepaudio.types import Waveform
from stepaudio.web.sentences import in_language
from tests.conftest import voice

LIMITS = Limits()
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def file_bytes(samples: np.ndarray, rate: int = 24000, container: str = "WAV", subtype: str | None = None) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=container, subtype=subtype)
    return target.getvalue()


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000, 192000])
def test_any_usual_rate_is_kept_as_it_is(rate):
    loaded = load_reference(file_bytes(voice(1.0, rate).samples, rate), LIMITS)
    assert loaded.waveform.sample_rate == rate
    assert len(loaded.waveform.samples) == rate
    assert loaded.waveform.samples.dtype == np.float32
    assert loaded.notices == ()


def test_float_wav_is_read_bit_for_bit():
    samples = voice(1.0).samples
    loaded = load_reference(file_bytes(samples, subtype="FLOAT"), LIMITS)
    np.testing.assert_array_equal(loaded.waveform.samples, samples)


def test_stereo_becomes_the_mean_of_its_channels():
    left = voice(1.0).samples
    data = file_bytes(np.stack([left, np.zeros_like(left)], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(load_reference(data, LIMITS).waveform.samples, left / 2, atol=1e-7)


@pytest.mark.parametrize(("container", "subtype"), [("MP3", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_compressed_files_are_read(container, subtype):
    loaded = load_reference(file_bytes(voice(1.0).samples, 24000, container, subtype), LIMITS)
    assert loaded.waveform.seconds == pytest.approx(1.0, abs=0.1)


def test_a_long_reference_is_cut_with_a_notice_that_gives_its_length():
    loaded = load_reference(file_bytes(voice(40.0, 16000).samples, 16000), LIMITS)
    assert loaded.waveform.seconds == 30.0
    (notice,) = loaded.notices
    assert "40.0 s" in notice
    assert "30 s" in notice


def test_a_long_reference_is_refused_where_the_settings_say_so():
    with pytest.raises(InvalidInput, match=r"40\.0 s long; at most 30 s"):
        load_reference(file_bytes(voice(40.0, 16000).samples, 16000), Limits(refuse_long=True))


def test_a_file_cut_off_in_the_middle_gives_what_is_there():
    data = file_bytes(voice(4.0).samples)
    loaded = load_reference(data[: len(data) // 2], LIMITS)
    assert loaded.waveform.seconds == pytest.approx(2.0, abs=0.05)


def nan_in_the_middle() -> np.ndarray:
    samples = voice(1.0).samples.copy()
    samples[1000] = np.nan
    return samples


def one_click() -> np.ndarray:
    samples = np.zeros(24000, np.float32)
    samples[5000] = 0.005
    return samples


BAD = {
    "no bytes": (b"", "empty"),
    "silent": (file_bytes(np.zeros(48000, np.float32)), "silent"),
    "a click in silence": (file_bytes(one_click(), subtype="FLOAT"), "silent"),
    "a tenth of a second": (file_bytes(voice(0.1).samples), r"0\.10 s long; at least 0\.5 s"),
    "no samples": (file_bytes(np.zeros(0, np.float32)), "no sound"),
    "not a number": (file_bytes(nan_in_the_middle(), subtype="FLOAT"), "not numbers"),
    "infinity": (file_bytes(np.full(24000, np.inf, np.float32), subtype="FLOAT"), "not numbers"),
    "1 kHz": (file_bytes(voice(1.0, 16000).samples, 1000), "1000 samples a second"),
    "text renamed wav": (b"This is a letter, not a sound.\n" * 50, "cannot be read"),
    "only the head of a wav": (file_bytes(voice(1.0).samples)[:20], "cannot be read|no sound"),
    "random bytes": (np.random.default_rng(0).bytes(5000), "cannot be read"),
    "a playlist that names another file": (b"#EXTM3U\n/etc/passwd\n" * 20, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_serve_is_answered_with_one_sentence(name):
    data, expected = BAD[name]
    with pytest.raises(InvalidInput, match=expected) as caught:
        load_reference(data, LIMITS)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", ")."))


def test_too_many_bytes_are_refused_unread():
    with pytest.raises(InvalidInput, match=r"0\.1 MB; the limit is 0 MB"):
        load_reference(b"x" * 100_000, Limits(max_bytes=1000))


@needs_ffmpeg
@pytest.mark.parametrize("playlist", ["ffconcat", "hls", "hls-file"])
def test_a_playlist_cannot_make_the_server_read_another_file(tmp_path, monkeypatch, playlist):
    """ffmpeg follows playlists to other files; uploads of other users lie in the same temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "secret.mp3").write_bytes(file_bytes(voice(2.0).samples, 24000, "MP3"))
    (tmp_path / "secret.wav").write_bytes(file_bytes(voice(2.0).samples))
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"
    data = {
        "ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
        "hls": f"{head}{tmp_path}/secret.mp3\n#EXT-X-ENDLIST\n",
        "hls-file": f"{head}file://{tmp_path}/secret.mp3\n#EXT-X-ENDLIST\n",
    }[playlist]
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_reference(data.encode(), LIMITS)


def through_ffmpeg(folder: Path, samples: np.ndarray, rate: int, name: str, *options: str) -> bytes:
    """Return a sound file that ffmpeg has written."""
    (folder / "in.wav").write_bytes(file_bytes(samples, rate, subtype="FLOAT"))
    subprocess.run(["ffmpeg", "-v", "error", "-i", folder / "in.wav", *options, folder / name], check=True)
    return (folder / name).read_bytes()


@needs_ffmpeg
def test_m4a_is_read_through_ffmpeg(tmp_path):
    loaded = load_reference(through_ffmpeg(tmp_path, voice(1.0, 48000).samples, 48000, "out.m4a"), LIMITS)
    assert loaded.waveform.sample_rate == 48000
    assert loaded.waveform.seconds == pytest.approx(1.0, abs=0.1)


@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2, 6, 8, 12])
def test_what_ffmpeg_reads_becomes_the_mean_of_its_channels_too(tmp_path, channels):
    """Two channels, those of loudspeakers, and so many that they have no names; lossless, as libsndfile reads it."""
    samples = np.stack([voice(1.0, 48000, seed=seed).samples / (seed + 1) for seed in range(channels)], axis=1)
    data = through_ffmpeg(tmp_path, samples, 48000, "out.mka", "-c:a", "pcm_f32le")
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(io.BytesIO(data))
    expected = load_reference(file_bytes(samples, 48000, subtype="FLOAT"), LIMITS).waveform.samples
    np.testing.assert_allclose(load_reference(data, LIMITS).waveform.samples, expected, atol=1e-6)


@needs_ffmpeg
def test_a_long_m4a_is_not_said_to_be_as_long_as_what_was_decoded(tmp_path):
    data = through_ffmpeg(tmp_path, voice(40.0, 16000).samples, 16000, "out.m4a")
    loaded = load_reference(data, LIMITS)
    assert loaded.waveform.seconds == 30.0
    assert loaded.notices == ("The reference is longer than 30 s; its first 30 s are used.",)


def test_a_length_that_is_not_known_is_not_told_in_either_language(monkeypatch):
    monkeypatch.setattr(audiofile, "_decode", lambda data, most: (voice(most, 16000).samples, 16000, None))
    (notice,) = load_reference(b"sound", LIMITS).notices
    assert notice == "The reference is longer than 30 s; its first 30 s are used."
    assert in_language(notice, "zh") == "参考音频超过 30 秒；只使用前 30 秒。"
    with pytest.raises(
        InvalidInput, match=r"^The reference is longer than 30 s; at most 30 s are allowed\.$"
    ) as caught:
        load_reference(b"sound", Limits(refuse_long=True))
    assert in_language(str(caught.value), "zh") == "参考音频超过 30 秒；最长允许 30 秒。"


def unfinished_wav() -> bytes:
    """Return a recording as a recorder leaves it that is cut off: its header says that no sound follows."""
    return wav_header(16000, 0) + pcm16(voice(2.0, 16000).samples)


@needs_ffmpeg
def test_a_wav_whose_header_was_never_completed_is_read_through_ffmpeg():
    loaded = load_reference(unfinished_wav(), LIMITS)
    assert loaded.waveform.seconds == pytest.approx(2.0, abs=0.01)


def test_without_ffmpeg_a_wav_whose_header_was_never_completed_is_said_to_hold_no_sound(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InvalidInput, match="no sound"):
        load_reference(unfinished_wav(), LIMITS)


def test_without_ffmpeg_the_sentence_says_what_would_help(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InvalidInput, match="ffmpeg must be installed"):
        load_reference(b"not a sound" * 10, LIMITS)


def test_the_result_is_a_sixteen_bit_wav_that_can_be_read_back():
    samples = voice(1.0).samples
    read, rate = soundfile.read(io.BytesIO(encode_wav(Waveform(samples, 24000))), dtype="float32")
    assert rate == 24000
    np.testing.assert_allclose(read, samples, atol=1 / 32000)


def test_samples_beyond_full_scale_are_clipped_not_wrapped():
    read, _ = soundfile.read(io.BytesIO(encode_wav(Waveform(np.array([2.0, -2.0], np.float32), 24000))))
    assert read[0] > 0.99
    assert read[1] < -0.99


def test_samples_are_rounded_to_the_nearest_integer():
    samples = np.array([0.4, 0.6, -0.4, -0.6, 32767.4, -32768.4], np.float32) / 32768
    assert np.frombuffer(pcm16(samples), "<i2").tolist() == [0, 1, 0, -1, 32767, -32768]


def test_a_wav_of_unknown_length_is_read_to_its_end():
    file = wav_header(24_000) + pcm16(voice(1.0).samples)
    samples, rate = soundfile.read(io.BytesIO(file))
    assert (len(samples), rate) == (24_000, 24_000)


# Output formats.


def decoded(data: bytes, name: str) -> tuple[np.ndarray, int]:
    raw = {"samplerate": 24000, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}
    return soundfile.read(io.BytesIO(data), dtype="float32", **(raw if name == "pcm" else {}))


def writable(name: str) -> bool:
    wanted = FORMATS[name]
    return wanted.container in soundfile.available_formats() and soundfile.check_format(
        wanted.container, wanted.subtype
    )


@pytest.mark.parametrize("name", ["wav", "flac", "pcm"])
def test_lossless_formats_give_the_samples_back(name):
    samples = voice(1.0).samples
    read, rate = decoded(encode(Waveform(samples, 24000), name), name)
    assert rate == 24000
    np.testing.assert_allclose(read, samples, atol=1 / 32000)


@pytest.mark.parametrize("name", ["mp3", "opus"])
@pytest.mark.parametrize("seconds", [0.12, 3.0, 60.0])
def test_compressed_formats_sound_alike_and_last_as_long(name, seconds):
    if not writable(name):
        pytest.skip(f"libsndfile {soundfile.__libsndfile_version__} cannot write {name}")
    samples = voice(seconds).samples
    data = encode(Waveform(samples, 24000), name)
    read, rate = decoded(data, name)
    assert rate == 24000
    assert len(read) == pytest.approx(len(samples), abs=0.1 * 24000)
    assert len(data) < len(samples) + 10_000  # half of what 16-bit samples take, and a head
    # The two may be shifted by the codec's delay: the spectrum tells whether it is the same sound.
    if seconds >= 3:
        spectra = [np.abs(np.fft.rfft(part[: 2 * 24000])) for part in (samples, read)]
        assert np.corrcoef(spectra[0][:6000], spectra[1][:6000])[0, 1] > 0.95


def test_pcm_is_sixteen_bits_little_endian_without_a_head():
    assert encode(Waveform(np.array([0.0, 0.5, -1.0], np.float32), 24000), "pcm") == b"\x00\x00\x00\x40\x00\x80"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_known_by_its_ending(name):
    assert format_of(Path("Some.Thing" + FORMATS[name].suffix.upper())) == name
    assert SUFFIXES[".ogg"] == "opus"


@pytest.mark.parametrize("name", ["m4a", "WAV", "", "exe"])
def test_an_unknown_format_is_refused_with_those_there_are(name):
    with pytest.raises(InvalidInput, match="wav, flac, mp3, opus, pcm"):
        check_format(name)
    with pytest.raises(InvalidInput, match="ends in no output format"):
        format_of(Path("out"))


@pytest.mark.parametrize("name", ["mp3", "opus"])
def test_a_format_that_the_sound_library_cannot_write_is_refused_in_one_sentence(monkeypatch, name):
    formats = {"WAV": "", "FLAC": "", "RAW": "", **({"OGG": ""} if name == "opus" else {})}
    monkeypatch.setattr(soundfile, "available_formats", lambda: formats)
    monkeypatch.setattr(soundfile, "check_format", lambda container, subtype: subtype == "PCM_16")
    with pytest.raises(InvalidInput, match=f"cannot write {name}; wav and flac always work") as caught:
        encode(voice(0.1), name)
    assert "\n" not in str(caught.value)
    assert encode(voice(0.1), "flac")[:4] == b"fLaC"


def test_a_rate_that_the_format_does_not_have_is_refused():
    with pytest.raises(InvalidInput, match="44100 samples a second cannot be written as opus"):
        encode(voice(0.1, 44100), "opus")


def test_a_file_that_points_before_its_beginning_raises_nothing_where_nobody_can_catch_it():
    data = audiofile._Seekable(b"RIFF")
    assert data.seek(2) == 2
    assert data.seek(-5) == 2
    assert data.seek(-1, io.SEEK_END) == 3
