"""Small files that claim to be enormous: they cost neither memory nor time."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import soundfile

from stepaudio import audiofile
from stepaudio.audiofile import Limits, load_reference
from stepaudio.errors import InvalidInput
from tests.conftest import voice

SOUND = voice(2.0).samples
MEGABYTE = 2**20


def bytes_of(samples: np.ndarray, rate: int, container: str, subtype: str) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=container, subtype=subtype)
    return target.getvalue()


def measured(data: bytes):
    """Return what became of a file, the most memory that Python and numpy took, and the seconds."""
    start = time.perf_counter()
    tracemalloc.start()
    try:
        try:
            loaded = load_reference(data, Limits())
        except InvalidInput as error:
            loaded = error
        return loaded, tracemalloc.get_traced_memory()[1], time.perf_counter() - start
    finally:
        tracemalloc.stop()


def test_a_flac_that_claims_weeks_gives_what_is_there():
    """The number of samples has 36 bits, behind 14 bytes of the first block, which begins at byte 8."""
    data = bytearray(bytes_of(SOUND, 24000, "FLAC", "PCM_16"))
    data[21] |= 0x0F
    data[22:26] = b"\xff\xff\xff\xff"
    with soundfile.SoundFile(io.BytesIO(bytes(data))) as file:
        assert file.frames > 24000 * 86400
    loaded, memory, seconds = measured(bytes(data))
    assert memory < 10 * MEGABYTE
    assert seconds < 5
    assert not isinstance(loaded, InvalidInput)
    assert loaded.waveform.seconds == pytest.approx(2.0)


def test_an_ogg_that_claims_weeks_gives_what_is_there_or_one_sentence():
    """The last page says how many samples there are; its checksum is made to fit, so that it is believed."""
    data = bytearray(bytes_of(SOUND, 24000, "OGG", "VORBIS"))
    page = data.rfind(b"OggS")
    data[page + 6 : page + 14] = struct.pack("<q", 2**60)
    data[page + 22 : page + 26] = struct.pack("<I", ogg_checksum(bytes(data[page:])))
    loaded, memory, seconds = measured(bytes(data))
    assert memory < 10 * MEGABYTE
    assert seconds < 5
    if not isinstance(loaded, InvalidInput):
        assert 1.9 < loaded.waveform.seconds < 3


def ogg_checksum(page: bytes) -> int:
    """Return the checksum of a page, computed with its own field empty: CRC-32, polynomial 04c11db7, no reflection."""
    crc = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


def test_many_channels_are_mixed_while_they_are_read():
    """Ten seconds of 32 channels are 31 MB as numbers; the mean of them all is one."""
    samples = np.repeat(np.tile(SOUND, 5)[:, None], 32, axis=1)
    data = bytes_of(samples, 24000, "WAV", "ULAW")
    loaded, memory, _ = measured(data)
    assert len(data) * 4 > 29 * MEGABYTE
    assert memory < 12 * MEGABYTE
    assert loaded.waveform.seconds == pytest.approx(10.0)
    np.testing.assert_allclose(loaded.waveform.samples[: len(SOUND)], SOUND, atol=0.02)


def test_minutes_that_compress_to_nothing_are_decoded_no_further_than_needed():
    """Eight channels of one constant value for a minute: some kilobytes of flac that would be gigabytes."""
    block = np.full((96000 * 20, 8), 0.25, np.float32)
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", 96000, 8, format="FLAC", subtype="PCM_16") as file:
        for _ in range(3):
            file.write(block)
    del block
    loaded, memory, seconds = measured(target.getvalue())
    assert target.tell() < MEGABYTE
    assert memory < 40 * MEGABYTE
    assert seconds < 10
    assert loaded.waveform.seconds == pytest.approx(30.0)
    assert "60.0 s long" in loaded.notices[0]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("table", [b"stsz", b"stco", b"stts", b"stsc"])
def test_an_m4a_whose_tables_claim_billions_is_answered(tmp_path, table):
    soundfile.write(tmp_path / "voice.wav", SOUND, 24000)
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "voice.wav"), "-c:a", "aac", str(tmp_path / "voice.m4a")]
    subprocess.run(command, check=True)
    data = bytearray((tmp_path / "voice.m4a").read_bytes())
    count = data.index(table) + (12 if table == b"stsz" else 8)
    data[count : count + 4] = b"\x7f\xff\xff\xff"
    loaded, memory, seconds = measured(bytes(data))
    assert memory < 40 * MEGABYTE
    assert seconds < audiofile.FFMPEG_SECONDS
    assert isinstance(loaded, InvalidInput) or loaded.waveform.seconds < 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux bounds another process")
def test_a_decoder_that_takes_too_much_memory_is_refused_it():
    script = "import time\ntime.sleep(1)\nx = bytearray(3 * 2**30)\nprint(len(x))"
    sound, trouble = audiofile._run_bounded([sys.executable, "-c", script])
    assert b"MemoryError" in trouble
    assert sound == b""


def test_a_decoder_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(audiofile, "FFMPEG_SECONDS", 1)
    start = time.perf_counter()
    with pytest.raises(InvalidInput, match="within 1 s"):
        audiofile._run_bounded([sys.executable, "-c", "import time; time.sleep(60)"])
    assert time.perf_counter() - start < 10
