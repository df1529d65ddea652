"""doctor --real: the bridge to weights that are not here, tried on tiny ones."""

from __future__ import annotations

import json
import shutil

import pytest

from stepaudio import cli, fieldtest
from stepaudio.asr import Transcriber
from stepaudio.audiofile import encode_wav
from stepaudio.encoder.fingerprint import hash_file
from stepaudio.snapshot import RECORD
from tests.conftest import voice


@pytest.fixture(scope="module")
def folder(tiny_weights, tmp_path_factory):
    """A weights folder as the download leaves one."""
    copy = shutil.copytree(tiny_weights, tmp_path_factory.mktemp("real") / "weights")
    names = [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()]
    seals = {name: {"checksums": [f"sha256:{hash_file(copy / name)[0]}"]} for name in names}
    (copy / RECORD).write_text(json.dumps(seals))
    return copy


def run(folder, tmp_path, *more: str) -> int:
    arguments = [
        "doctor",
        "--real",
        "--weights",
        str(folder),
        "--cache-dir",
        str(tmp_path / "cache"),
        "--device",
        "cpu",
    ]
    return cli.main([*arguments, "--to", str(tmp_path / "report.md"), *more])


def test_one_report_tells_files_memory_engines_stages_and_what_was_heard(folder, tmp_path, capsys):
    assert run(folder, tmp_path, "--text", "Hello.") == 0
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == report
    digest = hash_file(folder / "Step-Audio-EditX" / "config.json")[0]
    for words in (
        f"sha256 {digest}, as published",
        "GPU driver",
        "Memory",
        "| torch-bf16 |",
        "Not exported, so not compared: onnx, onnx-int8",
        "❌ FunASR cache MISS, encoding...",
        "✅ FunASR cache HIT!",
        "   - Clone: ",
        "✅ The same seed gave the same samples.",
        "✅ The second one hit the cache.",
        "Not written down again: These weights are random and know no words",
        "**All is well.**",
    ):
        assert words in report


def test_a_changed_file_is_found_by_its_hash(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "changed")
    tokens = next((copy / "Step-Audio-Tokenizer").rglob("seg_dict"))
    tokens.write_text(tokens.read_text() + "one more\n")
    assert run(copy, tmp_path, "--text", "Hello.") == 1
    report = capsys.readouterr().out
    (line,) = [line for line in report.splitlines() if "not as published" in line]
    assert line.startswith("❌")
    assert "seg_dict" in line
    assert "**Something is wrong" in report


def test_damaged_weights_are_told_and_nothing_more_is_tried(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "damaged")
    (copy / "Step-Audio-EditX" / "CosyVoice-300M-25Hz" / "hift.pt").write_bytes(b"no")
    assert run(copy, tmp_path) == 1
    report = capsys.readouterr().out
    assert "hift.pt" in report
    assert "cloned twice" not in report


def test_a_recording_needs_its_words(folder, tmp_path, capsys):
    assert run(folder, tmp_path, "--audio", "voice.wav") == cli.EXIT_ERROR
    assert "--transcript" in capsys.readouterr().err


def test_files_that_no_download_recorded_are_told_as_they_are(tiny_weights):
    from stepaudio.settings import Settings
    from stepaudio.weights import choose_weights

    found = list(fieldtest._files(choose_weights(Settings(weights=str(tiny_weights)))))
    assert len(found) > 10
    assert {finding.mark for finding in found} == {"note"}


@pytest.mark.parametrize(
    ("words", "well"),
    [("Hello, you!", True), ("hello you", True), ("Good bye to everybody.", False), ("", False)],
)
def test_what_is_heard_decides(words, well, tmp_path):
    (tmp_path / "voice.wav").write_bytes(encode_wav(voice(1.0)))
    trial = fieldtest.Trial(tmp_path / "voice.wav", "the words", "Hello, you!")
    heard, good = fieldtest._heard(Transcriber(lambda samples: words, name="A stand-in"), _Sound(), trial)
    assert good is well
    assert heard.startswith("✅" if well else "❌")


class _Sound:
    waveform = voice(1.0)


def test_likeness_of_texts():
    assert fieldtest.heard_as("你好，世界。", "你好世界") == 1.0
    assert fieldtest.heard_as("abcd", "abxd") == pytest.approx(0.75)
    assert fieldtest.heard_as("", "") == 1.0
