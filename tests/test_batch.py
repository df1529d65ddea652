"""Batches on tiny weights: every line once, whatever ends the program in between."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile

from stepaudio.audiofile import encode_wav
from stepaudio.commands.batch import MANIFEST, Line, read_lines
from stepaudio.commands.common import Source
from stepaudio.errors import InvalidInput, NotFound
from stepaudio.settings import Settings
from stepaudio.voices import VoiceDraft, VoiceFolder
from tests.conftest import ROOT, voice
from tests.test_commands import no_models, presets, sound, stepaudio  # noqa: F401 - fixtures

QUICK = ("--max-seconds", "0.36", "--flow-steps", "1")


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines()]


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def batch(stepaudio, sound, tmp_path, out):  # noqa: F811
    """Run a batch over an input of this name and content, with the reference of the test unless told otherwise."""

    def run(content: str, *arguments, name: str = "in.txt", reference: bool = True) -> int:
        (tmp_path / name).write_text(content, encoding="utf-8")
        given = ("--reference", sound, "--transcript", "the words") if reference else ()
        return stepaudio("batch", tmp_path / name, "-o", out, *given, *QUICK, *arguments)

    return run


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.proof)])
def test_many_lines_in_one_voice_encode_it_once(batch, out, capsys, count):
    assert batch("".join(f"line {n}\n\n" for n in range(count))) == 0
    log = capsys.readouterr().err
    assert log.count("FunASR cache MISS") == 1
    assert log.count("FunASR cache HIT") == count - 1
    assert files(out) == [*(f"{n:06d}.wav" for n in range(1, count + 1)), MANIFEST]
    made = records(out)
    assert [record["line"] for record in made] == list(range(1, count + 1))
    for record in made:
        assert record["text"] == f"line {record['line'] - 1}"
        samples, rate = soundfile.read(out / record["file"])
        assert len(samples) / rate == pytest.approx(record["seconds"], abs=1e-3)
        assert record["stopped"] == "length"
    assert f"{count} lines spoken, 0 failed." in log
    assert re.search(rf"\[3/{count}\] line 5: 000003\.wav  0\.36 s  \(\d+\.\d lines a minute, 0:\d\d:\d\d left\)", log)


def test_texts_come_from_standard_input_too(stepaudio, sound, out, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo\n")))
    assert stepaudio("batch", "-", "-o", out, "--reference", sound, "--transcript", "the words", *QUICK) == 0
    assert [record["text"] for record in records(out)] == ["one", "two"]


def test_a_second_run_does_nothing_and_loads_nothing(batch, out, capsys, request):
    batch("a\nb\n")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    request.getfixturevalue("no_models")
    assert batch("a\nb\n") == 0
    assert "2 lines, 2 of them done already." in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.wav")} == before
    assert len(records(out)) == 2


@pytest.mark.parametrize("change", ["text", "flag", "lost file", "short file", "lost manifest", "format"])
def test_what_has_changed_is_made_anew_and_the_rest_is_not(batch, out, change):
    batch("a\nb\n", "--seed", "1")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    if change == "lost file":
        (out / "000002.wav").unlink()
    elif change == "short file":
        (out / "000002.wav").write_bytes(b"RIFF")
    elif change == "lost manifest":
        (out / MANIFEST).unlink()
    more = ("--format", "flac") if change == "format" else ("--seed", "2") if change == "flag" else ("--seed", "1")
    assert batch("a\nc\n" if change == "text" else "a\nb\n", *more) == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    assert (after["000001.wav"] == before["000001.wav"]) == (change not in ("flag", "lost manifest"))
    assert (after["000002.wav"] == before["000002.wav"]) == (change == "format")
    assert sorted(record["line"] for record in records(out)) == [1, 2]
    assert len(list(out.glob("*.flac"))) == (2 if change == "format" else 0)


def test_a_line_that_fails_costs_itself_and_the_status_and_is_tried_again(batch, out, capsys):
    content = '{"text": "a"}\n{"text": " "}\n{"text": "b", "seed": 7}\n'
    assert batch(content, name="in.jsonl") == 1
    assert "2 lines spoken, 1 failed." in capsys.readouterr().err
    made = {record["line"]: record for record in records(out)}
    assert made[2]["error"] == "The text is empty."
    assert made[3]["seed"] == 7
    assert files(out) == ["000001.wav", "000003.wav", MANIFEST]
    kept = (out / "000001.wav").stat().st_mtime_ns
    assert batch(content.replace('" "', '"now"'), name="in.jsonl") == 0
    assert "3 lines, 2 of them done already." in capsys.readouterr().err
    assert sorted(record["line"] for record in records(out)) == [1, 2, 3]
    assert not any("error" in record for record in records(out))
    assert (out / "000001.wav").stat().st_mtime_ns == kept


def test_lines_may_name_voices_of_their_own(batch, out, capsys):
    folder = VoiceFolder.of(Settings())
    ids = [
        folder.save(VoiceDraft(b"", name, "words"), voice(1.0, pitch=pitch)).id
        for name, pitch in (("Ada", 200), ("Bo", 90))
    ]
    content = f"text,voice,seed\nhello,Ada,5\nhello,{ids[1]},5\nhello,,5\nhello,Ada,5\n"
    assert batch(content, name="in.csv") == 0
    made = {record["line"]: record for record in records(out)}
    assert [made[n]["voice"] for n in (1, 2, 3, 4)] == [*ids, "", ids[0]]
    sounds = [(out / f"{n:06d}.wav").read_bytes() for n in (1, 2, 3, 4)]
    assert sounds[0] == sounds[3]
    assert len(set(sounds)) == 3
    assert capsys.readouterr().err.count("FunASR cache MISS") == 3


def test_lines_may_name_presets_and_so_may_the_whole_batch(batch, presets, out, capsys):  # noqa: F811
    content = "text,voice,seed\nhello,Grace,5\nhello,,5\nhello,2-ada,5\n"
    assert batch(content, "--voice", "Grace", name="in.csv", reference=False) == 0
    made = {record["line"]: record for record in records(out)}
    assert [made[n]["voice"] for n in (1, 2, 3)] == ["Grace", "Grace", "2-ada"]
    sounds = [(out / f"{n:06d}.wav").read_bytes() for n in (1, 2, 3)]
    assert sounds[0] == sounds[1] != sounds[2]
    assert batch(content, "--voice", "Grace", name="in.csv", reference=False) == 0
    assert "3 lines, 3 of them done already." in capsys.readouterr().err


def test_an_internal_error_costs_its_line_and_the_batch_goes_on(batch, out, monkeypatch, capsys):
    from stepaudio.pipeline import Pipeline

    clone = Pipeline.clone

    def sometimes(self, reference, text, *args, **kwargs):
        if text == "b":
            raise RuntimeError("a bug")
        return clone(self, reference, text, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "clone", sometimes)
    assert batch("a\nb\nc\n") == 1
    made = {record["line"]: record for record in records(out)}
    assert re.fullmatch(r"Internal error, request \w{8}: the log says more\.", made[2]["error"])
    assert files(out) == ["000001.wav", "000003.wav", MANIFEST]
    assert "RuntimeError: a bug" in capsys.readouterr().err


BAD_INPUTS = {
    "in.txt": [("\n \n", "holds no text")],
    "in.doc": [("a", r"ends in none of \.txt, \.csv, \.jsonl")],
    "in.csv": [
        ("voice\nAda\n", "Line 2 needs the field text"),
        ("text,colour\na,red\n", "Line 2 needs the field text"),
        ("text\na,b\n", "Line 2 needs the field text"),
        ("text,seed\na,x\n", "Line 2 of the CSV file cannot be read"),
        ('text\n"a\n', "CSV file cannot be read"),
        ('text,voice\n"a\nb",\n\nc,Nobody\n', "Line 5: There is no saved voice 'Nobody'"),
        ("text,seed\na,5000000000\n", "Line 2: The seed is 5000000000; it must lie between"),
        ("text,voice\na,\nb,Nobody\n", "Line 3: There is no saved voice 'Nobody'"),
    ],
    "in.jsonl": [
        ('{"text": "a"}\n{"text"\n', "Line 2 of the JSONL file is not JSON"),
        ("[" * 100_000, "Line 1 of the JSONL file is not JSON"),
        ('["a"]', "Line 1 needs the field text"),
        ('{"text": 5}', "The field text of line 1 is not text"),
        ('{"text": "a", "seed": true}', "The field seed of line 1 is not a whole number"),
        ('\n{"text": "a"}\n{"text": "b", "voice": "Nobody"}', "Line 3: There is no saved voice 'Nobody'"),
        ('\n\n{"text": 5}', "The field text of line 3 is not text"),
        ('\n{"text": "a", "seed": -1}', "Line 2: The seed is -1; it must lie between"),
        ('{"text": "a", "seed": null}', "The field seed of line 1 is not a whole number"),
    ],
}


def nobody(name: str) -> Source:
    """Find no voice, whatever its name."""
    raise NotFound(f"There is no saved voice {name!r}.")


@pytest.mark.parametrize(
    ("name", "content", "sentence"), [(n, *case) for n, cases in BAD_INPUTS.items() for case in cases]
)
def test_an_input_that_cannot_be_read_is_refused_whole(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match=sentence) as caught:
        read_lines(tmp_path / name, nobody, Line(0, "", "", "", None))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_told_before_anything_is_loaded(batch, out, capsys, no_models, tmp_path):  # noqa: F811
    assert batch("\na\n", reference=False) == 2
    assert capsys.readouterr().err == "Line 2 names no voice; give --reference or --voice for such lines.\n"
    assert batch("a\n", "--seed", "-5") == 2
    assert capsys.readouterr().err.startswith("The seed is -5; it must lie between 0 and ")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InvalidInput, match="is not UTF-8"):
        read_lines(tmp_path / "latin.txt", nobody, Line(0, "", "", "", None))
    assert not out.exists()


def test_who_stops_reading_the_log_ends_the_batch_and_no_folder_is_blamed(batch, out, monkeypatch, capsys):
    end, start = os.pipe()
    with os.fdopen(start, "w", buffering=1) as unread:
        monkeypatch.setattr("sys.stderr", unread)
        os.close(end)
        assert batch("a\nb\n") == 141
    assert not list(out.glob("*.wav"))


def test_a_folder_that_goes_while_lines_are_spoken_is_told_in_one_sentence(batch, out, monkeypatch, capsys):
    monkeypatch.setattr("stepaudio.commands.batch.encode", lambda *args: shutil.rmtree(out) or b"sound")
    assert batch("a\n") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"The folder {out} cannot be written: No such file or directory."


def test_a_byte_order_mark_and_half_characters_do_no_harm(batch, out):
    assert batch('\ufeff{"text": "a\\ud800b"}\n', name="in.jsonl") == 0
    assert records(out)[0]["file"] == "000001.wav"


# Sudden ends.

LINES = 16


@pytest.fixture
def start(tiny_weights, tmp_path, out):
    """Start the same batch in a process of its own, each time it is called."""
    (tmp_path / "ref.wav").write_bytes(encode_wav(voice(1.0)))
    (tmp_path / "in.txt").write_text("".join(f"line {n}\n" for n in range(LINES)))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPAUDIO_")}
    folders = {"STEPAUDIO_WEIGHTS": str(tiny_weights), "STEPAUDIO_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "stepaudio", "batch", str(tmp_path / "in.txt"), "-o", str(out)]
    command += ["--reference", str(tmp_path / "ref.wav"), "--transcript", "the words", *QUICK]
    processes = []

    def run() -> subprocess.Popen:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**clean, **folders},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            # A shell starts what runs behind with interrupts ignored, and tests may be started so.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_files(process: subprocess.Popen, folder, count: int) -> None:
    end = time.monotonic() + 120
    while len(list(folder.glob("*.wav"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_whole(folder) -> None:
    for path in folder.glob("*.wav"):
        samples, rate = soundfile.read(path)
        assert len(samples) / rate == pytest.approx(0.36)


def test_killed_and_started_again_it_finishes_with_nothing_twice_and_nothing_lost(start, out):
    stamps: dict[str, int] = {}
    for count in (3, 8, 11):
        process = start()
        wait_for_files(process, out, count)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert_whole(out)
        # A line is done with its record; the torn end of one is none.
        rows = (out / MANIFEST).read_text(encoding="utf-8").split("\n")
        done = {json.loads(row)["file"]: row for row in rows if row.endswith("}")}
        assert stamps.items() <= {name: (out / name).stat().st_mtime_ns for name in done}.items()
        stamps = {name: (out / name).stat().st_mtime_ns for name in done}
    with (out / MANIFEST).open("a") as manifest:
        manifest.write('{"line": 16, "key": "cut o')
    (out / ".000016.wav.part").write_bytes(b"RIFF")
    process = start()
    log = process.communicate(timeout=120)[1]
    assert process.returncode == 0, log
    assert f"{LINES} lines, {len(stamps)} of them done already." in log
    assert files(out) == [*(f"{n:06d}.wav" for n in range(1, LINES + 1)), MANIFEST]
    assert sorted(record["line"] for record in records(out)) == list(range(1, LINES + 1))
    assert stamps.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")}.items()
    assert_whole(out)


def test_an_interrupt_leaves_no_half_file_and_a_status_of_its_own(start, out):
    process = start()
    wait_for_files(process, out, 2)
    process.send_signal(signal.SIGINT)
    log = process.communicate(timeout=60)[1]
    assert process.returncode == 130, log
    assert log.endswith("Interrupted.\n")
    assert "Traceback" not in log
    assert_whole(out)
    assert {path.suffix for path in out.iterdir()} == {".wav", ".jsonl"}
    assert len(records(out)) >= 1


def test_two_batches_do_not_write_into_one_folder(start, out):
    first = start()
    wait_for_files(first, out, 1)
    first.send_signal(signal.SIGSTOP)  # else it may be done before the other one has begun
    second = start()
    log = second.communicate(timeout=60)[1]
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "Another batch is at work in" in log
    assert first.poll() is None or first.returncode == 0
    assert first.wait(120) == 0
    assert len(records(out)) == LINES
