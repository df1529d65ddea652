"""Preset voices: what lies in a weights folder is listed and read; what is wrong costs that preset alone."""

from __future__ import annotations

import json
import logging

import pytest
import soundfile

from stepaudio.errors import InvalidInput, NotFound
from stepaudio.presets import PresetFolder
from tests.conftest import voice


def put(folder, name: str, notes: object, ending: str = ".flac") -> None:
    presets = folder / "presets"
    presets.mkdir(exist_ok=True)
    (presets / f"{name}.json").write_text(notes if isinstance(notes, str) else json.dumps(notes), encoding="utf-8")
    if ending:
        soundfile.write(presets / f"{name}{ending}", voice(1.0).samples, 24000)


def notes(**fields) -> dict[str, object]:
    return {"name": "Ada", "transcript": "Ada speaks.", "language": "en", **fields}


@pytest.mark.parametrize("ending", [".flac", ".wav"])
def test_a_preset_is_listed_and_gives_its_sound_and_words(tmp_path, ending):
    put(tmp_path, "ada", notes(), ending)
    put(tmp_path, "bo", notes(name="阿波", language="zh"), ending)
    folder = PresetFolder(tmp_path)
    assert [(preset.id, preset.name, preset.language) for preset in folder.list()] == [
        ("ada", "Ada", "en"),
        ("bo", "阿波", "zh"),
    ]
    preset, data = folder.load("ada")
    assert preset.transcript == "Ada speaks."
    assert data == (tmp_path / "presets" / f"ada{ending}").read_bytes()


def test_a_preset_is_found_by_its_id_or_by_its_name_in_any_case(tmp_path):
    put(tmp_path, "1-ada", notes(name="Ada Jos\u00e9"))
    put(tmp_path, "ada", notes(name="Bo"))
    folder = PresetFolder(tmp_path)
    for name, preset_id in (("ada", "ada"), ("1-ada", "1-ada"), ("ADA Jose\u0301 ", "1-ada"), ("bo", "ada")):
        assert folder.find(name)[0].id == preset_id
    with pytest.raises(NotFound, match="no preset voice 'Ada J'"):
        folder.find("Ada J")


def test_weights_without_presets_have_none(tmp_path):
    assert PresetFolder(tmp_path).list() == ()
    assert PresetFolder(None).list() == ()


WRONG = {
    "json": "{",
    "list": "[]",
    "field": {"name": "Ada", "language": "en"},
    "kind": notes(name=7),
    "empty": notes(transcript=" "),
    "large": json.dumps(notes(more="x" * 70_000)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_preset_that_cannot_be_used_costs_a_warning_and_no_other_preset(tmp_path, name, caplog):
    put(tmp_path, name, WRONG[name])
    put(tmp_path, "silent", notes(), ending="")
    put(tmp_path, "good", notes())
    with caplog.at_level(logging.WARNING):
        folder = PresetFolder(tmp_path)
    assert [preset.id for preset in folder.list()] == ["good"]
    assert caplog.text.count("cannot be used") == 2


@pytest.mark.parametrize("name", ["nobody", "../ada", "", "ada.json"])
def test_no_other_file_can_be_reached(tmp_path, name):
    put(tmp_path, "ada", notes())
    with pytest.raises(InvalidInput, match="no preset voice"):
        PresetFolder(tmp_path).load(name)


def test_a_sound_that_has_gone_is_told_in_one_sentence(tmp_path):
    put(tmp_path, "ada", notes())
    folder = PresetFolder(tmp_path)
    (tmp_path / "presets" / "ada.flac").unlink()
    with pytest.raises(InvalidInput, match="'Ada' cannot be read"):
        folder.load("ada")
