"""clone, edit and voices from the command line, on tiny weights."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from stepaudio.cli import main
from stepaudio.commands.common import SETTINGS
from stepaudio.settings import Settings
from stepaudio.voices import VoiceDraft, VoiceFolder
from tests.conftest import ROOT, voice

QUICK = ("--max-seconds", "0.6", "--flow-steps", "1", "--seed", "5")
WORDS = ("--transcript", "the words")


@pytest.fixture
def sound(tmp_path) -> str:
    soundfile.write(tmp_path / "ref.wav", voice(1.0).samples, 24000)
    return str(tmp_path / "ref.wav")


@pytest.fixture
def stepaudio(tiny_weights, tmp_path, monkeypatch):
    """Run a command in this process, with folders of the test's own; the log's handlers are put back."""
    for name in [name for name in os.environ if name.startswith("STEPAUDIO_")]:
        monkeypatch.delenv(name)
    for name, value in (("WEIGHTS", tiny_weights), ("CACHE_DIR", tmp_path / "cache"), ("DATA_DIR", tmp_path / "data")):
        monkeypatch.setenv(f"STEPAUDIO_{name}", str(value))
    monkeypatch.setenv("STEPAUDIO_DEVICE", "cpu")
    root, package = logging.getLogger(), logging.getLogger("stepaudio")
    before = root.handlers[:], root.level, package.level
    yield lambda *arguments: main([str(argument) for argument in arguments])
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    package.setLevel(before[2])
    logging.captureWarnings(False)


@pytest.fixture
def presets(tiny_weights, tmp_path, stepaudio, monkeypatch):
    """The weights come with two voices, Grace and Ada."""
    folder = tmp_path / "with presets"
    (folder / "presets").mkdir(parents=True)
    for part in tiny_weights.iterdir():
        (folder / part.name).symlink_to(part)
    for name, pitch in (("1-grace", 200.0), ("2-ada", 90.0)):
        soundfile.write(folder / "presets" / f"{name}.flac", voice(1.0, pitch=pitch).samples, 24000)
        notes = {"name": name[2:].capitalize(), "transcript": "the words of it", "language": "en"}
        (folder / "presets" / f"{name}.json").write_text(json.dumps(notes))
    monkeypatch.setenv("STEPAUDIO_WEIGHTS", str(folder))
    return folder / "presets"


@pytest.fixture
def no_models(monkeypatch):
    monkeypatch.setattr("stepaudio.loading.load_engine", lambda *args: pytest.fail("nothing was to be loaded"))


def test_a_clone_is_written_in_the_format_of_its_ending_and_logged(stepaudio, sound, tmp_path, capsys):
    assert stepaudio("clone", "Hello.", "--reference", sound, *WORDS, "-o", tmp_path / "out.flac", *QUICK) == 0
    samples, rate = soundfile.read(tmp_path / "out.flac")
    assert (len(samples), rate) == (2880 * 5, 24000)
    log = capsys.readouterr().err
    assert "   - Clone:" in log
    assert "seed 5" in log
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out.flac", "ref.wav"]


def test_the_same_seed_gives_the_same_file_and_another_format_the_same_sound(stepaudio, sound, tmp_path):
    for name in ("a.wav", "b.wav", "c.flac"):
        assert stepaudio("clone", "Hello.", "--reference", sound, *WORDS, "-o", tmp_path / name, *QUICK) == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    a, c = (soundfile.read(tmp_path / name)[0] for name in ("a.wav", "c.flac"))
    np.testing.assert_allclose(a, c, atol=1 / 32000)  # 16 bits, rounded by two writers


def test_text_comes_from_standard_input_and_sound_goes_to_standard_output(tiny_weights, sound, tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPAUDIO_")}
    folders = {"STEPAUDIO_WEIGHTS": str(tiny_weights), "STEPAUDIO_CACHE_DIR": str(tmp_path / "cache")}
    folders["PATH"] = str(tmp_path)  # no ffmpeg, of which FunASR then speaks
    command = [sys.executable, "-m", "stepaudio", "clone", "-", "--reference", sound, *WORDS, "-o", "-", *QUICK]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, **folders}, input="你好。".encode(), capture_output=True, check=True
    )
    assert done.stdout.startswith(b"RIFF")
    samples, rate = soundfile.read(io.BytesIO(done.stdout))
    assert (len(samples), rate) == (2880 * 5, 24000)
    assert b"Total time" in done.stderr
    assert b"ffmpeg is not installed" in done.stderr
    refused = subprocess.run(
        command, cwd=ROOT, env={**clean, **folders}, input=b"\xff\xfe", capture_output=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert refused.stderr == b"The text on standard input is not UTF-8.\n"


def test_a_sound_that_nobody_reads_ends_with_the_status_of_a_closed_pipe(stepaudio, sound, monkeypatch, capsys):
    end, start = os.pipe()
    os.close(end)
    with os.fdopen(start, "w") as unread:
        monkeypatch.setattr("sys.stdout", unread)
        assert stepaudio("clone", "a", "--reference", sound, *WORDS, "-o", "-", *QUICK) == 141
    assert "Traceback" not in capsys.readouterr().err


def test_edits_are_chained_through_files(stepaudio, sound, tmp_path, capsys):
    new = ("--new-text", "the [Sigh] words")
    first = (*new, "--reference", sound, *WORDS, "-o", tmp_path / "a.wav", *QUICK)
    assert stepaudio("edit", "paralinguistic", *first) == 0
    second = ("--reference", tmp_path / "a.wav", "--transcript", "the [Sigh] words", "-o", tmp_path / "b.wav", *QUICK)
    assert stepaudio("edit", "style", "whisper", "--passes", "2", *second) == 0
    assert stepaudio("edit", "denoise", "--reference", sound, "-o", tmp_path / "c.wav", *QUICK) == 0
    assert len({(tmp_path / name).read_bytes() for name in ("a.wav", "b.wav", "c.wav")}) == 3
    log = capsys.readouterr().err
    assert log.count("   - Edit:") == 3
    assert "Pass 2" in log


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("clone", "a", "--reference", "nowhere.wav", *WORDS, "-o", "x.wav"), "nowhere.wav cannot be read: No such"),
        (("clone", "a", "--reference", "REF", "-o", "x.wav"), "The transcript of the reference is empty."),
        (("clone", "a", "--reference", "REF", *WORDS, "-o", "x.doc"), "'x.doc' ends in no output format"),
        (("clone", "a", "--reference", "REF", *WORDS, "-o", "nowhere/x.wav"), "x.wav cannot be written: No such file"),
        (
            ("edit", "denoise", "--reference", "REF", "--format", "wav", "-o", "."),
            ". cannot be written: Is a directory",
        ),
        (("clone", "a", "--reference", "REF", *WORDS, "--seed", "-5", "-o", "x.wav"), "The seed is -5; it must lie"),
        (("doctor", "--real", "--to", "nowhere/x.md"), "x.md cannot be written: No such file"),
        (("clone", "a", "--voice", "Ada", "-o", "x.wav"), "There is no saved voice 'Ada'. The command 'voices"),
        (("edit", "emotion", "--reference", "REF", *WORDS, "-o", "x.wav"), "none was given"),
        (("edit", "speed", "happy", "--reference", "REF", *WORDS, "-o", "x.wav"), "'happy' is not one of them"),
        (("voices", "add", "", "--reference", "REF", *WORDS), "The name of the voice is empty."),
        (("voices", "import", "REF"), "not a voice that stepaudio has exported"),
        (("voices", "export", "Ada", "x.zip"), "There is no saved voice 'Ada'."),
    ],
)
def test_what_cannot_work_is_told_in_one_sentence_before_the_models_are_loaded(
    stepaudio, sound, capsys, no_models, arguments, sentence
):
    assert stepaudio(*(sound if argument == "REF" else argument for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_an_output_whose_folder_goes_while_the_voice_speaks_is_one_sentence(stepaudio, sound, tmp_path, capsys):
    output = tmp_path / "there" / "out.wav"
    output.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepaudio.commands.speak.encode", lambda *args: output.parent.rmdir() or b"sound")
        assert stepaudio("clone", "a", "--reference", sound, *WORDS, "-o", output, *QUICK) == 2
    assert "out.wav cannot be written: No such file or directory." in capsys.readouterr().err.splitlines()[-1]


def test_what_the_pipeline_refuses_is_told_too(stepaudio, sound, tmp_path, capsys):
    assert stepaudio("clone", " ", "--reference", sound, *WORDS, "-o", tmp_path / "x.wav", *QUICK) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "The text is empty."
    assert not (tmp_path / "x.wav").exists()


def test_a_cut_reference_is_told(stepaudio, sound, tmp_path, capsys):
    flags = ("--max-reference-seconds", "0.75", "-o", tmp_path / "x.wav", *QUICK)
    assert stepaudio("clone", "a", "--reference", sound, *WORDS, *flags) == 0
    assert "its first 0.75 s are used" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Grace", "1-grace"])
def test_a_preset_speaks_by_its_name_and_its_id_with_its_own_words(stepaudio, presets, tmp_path, name):
    assert stepaudio("clone", "a", "--voice", name, "-o", tmp_path / "a.wav", *QUICK) == 0
    as_file = ("--reference", presets / "1-grace.flac", "--transcript", "the words of it")
    assert stepaudio("clone", "a", *as_file, "-o", tmp_path / "b.wav", *QUICK) == 0
    other = ("--voice", name, "--transcript", "other words")
    assert stepaudio("clone", "a", *other, "-o", tmp_path / "c.wav", *QUICK) == 0
    sounds = [(tmp_path / f"{letter}.wav").read_bytes() for letter in "abc"]
    assert sounds[0] == sounds[1] != sounds[2]
    assert stepaudio("edit", "style", "whisper", "--voice", name, "-o", tmp_path / "d.wav", *QUICK) == 0


def test_a_saved_voice_is_not_given_the_name_of_a_preset(stepaudio, presets, capsys):
    folder = VoiceFolder.of(Settings())
    saved = folder.save(VoiceDraft(b"", "Mine", "words"), voice(1.0))
    assert stepaudio("voices", "rename", "Mine", "grace") == 2
    assert "is a voice that came with the weights" in capsys.readouterr().err
    assert folder.list() == (saved,)


def test_a_saved_voice_comes_before_a_preset_of_its_name_and_both_are_listed(stepaudio, presets, tmp_path, capsys):
    saved = VoiceFolder.of(Settings()).save(VoiceDraft(b"", "Ada", "the words of it"), voice(1.0, pitch=300.0)).id
    for name, own in (("Ada", "a.wav"), (saved, "b.wav"), ("2-ada", "c.wav")):
        assert stepaudio("clone", "a", "--voice", name, "-o", tmp_path / own, *QUICK) == 0
    sounds = [(tmp_path / f"{letter}.wav").read_bytes() for letter in "abc"]
    assert sounds[0] == sounds[1] != sounds[2]
    capsys.readouterr()
    assert stepaudio("voices", "list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows] == [(saved, "Ada"), ("1-grace", "Grace"), ("2-ada", "Ada")]
    assert ["preset" in row for row in rows] == [False, True, True]
    assert stepaudio("voices", "list", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(voice["id"], voice["preset"]) for voice in shown] == [(saved, False), ("1-grace", True), ("2-ada", True)]
    assert len({tuple(sorted(voice)) for voice in shown}) == 1


def test_voices_are_listed_without_weights_and_what_cannot_be_is_said(stepaudio, capsys, monkeypatch):
    monkeypatch.setenv("STEPAUDIO_WEIGHTS", "nowhere")
    assert stepaudio("voices", "list") == 0
    told = capsys.readouterr()
    assert told.out == "There are no saved voices.\n"
    assert "nowhere does not hold" in told.err


def test_what_libraries_print_while_the_models_load_is_no_result(stepaudio, sound, capsys, monkeypatch):
    from stepaudio import doctor, loading

    def talking(function):
        return lambda *arguments: sys.stdout.write("A notice.\n") and function(*arguments)

    monkeypatch.setattr(loading, "load_engine", talking(loading.load_engine))
    monkeypatch.setattr(doctor, "examine", talking(doctor.examine))
    assert stepaudio("voices", "add", "Ada", "--reference", sound, *WORDS) == 0
    told = capsys.readouterr()
    assert told.out == f"{VoiceFolder.of(Settings()).list()[0].id}\n"
    assert "A notice.\n" in told.err
    assert stepaudio("doctor") == 0
    told = capsys.readouterr()
    assert "A notice." not in told.out
    assert "A notice.\n" in told.err


def test_what_is_cut_from_a_voice_that_is_added_is_told(stepaudio, sound, capsys, monkeypatch):
    monkeypatch.setenv("STEPAUDIO_MAX_REFERENCE_SECONDS", "0.8")
    assert stepaudio("voices", "add", "Ada", "--reference", sound, *WORDS) == 0
    told = capsys.readouterr()
    assert told.out == f"{VoiceFolder.of(Settings()).list()[0].id}\n"
    assert "\nThe reference is 1.0 s long; its first 0.8 s are used.\n" in told.err


def test_a_voice_lives_through_all_commands(stepaudio, sound, tmp_path, capsys):
    consent = ("--language", "en", "--consent", "herself, by letter")
    assert stepaudio("voices", "add", "Ada", "--reference", sound, *WORDS, *consent) == 0
    added = capsys.readouterr()
    voice_id = added.out.strip()
    assert "FunASR cache MISS" in added.err
    assert stepaudio("clone", "a", "--voice", "Ada", "-o", tmp_path / "a.wav", *QUICK) == 0
    assert "FunASR cache HIT" in capsys.readouterr().err
    assert stepaudio("voices", "list") == 0
    listed = capsys.readouterr().out
    assert voice_id in listed
    assert "Ada" in listed
    assert stepaudio("voices", "rename", "Ada", "Grace") == 0
    assert stepaudio("voices", "export", "Grace", tmp_path / "grace.zip") == 0
    assert stepaudio("voices", "remove", voice_id) == 0
    assert stepaudio("voices", "list") == 0
    assert capsys.readouterr().out == "There are no saved voices.\n"
    assert stepaudio("voices", "import", tmp_path / "grace.zip") == 0
    new_id = capsys.readouterr().out.strip()
    assert stepaudio("voices", "list", "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["id"] == new_id != voice_id
    assert (shown["name"], shown["transcript"], shown["language"]) == ("Grace", "the words", "en")
    assert shown["consent"] == "herself, by letter"
    (kept,) = VoiceFolder.of(Settings()).list()
    assert kept.id == new_id


def test_the_commands_offer_no_setting_that_only_the_server_reads():
    package = ROOT / "stepaudio"
    server = {"web", "api", "server", "doors", "batches", "tempfolder", "settings"}
    files = [path for path in package.rglob("*.py") if path.relative_to(package).with_suffix("").parts[0] not in server]
    read = {name for path in files for name in re.findall(r"settings\.(\w+)", path.read_text(encoding="utf-8"))}
    if "max_upload_bytes" in read:  # what the pipeline's side reads of max_upload_megabytes
        read.add("max_upload_megabytes")
    assert set(SETTINGS) <= read
