"""Saved voices: what was saved comes back, whatever else lies in the folder, and nothing foreign gets in."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from stepaudio.audiofile import Limits, encode_wav, load_reference
from stepaudio.errors import InvalidInput, StepAudioError
from stepaudio.service import CloneRequest, Service
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams, Waveform
from stepaudio.voices import NOTES, SOUND, VoiceDraft, VoiceFolder, VoiceLimits, read_export
from tests.conftest import ROOT, voice

SHORT = {"sampling": SamplingParams(seed=3), "max_seconds": 0.6, "flow_steps": 1}
WAVEFORM = voice(0.6)


def draft(name: str = "Ada", **fields) -> VoiceDraft:
    return VoiceDraft(**{"audio": b"", "name": name, "transcript": "the words", **fields})


@pytest.fixture
def folder(tmp_path) -> VoiceFolder:
    return VoiceFolder(tmp_path / "voices")


def test_what_is_saved_comes_back_bit_for_bit(folder, tmp_path):
    saved = folder.save(draft(language="en-GB", consent="Ada agreed by letter, 2026"), WAVEFORM)
    elsewhere = VoiceFolder(tmp_path / "voices")
    assert elsewhere.list() == (saved,)
    found, wav = elsewhere.load(saved.id)
    assert found == saved == elsewhere.get(saved.id)
    assert (saved.name, saved.transcript, saved.language) == ("Ada", "the words", "en-GB")
    assert saved.consent == "Ada agreed by letter, 2026"
    assert saved.seconds == 0.6
    back = load_reference(wav, Limits()).waveform
    assert back.sample_rate == WAVEFORM.sample_rate
    np.testing.assert_array_equal(back.samples, WAVEFORM.samples)


def test_two_voices_of_one_name_from_earlier_times_are_told_apart_by_their_ids(folder):
    one = folder.save(draft(), WAVEFORM)
    other = folder.folder / f"{one.id[::-1]}.zip"
    other.write_bytes((folder.folder / f"{one.id}.zip").read_bytes())
    assert folder.find(one.id) == one
    with pytest.raises(InvalidInput, match="2 saved voices are called 'Ada'"):
        folder.find("Ada")
    folder.rename(other.stem, "Grace")
    assert folder.find("Ada") == one
    assert [v.name for v in folder.list()] == ["Ada", "Grace"]
    assert folder.find("Grace").transcript == "the words"


@pytest.mark.parametrize("name", ["Jose\u0301 Maria", "Jos\u00e9  Maria\n", " Jos\u00e9\u2028Maria"])
def test_a_voice_is_found_by_the_words_it_was_saved_under_however_they_are_written(folder, name):
    saved = folder.save(draft(name), WAVEFORM)
    assert saved.name == "Jos\u00e9 Maria"
    assert folder.find(name) == folder.find(saved.name) == saved
    with pytest.raises(InvalidInput, match="There is no saved voice"):
        folder.find(f"{name} x" * 100)


def test_a_voice_is_found_in_any_case_but_first_as_it_is_written(folder):
    saved = folder.save(draft("Stra\u00dfe"), WAVEFORM)
    assert folder.find("strasse") == folder.find(" STRASSE") == folder.find("stra\u00dfe") == saved
    twin = replace(
        saved, id=saved.id[::-1], name="STRASSE"
    )  # from earlier times, when names could differ in case alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "list", lambda: (saved, twin))
        assert folder.find("STRASSE") == twin
        assert folder.find("Stra\u00dfe") == saved
        with pytest.raises(InvalidInput, match="2 saved voices"):
            folder.find("Strasse")


@pytest.mark.parametrize("name", ["Ada", " ada ", "ADA"])
def test_a_name_belongs_to_one_voice(folder, name):
    folder.save(draft(), WAVEFORM)
    grace = folder.save(draft("Grace"), WAVEFORM)
    for use in (lambda: folder.save(draft(name), WAVEFORM), lambda: folder.rename(grace.id, name)):
        with pytest.raises(InvalidInput, match=f"There is a saved voice '{name.strip()}' already"):
            use()
    assert [v.name for v in folder.list()] == ["Ada", "Grace"]
    assert folder.rename(grace.id, "grace").name == "grace"  # its own name, otherwise written


def test_a_name_written_with_an_accent_apart_is_the_same_name(folder):
    folder.save(draft("Ren\u00e9e"), WAVEFORM)
    with pytest.raises(InvalidInput, match="There is a saved voice 'Ren\u00e9e' already"):
        folder.save(draft("Rene\u0301e"), WAVEFORM)
    assert [v.name for v in folder.list()] == ["Ren\u00e9e"]


def test_of_two_that_save_one_name_at_once_one_is_refused(folder, monkeypatch):
    """Both have found the name free before either writes."""
    both, cleaned, outcomes = threading.Barrier(2, timeout=30), folder.cleaned, []

    def cleaned_together(given: VoiceDraft) -> VoiceDraft:
        kept = cleaned(given)
        both.wait()
        return kept

    def save() -> None:
        try:
            outcomes.append(folder.save(draft(), WAVEFORM).name)
        except InvalidInput as error:
            outcomes.append(str(error))

    monkeypatch.setattr(folder, "cleaned", cleaned_together)
    threads = [threading.Thread(target=save) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [v.name for v in folder.list()] == ["Ada"]
    assert sorted(outcomes)[0] == "Ada"
    assert sorted(outcomes)[1].startswith("There is a saved voice 'Ada' already")


def test_no_saved_voice_takes_the_name_of_one_that_came_with_the_weights(folder):
    folder.reserve(["1-nora", "Nora"])
    grace = folder.save(draft("Grace"), WAVEFORM)
    for name in ("Nora", "nora", "1-Nora"):
        for use in (lambda name=name: folder.cleaned(draft(name)), lambda name=name: folder.rename(grace.id, name)):
            with pytest.raises(InvalidInput, match="is a voice that came with the weights"):
                use()


def test_a_removed_voice_is_gone(folder):
    saved = folder.save(draft(), WAVEFORM)
    folder.delete(saved.id)
    assert folder.list() == ()
    for use in (folder.get, folder.load, folder.delete, folder.export, folder.find):
        with pytest.raises(InvalidInput, match="There is no saved voice"):
            use(saved.id)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "CON", "名字 🎉", "a\x00b\nc\u202eevil", ".", "x" * 80])
def test_a_name_never_becomes_a_path_and_stays_one_line(folder, tmp_path, name):
    saved = folder.save(draft(name), WAVEFORM)
    assert [path.name for path in folder.folder.iterdir()] == [f"{saved.id}.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["voices"]
    assert not set("\x00\n\u202e") & set(saved.name)
    assert folder.get(saved.id).name == saved.name


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": " \u202e\n"}, "The name of the voice is empty."),
        ({"name": "x" * 81}, "The name of the voice has 81 characters; the limit is 80."),
        ({"transcript": ""}, "The transcript of the reference is empty."),
        ({"transcript": "x" * 1001}, "1001 characters; the limit is 1000"),
        ({"language": "x" * 41}, "The language of the voice has 41 characters; the limit is 40."),
        ({"consent": "x" * 501}, "The consent note has 501 characters; the limit is 500."),
    ],
)
def test_texts_that_cannot_be_saved_are_refused_and_nothing_is_written(folder, fields, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        folder.save(draft(**fields), WAVEFORM)
    assert folder.list() == ()
    assert not folder.folder.exists()


@pytest.mark.parametrize("voice_id", ["", "../secret", "0" * 15, "0" * 17, "G" * 16, "0" * 16, "0" * 15 + "\n"])
def test_what_is_no_id_finds_nothing(folder, voice_id):
    folder.save(draft(), WAVEFORM)
    for use in (folder.get, folder.delete, folder.export):
        with pytest.raises(InvalidInput, match="There is no saved voice"):
            use(voice_id)


def test_number_and_bytes_are_bounded(tmp_path):
    few = VoiceFolder(tmp_path / "few", VoiceLimits(max_voices=2))
    kept = [few.save(draft(name), WAVEFORM) for name in "ab"]
    with pytest.raises(InvalidInput, match="There are 2 saved voices, which is the limit"):
        few.save(draft("c"), WAVEFORM)
    few.delete(kept[0].id)
    few.save(draft("c"), WAVEFORM)
    small = VoiceFolder(tmp_path / "small", VoiceLimits(max_bytes=100_000))
    small.save(draft(), WAVEFORM)
    with pytest.raises(InvalidInput, match="the limit is 0 MB in all"):
        small.save(draft("other"), WAVEFORM)
    assert len(small.list()) == 1


def test_a_damaged_voice_costs_itself_and_one_warning(folder, caplog):
    good = folder.save(draft("good"), WAVEFORM)
    path = folder.folder / f"{good.id}.zip"
    whole = path.read_bytes()
    foreign = {
        "00000000000000aa.zip": whole[: len(whole) // 2],
        "00000000000000ab.zip": b"not a voice",
        "00000000000000ac.zip": b"",
    }
    for name, data in foreign.items():
        (folder.folder / name).write_bytes(data)
    os.mkfifo(folder.folder / "00000000000000ad.zip")
    os.symlink(path, folder.folder / "00000000000000ae.zip")
    (folder.folder / "00000000000000af.zip").mkdir()
    (folder.folder / "holiday.zip").write_bytes(whole)
    assert folder.list() == folder.list() == (good,)
    for name in (*foreign, "00000000000000ad", "00000000000000ae", "00000000000000af"):
        assert sum(name[:16] in record.message for record in caplog.records) == 1, name
        with pytest.raises(InvalidInput, match="cannot be used"):
            folder.get(name[:16])
    folder.delete("00000000000000ab")
    folder.save(draft("new"), WAVEFORM)
    assert [v.name for v in folder.list()] == ["good", "new"]


def test_a_flipped_bit_of_the_sound_is_noticed_when_it_is_used(folder):
    saved = folder.save(draft(), WAVEFORM)
    path = folder.folder / f"{saved.id}.zip"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert folder.list() == (saved,)
    with pytest.raises(InvalidInput, match="cannot be used: Bad CRC-32"):
        folder.load(saved.id)


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence_and_lists_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("where the folder should be")
    folder = VoiceFolder(tmp_path / "file")
    with pytest.raises(StepAudioError, match="cannot be changed: File exists") as caught:
        folder.save(draft(), WAVEFORM)
    assert "\n" not in str(caught.value)
    assert folder.list() == ()
    assert "cannot be listed" in caplog.text
    assert VoiceFolder(tmp_path / "nowhere").list() == ()


# Export and import.


def test_an_exported_voice_is_imported_under_a_new_id(folder, tmp_path):
    saved = folder.save(draft("Ada", language="en", consent="yes"), WAVEFORM)
    exported = folder.export(saved.id)
    assert saved.id.encode() not in exported
    taken = read_export(exported)
    other = VoiceFolder(tmp_path / "other").save(taken, load_reference(taken.audio, Limits()).waveform)
    assert other.id != saved.id
    assert (other.name, other.transcript, other.language, other.consent) == ("Ada", "the words", "en", "yes")
    np.testing.assert_array_equal(load_reference(taken.audio, Limits()).waveform.samples, WAVEFORM.samples)


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return target.getvalue()


GOOD = {
    "format": 1, "name": "Ada", "transcript": "words", "language": "", "consent": "", "seconds": 0.6,
    "created": "2026-11-22T00:00:00+00:00",
}  # fmt: skip
WAV = encode_wav(WAVEFORM)


def notes(**changes) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


BAD_FILES = {
    "no bytes": b"",
    "text": b"not a voice",
    "a sound": WAV,
    "other names": archive({"../voice.json": notes(), "/etc/voice.wav": WAV}),
    "a third member": archive({NOTES: notes(), SOUND: WAV, "more": b""}),
    "one member": archive({NOTES: notes()}),
    "the same member twice": archive({NOTES: notes(), SOUND: WAV}).replace(b"voice.wav", b"voice.jso"),
    "a bomb": archive({NOTES: notes(), SOUND: bytes(30 * 2**20)}, zipfile.ZIP_DEFLATED),
    "notes that are a bomb": archive({NOTES: b" " * 2**20 + notes(), SOUND: WAV}),
    "deep notes": archive({NOTES: b"[" * 60_000, SOUND: WAV}),
    "notes that are no JSON": archive({NOTES: b"\xff\xfe", SOUND: WAV}),
    "a list": archive({NOTES: b"[]", SOUND: WAV}),
    "another format": archive({NOTES: notes(format=2), SOUND: WAV}),
    "another field": archive({NOTES: notes(more=1), SOUND: WAV}),
    "a name that is a number": archive({NOTES: notes(name=5), SOUND: WAV}),
    "a name of two lines": archive({NOTES: notes(name="a\nb"), SOUND: WAV}),
    "a long name": archive({NOTES: notes(name="a" * 81), SOUND: WAV}),
    "half a character": archive({NOTES: notes(transcript="\ud800"), SOUND: WAV}),
    "no length": archive({NOTES: notes(seconds=float("nan")), SOUND: WAV}),
    "no date": archive({NOTES: notes(created="yesterday"), SOUND: WAV}),
    "a date that is a number": archive({NOTES: notes(created=1), SOUND: WAV}),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_was_not_exported_here_is_refused_in_one_sentence(name):
    with pytest.raises(InvalidInput, match="not a voice that stepaudio has exported") as caught:
        read_export(BAD_FILES[name])
    assert "\n" not in str(caught.value)


def test_the_good_file_that_the_bad_ones_differ_from_is_taken():
    assert read_export(archive({NOTES: notes(), SOUND: WAV})).name == "Ada"


def test_altered_exports_are_refused_or_harmless_never_a_crash(folder):
    """Bytes altered anywhere outside the sound, and files cut off anywhere: an InvalidInput, or a voice like ours."""
    saved = folder.save(draft(), Waveform(WAVEFORM.samples[:2000], 24000))
    data = folder.export(saved.id)
    folder.delete(saved.id)  # its name is free for the altered ones
    rng = np.random.default_rng(0)
    sound = data.index(b"RIFF") + 100, data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x01\x02"))
    places = [*range(sound[0]), *range(sound[1], len(data))]
    refused = 0
    for place in places:
        altered = bytearray(data)
        altered[place] ^= int(rng.integers(1, 256))
        try:
            taken = read_export(bytes(altered))
        except InvalidInput:
            refused += 1
        else:
            assert folder.cleaned(taken) == taken
    for end in range(0, len(data), 37):
        with pytest.raises(InvalidInput):
            read_export(data[:end])
    assert refused > len(places) / 2


# Several processes, and sudden ends.

WRITER = """
import os, sys
from pathlib import Path
from stepaudio.voices import VoiceDraft, VoiceFolder, VoiceLimits
from tests.conftest import voice
folder = VoiceFolder(Path(sys.argv[1]), VoiceLimits(max_voices=int(sys.argv[3])))
sound = voice(2.0)
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    folder.save(VoiceDraft(b"", f"voice {number} of {os.getpid()}", "words"), sound)
"""


def start_writer(folder, count: int, most: int = 10_000) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder.folder), str(count), str(most)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_writer_leaves_whole_voices_only_and_blocks_nobody(folder, caplog):
    process = start_writer(folder, 10_000)
    process.stdin.write("go\n")
    process.stdin.flush()
    while len(folder.list()) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    saved = folder.list()
    assert len(saved) >= 5
    for found in saved:
        assert len(load_reference(folder.load(found.id)[1], Limits()).waveform.samples) == 48000
    (folder.folder / ".0123456789abcdef.zip.part").write_bytes(b"half a voice")
    new = folder.save(draft("after"), WAVEFORM)
    assert len(folder.list()) == len(saved) + 1
    assert {path.suffix for path in folder.folder.iterdir()} == {".zip"}
    assert folder.get(new.id) == new
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_two_processes_keep_to_one_limit(folder):
    writers = [start_writer(folder, 20, most=25) for _ in range(2)]
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in writers]
    assert sum("There are 25 saved voices" in error for error in errors) >= 1
    assert len(folder.list()) == 25


# Through the service.


@pytest.fixture
def service(make_engine, tmp_path):
    engine = make_engine()
    running = Service(Settings(cache_dir=tmp_path / "cache", data_dir=tmp_path / "data"), lambda: engine)
    running.start()
    assert running.wait_until_decided(120) == "ready"
    yield running
    running.close()


def test_the_first_clone_of_a_saved_voice_hits_the_cache(service, caplog):
    with caplog.at_level(logging.INFO, "stepaudio.service"):
        saved = service.save_voice(draft(audio=WAV)).result(60).voice
    assert "FunASR cache MISS" in caplog.text
    made = service.submit_clone(CloneRequest(voice=saved.id, text="Hello.", **SHORT)).result(60).synthesis
    assert made.cache_hit
    same = service.submit_clone(CloneRequest(audio=WAV, transcript="the words", text="Hello.", **SHORT)).result(60)
    np.testing.assert_array_equal(made.waveform.samples, same.synthesis.waveform.samples)


def test_what_is_cut_from_a_long_voice_is_told(service, caplog):
    with caplog.at_level(logging.INFO, "stepaudio.service"):
        saved = service.save_voice(draft(audio=encode_wav(voice(31.0, 8000)))).result(60).voice
    assert saved.seconds == 30.0
    assert "its first 30 s are used" in caplog.text


def test_a_saved_voice_may_be_larger_than_an_upload(make_engine, tmp_path):
    """It is kept as float32, which may take several times the bytes of the file that was sent."""
    engine = make_engine()
    service = Service(Settings(data_dir=tmp_path / "data", max_upload_megabytes=1), lambda: engine)
    service.start()
    target = io.BytesIO()
    soundfile.write(target, voice(7.0, 48000).samples, 48000, format="FLAC")
    assert len(target.getvalue()) < 2**20
    saved = service.save_voice(draft(audio=target.getvalue())).result(60).voice
    assert len(service.voices.load(saved.id)[1]) > 2**20
    assert service.submit_clone(CloneRequest(voice=saved.id, text="Hello.", **SHORT)).result(60).wav[:4] == b"RIFF"
    service.close()


def test_another_transcript_may_be_given_with_a_saved_voice(service):
    saved = service.save_voice(draft(audio=WAV)).result(60).voice
    ids = [
        service.submit_clone(CloneRequest(voice=saved.id, transcript=words, text="Hello.", **SHORT))
        .result(60)
        .synthesis.prompt_ids
        for words in ("", "the words", "other words")
    ]
    assert ids[0] == ids[1] != ids[2]


def test_an_imported_voice_is_new_and_its_first_clone_hits(service):
    saved = service.save_voice(draft(audio=WAV)).result(60).voice
    exported = service.voices.export(saved.id)
    with pytest.raises(InvalidInput, match="There is a saved voice 'Ada' already"):
        service.save_voice(read_export(exported)).result(60)
    service.voices.delete(saved.id)
    copy = service.save_voice(read_export(exported)).result(60).voice
    assert copy.id != saved.id
    assert service.submit_clone(CloneRequest(voice=copy.id, text="a", **SHORT)).result(60).synthesis.cache_hit


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"audio": b"text"}, "cannot be read"), ({"audio": WAV, "name": ""}, "name of the voice is empty")],
)
def test_a_voice_that_cannot_be_saved_is_refused_and_logged(service, caplog, fields, sentence):
    with pytest.raises(InvalidInput, match=sentence) as refused:
        service.save_voice(draft(**fields)).result(60)
    assert f"Save voice refused ({refused.typename}): {refused.value}" in caplog.text
    assert service.voices.list() == ()


def test_an_imported_sound_is_checked_like_an_upload(service):
    silent = archive({NOTES: notes(), SOUND: encode_wav(Waveform(np.zeros(24000, np.float32), 24000))})
    with pytest.raises(InvalidInput, match="silent"):
        service.save_voice(read_export(silent)).result(60)
    assert service.voices.list() == ()


def test_a_voice_that_is_gone_is_one_sentence(service):
    with pytest.raises(InvalidInput, match="There is no saved voice"):
        service.submit_clone(CloneRequest(voice="0" * 16, text="a", **SHORT)).result(60)
